//! Pools and workers as a gateway sees them, by revision: looked at while somebody watches, and told as what has changed.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures::{Stream, stream};
use tether_breaker::State;
use tether_endpoints::{Endpoints, Order, Scope, Standing, View};
use tether_proto::{
    common::WorkerRef,
    gateway::{
        BreakerState, GatewayState, PoolRoute, RouteState, WatchRoutesRequest, WatchRoutesResponse,
        WorkerRoute,
    },
};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Control, lock};

/// Between two looks for one who watches: what changes with each call is told as often as people can read it.
const PACE: Duration = Duration::from_millis(100);

/// How many changes are known for those who come back.
const KEPT: usize = 1_000;

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
    changes: VecDeque<WatchRoutesResponse>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            instance: tether_kit::process::fresh_word(),
            revision: 0,
            seen: Seen::default(),
            changes: VecDeque::new(),
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
        if self.changes.len() >= KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    /// What one has to be told who knows this revision of this instance.
    fn since(&self, instance: &str, revision: u64) -> Vec<WatchRoutesResponse> {
        let oldest = self.revision - self.changes.len() as u64;
        if instance != self.instance || !(oldest..=self.revision).contains(&revision) {
            return vec![self.snapshot()];
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
fn about(pool: &str, mut word: WatchRoutesResponse) -> WatchRoutesResponse {
    if !pool.is_empty() {
        let of = |worker: &Option<WorkerRef>| worker.as_ref().is_some_and(|of| of.pool == pool);
        word.pools.retain(|known| known.pool == pool);
        word.removed_pools.retain(|name| name == pool);
        word.workers.retain(|known| of(&known.worker));
        word.removed_workers.retain(|worker| worker.pool == pool);
    }
    word
}

fn see(endpoints: &Endpoints, drains: bool) -> Seen {
    let pools = endpoints.pools().map(|name| {
        let route = PoolRoute {
            pool: name.to_string(),
            queued: u32::try_from(endpoints.waiting(name)).unwrap_or(u32::MAX),
            max_calls: endpoints.most_waiting(name) as u64,
            drained: endpoints.stands(&Order::Drain(Scope::Pool(name.clone()))),
        };
        (name.to_string(), route)
    });
    let workers = endpoints.snapshot();
    let workers = workers.iter().map(|view| {
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

/// A worker, as it is told.
pub(super) fn worker(view: &View) -> WorkerRoute {
    let breaker = match view.breaker.state {
        State::Closed { .. } => BreakerState::Closed,
        State::Open { .. } => BreakerState::Open,
        State::HalfOpen { .. } => BreakerState::HalfOpen,
    };
    let state = match view {
        view if view.draining => RouteState::Draining,
        view if view.ejected.is_some() || breaker != BreakerState::Closed => RouteState::Ejected,
        view if view.endpoint.standing == Standing::Doubtful => RouteState::Doubtful,
        _ => RouteState::Ready,
    };
    WorkerRoute {
        worker: Some((&view.endpoint.worker).into()),
        address: view.endpoint.address.to_string(),
        node: view
            .endpoint
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: state.into(),
        under_way: view.in_flight,
        capacity: view.capacity.map_or(0, std::num::NonZeroU32::get),
        breaker: breaker.into(),
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
    moves: watch::Receiver<u64>,
    pace: Interval,
    /// Whether it was seen that the gateway drains.
    drains: bool,
}

impl Control {
    /// All there is now.
    pub(super) fn all_routes(&self, pool: &str) -> WatchRoutesResponse {
        about(pool, self.look(|board| board.snapshot()))
    }

    /// What somebody has missed, and what comes.
    pub(super) fn routes(
        &self,
        asked: WatchRoutesRequest,
    ) -> impl Stream<Item = WatchRoutesResponse> + Send + use<> {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = Watching {
            control: self.clone(),
            pool: asked.pool,
            instance: asked.resume_instance,
            revision: asked.resume_revision,
            found: VecDeque::new(),
            moves: self.0.forwarder.directory.moves.subscribe(),
            pace,
            drains: false,
        };
        stream::unfold(watching, async |mut watching| {
            let word = watching.next().await;
            Some((word, watching))
        })
    }

    fn look<T>(&self, say: impl FnOnce(&Board) -> T) -> T {
        let mut board = lock(&self.0.board);
        let drains = self.0.drains.is_cancelled();
        let seen = see(&self.0.forwarder.directory.lock().endpoints, drains);
        board.take_in(seen);
        say(&board)
    }
}

impl Watching {
    async fn next(&mut self) -> WatchRoutesResponse {
        loop {
            if let Some(word) = self.found.pop_front() {
                return word;
            }
            let drains = self.control.0.drains.clone();
            // That the gateway is about to go is told at once.
            tokio::select! {
                _ = self.pace.tick() => {}
                () = drains.cancelled(), if !self.drains => {}
            }
            self.drains = drains.is_cancelled();
            self.moves.borrow_and_update();
            let news = self
                .control
                .look(|board| board.since(&self.instance, self.revision));
            match news.last() {
                Some(last) => {
                    self.instance.clone_from(&last.instance);
                    self.revision = last.revision;
                }
                None => {
                    tokio::select! {
                        // Fails only without a directory, and that is held here.
                        _ = self.moves.changed() => {}
                        () = drains.cancelled(), if !self.drains => {}
                    }
                }
            }
            self.found.extend(
                news.into_iter()
                    .map(|word| about(&self.pool, word))
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
    fn of_one_pool_nothing_is_told_of_others() {
        let mut board = Board::default();
        board.take_in(seen(&[("a", 0)]));
        board.take_in(seen(&[("a", 0), ("b", 4)]));

        let change = board.since(&board.instance, 1).remove(0);

        assert!(!is_news(&about("a", change.clone())));
        assert!(is_news(&about("b", change)));
    }
}
