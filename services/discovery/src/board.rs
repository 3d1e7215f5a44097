//! The table where everybody can see it, and the watchers who read it at their own pace.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    Failure,
    discovery::{PoolAge, WatchEndpointsResponse},
};
use tether_types::{PoolName, Reason};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{Config, left_out::LeftOuts, table::Table};

/// Shared by the followers, which change the table, and the watchers, which read it.
#[derive(Debug)]
pub(crate) struct Board {
    instance: String,
    table: Mutex<Table>,
    failing: Mutex<BTreeMap<PoolName, Failing>>,
    left_out: LeftOuts,
    news: watch::Sender<News>,
    /// Whether the store was read once, for those who watch nothing else.
    loaded: watch::Sender<bool>,
    sign_of_life: Duration,
    ended: CancellationToken,
}

/// Since when a pool's sources do not all answer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failing {
    since: Tick,
    why: String,
}

/// What wakes watchers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct News {
    /// Whether the store was read once: before that, an empty table would be a lie.
    loaded: bool,
    revision: u64,
    /// Since when the store is away.
    away: Option<Tick>,
    /// How often a pool began or ceased to be one whose sources fail.
    failures: u64,
}

impl Board {
    pub(crate) fn new(instance: String, configured: BTreeSet<PoolName>, config: &Config) -> Self {
        Self {
            instance,
            table: Mutex::new(Table::new(configured, config.history)),
            failing: Mutex::default(),
            left_out: LeftOuts::default(),
            news: watch::Sender::new(News::default()),
            loaded: watch::Sender::new(false),
            sign_of_life: config.sign_of_life,
            ended: CancellationToken::new(),
        }
    }

    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    pub(crate) fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and wakes the watchers if that made a difference.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table();
        change(&mut table);
        let revision = table.revision();
        drop(table);
        self.tell(|news| news.revision = revision);
    }

    /// Reads the table; nothing before the store was read once.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Table) -> T) -> Option<T> {
        let loaded = self.news.borrow().loaded;
        loaded.then(|| look(&self.table()))
    }

    /// The store was read or answers again.
    pub(crate) fn here(&self) {
        self.tell(|news| {
            news.loaded = true;
            news.away = None;
        });
        self.loaded
            .send_if_modified(|loaded| !std::mem::replace(loaded, true));
    }

    /// The store does not answer; says whether that is new.
    pub(crate) fn away(&self) -> bool {
        self.tell(|news| {
            news.away.get_or_insert_with(|| BootClock.now());
        })
    }

    /// Since when a pool's sources do not all answer, and why; none when they do.
    pub(crate) fn failing(&self, pool: &PoolName, failing: Option<(Tick, &str)>) {
        let mut known = self.failing_pools();
        let is_news = known.contains_key(pool) != failing.is_some();
        match failing {
            Some((since, why)) => {
                let why = why.to_owned();
                known.insert(pool.clone(), Failing { since, why });
            }
            None => drop(known.remove(pool)),
        }
        drop(known);
        if is_news {
            self.tell(|news| news.failures += 1);
        }
    }

    pub(crate) fn left_out(&self) -> &LeftOuts {
        &self.left_out
    }

    fn failing_pools(&self) -> MutexGuard<'_, BTreeMap<PoolName, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool_ages(&self, wanted: Option<&PoolName>) -> Vec<PoolAge> {
        let failing = self.failing_pools();
        let wanted = |pool: &PoolName| wanted.is_none_or(|wanted| wanted == pool);
        let failing = failing.iter().filter(|(pool, _)| wanted(pool));
        let ages = failing.map(|(pool, failing)| PoolAge {
            pool: pool.to_string(),
            age_ms: age_ms(failing.since),
            why: failing.why.clone(),
        });
        ages.collect()
    }

    fn tell(&self, change: impl FnOnce(&mut News)) -> bool {
        self.news.send_if_modified(|news| {
            let before = *news;
            change(news);
            *news != before
        })
    }
}

/// One watcher: a position in the table's history, and no queue (D3).
#[derive(Debug)]
pub(crate) struct Watcher {
    board: Arc<Board>,
    news: watch::Receiver<News>,
    pool: Option<PoolName>,
    /// The last revision it was told; nothing before its first message.
    after: Option<u64>,
    /// What it was told of who is away; nothing before its first message.
    told_away: Option<(bool, u64)>,
    /// When it is told that it is still heard; news of pools that it does not ask for do not put that off.
    sign_due: Pin<Box<Sleep>>,
}

impl Watcher {
    /// A watcher that saw `resume` last, if that was of this instance.
    pub(crate) fn new(board: Arc<Board>, pool: Option<PoolName>, resume: (&str, u64)) -> Self {
        let (instance, revision) = resume;
        Self {
            news: board.news.subscribe(),
            after: (instance == board.instance).then_some(revision),
            sign_due: Box::pin(tokio::time::sleep(board.sign_of_life)),
            board,
            pool,
            told_away: None,
        }
    }

    /// The next message: a snapshot, a change, or a sign of life. `None` when the service ends.
    pub(crate) async fn next(&mut self) -> Option<Result<WatchEndpointsResponse, Status>> {
        loop {
            if self.board.ended.is_cancelled() {
                return None;
            }
            let news = *self.news.borrow_and_update();
            if news.loaded {
                let (message, upto) = self.board.table().next(self.pool.as_ref(), self.after);
                self.after = Some(upto);
                if let Some(message) = message {
                    return Some(Ok(self.stamp(message, news)));
                }
                // A watcher that resumes with nothing missed hears at once that it is heard.
                if self.told_away != Some(news.who_is_away()) {
                    return Some(Ok(self.stamp(self.sign_of_life(), news)));
                }
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = self.board.ended.cancelled() => return None,
                () = &mut self.sign_due => {
                    let news = *self.news.borrow();
                    return Some(match news.loaded {
                        true => Ok(self.stamp(self.sign_of_life(), news)),
                        false => Err(never_loaded()),
                    });
                }
            }
        }
    }

    fn sign_of_life(&self) -> WatchEndpointsResponse {
        WatchEndpointsResponse {
            revision: self.after.unwrap_or_default(),
            ..WatchEndpointsResponse::default()
        }
    }

    fn stamp(&mut self, message: WatchEndpointsResponse, news: News) -> WatchEndpointsResponse {
        self.told_away = Some(news.who_is_away());
        let next = Instant::now() + self.board.sign_of_life;
        self.sign_due.as_mut().reset(next);
        let left_out = message.snapshot.then_some(&self.board.left_out);
        WatchEndpointsResponse {
            instance: self.board.instance.clone(),
            source_age_ms: news.away.map_or(0, age_ms),
            pool_ages: self.board.pool_ages(self.pool.as_ref()),
            left_out: left_out.map_or_else(Vec::new, |all| all.of(self.pool.as_ref())),
            ..message
        }
    }
}

impl News {
    fn who_is_away(&self) -> (bool, u64) {
        (self.away.is_some(), self.failures)
    }
}

/// Never 0, since that says that nobody is away.
fn age_ms(since: Tick) -> u64 {
    let age = BootClock.now().since(since).as_millis().max(1);
    u64::try_from(age).unwrap_or(u64::MAX)
}

fn never_loaded() -> Status {
    Failure::new(
        Reason::DiscoveryUnreachable,
        "discovery has not been able to read the store yet; check that the store is running, its log says why it cannot be reached",
    )
    .retry_after(Duration::from_secs(1))
    .into()
}
