//! Pools and workers as a gateway sees them, by revision: looked at while somebody watches, and told as what has changed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, MutexGuard},
    time::Duration,
};

use futures::{Stream, stream};
use tether_breaker::State;
use tether_clock::{BootClock, Clock as _};
use tether_endpoints::{Endpoints, Order, Scope, Standing, View, Why};
use tether_proto::{
    common::WorkerRef,
    gateway::{
        BreakerState, GatewayState, PoolRoute, RouteState, WatchRoutesRequest, WatchRoutesResponse,
        WorkerRoute,
    },
};
use tether_types::PoolName;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{Control, lock};

/// Between two looks for those who watch: what changes with each call is told as often as people can read it.
const PACE: Duration = Duration::from_millis(100);

/// When to look though nothing has happened that is told: permissions and breakers change with time alone.
const SELDOM: Duration = Duration::from_secs(1);

/// How many pools and workers are kept in changes for those who come back.
const KEPT: usize = 10_000;

/// How long they are kept while nobody watches.
const LINGER: Duration = Duration::from_secs(60);

/// What is seen at one time.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    state: GatewayState,
    pools: BTreeMap<String, PoolRoute>,
    /// By pool, slot and incarnation.
    workers: BTreeMap<(String, u32, u64), WorkerRoute>,
}

/// What was seen last, and how it came to be so.
#[derive(Debug)]
pub(super) struct Board {
    instance: String,
    revision: u64,
    seen: Seen,
    /// The last changes; the latest is of the present revision.
    changes: VecDeque<Arc<WatchRoutesResponse>>,
    /// How many pools and workers are in them.
    entries: usize,
    /// The revision, for those who watch.
    told: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            instance: tether_kit::process::fresh_word(),
            revision: 0,
            seen: Seen::default(),
            changes: VecDeque::new(),
            entries: 0,
            told: watch::Sender::new(0),
        }
    }
}

impl Board {
    /// This is seen now; where it differs, that is another revision.
    fn take_in(&mut self, seen: Seen) {
        if seen == self.seen {
            return;
        }
        self.revision += 1;
        let before = std::mem::replace(&mut self.seen, seen);
        let change = WatchRoutesResponse {
            instance: self.instance.clone(),
            revision: self.revision,
            snapshot: false,
            state: self.seen.state.into(),
            pools: news(&before.pools, &self.seen.pools),
            removed_pools: gone(&before.pools, &self.seen.pools).cloned().collect(),
            workers: news(&before.workers, &self.seen.workers),
            removed_workers: gone(&before.workers, &self.seen.workers)
                .map(|(pool, slot, incarnation)| WorkerRef {
                    pool: pool.clone(),
                    slot: *slot,
                    incarnation: *incarnation,
                })
                .collect(),
        };
        self.entries += entries(&change);
        self.changes.push_back(Arc::new(change));
        while self.entries > KEPT
            && let Some(oldest) = self.changes.pop_front()
        {
            self.entries -= entries(&oldest);
        }
        self.told.send_replace(self.revision);
    }

    /// Nobody has watched for a while: whoever comes back is told everything.
    fn forget(&mut self) {
        let told = std::mem::take(&mut self.told);
        *self = Self {
            told,
            ..Self::default()
        };
    }

    /// What one has to be told who knows this revision of this instance.
    fn since(&self, instance: &str, revision: u64) -> Vec<Arc<WatchRoutesResponse>> {
        let oldest = self.revision - self.changes.len() as u64;
        if instance != self.instance || !(oldest..=self.revision).contains(&revision) {
            return vec![Arc::new(self.snapshot())];
        }
        let later = self.changes.iter().filter(|word| word.revision > revision);
        later.cloned().collect()
    }

    fn snapshot(&self) -> WatchRoutesResponse {
        WatchRoutesResponse {
            instance: self.instance.clone(),
            revision: self.revision,
            snapshot: true,
            state: self.seen.state.into(),
            pools: self.seen.pools.values().cloned().collect(),
            workers: self.seen.workers.values().cloned().collect(),
            ..WatchRoutesResponse::default()
        }
    }
}

/// How much a change takes.
fn entries(change: &WatchRoutesResponse) -> usize {
    let pools = change.pools.len() + change.removed_pools.len();
    pools + change.workers.len() + change.removed_workers.len()
}

fn news<K: Ord, V: Clone + PartialEq>(before: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<V> {
    let changed = now
        .iter()
        .filter(|(key, value)| before.get(key) != Some(value));
    changed.map(|(_, value)| value.clone()).collect()
}

fn gone<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    before.keys().filter(|key| !now.contains_key(key))
}

/// Of a word what is about one pool; all of it where that has no name.
fn about(pool: &str, word: &WatchRoutesResponse) -> WatchRoutesResponse {
    if pool.is_empty() {
        return word.clone();
    }
    let of = |worker: &&WorkerRoute| worker.worker.as_ref().is_some_and(|of| of.pool == pool);
    let pools = word.pools.iter().filter(|known| known.pool == pool);
    let removed_pools = word.removed_pools.iter().filter(|name| *name == pool);
    let removed_workers = word.removed_workers.iter().filter(|of| of.pool == pool);
    WatchRoutesResponse {
        instance: word.instance.clone(),
        pools: pools.cloned().collect(),
        removed_pools: removed_pools.cloned().collect(),
        workers: word.workers.iter().filter(of).cloned().collect(),
        removed_workers: removed_workers.cloned().collect(),
        ..*word
    }
}

/// What is known at one moment, not put into words yet: that takes longer than others may wait for the directory.
struct Glance {
    pools: Vec<(PoolName, PoolRoute)>,
    workers: Vec<View>,
}

impl Glance {
    fn of(endpoints: &Endpoints) -> Self {
        let pools = endpoints.pools().map(|name| {
            let breaker = endpoints.pool_breaker(name);
            let route = PoolRoute {
                pool: String::new(),
                queued: u32::try_from(endpoints.waiting(name)).unwrap_or(u32::MAX),
                max_calls: endpoints.most_waiting(name) as u64,
                drained: endpoints.stands(&Order::Drain(Scope::Pool(name.clone()))),
                breaker: breaker
                    .map_or(BreakerState::Unspecified, breaker_state)
                    .into(),
                trips: breaker.map_or(0, |breaker| breaker.trips),
            };
            (name.clone(), route)
        });
        Self {
            pools: pools.collect(),
            workers: endpoints.snapshot(BootClock.now()),
        }
    }

    fn seen(self, drains: bool) -> Seen {
        let pools = self.pools.into_iter().map(|(name, route)| {
            let pool = name.to_string();
            (pool.clone(), PoolRoute { pool, ..route })
        });
        let workers = self.workers.iter().map(|view| {
            let of = &view.endpoint.worker;
            let key = (of.pool.to_string(), of.slot, of.incarnation.0);
            (key, worker(view))
        });
        Seen {
            state: match drains {
                true => GatewayState::Draining,
                false => GatewayState::Serving,
            },
            pools: pools.collect(),
            workers: workers.collect(),
        }
    }
}

fn breaker_state(breaker: tether_breaker::Snapshot) -> BreakerState {
    match breaker.state {
        State::Closed { .. } => BreakerState::Closed,
        State::Open { .. } => BreakerState::Open,
        State::HalfOpen { .. } => BreakerState::HalfOpen,
    }
}

/// Whether a worker is given calls.
pub(super) fn state(view: &View) -> RouteState {
    let is_closed = matches!(view.breaker.state, State::Closed { .. });
    match view.refusal {
        Some(Why::Draining) => RouteState::Draining,
        Some(Why::Lapsed) => RouteState::Lapsed,
        // A few calls may go to one that is being tried.
        Some(Why::Ejected { .. } | Why::BreakersOpen { .. }) => RouteState::Ejected,
        _ if !is_closed => RouteState::Ejected,
        _ if view.doubted || view.endpoint.standing == Standing::Doubtful => RouteState::Doubtful,
        _ if view.is_slow => RouteState::Slow,
        _ => RouteState::Ready,
    }
}

/// A worker, as it is told.
pub(super) fn worker(view: &View) -> WorkerRoute {
    WorkerRoute {
        worker: Some((&view.endpoint.worker).into()),
        address: view.endpoint.address.to_string(),
        node: view
            .endpoint
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: state(view).into(),
        under_way: view.in_flight,
        capacity: view.capacity.map_or(0, std::num::NonZeroU32::get),
        breaker: breaker_state(view.breaker).into(),
        trips: view.breaker.trips,
    }
}

/// Somebody who watches.
struct Watching {
    control: Control,
    pool: String,
    instance: String,
    revision: u64,
    /// Found, and not told yet.
    found: VecDeque<WatchRoutesResponse>,
    told: watch::Receiver<u64>,
}

impl Control {
    /// All there is now.
    pub(super) fn all_routes(&self, pool: &str) -> WatchRoutesResponse {
        about(pool, &self.look().snapshot())
    }

    /// What somebody has missed, and what comes.
    pub(super) fn routes(
        &self,
        asked: WatchRoutesRequest,
    ) -> impl Stream<Item = WatchRoutesResponse> + Send + use<> {
        let watching = Watching {
            control: self.clone(),
            pool: asked.pool,
            instance: asked.resume_instance,
            revision: asked.resume_revision,
            found: VecDeque::new(),
            told: self.look().told.subscribe(),
        };
        self.0.watched.notify_one();
        stream::unfold(watching, async |mut watching| {
            let word = watching.next().await;
            Some((word, watching))
        })
    }

    fn look(&self) -> MutexGuard<'_, Board> {
        let mut board = lock(&self.0.board);
        let drains = self.0.drains.is_cancelled();
        let glance = Glance::of(&self.0.forwarder.directory.lock().endpoints);
        board.take_in(glance.seen(drains));
        board
    }

    /// Looks for all who watch, whenever there is one, for ever.
    pub(crate) async fn look_out(self) {
        let over = lock(&self.0.board).told.clone();
        loop {
            self.0.watched.notified().await;
            self.look_while_watched(&over).await;
            let linger = tokio::time::sleep(LINGER);
            tokio::select! {
                () = self.0.watched.notified() => self.0.watched.notify_one(),
                () = linger => lock(&self.0.board).forget(),
            }
        }
    }

    async fn look_while_watched(&self, told: &watch::Sender<u64>) {
        let mut moves = self.0.forwarder.directory.moves.subscribe();
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drains = false;
        while told.receiver_count() > 0 {
            // That the gateway is about to go is told at once.
            tokio::select! {
                _ = pace.tick() => {}
                () = self.0.drains.cancelled(), if !drains => {}
            }
            drains = self.0.drains.is_cancelled();
            moves.borrow_and_update();
            drop(self.look());
            tokio::select! {
                // Fails only without a directory, and that is held here.
                _ = moves.changed() => {}
                () = self.0.drains.cancelled(), if !drains => {}
                () = told.closed() => {}
                () = sleep(SELDOM) => {}
            }
        }
    }
}

impl Watching {
    async fn next(&mut self) -> WatchRoutesResponse {
        loop {
            if let Some(word) = self.found.pop_front() {
                return word;
            }
            self.told.borrow_and_update();
            let news = lock(&self.control.0.board).since(&self.instance, self.revision);
            match news.last() {
                Some(last) => {
                    self.instance.clone_from(&last.instance);
                    self.revision = last.revision;
                }
                // Fails only without a board, and that is held here.
                None => drop(self.told.changed().await),
            }
            self.found.extend(
                news.into_iter()
                    .map(|word| about(&self.pool, &word))
                    .filter(is_news),
            );
        }
    }
}

/// Whether there is anything in a word.
fn is_news(word: &WatchRoutesResponse) -> bool {
    word.snapshot
        || word.state() == GatewayState::Draining
        || !(word.pools.is_empty()
            && word.removed_pools.is_empty()
            && word.workers.is_empty()
            && word.removed_workers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pools: &[(&str, u32)]) -> Seen {
        let pool = |(name, queued): &(&str, u32)| {
            let route = PoolRoute {
                pool: (*name).to_owned(),
                queued: *queued,
                ..PoolRoute::default()
            };
            ((*name).to_owned(), route)
        };
        Seen {
            pools: pools.iter().map(pool).collect(),
            ..Seen::default()
        }
    }

    #[test]
    fn whoever_comes_back_is_told_what_it_missed_and_everything_where_that_is_not_known() {
        let mut board = Board::default();
        board.take_in(seen(&[("a", 0), ("b", 0)]));
        board.take_in(seen(&[("a", 0), ("b", 0)]));
        board.take_in(seen(&[("a", 1)]));
        let instance = board.instance.clone();

        let [change] = &board.since(&instance, 1)[..] else {
            panic!("there is one change");
        };
        assert_eq!((change.revision, change.snapshot), (2, false));
        assert_eq!(change.pools[0].queued, 1);
        assert_eq!(change.removed_pools, ["b"]);
        assert!(board.since(&instance, 2).is_empty());
        for (instance, revision) in [("", 0), ("another", 1), (instance.as_str(), 3)] {
            let told = board.since(instance, revision);
            assert!(told[0].snapshot, "{instance} {revision}");
        }

        for queued in 0..KEPT as u32 {
            board.take_in(seen(&[("a", queued + 2)]));
        }
        assert!(board.since(&instance, 1)[0].snapshot, "it is too long ago");
        assert_eq!(board.since(&instance, 2).len(), KEPT);
    }

    #[test]
    fn no_more_is_kept_of_many_than_of_few() {
        let mut board = Board::default();
        let names: Vec<_> = (0..KEPT / 4).map(|number| number.to_string()).collect();
        for queued in 0..9 {
            let pools: Vec<_> = names.iter().map(|name| (name.as_str(), queued)).collect();
            board.take_in(seen(&pools));
        }

        assert_eq!((board.entries, board.changes.len()), (KEPT, 4));
        let instance = board.instance.clone();
        assert_eq!(board.since(&instance, 5).len(), 4);
        assert!(board.since(&instance, 4)[0].snapshot);

        board.forget();
        board.take_in(seen(&[("a", 0)]));
        let told = board.since(&instance, 9);
        assert!(told[0].snapshot && told[0].instance != instance);
    }

    #[test]
    fn of_one_pool_nothing_is_told_of_others() {
        let mut board = Board::default();
        board.take_in(seen(&[("a", 0)]));
        board.take_in(seen(&[("a", 0), ("b", 4)]));

        let change = board.since(&board.instance, 1).remove(0);

        assert!(!is_news(&about("a", &change)));
        assert!(is_news(&about("b", &change)));
    }
}
