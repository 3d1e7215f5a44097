//! Nodes: their leases, what they offer, and which worker goes where.

use std::{collections::BTreeSet, time::Duration};

use tether_clock::Tick;
use tether_lease::{Beat, Grantor, Tenure};
use tether_lifecycle::{Launcher, OnAgentLoss, OnOwnerLoss};
use tether_proto::{
    Failure, common,
    node::{HeartbeatRequest, HeartbeatResponse, Hello, OwnerPermission, PoolPermission},
    worker::{self as wire, EventKind},
};
use tether_types::{
    Death, DeathCause, Epoch, NodeName, OwnerName, PoolName, ProcessIdentity, Reason, WorkerId,
};

use super::{Ledger, millis};
use crate::{
    effects::{Ack, keys},
    record::NodeRecord,
};

/// Within an owner's timeout its agents beat this often, so that they hear in time that it lives.
const BEATS_PER_TIMEOUT: u32 = 4;

/// No policy asks for more beats than this.
const BEAT_MIN: Duration = Duration::from_millis(50);

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    lease: Grantor,
    /// Whether it was heard since this arbiter started.
    heard: bool,
    /// Which runtime directory its agent stands on.
    instance: String,
    /// Where its agent serves.
    pub(crate) address: String,
    launchers: Vec<Launcher>,
    boot_id: String,
    pid_namespace: u64,
    /// How surely its workers' processes end, as its agent says: `G1` to `G5`.
    guarantee: String,
    guarantee_by: String,
    not_covered: String,
    /// Its last beat: number and time of receipt. What it is told counts from there.
    last: (u64, Tick),
    /// The workers that were placed there and are not buried.
    pub(super) workers: BTreeSet<WorkerId>,
}

impl Node {
    pub(super) fn offers(&self, launcher: Launcher) -> bool {
        self.heard && self.launchers.contains(&launcher)
    }

    /// Whether it takes workers: only from its first beat on, as until then it has no permission that
    /// it could give them.
    ///
    /// That is offer and acceptance (`lease` L6). Its hello asks, the stream that opens is the offer, and an
    /// agent beats only on a stream it has heard to be open: one that can send but not hear never beats, and gets nothing.
    fn takes(&self) -> bool {
        self.last.0 > 0
    }

    /// Whether its agent can observe this process.
    pub(super) fn sees(&self, process: &ProcessIdentity) -> bool {
        self.heard && self.boot_id == process.boot_id && self.pid_namespace == process.pid_namespace
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.lease.next_deadline()
    }
}

impl Ledger {
    pub(super) fn restore_node(&mut self, name: NodeName, instance: String, now: Tick) {
        let node = Node {
            lease: Grantor::after_restart(self.terms.node, now),
            heard: false,
            instance,
            address: String::new(),
            launchers: Vec::new(),
            boot_id: String::new(),
            pid_namespace: 0,
            guarantee: String::new(),
            guarantee_by: String::new(),
            not_covered: String::new(),
            last: (0, now),
            workers: BTreeSet::new(),
        };
        self.nodes.insert(name, node);
    }

    /// Whether every node that may have workers of before has said which.
    pub(super) fn all_heard(&self) -> bool {
        self.nodes.values().all(|node| node.heard)
    }

    /// The nodes, by name.
    pub(crate) fn list_nodes(&self) -> Vec<wire::Node> {
        let node = |(name, node): (&NodeName, &Node)| wire::Node {
            name: name.to_string(),
            up: node.heard,
            guarantee: node.guarantee.clone(),
            guarantee_by: node.guarantee_by.clone(),
            not_covered: node.not_covered.clone(),
            launchers: node
                .launchers
                .iter()
                .map(|launcher| launcher.name().to_owned())
                .collect(),
            workers: u32::try_from(node.workers.len()).unwrap_or(u32::MAX),
        };
        self.nodes.iter().map(node).collect()
    }

    /// Where a node's agent serves.
    pub(crate) fn agent_address(&self, node: &NodeName) -> Option<&str> {
        self.nodes.get(node).map(|node| node.address.as_str())
    }

    /// Whether this agent may speak for a node. One that does not know what another one started under
    /// the same name has to wait until that one's lease is over (A1).
    ///
    /// # Errors
    /// Says how long, and what to do if both are meant to run.
    pub(crate) fn admit_node(
        &mut self,
        name: &NodeName,
        hello: &Hello,
        now: Tick,
    ) -> Result<(), Failure> {
        let Some(known) = self.nodes.get_mut(name) else {
            return Ok(());
        };
        if known.instance == hello.instance || known.lease.check(now) == Tenure::Free {
            return Ok(());
        }
        let left = known.lease.remaining(now);
        let text = format!(
            "another agent holds the lease of node `{name}` for {left:.1?} more: wait if it was moved to another runtime directory or its machine was restarted, or set another `node` under [agent] if both are to run"
        );
        Err(Failure::new(Reason::NodeTaken, text).retry_after(left))
    }

    /// A node opens its stream: granted a lease anew, and compared with what is known of it.
    pub(crate) fn on_hello(&mut self, name: &NodeName, hello: &Hello, now: Tick) {
        let launchers = hello
            .launchers
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        let all_heard_before = self.all_heard();
        let known = self.nodes.remove(name);
        let is_news = |known: &Node| !known.heard || known.guarantee != hello.guarantee;
        let joined = known.as_ref().is_none_or(is_news);
        if known.is_none() {
            let instance = hello.instance.clone();
            self.effects.put(keys::node(name), NodeRecord { instance });
        }
        let node = Node {
            lease: Grantor::grant(self.terms.node, now),
            heard: true,
            instance: hello.instance.clone(),
            address: hello.address.clone(),
            launchers,
            boot_id: hello.boot_id.clone(),
            pid_namespace: hello.pid_namespace,
            guarantee: hello.guarantee.clone(),
            guarantee_by: hello.guarantee_by.clone(),
            not_covered: hello.not_covered.clone(),
            last: (0, now),
            workers: known.map(|known| known.workers).unwrap_or_default(),
        };
        let missed = node.workers.clone();
        self.nodes.insert(name.clone(), node);
        if joined {
            let guarantee = match hello.guarantee.as_str() {
                "" => "an unknown guarantee",
                known => &format!("guarantee {known}"),
            };
            let count = hello.workers.len();
            let text = format!("node `{name}` joined, with {count} workers and {guarantee}");
            self.effects.node_event(EventKind::NodeUp, name, text);
        }

        let mut told = BTreeSet::new();
        for report in &hello.workers {
            if let Ok(id) = common::WorkerRef::required(report.worker.as_ref()) {
                if report.phase() != common::WorkerPhase::Dead {
                    self.repeat_stop(name, &id);
                }
                self.on_report(name, &id, report, now);
                told.insert(id);
            }
        }
        for id in missed.difference(&told) {
            self.bury(name, id, lost(DeathCause::Unknown, "its agent does not know it: the order to start it was lost, or the machine was restarted"), false, now);
        }
        if !all_heard_before {
            self.fill_all(now);
        }
    }

    /// A beat of a node, with what changed there. False when the node has no lease: it has to say
    /// hello again.
    pub(crate) fn on_beat(&mut self, name: &NodeName, beat: &HeartbeatRequest, now: Tick) -> bool {
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        let ttl_ms = match node.lease.on_beat(beat.seq, beat.ack_seen, now) {
            Beat::Extended => millis(self.terms.node.ttl()),
            Beat::Unproven | Beat::Stale => 0,
            Beat::Ended => return false,
        };
        let takes_before = node.takes();
        // A beat that was overtaken is no anchor: what is told counts from the later one.
        if beat.seq > node.last.0 {
            node.last = (beat.seq, now);
        }
        self.effects.acks.insert(name.clone(), Ack { ttl_ms });
        for exit in &beat.owner_exits {
            if let Ok(owner) = OwnerName::new(&exit.owner) {
                self.owner_exited(&owner, Epoch(exit.epoch), now);
            }
        }
        for report in &beat.reports {
            if let Ok(id) = common::WorkerRef::required(report.worker.as_ref()) {
                self.on_report(name, &id, report, now);
            }
        }
        if !takes_before {
            self.place_waiting(now);
        }
        true
    }

    pub(super) fn check_nodes(&mut self, now: Tick) {
        let lost_nodes: Vec<_> = self
            .nodes
            .iter_mut()
            .filter_map(|(name, node)| {
                (node.lease.check(now) == Tenure::Free).then(|| name.clone())
            })
            .collect();
        let any_lost = !lost_nodes.is_empty();
        for name in lost_nodes {
            let Some(node) = self.nodes.remove(&name) else {
                continue;
            };
            self.effects.delete(keys::node(&name));
            self.effects.node_event(
                EventKind::NodeLost,
                &name,
                format!("no beat of node `{name}` within its lease"),
            );
            // Every shim there has ended its worker by now: that is what the lease is for (A1).
            for id in node.workers {
                let death = lost(
                    DeathCause::LeaseExpired,
                    "its node was not heard within the lease",
                );
                self.bury(&name, &id, death, false, now);
            }
        }
        if any_lost {
            self.fill_all(now);
        }
    }

    /// The node for another worker of this pool: one that offers the launcher, sees the owner where
    /// the policy needs that, and has the fewest workers.
    pub(super) fn choose_node(&self, pool: &PoolName) -> Option<NodeName> {
        let pool = self.pools.get(pool)?;
        let process = self
            .sessions
            .get(pool.owner())
            .and_then(|session| session.process.as_ref());
        let fits = |node: &Node| {
            let in_sight = match pool.policy().on_owner_exit {
                OnOwnerLoss::Kill => process.is_some_and(|process| node.sees(process)),
                OnOwnerLoss::RunForTimeout | OnOwnerLoss::Continue => true,
            };
            node.takes() && node.offers(pool.policy().launcher) && in_sight
        };
        let candidates = self.nodes.iter().filter(|(_, node)| fits(node));
        candidates
            .min_by_key(|(_, node)| node.workers.len())
            .map(|(name, _)| name.clone())
    }

    /// Tells every node with workers of this owner at once what changed of their permission.
    pub(super) fn tell_nodes_of(&mut self, owner: &OwnerName) {
        for (name, node) in &self.nodes {
            let of_owner = |id: &WorkerId| {
                let pool = self.pools.get(&id.pool);
                pool.is_some_and(|pool| pool.owner() == owner)
            };
            if node.takes() && node.workers.iter().any(of_owner) {
                self.effects
                    .acks
                    .entry(name.clone())
                    .or_insert(Ack { ttl_ms: 0 });
            }
        }
    }

    /// What to tell a node with its next message: as of its last beat.
    pub(crate) fn message_to(&self, name: &NodeName) -> Option<HeartbeatResponse> {
        let node = self.nodes.get(name)?;
        let (seq, received) = node.last;
        let here: BTreeSet<_> = node.workers.iter().map(|id| &id.pool).collect();
        let mut owners: Vec<OwnerPermission> = Vec::new();
        for pool in here.iter().filter_map(|&pool| self.pools.get(pool)) {
            let session = self.sessions.get(pool.owner());
            let permission = PoolPermission {
                pool: pool.name().to_string(),
                remaining_ms: pool
                    .permission(session)
                    .map(|until| millis(until.since(received))),
                kill_on_owner_exit: pool.dies_with_owner(),
                kill_on_agent_loss: pool.policy().on_agent_loss == OnAgentLoss::Kill,
            };
            let owner = pool.owner().to_string();
            match owners.iter_mut().find(|told| told.owner == owner) {
                Some(told) => told.pools.push(permission),
                None => owners.push(OwnerPermission {
                    owner,
                    epoch: session.map_or(0, |session| session.epoch.0),
                    process: session
                        .and_then(|session| session.process.as_ref())
                        .map(Into::into),
                    pools: vec![permission],
                }),
            }
        }
        let timeouts = here
            .iter()
            .filter_map(|&pool| self.pools.get(pool))
            .filter(|pool| pool.permission(self.sessions.get(pool.owner())).is_some());
        let beat = timeouts
            .map(|pool| pool.policy().heartbeat_timeout / BEATS_PER_TIMEOUT)
            .chain([self.terms.node_beat])
            .min()
            .unwrap_or(self.terms.node_beat)
            .max(BEAT_MIN);
        Some(HeartbeatResponse {
            seq,
            ttl_ms: 0,
            beat_ms: millis(beat),
            owners,
            orders: Vec::new(),
        })
    }
}

pub(super) fn lost(cause: DeathCause, detail: &str) -> common::Death {
    let death = Death {
        cause,
        exit_code: None,
        signal: None,
        detail: detail.to_owned(),
        stderr_tail: String::new(),
        measures: None,
    };
    common::Death::from(&death)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tether_lifecycle::Environment;

    use super::*;
    use crate::Config;

    #[test]
    fn a_node_that_only_said_hello_has_accepted_nothing_and_takes_no_workers() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Environment::default());
        let node = NodeName::new("n1").unwrap();
        let now = Tick::from_nanos(1_000_000_000);
        let beat = HeartbeatRequest {
            seq: 1,
            ..HeartbeatRequest::default()
        };

        for _ in 0..3 {
            ledger.on_hello(&node, &Hello::default(), now);
            assert!(!ledger.nodes[&node].takes());
        }
        assert!(ledger.on_beat(&node, &beat, now));
        assert!(ledger.nodes[&node].takes());
        ledger.on_hello(&node, &Hello::default(), now);
        assert!(
            !ledger.nodes[&node].takes(),
            "another stream has to be heard too"
        );
    }

    #[test]
    fn a_node_name_is_not_given_to_another_agent_before_the_lease_of_the_first_is_over() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Environment::default());
        let node = NodeName::new("n1").unwrap();
        let hello = |instance: &str| Hello {
            instance: instance.to_owned(),
            ..Hello::default()
        };
        let start = Tick::from_nanos(1_000_000_000);
        ledger.on_hello(&node, &hello("one"), start);

        assert!(ledger.admit_node(&node, &hello("one"), start).is_ok());
        let refused = ledger.admit_node(&node, &hello("two"), start).unwrap_err();
        assert_eq!(refused.reason(), Reason::NodeTaken);
        let later = start + terms.node.ttl() * 2;
        assert!(ledger.admit_node(&node, &hello("two"), later).is_ok());
    }
}
