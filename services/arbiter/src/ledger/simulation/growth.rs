//! P5: however many workers start and die, nothing of what the arbiter keeps is larger for it.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use tether_clock::Tick;
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    node::{HeartbeatRequest, Hello, WorkerReport, order::Order},
    pool::{Placement, PoolSpec, Restart, Template},
};
use tether_store::Listing;
use tether_types::{Epoch, NodeName, OwnerName};

use super::world::empty_ledger;
use crate::{effects::Effects, events::Events, ledger::Ledger};

/// The arbiter with one node that starts what it is told to start, and everything that is written.
struct Mill {
    ledger: Ledger,
    store: BTreeMap<String, bytes::Bytes>,
    events: Events,
    last_event: u64,
    node: NodeName,
    owner: OwnerName,
    now: Tick,
    seq: u64,
    epoch: u64,
    running: Vec<WorkerRef>,
    deaths: u64,
    /// Lives of a gateway that starts anew with every round.
    lives: u64,
}

impl Mill {
    fn new() -> Self {
        let mut mill = Self {
            ledger: empty_ledger(),
            store: BTreeMap::new(),
            events: Events::restore(&Listing {
                entries: Vec::new(),
                revision: 0,
            }),
            last_event: 0,
            node: "n0".parse().unwrap(),
            owner: "beam".parse().unwrap(),
            now: Tick::ZERO + Duration::from_secs(100),
            seq: 0,
            epoch: 0,
            running: Vec::new(),
            deaths: 0,
            lives: 0,
        };
        let hello = Hello {
            launchers: vec!["exec".to_owned()],
            resources: [("gpu".to_owned(), 64)].into(),
            ..Hello::default()
        };
        mill.ledger.on_hello(&mill.node, &hello, mill.now);
        mill.beat(Vec::new());
        mill
    }

    fn open(&mut self) {
        self.epoch += 1;
        let terms = self.ledger.session_terms(Duration::from_secs(3)).unwrap();
        self.ledger
            .open_session(&self.owner, Epoch(self.epoch), None, terms, self.now);
        self.settle();
    }

    fn apply(&mut self, name: &str, size: u32) {
        let template = Template {
            command: "work".to_owned(),
            restart: Some(Restart {
                delay_ms: Some(1),
                max_delay_ms: Some(1),
                max_restarts: Some(100),
                window_ms: Some(1_000),
                ..Restart::default()
            }),
            ..Template::default()
        };
        let spec = PoolSpec {
            name: name.to_owned(),
            mode: "distributed".to_owned(),
            template: Some(template),
            size,
            spares: 1,
            starts_per_second: 1_000,
            placement: Some(Placement {
                resources: [("gpu".to_owned(), 1)].into(),
                ..Placement::default()
            }),
            ..PoolSpec::default()
        };
        let (owner, epoch) = (self.owner.clone(), Epoch(self.epoch));
        self.ledger
            .apply_pool(spec, owner, epoch, self.now)
            .unwrap();
        self.settle();
    }

    /// Tells what became of workers, with time passing.
    fn beat(&mut self, reports: Vec<WorkerReport>) {
        self.now = self.now + Duration::from_millis(50);
        self.seq += 1;
        let beat = HeartbeatRequest {
            seq: self.seq,
            ack_seen: self.seq - 1,
            reports,
            ..HeartbeatRequest::default()
        };
        assert!(self.ledger.on_beat(&self.node, &beat, self.now));
        self.ledger.check(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        let mut effects: Effects = self.ledger.take_effects();
        self.events.number(&mut effects, &mut self.last_event);
        self.events.publish(std::mem::take(&mut effects.events));
        for (key, value) in effects.writes {
            match value {
                Some(value) => drop(self.store.insert(key, value)),
                None => drop(self.store.remove(&key)),
            }
        }
        for order in effects.orders.into_values().flatten() {
            match order.order {
                Some(Order::Start(start)) => self.running.extend(start.worker),
                Some(Order::Stop(stop)) => {
                    let worker = stop.worker.unwrap();
                    self.running.retain(|running| *running != worker);
                    let dead = report(&worker, WorkerPhase::Dead);
                    self.ledger.on_report(
                        &self.node,
                        &WorkerRef::required(Some(&worker)).unwrap(),
                        &dead,
                        self.now,
                    );
                    self.settle();
                }
                Some(Order::Forget(_)) => self.deaths += 1,
                Some(Order::Signal(_)) | None => {}
            }
        }
    }

    /// Everybody becomes ready, then dies.
    fn round(&mut self) {
        let running = std::mem::take(&mut self.running);
        let reports = |phase| running.iter().map(move |worker| report(worker, phase));
        self.beat(reports(WorkerPhase::Ready).collect());
        self.lives += 1;
        let counts = running
            .iter()
            .map(|worker| (WorkerRef::required(Some(worker)).unwrap(), 7));
        let (instance, counts) = (self.lives.to_string(), counts.collect::<Vec<_>>());
        self.ledger.on_calls(&instance, &counts, self.now).unwrap();
        self.beat(reports(WorkerPhase::Dead).collect());
        self.beat(Vec::new());
    }

    /// Now and then a session takes over, and a pool comes and goes.
    fn turn(&mut self) {
        self.open();
        self.apply("passing", 2);
        for _ in 0..50 {
            self.round();
        }
        self.ledger.delete_pool("passing", self.now).unwrap();
        self.settle();
        self.round();
    }

    /// How much there is of each field. A new one does not compile before it is counted here.
    fn sizes(&self) -> BTreeMap<&'static str, usize> {
        let Ledger {
            terms,
            templates,
            surroundings,
            sessions,
            pools,
            nodes,
            jobs,
            registry,
            highest: _,
            reserved: _,
            lost_pools: _,
            buried,
            unheard,
            uncertain,
            loads,
            losses,
            closed,
            units_freed: _,
            // Of what is gone it keeps looks for a while; see below.
            wheel: _,
            pools_due: _,
            stamp: _,
            waiting,
            effects,
        } = &self.ledger;
        [
            ("terms", words(terms)),
            ("templates", words(templates)),
            ("surroundings", words(surroundings)),
            ("sessions", words(sessions)),
            ("pools", words(pools)),
            ("nodes", words(nodes)),
            ("jobs", words(jobs)),
            ("registry", words(registry)),
            ("buried", buried.0.len()),
            ("unheard", *unheard),
            ("uncertain", uncertain.len()),
            ("loads", words(loads)),
            ("losses", words(losses)),
            ("closed", words(closed)),
            ("waiting", words(waiting)),
            ("effects", words(effects)),
            ("events", self.events.after(0).len()),
            ("store", self.store.len()),
            ("running", self.running.len()),
        ]
        .into()
    }
}

/// Of all that is in a value, however deep: numbers that become longer do not count.
fn words(value: &impl Debug) -> usize {
    let text = format!("{value:?}");
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .count()
}

fn report(worker: &WorkerRef, phase: WorkerPhase) -> WorkerReport {
    let death = common::Death {
        cause: common::DeathCause::Exited.into(),
        exit_code: Some(1),
        ..common::Death::default()
    };
    WorkerReport {
        worker: Some(worker.clone()),
        phase: phase.into(),
        pid: if phase == WorkerPhase::Dead { 0 } else { 7 },
        address: "unix:/w".to_owned(),
        death: Some(death).filter(|_| phase == WorkerPhase::Dead),
        ..WorkerReport::default()
    }
}

#[test]
fn a_hundred_thousand_deaths_leave_everything_at_the_size_it_had() {
    let wished = std::env::var("TETHER_SIM_DEATHS").ok();
    let wished = wished.and_then(|wished| wished.parse().ok());
    let mut mill = Mill::new();
    mill.open();
    mill.apply("lasting", 9);
    // More than is kept of history, so that what is bounded is full.
    while mill.deaths < 5_000 {
        mill.turn();
    }
    let (before, looks) = (mill.sizes(), mill.ledger.wheel.len());
    let deaths = mill.deaths + wished.unwrap_or(100_000);

    while mill.deaths < deaths {
        mill.turn();
    }

    assert_eq!(mill.sizes(), before);
    assert!(mill.ledger.wheel.len() < looks * 2, "looks at what is gone");
    assert_eq!(before["events"], crate::events::KEPT);
}
