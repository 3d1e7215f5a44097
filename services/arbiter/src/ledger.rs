//! Who is alive and who owns what: every decision of the arbiter, without IO and without a clock.
//!
//! The service around it tells it what arrived and what time it is, and carries out the [`Effects`]
//! it leaves behind. One `impl` block per subject: sessions, pools and their filling, slots, orders
//! to and reports of their workers, calls they served, nodes and their loss, jobs, registrations, and what an
//! earlier arbiter left.
//!
//! # Invariants
//!
//! - **A1** A slot has at most one live incarnation; another is ordered only after the death of the
//!   one before was reported or attested, or the lease of its node is free and all that the worker may
//!   outlive it by is over.
//! - **A2** An incarnation number is never given out twice, not even over a restart.
//! - **A3** A death is recorded once, however often it is reported: its event, its place for discovery
//!   and the order to forget it leave together. It is known again for as long as events are kept.
//! - **A4** Nothing is kept of what no longer exists, but a bounded history (P5).
//! - **A5** No worker is ordered while a pool it depends on has no ready worker, nor more workers of a
//!   pool within a second than it allows.
//! - **A6** Of a pool with spares, as many workers serve as it has places, or all that are ready.
//! - **A7** A worker is not taken to have served more calls than gateways counted, however often, late or
//!   out of order they tell.
//! - **A8** Nothing on a node whose lease is over is told to gateways; it serves again once the node is back.
//! - **A9** Of a job's attempts only the last one is heard: its fence is greater than that of any before, also
//!   over a restart, and progress, checkpoints and results with another are refused. The next one begins only after
//!   the death of the last one's worker is recorded, or when somebody takes the job over.
//! - **A10** A worker is started only on a node that is open and has the labels its pool asks for; no two workers
//!   that live have the same unit of a node's resource.
//! - **A11** Replacing workers that run, because of a change or to empty a node, takes no pool below its size less
//!   what its `rollout` allows, has no more places than that allows, and ends no worker that does a job.
//! - **A12** Of a node's agents only the last one speaks for it: each has an epoch, later than that of any before, also
//!   over a restart, and one with an earlier epoch is refused.

mod attempts;
mod calls;
mod cancels;
mod cordons;
mod dependencies;
mod epochs;
mod filling;
mod hearing;
mod holds;
mod jobs;
mod loss;
mod losses;
mod nodes;
mod offers;
mod orders;
mod places;
mod placing;
mod pools;
mod reached;
mod readable;
mod registrations;
mod reports;
mod restarts;
mod restore;
mod rollout;
mod roster;
mod seats;
mod serving;
mod sessions;
#[cfg(test)]
mod simulation;
mod slots;
mod units;
mod waiting;
mod wheel;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tether_clock::Tick;
use tether_lifecycle::Surroundings;
use tether_proto::Failure;
use tether_types::{Incarnation, NodeName, OwnerName, PoolName, Reason, Slot};

use crate::{
    config::LeaseTerms,
    effects::{Effects, keys},
    record::IncarnationRecord,
    registry::{Key, Registry},
    spec::Templates,
};

use cancels::Cancel;
use cordons::Closed;
use losses::Losses;
use wheel::Wheel;

pub(crate) use jobs::Jobs;
pub(crate) use nodes::Node;
pub(crate) use pools::Pool;
pub(crate) use sessions::{Granted, Session};

/// How many incarnation numbers are reserved with one write.
const RESERVE: u64 = 256;

/// Deaths remembered so that none is recorded twice: as many as there are events (A3, A4).
const BURIED_MAX: usize = crate::events::KEPT;

/// Of what was never changed: nodes that were told nothing know of an earlier one.
const FIRST_STAMP: u64 = 1;

/// Everything the arbiter knows.
#[derive(Debug)]
pub(crate) struct Ledger {
    terms: LeaseTerms,
    templates: Templates,
    surroundings: Surroundings,
    sessions: BTreeMap<OwnerName, Session>,
    pools: BTreeMap<PoolName, Pool>,
    nodes: BTreeMap<NodeName, Node>,
    jobs: Jobs,
    /// Workers that no agent runs.
    registry: Registry,
    /// Highest incarnation given out, and how far they are reserved in the store (A2).
    highest: u64,
    reserved: u64,
    /// Whether a pool of before could not be taken up: its workers may live, whatever its name is given to.
    lost_pools: bool,
    buried: Buried,
    /// Nodes of before that were not heard yet, and have their lease.
    unheard: usize,
    /// Lost nodes that may have workers of whom this arbiter does not know.
    uncertain: BTreeSet<NodeName>,
    /// Nodes by how many workers they have.
    loads: BTreeSet<(usize, NodeName)>,
    losses: Losses,
    /// Nodes that take no workers, as somebody said, those that are away included.
    closed: BTreeMap<NodeName, Closed>,
    /// Whether a node has more of a resource than it had when workers were placed last.
    units_freed: bool,
    /// When to look at nodes, sessions and places.
    wheel: Wheel<Timed>,
    /// When pools are due; none while something changed since that was found out.
    pools_due: Option<Tick>,
    /// Counts changes of what nodes are told of their permissions. Each is noted where it was made, and
    /// each node has the number up to which it was told, so that a beat that follows none asks no pool.
    stamp: u64,
    /// Numbered workers that cannot be started yet, the first of each pool first.
    waiting: BTreeSet<(PoolName, Incarnation, Slot)>,
    effects: Effects,
}

/// What the wheel has its looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timed {
    Node(NodeName),
    Session(OwnerName),
    Place(PoolName, Slot),
    Registration(Key),
    /// What a pool of registrations keeps of those that are gone.
    Vacancy(PoolName),
    /// A job that was cancelled, and until when it has to stop.
    Cancel(Cancel),
    /// A job that waits after a death, and until when at least.
    Job(PoolName, String, Tick),
}

/// Incarnations whose death is recorded, the last ones only.
#[derive(Debug, Default)]
struct Buried(VecDeque<Incarnation>);

impl Buried {
    fn push(&mut self, incarnation: Incarnation) {
        self.0.push_back(incarnation);
        if self.0.len() > BURIED_MAX {
            self.0.pop_front();
        }
    }

    fn contains(&self, incarnation: Incarnation) -> bool {
        self.0.contains(&incarnation)
    }
}

impl Ledger {
    pub(crate) fn new(terms: LeaseTerms, templates: Templates, surroundings: Surroundings) -> Self {
        Self {
            terms,
            templates,
            surroundings,
            sessions: BTreeMap::new(),
            pools: BTreeMap::new(),
            nodes: BTreeMap::new(),
            jobs: Jobs::default(),
            registry: Registry::default(),
            highest: 0,
            reserved: 0,
            lost_pools: false,
            buried: Buried::default(),
            unheard: 0,
            uncertain: BTreeSet::new(),
            loads: BTreeSet::new(),
            losses: Losses::default(),
            closed: BTreeMap::new(),
            units_freed: false,
            wheel: Wheel::new(),
            pools_due: None,
            stamp: FIRST_STAMP,
            waiting: BTreeSet::new(),
            effects: Effects::default(),
        }
    }

    /// What is to be carried out.
    pub(crate) fn take_effects(&mut self) -> Effects {
        // With whatever made a worker ready, or a job wait.
        self.place_waiting_jobs();
        let effects = std::mem::take(&mut self.effects);
        // But for the next start of one that has to wait for it, which is noted where it is found out, nothing
        // brings a pool's deadline forward without a word to anybody.
        if !effects.is_empty() {
            self.pools_due = None;
        }
        effects
    }

    /// Only time passed.
    pub(crate) fn check(&mut self, now: Tick) {
        let mut nodes = Vec::new();
        let mut places = Vec::new();
        while let Some((at, timed)) = self.wheel.pop(now) {
            match timed {
                Timed::Node(name) => nodes.extend(self.check_node(name, at)),
                Timed::Session(owner) => self.check_session(owner, at, now),
                Timed::Place(pool, slot) => places.push((at, pool, slot)),
                Timed::Registration(key) => self.check_registration(&key, at, now),
                Timed::Vacancy(pool) => self.check_vacancy(&pool, at, now),
                Timed::Cancel(cancel) => self.check_cancel(cancel, now),
                Timed::Job(pool, key, due) => self.check_pause(pool, key, due, now),
            }
        }
        self.check_nodes(nodes, now);
        self.check_pools(now);
        for (at, pool, slot) in places {
            self.check_place(&pool, slot, at, now);
        }
        self.pools_due = None;
    }

    /// When to call [`Ledger::check`] at the latest. It may be earlier than anything is due, as far as
    /// deadlines moved since.
    pub(crate) fn next_deadline(&mut self) -> Option<Tick> {
        let pools = match self.pools_due {
            Some(known) => known,
            None => self.next_of_pools().unwrap_or(Tick::NEVER),
        };
        self.pools_due = Some(pools);
        let pools = Some(pools).filter(|&due| due < Tick::NEVER);
        self.wheel.next().into_iter().chain(pools).min()
    }

    fn next_of_pools(&self) -> Option<Tick> {
        let due = |pool: &Pool| pool.next_deadline(self.sessions.get(pool.owner()));
        self.pools.values().filter_map(due).min()
    }

    /// A number that was never given out and never will be again.
    fn next_incarnation(&mut self) -> Incarnation {
        self.highest += 1;
        if self.highest > self.reserved {
            self.reserved = self.highest + RESERVE;
            self.effects.put(
                keys::INCARNATION.to_owned(),
                IncarnationRecord {
                    up_to: self.reserved,
                },
            );
        }
        Incarnation(self.highest)
    }
}

fn unknown_pool(name: &str, pools: &BTreeMap<PoolName, Pool>) -> Failure {
    let known: Vec<_> = pools.keys().take(5).map(PoolName::as_str).collect();
    let known = if known.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Failure::new(
        Reason::UnknownPool,
        format!(
            "no pool is called `{}`, {known}; `tether pool ls` lists them",
            name.escape_default()
        ),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
