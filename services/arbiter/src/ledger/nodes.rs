//! Nodes: their leases, what they offer, and what they are told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tether_clock::{Tick, wall::Step};
use tether_history::Freed;
use tether_lease::{Beat, Grantor};
use tether_lifecycle::{Launcher, OnAgentLoss};
use tether_placement::{Counts, Labels};
use tether_proto::{
    Failure, SHARD, common,
    node::{
        HeartbeatRequest, HeartbeatResponse, Hello, Order, OwnerPermission, PoolPermission, order,
    },
    worker::{self as wire, Event, EventKind},
};
use tether_types::{
    Death, DeathCause, Digest, Epoch, NodeName, OwnerName, PoolName, ProcessIdentity, Reason,
    WorkerId,
};

use super::{
    Ledger, Pool, Timed,
    epochs::Tenancy,
    holds::Hold,
    loss::Loss,
    losses::Over,
    millis,
    offers::{labels_of, resources_of},
    pools::Outliving,
    roster::Roster,
    units::Units,
};
use crate::{
    effects::{Ack, keys},
    record::NodeRecord,
};

/// Within an owner's timeout its agents beat this often, so that they hear in time that it lives.
const BEATS_PER_TIMEOUT: u32 = 4;

/// Beats whose receipt is remembered: a node that answers has seen one of the last two.
const RECEIVED_MAX: usize = 8;

/// No policy asks for more beats than this.
const BEAT_MIN: Duration = Duration::from_millis(50);

/// Why a worker that an agent does not know is taken to be dead.
const NEVER_STARTED: &str =
    "its agent does not know it: the order to start it was lost, or the machine was restarted";

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(super) lease: Grantor,
    /// Who holds that.
    pub(super) tenancy: Tenancy,
    /// Whether it was heard since this arbiter started.
    pub(super) heard: bool,
    /// What may still live there, once its lease is over.
    pub(super) loss: Option<Loss>,
    /// Which runtime directory its agent stands on.
    instance: String,
    /// Where its agent serves.
    pub(crate) address: String,
    /// Where it tells gateways of its workers' fates; empty where it does not.
    pub(super) fates: String,
    launchers: Vec<Launcher>,
    pub(super) labels: Labels,
    /// What it has of counted resources, and what of it is not free.
    pub(super) resources: Counts,
    pub(super) units: Units,
    boot_id: String,
    pid_namespace: u64,
    /// How surely its workers' processes end, as its agent says: `G1` to `G5`.
    guarantee: String,
    guarantee_by: String,
    not_covered: String,
    /// Its last beat: number and time of receipt. What it is told counts from there.
    pub(super) last: (u64, Tick),
    /// When its last few beats were received, by number.
    received: VecDeque<(u64, Tick)>,
    /// The workers that were placed there and are not buried.
    pub(super) workers: Roster,
    /// Those that may live on with a job, as far as the node knows.
    pub(super) jobs: BTreeMap<WorkerId, Hold>,
    /// Endpoints there that an earlier arbiter told, until the node says what it has.
    pub(super) served: Vec<WorkerId>,
    /// What its stream told of workers that are not dead, those without a place included.
    pub(super) told: Digest,
    pub(super) strangers: BTreeMap<WorkerId, i32>,
    /// Up to which stamp it was told of permissions, and pools that it is to be told of whatever theirs is.
    knows: u64,
    pub(super) to_tell: BTreeSet<PoolName>,
    /// How often it is to beat, as of that.
    beat: Duration,
    /// What died with it before.
    pub(super) over: Over,
    /// For when the wheel has its look at it; never for none.
    armed: Tick,
}

impl Node {
    /// One of which nothing was heard.
    fn unheard(lease: Grantor, instance: String, now: Tick) -> Self {
        Self {
            lease,
            tenancy: Tenancy::default(),
            heard: false,
            loss: None,
            instance,
            address: String::new(),
            fates: String::new(),
            launchers: Vec::new(),
            labels: Labels::new(),
            resources: Counts::new(),
            units: Units::default(),
            boot_id: String::new(),
            pid_namespace: 0,
            guarantee: String::new(),
            guarantee_by: String::new(),
            not_covered: String::new(),
            last: (0, now),
            received: VecDeque::new(),
            workers: Roster::default(),
            jobs: BTreeMap::new(),
            served: Vec::new(),
            told: Digest::default(),
            strangers: BTreeMap::new(),
            knows: 0,
            to_tell: BTreeSet::new(),
            beat: Duration::ZERO,
            over: Over::default(),
            armed: Tick::NEVER,
        }
    }

    /// Whether it has a lease and has said what is there.
    fn is_up(&self) -> bool {
        self.heard && self.loss.is_none()
    }

    pub(super) fn offers(&self, launcher: Launcher) -> bool {
        self.is_up() && self.launchers.contains(&launcher)
    }

    /// Whether it takes workers: only from its first beat on, as until then it has no permission that
    /// it could give them.
    ///
    /// That is offer and acceptance (`lease` L6). Its hello asks, the stream that opens is the offer, and an
    /// agent beats only on a stream it has heard to be open: one that can send but not hear never beats, and gets nothing.
    pub(super) fn takes(&self) -> bool {
        self.last.0 > 0 && self.loss.is_none()
    }

    /// Before when all that was decided is known to the node: an answer to one of its beats, which tells it,
    /// arrived there. None while that is not known.
    fn knows_before(&mut self, ack_seen: u64) -> Option<Tick> {
        let received = self.received.iter().find(|(seq, _)| *seq == ack_seen)?.1;
        self.received.retain(|(seq, _)| *seq >= ack_seen);
        Some(received)
    }

    /// Its workers of a pool that do a job.
    fn with_job(&self, pool: &PoolName) -> Vec<u64> {
        let held = self.jobs.iter().filter(|(_, hold)| **hold == Hold::Held);
        held.filter(|(id, _)| id.pool == *pool)
            .map(|(id, _)| id.incarnation.0)
            .collect()
    }

    /// Whether its agent can observe this process.
    pub(super) fn sees(&self, process: &ProcessIdentity) -> bool {
        self.is_up()
            && self.boot_id == process.boot_id
            && self.pid_namespace == process.pid_namespace
    }
}

impl Ledger {
    pub(super) fn restore_node(
        &mut self,
        name: NodeName,
        instance: String,
        revision: u64,
        now: Tick,
    ) {
        let lease = Grantor::after_restart(self.terms.node, now);
        let mut node = Node::unheard(lease, instance, now);
        node.tenancy = Tenancy::restored(revision);
        node.tenancy.note_granted(&name, &node.lease, now);
        self.enter_node(name, node);
    }

    fn enter_node(&mut self, name: NodeName, node: Node) {
        self.unheard += usize::from(!node.heard);
        self.loads.insert((node.workers.len(), name.clone()));
        self.nodes.insert(name.clone(), node);
        self.watch_node(name);
    }

    pub(super) fn take_node(&mut self, name: &NodeName) -> Option<Node> {
        let node = self.nodes.remove(name)?;
        self.unheard -= usize::from(!node.heard && node.loss.is_none());
        self.uncertain.remove(name);
        self.loads.remove(&(node.workers.len(), name.clone()));
        Some(node)
    }

    /// Has a node looked at in time.
    pub(super) fn watch_node(&mut self, name: NodeName) {
        if let Some(node) = self.nodes.get_mut(&name)
            && let Some(next) = node.next_deadline()
            && next < node.armed
        {
            node.armed = self.wheel.arm(Timed::Node(name), next);
        }
    }

    /// The look at a node that was armed for `at`: its name, unless another look counts.
    pub(super) fn check_node(&mut self, name: NodeName, at: Tick) -> Option<NodeName> {
        let node = self.nodes.get_mut(&name)?;
        if node.armed != at {
            return None;
        }
        node.armed = Tick::NEVER;
        Some(name)
    }

    /// Whether every node that may have workers of before has said which.
    pub(super) fn all_heard(&self) -> bool {
        self.unheard == 0
    }

    /// The nodes, by name, those included that are away and not to take workers when they are back.
    pub(crate) fn list_nodes(&self, now: Tick) -> Vec<wire::Node> {
        let names: BTreeSet<_> = self.nodes.keys().chain(self.closed.keys()).collect();
        let nodes = names.into_iter().map(|name| self.view_node(name, now));
        nodes.collect()
    }

    /// A node as it looks from outside.
    pub(super) fn view_node(&self, name: &NodeName, now: Tick) -> wire::Node {
        let state = self.state_of(name).into();
        let Some(node) = self.nodes.get(name) else {
            return wire::Node {
                name: name.to_string(),
                state,
                ..wire::Node::default()
            };
        };
        wire::Node {
            name: name.to_string(),
            state,
            up: node.is_up(),
            lost: node.loss.is_some(),
            held_ms: node
                .loss
                .as_ref()
                .map_or(0, |loss| millis(loss.remaining(now))),
            guarantee: node.guarantee.clone(),
            guarantee_by: node.guarantee_by.clone(),
            not_covered: node.not_covered.clone(),
            launchers: node
                .launchers
                .iter()
                .map(|launcher| launcher.name().to_owned())
                .collect(),
            workers: u32::try_from(node.workers.len()).unwrap_or(u32::MAX),
            labels: node.labels.clone().into_iter().collect(),
            resources: node.resources.clone().into_iter().collect(),
            resources_used: node.units.used().clone().into_iter().collect(),
            held_up_by: self.held_up_by(name),
            awaited: !node.heard && node.loss.is_none(),
        }
    }

    /// Where a node's agent serves.
    pub(crate) fn agent_address(&self, node: &NodeName) -> Option<&str> {
        self.nodes.get(node).map(|node| node.address.as_str())
    }

    /// Whether this agent may speak for a node. One that does not know what another one started under
    /// the same name has to wait until that one's lease is over (A1).
    ///
    /// # Errors
    /// Says how long, and what to do if both are meant to run; or that it was followed by another one (A12).
    pub(crate) fn admit_node(
        &mut self,
        name: &NodeName,
        hello: &Hello,
        now: Tick,
    ) -> Result<(), Failure> {
        self.check_nodes(vec![name.clone()], now);
        self.admit_epoch(name, hello)?;
        let known = self.nodes.get(name);
        let Some(known) = known.filter(|known| known.instance != hello.instance) else {
            return Ok(());
        };
        let left = match &known.loss {
            Some(loss) => loss.remaining(now),
            None => known.lease.remaining(now),
        };
        let text = format!(
            "another agent holds node `{name}`, or its workers may live, for {left:.1?} more: wait if it was moved to another runtime directory or its machine was restarted, set another `node` under [agent] if both are to run, or attest with `tether node dead {name}` that nothing of the first one lives"
        );
        Err(Failure::new(Reason::NodeTaken, text).retry_after(left))
    }

    /// A node opens its stream, and is compared with what is known of it. Where it has no lease it is granted one
    /// anew; one that it has is extended by its first beat, which shows that it hears.
    pub(crate) fn on_hello(&mut self, name: &NodeName, hello: &Hello, now: Tick) {
        let launchers = hello
            .launchers
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        let all_heard_before = self.all_heard();
        let was_uncertain = self.uncertain.contains(name);
        let known = self.take_node(name);
        let was_lost = known.as_ref().is_some_and(|known| known.loss.is_some());
        let is_new = known.is_none();
        let is_news = |known: &Node| !known.is_up() || known.guarantee != hello.guarantee;
        let joined = known.as_ref().is_none_or(is_news);
        let known = known.unwrap_or_else(|| {
            let lease = Grantor::grant(self.terms.node, now);
            Node {
                over: self.losses.on_return(name),
                ..Node::unheard(lease, String::new(), now)
            }
        });
        let mut tenancy = known.tenancy;
        let is_same = known.instance == hello.instance && tenancy.is_of(hello.epoch);
        if is_new || was_lost || !is_same {
            if !was_lost {
                tenancy.note_freed(name, Freed::TakenOver);
            }
            tenancy.follow();
            let instance = hello.instance.clone();
            self.effects.put(keys::node(name), NodeRecord { instance });
        } else {
            tenancy.on_stream(hello.epoch);
        }
        let lease = match is_new || was_lost {
            true => Grantor::grant(self.terms.node, now),
            false => known.lease.clone().on_stream(),
        };
        let node = Node {
            lease,
            tenancy,
            heard: true,
            loss: None,
            instance: hello.instance.clone(),
            address: hello.address.clone(),
            fates: hello.fates.clone(),
            launchers,
            boot_id: hello.boot_id.clone(),
            pid_namespace: hello.pid_namespace,
            guarantee: hello.guarantee.clone(),
            guarantee_by: hello.guarantee_by.clone(),
            not_covered: hello.not_covered.clone(),
            labels: labels_of(hello),
            resources: resources_of(hello),
            units: known.units,
            workers: known.workers,
            jobs: known.jobs,
            over: known.over,
            armed: known.armed,
            ..Node::unheard(known.lease, String::new(), now)
        };
        let missed: Vec<_> = node.workers.iter().collect();
        let moved = known.fates != node.fates;
        let served = known.served;
        self.enter_node(name.clone(), node);
        if joined {
            let guarantee = match hello.guarantee.as_str() {
                "" => "an unknown guarantee",
                known => &format!("guarantee {known}"),
            };
            let count = hello.workers.len();
            let text = format!("node `{name}` joined, with {count} workers and {guarantee}");
            self.effects.node_event(EventKind::NodeUp, name, text);
        }
        if moved {
            // An agent that found its workers may be the first that tells of them.
            self.publish_anew(&missed);
        }
        // What its loss ended is as it was before, until it says what of it lives.
        self.fold_back(name);
        self.forget_told(name);
        self.compare(name, &hello.workers, missed, NEVER_STARTED, now);
        self.end_unheard(name, served, now);
        self.free_units_but(name, &hello.workers);
        if was_lost {
            self.enable(name, now);
        }
        self.drop_holds_but_known(name);
        if was_uncertain || (!all_heard_before && self.all_heard()) {
            self.fill_all(now);
        }
    }

    /// A beat of a node, with what changed there. False when the node has no lease: it has to say
    /// hello again.
    pub(crate) fn on_beat(&mut self, name: &NodeName, beat: &HeartbeatRequest, now: Tick) -> bool {
        let is_over = |node: &Node| node.loss.is_none() && node.lease.remaining(now).is_zero();
        if self.nodes.get(name).is_some_and(is_over) {
            // Nobody had looked since: a lease that this beat found ended would be no deadline of anything.
            self.check_nodes(vec![name.clone()], now);
        }
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        let ttl_ms = match node.lease.on_beat(beat.seq, beat.ack_seen, now) {
            Beat::Extended => millis(self.terms.node.ttl()),
            Beat::Unproven | Beat::Stale => 0,
            Beat::Ended => return false,
        };
        let takes_before = node.takes();
        node.tenancy.on_heard(beat.epoch);
        if ttl_ms > 0 {
            node.tenancy.note_granted(name, &node.lease, now);
        }
        // A beat that was overtaken is no anchor: what is told counts from the later one.
        if beat.seq > node.last.0 {
            node.last = (beat.seq, now);
            node.received.push_back(node.last);
            if node.received.len() > RECEIVED_MAX {
                node.received.pop_front();
            }
        }
        let known = node.knows_before(beat.ack_seen);
        if beat.clock_step_ms != 0 {
            self.clock_stepped(Some(name), Step::of_millis(beat.clock_step_ms));
        }
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
        if let Some(table) = &beat.table {
            self.resync(name, &table.workers, now);
            self.free_units_but(name, &table.workers);
        }
        let resync = !beat.goodbye && self.differs(name, beat);
        self.effects
            .acks
            .insert(name.clone(), Ack { ttl_ms, resync });
        if beat.goodbye {
            self.on_goodbye(name, now);
        }
        if let Some(known) = known {
            self.drop_holds_ended_before(name, known);
        }
        let freed = std::mem::take(&mut self.units_freed);
        if !takes_before || freed {
            self.place_waiting(now);
        }
        true
    }

    /// Somebody has set the time of day of a node's machine, or of this one: told, as people compare the times of
    /// events and logs, and nothing else follows.
    pub(crate) fn clock_stepped(&mut self, node: Option<&NodeName>, step: Step) {
        let whose = node.map_or_else(|| "the arbiter".to_owned(), |node| format!("node `{node}`"));
        let text = format!(
            "the time of day at {whose} was {step}: leases count by other clocks and are not affected, times of events and logs jump"
        );
        self.effects.events.push(Event {
            kind: EventKind::ClockStepped.into(),
            node: node.map(ToString::to_string).unwrap_or_default(),
            text,
            ..Event::default()
        });
    }

    /// Tells every node with workers of this owner at once what changed of their permission.
    pub(super) fn tell_nodes_of(&mut self, owner: &OwnerName) {
        let pools = self.pools.values().filter(|pool| pool.owner() == owner);
        let pools: BTreeSet<_> = pools.map(Pool::name).collect();
        for (name, node) in &self.nodes {
            if node.takes() && node.workers.pools().any(|pool| pools.contains(pool)) {
                self.effects.acks.entry(name.clone()).or_default();
            }
        }
    }

    /// The next message to a node, as of its last beat: what changed of its permissions, and these orders.
    pub(crate) fn message_to(
        &mut self,
        name: &NodeName,
        ack: Ack,
        orders: Vec<Order>,
    ) -> Option<HeartbeatResponse> {
        let stamp = self.stamp;
        let node = self.nodes.get_mut(name)?;
        // An agent forgets what it was told of a pool of which it has no worker.
        node.to_tell.extend(orders.iter().filter_map(started));
        let mut owners = Vec::new();
        // Before its first beat there is nothing that it could count from.
        if node.takes() && (node.knows < stamp || !node.to_tell.is_empty()) {
            let to_tell = std::mem::take(&mut node.to_tell);
            let knows = std::mem::replace(&mut node.knows, stamp);
            let node = self.nodes.get(name)?;
            owners = self.permissions(node, knows, &to_tell);
            let beat = self.beat_of(node);
            self.nodes.get_mut(name)?.beat = beat;
        }
        let node = self.nodes.get(name)?;
        let beat = if node.beat.is_zero() {
            self.terms.node_beat
        } else {
            node.beat
        };
        Some(HeartbeatResponse {
            seq: node.last.0,
            ttl_ms: ack.ttl_ms,
            beat_ms: millis(beat),
            owners,
            orders,
            resync: ack.resync,
            epoch: node.tenancy.to_tell(),
            shard: SHARD,
        })
    }

    /// The permissions of a node's pools that changed since it was told those up to `knows`.
    fn permissions(
        &self,
        node: &Node,
        knows: u64,
        to_tell: &BTreeSet<PoolName>,
    ) -> Vec<OwnerPermission> {
        let (_, received) = node.last;
        let mut owners: Vec<OwnerPermission> = Vec::new();
        for pool in node.workers.pools().filter_map(|pool| self.pools.get(pool)) {
            let session = self.sessions.get(pool.owner());
            if pool.stamp(session) <= knows && !to_tell.contains(pool.name()) {
                continue;
            }
            let permission = PoolPermission {
                pool: pool.name().to_string(),
                remaining_ms: pool
                    .permission(session)
                    .map(|until| millis(until.since(received))),
                kill_on_owner_exit: pool.dies_with_owner(),
                kill_on_agent_loss: pool.policy().on_agent_loss == OnAgentLoss::Kill,
                partition_grace_ms: millis(pool.policy().partition_grace),
                job_grace_ms: millis(Outliving::of(pool.policy()).with_job(self.terms.node.ttl())),
                jobs: node.with_job(pool.name()),
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
        owners
    }

    /// How often a node is to beat: its agents are to hear in time that the owners live.
    fn beat_of(&self, node: &Node) -> Duration {
        let pools = node.workers.pools().filter_map(|pool| self.pools.get(pool));
        pools
            .filter(|pool| pool.permission(self.sessions.get(pool.owner())).is_some())
            .map(|pool| pool.policy().heartbeat_timeout / BEATS_PER_TIMEOUT)
            .chain([self.terms.node_beat])
            .min()
            .unwrap_or(self.terms.node_beat)
            .max(BEAT_MIN)
    }
}

/// The pool of which this order starts a worker.
fn started(order: &Order) -> Option<PoolName> {
    let Some(order::Order::Start(start)) = &order.order else {
        return None;
    };
    PoolName::new(&start.worker.as_ref()?.pool).ok()
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
    use tether_lifecycle::Surroundings;
    use tether_proto::worker::NodeState;

    use super::*;
    use crate::{Config, record::CordonRecord};

    #[test]
    fn a_node_that_only_said_hello_has_accepted_nothing_and_takes_no_workers() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
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
    fn a_node_that_is_closed_and_not_heard_yet_is_awaited_if_it_has_a_lease() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
        let now = Tick::from_nanos(1_000_000_000);
        let [known, gone] = ["known", "gone"].map(|name| NodeName::new(name).unwrap());
        ledger.restore_node(known.clone(), "one".to_owned(), 7, now);
        for name in [&known, &gone] {
            ledger.restore_cordon(name.clone(), CordonRecord { drained: false });
        }
        let awaited = |ledger: &Ledger, name| {
            let seen = ledger.view_node(name, now);
            assert_eq!(seen.state(), NodeState::Cordoned);
            (seen.awaited, seen.up)
        };

        assert_eq!(awaited(&ledger, &known), (true, false));
        assert_eq!(awaited(&ledger, &gone), (false, false));

        let hello = Hello {
            instance: "one".to_owned(),
            ..Hello::default()
        };
        ledger.on_hello(&known, &hello, now);
        assert_eq!(awaited(&ledger, &known), (false, true));
    }

    #[test]
    fn a_node_whose_time_of_day_was_set_tells_it_and_keeps_its_lease() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
        let node = NodeName::new("n1").unwrap();
        let now = Tick::from_nanos(1_000_000_000);
        ledger.on_hello(&node, &Hello::default(), now);
        ledger.take_effects();
        let beat = HeartbeatRequest {
            seq: 1,
            clock_step_ms: -3_600_000,
            ..HeartbeatRequest::default()
        };

        assert!(ledger.on_beat(&node, &beat, now));

        let events = ledger.take_effects().events;
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.kind(), event.node.as_str()))
            .collect();
        assert_eq!(told, [(EventKind::ClockStepped, "n1")]);
        assert!(
            events[0].text.contains("set back by 3600.0s"),
            "{}",
            events[0].text
        );
        assert!(ledger.nodes[&node].is_up());
    }

    #[test]
    fn an_agent_that_only_says_hello_keeps_no_lease_by_it_however_often_it_does() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
        let node = NodeName::new("n1").unwrap();
        let start = Tick::from_nanos(1_000_000_000);
        let beat = |seq| HeartbeatRequest {
            seq,
            ack_seen: seq - 1,
            ..HeartbeatRequest::default()
        };
        ledger.on_hello(&node, &Hello::default(), start);
        assert!(ledger.on_beat(&node, &beat(1), start));
        let until = ledger.nodes[&node].lease.next_deadline().unwrap();

        let last = until.saturating_sub(Duration::from_secs(1));
        for ago in (0..15).rev() {
            let now = last.saturating_sub(Duration::from_secs(ago));
            ledger.on_hello(&node, &Hello::default(), now);
        }
        assert_eq!(ledger.nodes[&node].lease.next_deadline(), Some(until));
        // Its first beat on a stream is as good as ever, and it may count from one again.
        assert!(ledger.on_beat(&node, &beat(1), last));
        assert!(ledger.nodes[&node].lease.next_deadline() > Some(until));
    }

    #[test]
    fn a_beat_in_the_moment_in_which_the_lease_ends_loses_the_node_as_a_look_would() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
        let node = NodeName::new("n1").unwrap();
        let now = Tick::from_nanos(1_000_000_000);
        let beat = |seq| HeartbeatRequest {
            seq,
            ack_seen: seq - 1,
            ..HeartbeatRequest::default()
        };
        ledger.on_hello(&node, &Hello::default(), now);
        assert!(ledger.on_beat(&node, &beat(1), now));
        let end = ledger.nodes[&node].lease.next_deadline().unwrap();
        ledger.take_effects();

        assert!(!ledger.on_beat(&node, &beat(2), end));

        let kinds: Vec<_> = ledger
            .take_effects()
            .events
            .iter()
            .map(Event::kind)
            .collect();
        assert_eq!(kinds, [EventKind::NodeLost]);
        ledger.on_hello(&node, &Hello::default(), end);
        assert!(ledger.on_beat(&node, &beat(1), end));
        assert!(ledger.nodes[&node].takes(), "and it is back");
    }

    #[test]
    fn a_node_name_is_not_given_to_another_agent_before_the_lease_of_the_first_is_over() {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
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
