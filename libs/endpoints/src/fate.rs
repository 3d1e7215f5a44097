//! What agents say of their workers themselves: early, and beside discovery, whose word comes later and lasts.
//!
//! ```text
//!  node's feed: worker -> word     --settle--> the worker's fate, where discovery has told of it
//!               pool   -> until                (doubted, about to end, until when), or its removal
//! ```
//!
//! A word may come before discovery has told of its worker, so it is kept for as long as the agent says it.

use std::collections::{BTreeMap, BTreeSet};

use tether_clock::Tick;
use tether_types::{Death, NodeName, PoolName, WorkerId};

use crate::{
    Endpoints, Gone,
    pool::{Live, Pool},
};

/// What an agent says of one of its workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It works, as far as anybody knows.
    Running,
    /// It gives no sign of life.
    Doubtful,
    /// It is about to end.
    Ending,
    /// It executes nothing any more.
    Dead(Death),
}

/// What an agent says at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fates {
    /// Whether these are all the workers there are.
    pub snapshot: bool,
    /// Of whom there is something new.
    pub words: Vec<(WorkerId, Word)>,
    /// Of whom nothing is said any more: their deaths are recorded.
    pub gone: Vec<WorkerId>,
}

/// What one agent said.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    words: BTreeMap<WorkerId, Word>,
    /// Until when the workers of a pool may take calls.
    ends: BTreeMap<PoolName, Tick>,
    /// Whether it can say something at any moment.
    stands: bool,
}

/// How it stands with a worker, as its agent says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Whether it gives no sign of life.
    pub(crate) doubted: bool,
    /// Whether it is about to end.
    pub(crate) ends: bool,
    /// Until when it may take calls; none where that was not said.
    until: Option<Tick>,
    /// Whether its agent may say otherwise at any moment.
    told: bool,
}

impl Fate {
    /// Whether its permission is over; `vouched` is until when discovery's word stands (E15).
    pub(crate) fn is_over(&self, vouched: Tick, now: Tick) -> bool {
        let lapsed = self.until.is_some_and(|until| now >= until);
        lapsed && (self.told || now >= vouched)
    }
}

impl Feed {
    fn of(&self, worker: &WorkerId) -> Fate {
        let word = self.words.get(worker);
        Fate {
            doubted: self.stands && word == Some(&Word::Doubtful),
            ends: word == Some(&Word::Ending),
            until: self.ends.get(&worker.pool).copied(),
            told: self.stands,
        }
    }
}

impl Endpoints {
    /// The agent of a node speaks of its workers. Answers which endpoints are gone.
    pub fn on_fates(&mut self, node: &NodeName, fates: Fates) -> Vec<Gone> {
        let feed = self.feeds.entry(node.clone()).or_default();
        let begins = !std::mem::replace(&mut feed.stands, true);
        let mut of_whom: BTreeSet<WorkerId> = match begins || fates.snapshot {
            true => feed.words.keys().cloned().collect(),
            false => BTreeSet::new(),
        };
        if fates.snapshot {
            feed.words.clear();
        }
        for worker in &fates.gone {
            feed.words.remove(worker);
        }
        let told = fates.words.iter().map(|(worker, _)| worker.clone());
        of_whom.extend(told.chain(fates.gone));
        feed.words.extend(fates.words);
        let of_whom = of_whom.iter();
        of_whom
            .filter_map(|worker| self.settle(node, worker))
            .collect()
    }

    /// The agent of a node says until when the workers of each pool may take calls; nothing where it does not know.
    /// Answers whether one may that might not at `now`, or the other way round.
    pub fn on_permissions(
        &mut self,
        node: &NodeName,
        ends: BTreeMap<PoolName, Tick>,
        now: Tick,
    ) -> bool {
        let Some(feed) = self.feeds.get_mut(node).filter(|_| !ends.is_empty()) else {
            return false;
        };
        feed.ends = ends;
        let over = self.over(node, now);
        self.settle_all(node);
        over != self.over(node, now)
    }

    /// Of the workers of a node, which may take no more calls as their permission is over.
    fn over(&self, node: &NodeName, now: Tick) -> Vec<bool> {
        let on_node = self.pools.values().flat_map(|pool| {
            let lives = pool.lives().filter(|live| live.is_on(node));
            lives.map(|live| live.fate.is_over(pool.vouched, now))
        });
        on_node.collect()
    }

    /// The agent of a node says nothing any more. What it said of ends stands, and so does until when it allowed calls.
    pub fn on_feed_lost(&mut self, node: &NodeName) {
        if let Some(feed) = self.feeds.get_mut(node) {
            feed.stands = false;
            self.settle_all(node);
        }
    }

    /// Nobody listens to the agent of a node any more.
    pub fn forget_feed(&mut self, node: &NodeName) {
        self.feeds.remove(node);
    }

    /// Whether a worker of this node is served.
    pub fn serves_from(&self, node: &NodeName) -> bool {
        let places = self.pools.values().flat_map(|pool| pool.slots.values());
        let mut living = places.filter_map(|place| place.live.as_ref());
        living.any(|live| live.is_on(node))
    }

    fn settle_all(&mut self, node: &NodeName) {
        let Some(feed) = self.feeds.get(node) else {
            return;
        };
        for worker in feed.words.keys() {
            if let Some(live) = live_on(&mut self.pools, node, worker) {
                live.fate = feed.of(worker);
            }
        }
    }

    /// Has a worker be as the agent of its node says (E13). Answers whether that took it away.
    pub(crate) fn settle(&mut self, node: &NodeName, worker: &WorkerId) -> Option<Gone> {
        let feed = self.feeds.get(node)?;
        let live = live_on(&mut self.pools, node, worker)?;
        let Some(Word::Dead(death)) = feed.words.get(worker) else {
            let fate = feed.of(worker);
            let before = std::mem::replace(&mut live.fate, fate);
            if before.ends != fate.ends
                && let Some(pool) = self.pools.get_mut(&worker.pool)
            {
                pool.moved = true;
                if fate.ends {
                    pool.breaker.on_one_less();
                }
            }
            return None;
        };
        let death = Some(death.clone());
        self.forget_orders_of(worker);
        self.pools
            .get_mut(&worker.pool)?
            .remove(worker.clone(), death)
    }
}

impl Live {
    fn is_on(&self, node: &NodeName) -> bool {
        self.endpoint.node.as_ref() == Some(node)
    }
}

/// This very incarnation, where discovery has told of it on this node.
fn live_on<'a>(
    pools: &'a mut BTreeMap<PoolName, Pool>,
    node: &NodeName,
    worker: &WorkerId,
) -> Option<&'a mut Live> {
    let live = pools.get_mut(&worker.pool)?.incarnate_mut(worker)?;
    live.is_on(node).then_some(live)
}
