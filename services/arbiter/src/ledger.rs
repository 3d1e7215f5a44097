//! Who is alive and who owns what: every decision of the arbiter, without IO and without a clock.
//!
//! The service around it tells it what arrived and what time it is, and carries out the [`Effects`]
//! it leaves behind. One `impl` block per subject: sessions, pools, slots, nodes, jobs.
//!
//! # Invariants
//!
//! - **A1** A slot has at most one live incarnation; another is ordered only after the death of the
//!   one before was reported, or the lease of its node is free.
//! - **A2** An incarnation number is never given out twice, not even over a restart.
//! - **A3** A death is recorded once: its event, its place for discovery and the order to forget it
//!   leave together.
//! - **A4** Nothing is kept of what no longer exists, but a bounded history (P5).

mod jobs;
mod nodes;
mod pools;
mod sessions;
mod slots;

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_lifecycle::Environment;
use tether_proto::Failure;
use tether_store::Listing;
use tether_types::{Incarnation, NodeName, OwnerName, PoolName, Reason};

use crate::{
    config::LeaseTerms,
    effects::{Effects, keys},
    record::{IncarnationRecord, OwnerRecord, PoolRecord},
    spec::Templates,
};

pub(crate) use jobs::Jobs;
pub(crate) use nodes::Node;
pub(crate) use pools::Pool;
pub(crate) use sessions::Session;

/// How many incarnation numbers are reserved with one write.
const RESERVE: u64 = 256;

/// Everything the arbiter knows.
#[derive(Debug)]
pub(crate) struct Ledger {
    terms: LeaseTerms,
    templates: Templates,
    environment: Environment,
    sessions: BTreeMap<OwnerName, Session>,
    pools: BTreeMap<PoolName, Pool>,
    nodes: BTreeMap<NodeName, Node>,
    jobs: Jobs,
    /// Highest incarnation given out, and how far they are reserved in the store (A2).
    highest: u64,
    reserved: u64,
    effects: Effects,
}

impl Ledger {
    pub(crate) fn new(terms: LeaseTerms, templates: Templates, environment: Environment) -> Self {
        Self {
            terms,
            templates,
            environment,
            sessions: BTreeMap::new(),
            pools: BTreeMap::new(),
            nodes: BTreeMap::new(),
            jobs: Jobs::default(),
            highest: 0,
            reserved: 0,
            effects: Effects::default(),
        }
    }

    /// Takes up what an earlier arbiter left in the store. Every lease is taken for one whole term,
    /// as the last renewal is not known.
    pub(crate) fn restore(&mut self, listing: &Listing, now: Tick) {
        use prost::Message as _;

        for entry in &listing.entries {
            let key = entry.key.as_str();
            if key == keys::INCARNATION {
                let record = IncarnationRecord::decode(&*entry.value).unwrap_or_default();
                (self.highest, self.reserved) = (record.up_to, record.up_to);
            } else if let Some(name) = key.strip_prefix(keys::OWNERS) {
                if let (Ok(owner), Ok(record)) = (name.parse(), OwnerRecord::decode(&*entry.value))
                {
                    self.restore_session(owner, entry.mod_revision, &record, now);
                }
            } else if let Some(name) = key.strip_prefix(keys::NODES)
                && let Ok(node) = name.parse()
            {
                self.restore_node(node, now);
            }
        }
        // Second, as pools ask for sessions and nodes.
        for entry in &listing.entries {
            if let Some(name) = entry.key.strip_prefix(keys::POOLS) {
                match PoolRecord::decode(&*entry.value) {
                    Ok(record) => self.restore_pool(name, record, now),
                    Err(error) => {
                        tracing::error!(pool = name, %error, "Cannot read the record of a pool")
                    }
                }
            } else if let Some(rest) = entry.key.strip_prefix(keys::JOBS) {
                self.jobs.restore(rest, &entry.value);
            }
        }
    }

    /// What is to be carried out.
    pub(crate) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Only time passed.
    pub(crate) fn check(&mut self, now: Tick) {
        self.check_nodes(now);
        self.check_sessions(now);
        self.check_pools(now);
    }

    /// When to call [`Ledger::check`] at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        let nodes = self.nodes.values().filter_map(Node::next_deadline);
        let sessions = self.sessions.values().filter_map(Session::next_deadline);
        let pools = self
            .pools
            .values()
            .filter_map(|pool| pool.next_deadline(self.sessions.get(pool.owner())));
        nodes.chain(sessions).chain(pools).min()
    }

    /// Makes sure that incarnations up to this one are never given out again.
    fn reserve(&mut self, incarnation: Incarnation) {
        self.highest = self.highest.max(incarnation.0);
        if self.highest > self.reserved {
            self.reserved = self.highest + RESERVE;
            self.effects.put(
                keys::INCARNATION.to_owned(),
                IncarnationRecord {
                    up_to: self.reserved,
                },
            );
        }
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
