//! Nodes: their leases, what they offer, and which worker goes where.

use std::{collections::BTreeSet, time::Duration};

use tether_clock::Tick;
use tether_lease::{Beat, Grantor, Tenure};
use tether_lifecycle::{Launcher, OnOwnerLoss};
use tether_proto::{
    common,
    node::{HeartbeatRequest, HeartbeatResponse, Hello, OwnerPermission, PoolPermission},
    worker::EventKind,
};
use tether_types::{
    Death, DeathCause, Epoch, NodeName, OwnerName, PoolName, ProcessIdentity, WorkerId,
};

use super::{Ledger, millis};
use crate::effects::{Ack, keys};

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
    /// Where its agent serves.
    pub(crate) address: String,
    launchers: Vec<Launcher>,
    boot_id: String,
    pid_namespace: u64,
    /// Its last beat: number and time of receipt. What it is told counts from there.
    last: (u64, Tick),
}

impl Node {
    pub(super) fn offers(&self, launcher: Launcher) -> bool {
        self.heard && self.launchers.contains(&launcher)
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
    pub(super) fn restore_node(&mut self, name: NodeName, now: Tick) {
        let node = Node {
            lease: Grantor::after_restart(self.terms.node, now),
            heard: false,
            address: String::new(),
            launchers: Vec::new(),
            boot_id: String::new(),
            pid_namespace: 0,
            last: (0, now),
        };
        self.nodes.insert(name, node);
    }

    /// Whether every node that may have workers of before has said which.
    pub(super) fn all_heard(&self) -> bool {
        self.nodes.values().all(|node| node.heard)
    }

    /// Where a node's agent serves.
    pub(crate) fn agent_address(&self, node: &NodeName) -> Option<&str> {
        self.nodes.get(node).map(|node| node.address.as_str())
    }

    /// A node opens its stream: granted a lease anew, and compared with what is known of it.
    pub(crate) fn on_hello(&mut self, name: &NodeName, hello: &Hello, now: Tick) {
        let launchers = hello
            .launchers
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        let node = Node {
            lease: Grantor::grant(self.terms.node, now),
            heard: true,
            address: hello.address.clone(),
            launchers,
            boot_id: hello.boot_id.clone(),
            pid_namespace: hello.pid_namespace,
            last: (0, now),
        };
        let known = self.nodes.insert(name.clone(), node);
        if known.is_none() {
            self.effects.put_empty(keys::node(name));
        }
        if known.is_none_or(|known| !known.heard) {
            let text = format!("node `{name}` joined, with {} workers", hello.workers.len());
            self.effects.node_event(EventKind::NodeUp, name, text);
        }

        let mut told = BTreeSet::new();
        for report in &hello.workers {
            if let Ok(id) = common::WorkerRef::required(report.worker.as_ref()) {
                self.on_report(name, &id, report, now);
                told.insert(id);
            }
        }
        for id in self.workers_on(name) {
            if !told.contains(&id) {
                self.bury(name, &id, lost(DeathCause::Unknown, "its agent does not know it: the order to start it was lost, or the machine was restarted"), false, now);
            }
        }
        self.check_pools(now);
    }

    /// A beat of a node, with what changed there.
    pub(crate) fn on_beat(&mut self, name: &NodeName, beat: &HeartbeatRequest, now: Tick) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let ttl_ms = match node.lease.on_beat(beat.seq, beat.ack_seen, now) {
            Beat::Extended => millis(self.terms.node.ttl()),
            Beat::Unproven | Beat::Stale | Beat::Ended => 0,
        };
        node.last = (beat.seq, now);
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
    }

    pub(super) fn check_nodes(&mut self, now: Tick) {
        let lost_nodes: Vec<_> = self
            .nodes
            .iter_mut()
            .filter_map(|(name, node)| {
                (node.lease.check(now) == Tenure::Free).then(|| name.clone())
            })
            .collect();
        for name in lost_nodes {
            self.effects.delete(keys::node(&name));
            self.effects.node_event(
                EventKind::NodeLost,
                &name,
                format!("no beat of node `{name}` within its lease"),
            );
            // Every shim there has ended its worker by now: that is what the lease is for (A1).
            for id in self.workers_on(&name) {
                self.bury(
                    &name,
                    &id,
                    lost(
                        DeathCause::LeaseExpired,
                        "its node was not heard within the lease",
                    ),
                    false,
                    now,
                );
            }
            self.nodes.remove(&name);
        }
    }

    fn workers_on(&self, node: &NodeName) -> Vec<WorkerId> {
        let on_node = |id: WorkerId| {
            self.find_worker(&id)
                .filter(|(_, at)| at == node)
                .map(|(id, _)| id)
        };
        self.pools
            .iter()
            .flat_map(|(pool, entry)| entry.places.keys().map(move |&slot| (pool, slot)))
            .filter_map(|(pool, slot)| {
                on_node(WorkerId {
                    pool: pool.clone(),
                    slot,
                    incarnation: Default::default(),
                })
            })
            .collect()
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
            node.offers(pool.policy().launcher) && in_sight
        };
        let candidates = self
            .nodes
            .iter()
            .filter(|(_, node)| fits(node))
            .map(|(name, _)| name);
        candidates
            .min_by_key(|name| self.workers_on(name).len())
            .cloned()
    }

    /// What to tell a node with its next message: as of its last beat.
    pub(crate) fn message_to(&self, name: &NodeName) -> Option<HeartbeatResponse> {
        let (seq, received) = self.nodes.get(name)?.last;
        let here: BTreeSet<_> = self
            .workers_on(name)
            .into_iter()
            .map(|id| id.pool)
            .collect();
        let mut owners: Vec<OwnerPermission> = Vec::new();
        for pool in here.iter().filter_map(|pool| self.pools.get(pool)) {
            let session = self.sessions.get(pool.owner());
            let permission = PoolPermission {
                pool: pool.name().to_string(),
                remaining_ms: pool
                    .permission(session)
                    .map(|until| millis(until.since(received))),
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
            .filter_map(|pool| self.pools.get(pool))
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

fn lost(cause: DeathCause, detail: &str) -> common::Death {
    let death = Death {
        cause,
        exit_code: None,
        signal: None,
        detail: detail.to_owned(),
        stderr_tail: String::new(),
    };
    common::Death::from(&death)
}
