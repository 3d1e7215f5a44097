//! Many nodes, many workers, and all of them lost at once. `TETHER_SIM_NODES=10000` for a million workers, which
//! is also how to see what the ledger takes of memory and time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    node::{self, HeartbeatRequest, Hello, StartWorker, WorkerReport, order::Order},
    pool::{PoolSpec, Template},
    worker::{Event, EventKind},
};
use tether_store::{Entry, Listing, keys::ServeKey};
use tether_types::{Death, DeathCause, Digest, Epoch, NodeName, OwnerName, WorkerId};

use super::world::empty_ledger;
use crate::{
    effects::{Ack, Effects},
    events::Events,
    ledger::Ledger,
};

const WORKERS: usize = 100;

/// Workers of one pool.
const POOL: usize = 10_000;

/// The arbiter, its store, and agents of which nothing is real but what they have told.
struct Masses {
    ledger: Ledger,
    events: Events,
    last_event: u64,
    store: BTreeMap<String, Bytes>,
    told: Vec<Event>,
    now: Tick,
    nodes: BTreeMap<NodeName, Told>,
    /// Writes since that was asked last.
    writes: usize,
}

#[derive(Default)]
struct Told {
    seq: u64,
    digest: Digest,
    has: Vec<WorkerId>,
    pending: Vec<WorkerReport>,
}

fn report(id: &WorkerId, phase: WorkerPhase) -> WorkerReport {
    let dead = phase == WorkerPhase::Dead;
    let death = common::Death {
        cause: common::DeathCause::LeaseExpired.into(),
        ..common::Death::default()
    };
    WorkerReport {
        worker: Some(WorkerRef::from(id)),
        phase: phase.into(),
        pid: if dead { 0 } else { 7 },
        address: "10.0.0.1:8080".to_owned(),
        death: dead.then_some(death),
        ..WorkerReport::default()
    }
}

impl Masses {
    fn new(nodes: usize) -> Self {
        let nothing = Listing {
            entries: Vec::new(),
            revision: 0,
        };
        let mut masses = Self {
            ledger: empty_ledger(),
            events: Events::restore(&nothing),
            last_event: 0,
            store: BTreeMap::new(),
            told: Vec::new(),
            now: Tick::ZERO + Duration::from_secs(100),
            nodes: BTreeMap::new(),
            writes: 0,
        };
        for number in 0..nodes {
            let name = NodeName::new(format!("node-{number:05}")).unwrap();
            masses.nodes.insert(name, Told::default());
        }
        masses
    }

    /// Every agent says hello, with all it has dead, and beats once.
    fn join(&mut self) {
        self.join_with(WorkerPhase::Dead);
        for node in self.nodes.values_mut() {
            node.has.clear();
        }
        self.settle();
        self.beat();
    }

    fn join_with(&mut self, phase: WorkerPhase) {
        for (name, node) in &mut self.nodes {
            let workers = node.has.iter().map(|id| report(id, phase));
            let hello = Hello {
                launchers: vec!["exec".to_owned()],
                workers: workers.collect(),
                ..Hello::default()
            };
            let has = std::mem::take(&mut node.has);
            *node = Told::default();
            if phase != WorkerPhase::Dead {
                has.iter().for_each(|id| node.digest.add(id, phase.into()));
            }
            node.has = has;
            self.ledger.on_hello(name, &hello, self.now);
        }
    }

    fn beat(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            let node = self.nodes.get_mut(&name).unwrap();
            node.seq += 1;
            for report in &node.pending {
                let id = WorkerRef::required(report.worker.as_ref()).unwrap();
                node.digest.add(&id, report.phase);
                node.has.push(id);
            }
            let beat = HeartbeatRequest {
                seq: node.seq,
                ack_seen: node.seq - 1,
                reports: std::mem::take(&mut node.pending),
                digest: Some(node.digest.sum()),
                count: node.digest.count(),
                ..HeartbeatRequest::default()
            };
            assert!(self.ledger.on_beat(&name, &beat, self.now));
            self.settle();
        }
    }

    fn settle(&mut self) {
        let mut effects: Effects = self.ledger.take_effects();
        self.events.number(&mut effects, &mut self.last_event);
        self.told.append(&mut effects.events);
        self.writes += effects.writes.len();
        for (key, value) in effects.writes {
            match value {
                Some(value) => drop(self.store.insert(key, value)),
                None => drop(self.store.remove(&key)),
            }
        }
        for (name, ack) in effects.acks {
            assert!(!ack.resync, "{name} has told all it has");
            self.ledger.message_to(&name, ack, Vec::new());
        }
        for (name, orders) in effects.orders {
            let node = self.nodes.get_mut(&name).unwrap();
            for order in &orders {
                if let Some(Order::Start(start)) = &order.order {
                    let id = WorkerRef::required(start.worker.as_ref()).unwrap();
                    node.pending.push(report(&id, WorkerPhase::Ready));
                }
            }
            self.ledger.message_to(&name, Ack::default(), orders);
        }
    }

    fn fill(&mut self) {
        let wanted = self.nodes.len() * WORKERS;
        for (number, first) in (0..wanted).step_by(POOL).enumerate() {
            let spec = PoolSpec {
                name: format!("pool-{number:03}"),
                mode: "distributed".to_owned(),
                template: Some(Template {
                    command: "work".to_owned(),
                    ..Template::default()
                }),
                size: u32::try_from(POOL.min(wanted - first)).unwrap(),
                ..PoolSpec::default()
            };
            let owner = OwnerName::new("beam").unwrap();
            let applied = self.ledger.apply_pool(spec, owner, Epoch(0), self.now);
            applied.unwrap();
            self.settle();
        }
        self.beat();
        assert_eq!(self.ready(), wanted);
    }

    fn ready(&self) -> usize {
        let pools = self.ledger.list_pools();
        pools.iter().map(|pool| pool.ready as usize).sum()
    }

    fn check(&mut self) {
        self.ledger.check(self.now);
        self.settle();
    }

    fn restart(&mut self) {
        let entry = |(key, value): (&String, &Bytes)| Entry {
            key: key.clone(),
            value: value.clone(),
            mod_revision: 1,
        };
        let listing = Listing {
            entries: self.store.iter().map(entry).collect(),
            revision: 1,
        };
        self.ledger = empty_ledger();
        self.ledger.restore(&listing, self.now).unwrap();
        self.settle();
    }

    fn records(&self) -> usize {
        let keys = self.store.keys().map(|key| ServeKey::parse(key));
        keys.filter(|key| matches!(key, Some(ServeKey::Loss(_))))
            .count()
    }
}

#[test]
fn a_network_that_is_gone_is_written_twice_for_each_node_whatever_it_had() {
    let wished = std::env::var("TETHER_SIM_NODES").ok();
    let nodes = wished.and_then(|wished| wished.parse().ok()).unwrap_or(30);
    let workers = nodes * WORKERS;
    let (mut masses, bare) = (Masses::new(nodes), resident());
    masses.join();
    masses.fill();
    let filled = resident();

    // All of them at once: nothing serves, and nobody is dead yet. A write for each node, and what is kept of
    // history.
    masses.now = masses.now + Duration::from_secs(10);
    masses.writes = 0;
    masses.told.clear();
    let begun = Instant::now();
    masses.ledger.check(masses.now);
    let decided = begun.elapsed();
    masses.settle();
    let written = begun.elapsed();
    assert_eq!(masses.ready(), 0);
    assert_eq!(masses.records(), nodes);
    let most = nodes + 2 * crate::events::KEPT;
    assert!(masses.writes <= most, "{} writes", masses.writes);
    let alive = masses.ledger.list_workers("", masses.now);
    assert!(alive.iter().all(|worker| worker.disabled));
    let lost = |event: &&Event| event.kind() == EventKind::NodeLost;
    assert!(masses.told.iter().filter(lost).count() > 0);
    println!(
        "{workers} workers: {} bytes each with their store, lost in {decided:?}, told after {written:?}",
        (filled.saturating_sub(bare)) / workers
    );

    // What they might have outlived that by is over: two writes for each node, its record and its loss.
    masses.now = masses.now + Duration::from_secs(60);
    masses.writes = 0;
    let begun = Instant::now();
    masses.check();
    println!("buried and written after {:?}", begun.elapsed());
    let most = 2 * nodes + 2 * crate::events::KEPT;
    assert!(masses.writes <= most, "{} writes", masses.writes);
    assert_eq!((masses.records(), masses.ledger.nodes.len()), (nodes, 0));

    // Whoever comes next knows them dead, and why.
    masses.restart();
    let dead = masses.ledger.list_workers("", masses.now);
    assert_eq!(dead.len(), workers);
    for worker in dead.iter().take(1_000) {
        let cause = worker
            .last_death
            .as_ref()
            .map(|death| Death::from(death).cause);
        assert_eq!(cause, Some(DeathCause::LeaseExpired));
    }

    // The nodes are back with what is left of them: no death is recorded again, and all is as before.
    masses.told.clear();
    masses.join();
    let died = |event: &Event| event.kind() == EventKind::WorkerDied;
    assert!(!masses.told.iter().any(died), "A3");
    for _ in 0..4 {
        masses.now = masses.now + Duration::from_millis(500);
        masses.beat();
        masses.check();
    }
    masses.beat();
    assert_eq!((masses.ready(), masses.records()), (workers, 0));
    assert!(masses.ledger.losses.is_empty());
}

#[test]
fn a_network_that_is_back_in_time_is_written_twice_for_each_node_and_all_serve() {
    let nodes = 30;
    let mut masses = Masses::new(nodes);
    masses.join();
    masses.fill();
    let served = masses.store.clone();
    masses.now = masses.now + Duration::from_secs(10);
    masses.check();
    assert_eq!((masses.ready(), masses.records()), (0, nodes));

    masses.writes = 0;
    masses.join_with(WorkerPhase::Ready);
    masses.settle();

    assert_eq!((masses.ready(), masses.records()), (nodes * WORKERS, 0));
    let events = 2 * nodes;
    // That it is lost no more, and that its lease is another one.
    let of_nodes = 2 * nodes;
    let written = masses.writes;
    assert!(written <= of_nodes + events, "{written} writes");
    let serve = |(key, _): &(&String, &Bytes)| key.starts_with("serve/");
    assert!(
        masses
            .store
            .iter()
            .filter(serve)
            .eq(served.iter().filter(serve))
    );
    masses.beat();
    assert!(masses.ledger.losses.is_empty());
}

#[test]
fn a_beat_without_news_is_a_few_bytes_up_and_down_and_writes_nothing() {
    let mut masses = Masses::new(10);
    masses.join();
    masses.fill();
    masses.beat();
    let name = masses.nodes.keys().next().unwrap().clone();
    let node = &masses.nodes[&name];
    let beat = HeartbeatRequest {
        seq: node.seq + 1,
        ack_seen: node.seq,
        digest: Some(node.digest.sum()),
        count: node.digest.count(),
        ..HeartbeatRequest::default()
    };

    assert!(masses.ledger.on_beat(&name, &beat, masses.now));
    let effects = masses.ledger.take_effects();
    let answer = masses
        .ledger
        .message_to(&name, effects.acks[&name], Vec::new());

    assert!(effects.is_empty());
    let answer = answer.unwrap();
    assert_eq!((beat.count as usize, answer.owners.len()), (WORKERS, 0));
    // The prefix of a gRPC message, and the head of an HTTP/2 frame.
    let frames = 5 + 9;
    let (up, down) = (beat.encoded_len() + frames, answer.encoded_len() + frames);
    assert!(up <= 60 && down <= 60, "{up} up, {down} down");
}

#[test]
fn a_permission_is_told_when_it_changes_and_with_the_order_to_start_a_worker() {
    let mut masses = Masses::new(1);
    let name = masses.nodes.keys().next().unwrap().clone();
    let told = |masses: &mut Masses, orders| {
        let message = masses.ledger.message_to(&name, Ack::default(), orders);
        message.unwrap().owners.len()
    };
    masses.join();
    masses.fill();
    masses.beat();
    assert_eq!(told(&mut masses, Vec::new()), 0);

    let owner = OwnerName::new("beam").unwrap();
    let terms = masses.ledger.session_terms(Duration::ZERO).unwrap();
    masses
        .ledger
        .open_session(&owner, Epoch(7), None, terms, masses.now);
    assert_eq!(told(&mut masses, Vec::new()), 1);
    assert_eq!(told(&mut masses, Vec::new()), 0);
    // Its workers may go on without a word of it: that it speaks changes nothing.
    let beaten = masses
        .ledger
        .beat_session(&owner, Epoch(7), 1, 0, masses.now);
    beaten.unwrap();
    assert_eq!(told(&mut masses, Vec::new()), 0);
    let start = StartWorker {
        worker: Some(WorkerRef::from(&masses.nodes[&name].has[0])),
        ..StartWorker::default()
    };
    let order = node::Order {
        order: Some(Order::Start(start)),
    };
    assert_eq!(told(&mut masses, vec![order]), 1);
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
