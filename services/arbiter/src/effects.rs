//! What follows from a decision: collected by the ledger, carried out by the service around it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tether_proto::{
    Failure,
    common::{Death, WorkerRef},
    job::Job,
    node,
    worker::{Event, EventKind},
};
use tether_types::{Epoch, NodeName, OwnerName, PoolName, WorkerId};

/// Answers to a node's last beat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ack {
    /// The lease that beat earned; zero for none.
    pub(crate) ttl_ms: u64,
    /// Whether its sum is another than what was told.
    pub(crate) resync: bool,
}

/// What somebody may follow of jobs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Followed {
    /// Those that a worker does.
    Worker(WorkerId),
    /// One.
    Key(PoolName, String),
}

/// Everything that follows. Answers go out at once; writes come before all else, so that nothing is
/// acted on that a restart would forget.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// By key; the last write of a key counts. None deletes.
    pub(crate) writes: BTreeMap<String, Option<Bytes>>,
    pub(crate) events: Vec<Event>,
    pub(crate) orders: BTreeMap<NodeName, Vec<node::Order>>,
    pub(crate) acks: BTreeMap<NodeName, Ack>,
    /// Sessions that are over, and what to tell those who still beat for them.
    pub(crate) ended: Vec<(OwnerName, Epoch, Failure)>,
    /// Nodes whose record was written, and in which revision: the epoch of their lease.
    pub(crate) epochs: Vec<(NodeName, Epoch)>,
    /// What changed of jobs, for those who follow them.
    pub(crate) jobs: BTreeSet<Followed>,
}

impl Effects {
    pub(crate) fn put(&mut self, key: String, value: impl prost::Message) {
        self.writes.insert(key, Some(value.encode_to_vec().into()));
    }

    pub(crate) fn put_empty(&mut self, key: String) {
        self.writes.insert(key, Some(Bytes::new()));
    }

    pub(crate) fn put_bytes(&mut self, key: String, value: Vec<u8>) {
        self.writes.insert(key, Some(value.into()));
    }

    /// A job, and what its worker has to do, is another.
    pub(crate) fn touch_job(&mut self, pool: &PoolName, job: &Job) {
        let worker = WorkerRef::required(job.worker.as_ref()).ok();
        self.jobs.extend(worker.map(Followed::Worker));
        self.touch_key(pool, &job.key);
    }

    /// A job has got on, or is gone.
    pub(crate) fn touch_key(&mut self, pool: &PoolName, key: &str) {
        self.jobs
            .insert(Followed::Key(pool.clone(), key.to_owned()));
    }

    pub(crate) fn delete(&mut self, key: String) {
        self.writes.insert(key, None);
    }

    pub(crate) fn order(&mut self, node: &NodeName, order: node::order::Order) {
        self.orders
            .entry(node.clone())
            .or_default()
            .push(node::Order { order: Some(order) });
    }

    pub(crate) fn worker_event(
        &mut self,
        kind: EventKind,
        worker: &WorkerId,
        node: Option<&NodeName>,
        owner: &OwnerName,
        text: String,
        death: Option<Death>,
    ) {
        self.events.push(Event {
            kind: kind.into(),
            worker: Some(WorkerRef::from(worker)),
            node: node.map(ToString::to_string).unwrap_or_default(),
            owner: owner.to_string(),
            text,
            death,
            ..Event::default()
        });
    }

    pub(crate) fn owner_event(&mut self, kind: EventKind, owner: &OwnerName, text: String) {
        self.events.push(Event {
            kind: kind.into(),
            owner: owner.to_string(),
            text,
            ..Event::default()
        });
    }

    pub(crate) fn node_event(&mut self, kind: EventKind, node: &NodeName, text: String) {
        self.events.push(Event {
            kind: kind.into(),
            node: node.to_string(),
            text,
            ..Event::default()
        });
    }

    /// Whether nothing is left to be carried out.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.events.is_empty()
            && self.orders.is_empty()
            && self.ended.is_empty()
    }

    /// What came after `self`, to be carried out together with it.
    pub(crate) fn append(&mut self, later: Self) {
        self.writes.extend(later.writes);
        self.events.extend(later.events);
        for (node, orders) in later.orders {
            self.orders.entry(node).or_default().extend(orders);
        }
        self.acks.extend(later.acks);
        self.ended.extend(later.ended);
        self.epochs.extend(later.epochs);
        self.jobs.extend(later.jobs);
    }
}

/// Keys only the arbiter uses.
pub(crate) mod keys {
    use tether_types::Slot;

    use super::{NodeName, OwnerName, PoolName};
    use crate::registry::Key;

    pub(crate) const POOLS: &str = "arbiter/pools/";
    pub(crate) const OWNERS: &str = "arbiter/owners/";
    pub(crate) const NODES: &str = "arbiter/nodes/";
    pub(crate) const CORDONS: &str = "arbiter/cordons/";
    pub(crate) const JOBS: &str = "arbiter/jobs/";
    /// What each was started with.
    pub(crate) const JOB_SPECS: &str = "arbiter/job-specs/";
    pub(crate) const HOLDS: &str = "arbiter/holds/";
    pub(crate) const EVENTS: &str = "arbiter/events/";
    pub(crate) const REGISTRATIONS: &str = "arbiter/registrations/";
    /// What an arbiter that is elected writes to win, and to show that it still leads.
    pub(crate) const LEADER: &str = "arbiter/leader/";
    /// Not changed before the next reign: its revision is the reign's number.
    pub(crate) const REIGN: &str = "arbiter/leader/reign";
    pub(crate) const RENEWAL: &str = "arbiter/leader/renewal";
    /// Incarnations up to this number may have been given out.
    pub(crate) const INCARNATION: &str = "arbiter/incarnation";

    pub(crate) fn pool(name: &PoolName) -> String {
        format!("{POOLS}{name}")
    }

    pub(crate) fn owner(name: &OwnerName) -> String {
        format!("{OWNERS}{name}")
    }

    pub(crate) fn node(name: &NodeName) -> String {
        format!("{NODES}{name}")
    }

    pub(crate) fn cordon(name: &NodeName) -> String {
        format!("{CORDONS}{name}")
    }

    pub(crate) fn job(pool: &PoolName, key: &str) -> String {
        format!("{JOBS}{pool}/{key}")
    }

    pub(crate) fn job_spec(pool: &PoolName, key: &str) -> String {
        format!("{JOB_SPECS}{pool}/{key}")
    }

    pub(crate) fn hold(pool: &PoolName, slot: Slot) -> String {
        format!("{HOLDS}{pool}/{slot}")
    }

    pub(crate) fn registration((pool, name): &Key) -> String {
        format!("{REGISTRATIONS}{pool}/{name}")
    }

    pub(crate) fn event(revision: u64) -> String {
        format!("{EVENTS}{revision:020}")
    }
}
