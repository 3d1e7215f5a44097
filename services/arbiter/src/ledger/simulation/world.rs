//! The world of the model: nodes, owners, the store, the network between them, and the time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tether_clock::Tick;
use tether_lifecycle::Surroundings;
use tether_proto::{
    node::{HeartbeatRequest, HeartbeatResponse, WorkerReport},
    worker::EventKind,
};
use tether_types::{Death, DeathCause, Epoch, NodeName, Reason, WorkerId};

use super::{
    gateway::Gateway,
    jobs::Jobs,
    leaders::{Deposed, Flaw},
    node::Node,
    owner::{Owner, Wishes},
};
use crate::{
    config::Config,
    effects::{Ack, Effects, keys},
    ledger::Ledger,
};

pub(super) const STEP: Duration = Duration::from_millis(20);
const DELAY_MAX_MS: u64 = 60;

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a simulated message lives for a moment"
)]
pub(super) enum Packet {
    Up(HeartbeatRequest),
    Down(HeartbeatResponse),
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Tick,
    pub(super) ledger: Ledger,
    pub(super) store: BTreeMap<String, (Bytes, u64)>,
    pub(super) revision: u64,
    last_event: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) owners: Vec<Owner>,
    pub(super) gateways: [Gateway; 2],
    /// Calls that each worker has really served (A7).
    pub(super) served: BTreeMap<WorkerId, u64>,
    /// Which stream the arbiter has of each node, and what is on its way in each, in order.
    pub(super) links: BTreeMap<NodeName, u64>,
    streams: u64,
    wires: BTreeMap<(usize, u64, bool), VecDeque<(Tick, Packet)>>,
    random: u64,
    /// Incarnations an agent was ever asked to start (A2).
    pub(super) started: BTreeSet<u64>,
    /// `WORKER_DIED` events by worker (A3).
    pub(super) died: BTreeMap<WorkerId, u32>,
    /// Workers whose death an agent reported (A3).
    pub(super) reported: BTreeSet<WorkerId>,
    /// When a pool was last applied, and when the arbiter last began: both give a whole timeout.
    pub(super) applied: BTreeMap<String, Tick>,
    pub(super) restarted: Tick,
    /// The leader before, if it still lives, and what is wrong with the world, if anything is.
    pub(super) deposed: Option<Deposed>,
    pub(super) flaw: Option<Flaw>,
    pub(super) starts: u64,
    /// How often a node was asked for all it has.
    pub(super) resyncs: u64,
    pub(super) wishes: Wishes,
    /// Whether anything was done for which workers that run well are replaced.
    pub(super) rolls: bool,
    /// When a pool last got another mode.
    pub(super) switched: BTreeMap<String, Tick>,
    /// When workers of a pool were ordered to start, the last second only (A5).
    pub(super) ordered: BTreeMap<String, VecDeque<Tick>>,
    /// How each worker died that died.
    pub(super) causes: BTreeMap<WorkerId, DeathCause>,
    /// Every attempt at a job (A9).
    pub(super) jobs: Jobs,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, Wishes::default())
    }

    pub(super) fn with(seed: u64, wishes: Wishes) -> Self {
        let mut world = Self {
            now: Tick::ZERO + Duration::from_secs(100),
            ledger: empty_ledger(),
            store: BTreeMap::new(),
            revision: 0,
            last_event: 0,
            nodes: vec![
                // Nobody who has no use for a GPU goes where one is.
                Node::new("n0", "here", "a", if wishes.gpus { 2 } else { 0 }),
                Node::new("n1", "here", "b", if wishes.gpus { 3 } else { 0 }),
                Node::new("n2", "there", "a", 0),
            ],
            owners: vec![Owner::new("beam-0", 10), Owner::new("beam-1", 20)],
            gateways: Default::default(),
            served: BTreeMap::new(),
            links: BTreeMap::new(),
            streams: 0,
            wires: BTreeMap::new(),
            random: seed | 1,
            started: BTreeSet::new(),
            died: BTreeMap::new(),
            reported: BTreeSet::new(),
            applied: BTreeMap::new(),
            restarted: Tick::ZERO,
            deposed: None,
            flaw: None,
            starts: 0,
            resyncs: 0,
            wishes,
            rolls: false,
            switched: BTreeMap::new(),
            ordered: BTreeMap::new(),
            causes: BTreeMap::new(),
            jobs: Jobs::new(),
        };
        world.run(Duration::from_millis(500));
        world
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    /// One moment: everybody does what is due.
    fn step(&mut self) {
        self.now = self.now + STEP;
        let now = self.now;
        let pids: Vec<_> = self
            .owners
            .iter()
            .filter(|owner| owner.running)
            .map(|owner| owner.pid)
            .collect();
        let running = |pid: u32| pids.contains(&pid);
        for index in 0..self.nodes.len() {
            self.nodes[index].tick(running, now);
        }
        self.carry();
        for index in 0..self.nodes.len() {
            if self.nodes[index].wants_stream(now) {
                self.streams += 1;
                let stream = self.streams;
                let hello = self.nodes[index].hello(stream, now);
                let name = self.nodes[index].name.clone();
                // Each agent is honest, so what is refused is an epoch that it was never told to be over (A12).
                if let Err(failure) = self.ledger.admit_node(&name, &hello, now) {
                    assert_eq!(failure.reason(), Reason::LeaseFenced, "{failure}");
                    self.nodes[index].on_fenced(now);
                    self.settle();
                    continue;
                }
                self.note_deaths(&hello.workers);
                self.links.insert(name.clone(), stream);
                self.ledger.on_hello(&name, &hello, now);
                self.settle();
            }
            if let Some(beat) = self.nodes[index].beat(running, now) {
                let stream = self.nodes[index]
                    .agent
                    .as_ref()
                    .and_then(|agent| agent.stream)
                    .unwrap();
                self.send(index, stream, Packet::Up(beat));
            }
        }
        self.go_on();
        self.beat_owners();
        self.report_calls();
        // A pool that was waiting for its place may be over the moment it has it.
        for _ in 0..3 {
            if self.ledger.next_deadline().is_some_and(|next| now >= next) {
                self.ledger.check(now);
                self.settle();
            }
        }
        let next = self.ledger.next_deadline().unwrap_or(Tick::NEVER);
        assert!(next > now, "checks leave nothing due");
        assert!(next <= self.first_due(), "a deadline would be missed");
        self.check();
    }

    pub(super) fn send(&mut self, node: usize, stream: u64, packet: Packet) {
        let delay = Duration::from_millis(self.random(DELAY_MAX_MS));
        let up = matches!(packet, Packet::Up(_));
        let wire = self.wires.entry((node, stream, up)).or_default();
        let at = wire
            .back()
            .map_or(Tick::ZERO, |(at, _)| *at)
            .max(self.now + delay);
        wire.push_back((at, packet));
    }

    /// Delivers what has arrived; what was on a stream that broke is lost, or comes late to an
    /// arbiter that does not know yet.
    fn carry(&mut self) {
        let wires: Vec<_> = self.wires.keys().copied().collect();
        for (node, stream, up) in wires {
            let open = self.nodes[node]
                .agent
                .as_ref()
                .is_some_and(|agent| agent.stream == Some(stream));
            if !open && !up {
                self.wires.remove(&(node, stream, up));
                continue;
            }
            while let Some(wire) = self.wires.get_mut(&(node, stream, up))
                && wire.front().is_some_and(|(at, _)| *at <= self.now)
                && let Some((_, packet)) = wire.pop_front()
            {
                match packet {
                    Packet::Up(beat) => self.on_beat(node, stream, &beat),
                    Packet::Down(message) => {
                        for start in self.nodes[node].on_message(message, self.now) {
                            let incarnation = start.worker.unwrap().incarnation;
                            assert!(
                                self.started.insert(incarnation),
                                "A2: {incarnation} is given out twice"
                            );
                            self.starts += 1;
                        }
                    }
                }
            }
            self.wires.retain(|_, wire| !wire.is_empty());
        }
    }

    fn on_beat(&mut self, node: usize, stream: u64, beat: &HeartbeatRequest) {
        let name = self.nodes[node].name.clone();
        let linked = self.links.get(&name) == Some(&stream);
        if linked {
            self.note_deaths(&beat.reports);
            let table = beat.table.as_ref();
            self.note_deaths(table.map_or(&[], |table| &table.workers));
        }
        if !linked || !self.ledger.on_beat(&name, beat, self.now) {
            self.break_stream(node, stream);
        }
        self.settle();
    }

    /// A stream ends: both sides learn of it.
    fn break_stream(&mut self, node: usize, stream: u64) {
        let name = &self.nodes[node].name;
        if self.links.get(name) == Some(&stream) {
            self.links.remove(name);
        }
        if self.nodes[node]
            .agent
            .as_ref()
            .is_some_and(|agent| agent.stream == Some(stream))
        {
            self.nodes[node].lose_stream(self.now);
        }
    }

    /// The agent's side notices; the arbiter's does, or goes on sending into the void.
    pub(super) fn lose_stream(&mut self, node: usize, noticed: bool) {
        if noticed {
            self.links.remove(&self.nodes[node].name);
            self.wires.retain(|(at, ..), _| *at != node);
        }
        self.nodes[node].lose_stream(self.now);
    }

    /// A fault: what a node tells of workers that are not dead gets lost on its way. False where nothing was.
    pub(super) fn lose_reports(&mut self, node: usize) -> bool {
        use tether_proto::common::WorkerPhase;

        let wires = self.wires.iter_mut();
        let wires = wires.filter(|((at, _, up), _)| *at == node && *up);
        let mut lost = 0;
        for (_, packet) in wires.flat_map(|(_, wire)| wire) {
            if let Packet::Up(beat) = packet {
                let before = beat.reports.len();
                let dead = |report: &_| WorkerReport::phase(report) == WorkerPhase::Dead;
                beat.reports.retain(dead);
                lost += before - beat.reports.len();
            }
        }
        lost > 0
    }

    fn note_deaths(&mut self, reports: &[WorkerReport]) {
        use tether_proto::common::{WorkerPhase, WorkerRef};

        let dead = reports
            .iter()
            .filter(|report| report.phase() == WorkerPhase::Dead);
        self.reported
            .extend(dead.map(|report| WorkerRef::required(report.worker.as_ref()).unwrap()));
    }

    /// As the service does it: answers, writes, then everything else.
    pub(super) fn settle(&mut self) {
        let mut effects: Effects = self.ledger.take_effects();
        for (node, ack) in std::mem::take(&mut effects.acks) {
            self.resyncs += u64::from(ack.resync);
            self.tell(&node, ack, Vec::new());
        }
        self.check_starts(&effects);
        self.check_rollout(&effects);
        self.revision += 1;
        for mut event in effects.events {
            self.last_event += 1;
            event.revision = self.last_event;
            if event.kind() == EventKind::WorkerDied {
                let id = WorkerId::try_from(event.worker.as_ref().unwrap()).unwrap();
                let death = Death::from(event.death.as_ref().unwrap());
                self.causes.insert(id.clone(), death.cause);
                *self.died.entry(id).or_default() += 1;
            }
            let value = Bytes::from(event.encode_to_vec());
            self.store
                .insert(keys::event(self.last_event), (value, self.revision));
        }
        let mut epochs = Vec::new();
        for (key, value) in effects.writes {
            if let Some(name) = key.strip_prefix(keys::NODES).filter(|_| value.is_some()) {
                epochs.push(name.parse().unwrap());
            }
            if value.is_none()
                && let Some(gone) = key.strip_prefix(keys::POOLS)
            {
                // Nothing is kept of it (A4); one of its name is another pool.
                self.ordered.remove(gone);
            }
            match value {
                Some(value) => drop(self.store.insert(key, (value, self.revision))),
                None => drop(self.store.remove(&key)),
            }
        }
        for (owner, epoch, _) in effects.ended {
            let owner = self
                .owners
                .iter_mut()
                .find(|known| known.name == owner)
                .unwrap();
            owner.session.take_if(|session| session.0 == epoch);
        }
        for node in epochs {
            self.ledger.on_epoch(&node, Epoch(self.revision), self.now);
        }
        for (node, orders) in effects.orders {
            self.check_orders(&node, &orders);
            self.tell(&node, Ack::default(), orders);
        }
        self.check_serving();
        self.note_attempts();
    }

    fn tell(&mut self, node: &NodeName, ack: Ack, orders: Vec<tether_proto::node::Order>) {
        let index = self
            .nodes
            .iter()
            .position(|known| known.name == *node)
            .unwrap();
        if let Some(&stream) = self.links.get(node)
            && let Some(message) = self.ledger.message_to(node, ack, orders)
        {
            self.send(index, stream, Packet::Down(message));
        }
    }

    /// The arbiter is gone, and another takes up what was written.
    pub(super) fn restart_arbiter(&mut self) {
        self.links.clear();
        self.wires.clear();
        for index in 0..self.nodes.len() {
            self.nodes[index].lose_stream(self.now);
        }
        self.take_up();
    }
}

pub(super) fn empty_ledger() -> Ledger {
    let config = Config {
        node_ttl: Duration::from_secs(2),
        node_beat: Duration::from_millis(400),
        session_ttl: Duration::from_secs(3),
        ..Config::default()
    };
    Ledger::new(
        config.terms().unwrap(),
        BTreeMap::new(),
        Surroundings::default(),
    )
}
