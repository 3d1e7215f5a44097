//! The limit that is found for a worker, in a simulation of one whose answers take longer beyond its knee.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use tether_breaker::Outcome;
use tether_clock::Tick;
use tether_endpoints::{
    Adaptive, Endpoint, Endpoints, Outlook, Refusal, Standing, Target, Ticket, Update, Why,
};
use tether_types::{Address, Incarnation, PoolName, WorkerId};

const STEP: Duration = Duration::from_millis(1);

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

fn set(capacity: Option<NonZeroU32>) -> Endpoints {
    let adaptive = Adaptive {
        others: false,
        pools: BTreeMap::from([(pool(), true)]),
    };
    let mut set = Endpoints::new(Outlook::default(), 100).with(adaptive);
    set.apply_change(Update {
        upserts: vec![Endpoint {
            worker: WorkerId {
                pool: pool(),
                slot: 0,
                incarnation: Incarnation(1),
            },
            address: Address::Unix("/w".into()),
            draining: false,
            counted: false,
            unordered: false,
            capacity,
            weight: 0,
            standing: Standing::Near,
            tls: false,
            node: None,
        }],
        ..Update::default()
    });
    set
}

/// A worker that serves as many calls at once as its knee says, each as if it were alone; more share that.
struct World {
    set: Endpoints,
    now: Tick,
    knee: f64,
    /// What a call takes alone, in milliseconds, half as much to half as much again.
    work: f64,
    /// One in so many calls is a stream that goes on for ever after its answer has begun; 0 for none.
    streams: u64,
    /// What is left of each, and since when it is there.
    calls: Vec<(Ticket, f64, Tick)>,
    endless: Vec<Ticket>,
    random: u64,
}

/// What came of some time.
#[derive(Debug)]
struct Seen {
    /// Answers in a second, and the mean time they took, in milliseconds.
    throughput: f64,
    latency: f64,
}

impl World {
    fn new(knee: f64, work: f64) -> Self {
        Self {
            set: set(None),
            now: Tick::from_nanos(1),
            knee,
            work,
            streams: 0,
            calls: Vec::new(),
            endless: Vec::new(),
            random: 7,
        }
    }

    fn dice(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        self.random >> 33
    }

    /// Gives it as many calls as it is let have, for a while.
    fn run(&mut self, time: Duration) -> Seen {
        let steps = time.as_millis();
        let (mut answers, mut took) = (0.0, 0.0);
        for _ in 0..steps {
            self.now = self.now + STEP;
            while self.begin() {}
            #[allow(clippy::cast_precision_loss)]
            let pace = (self.knee / self.calls.len() as f64).min(1.0);
            let mut at = 0;
            while at < self.calls.len() {
                self.calls[at].1 -= pace;
                if self.calls[at].1 > 0.0 {
                    at += 1;
                    continue;
                }
                let (ticket, _, sent) = self.calls.swap_remove(at);
                answers += 1.0;
                took += self.now.since(sent).as_secs_f64();
                self.answer(ticket);
            }
        }
        Seen {
            throughput: answers / time.as_secs_f64(),
            latency: took / answers * 1e3,
        }
    }

    /// Begins a call, where one is let through.
    fn begin(&mut self) -> bool {
        match self.set.pick(&pool(), &Target::Any, &[], 0, self.now) {
            Ok(mut pick) => {
                pick.ticket.on_sent(self.now);
                #[allow(clippy::cast_precision_loss)]
                let part = (self.dice() % 1_000) as f64 / 1_000.0;
                let work = self.work * (0.5 + part);
                self.calls.push((pick.ticket, work, self.now));
                true
            }
            Err(why) => {
                assert_eq!(why, Refusal::NoWorker(Why::Busy));
                false
            }
        }
    }

    fn answer(&mut self, mut ticket: Ticket) {
        self.set.on_answered(&mut ticket, true, self.now);
        if self.streams > 0 && self.dice().is_multiple_of(self.streams) {
            self.endless.push(ticket);
        } else {
            self.set.on_outcome(&mut ticket, Outcome::Success, self.now);
            self.set.release(ticket, self.now);
        }
    }

    /// Near the throughput of the knee, and not much slower than alone.
    fn is_well(&self, seen: &Seen) -> bool {
        let most = self.knee / self.work * 1e3;
        seen.throughput >= 0.8 * most && seen.latency <= 2.0 * self.work
    }
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// At both ends and between them. Where many long calls are needed it takes its time until that is found.
#[test]
fn it_comes_near_the_knee_whatever_that_is() {
    for knee in [1.0, 2.0, 5.0, 13.0, 39.0] {
        for work in [10.0, 40.0, 119.0] {
            let mut world = World::new(knee, work);
            world.run(SECONDS(40));
            let seen = world.run(SECONDS(40));
            assert!(world.is_well(&seen), "{knee} {work}: {seen:?}");
        }
    }
}

#[test]
fn a_worker_that_becomes_slower_or_smaller_is_given_less_and_more_again() {
    let mut world = World::new(16.0, 40.0);
    world.run(SECONDS(40));
    for (knee, work) in [(4.0, 40.0), (16.0, 40.0), (16.0, 120.0), (16.0, 20.0)] {
        (world.knee, world.work) = (knee, work);
        world.run(SECONDS(60));
        let seen = world.run(SECONDS(40));
        assert!(world.is_well(&seen), "{knee} {work}: {seen:?}");
    }
}

/// What matters is how long it takes to begin: a stream that goes on is neither slow nor in the way.
#[test]
fn streams_of_hours_say_nothing() {
    let mut world = World::new(8.0, 30.0);
    world.streams = 10;
    world.run(SECONDS(20));
    let seen = world.run(SECONDS(40));

    assert!(world.endless.len() > 500, "{}", world.endless.len());
    assert!(world.is_well(&seen), "{seen:?}");
    let now = world.now + SECONDS(3_600);
    for ticket in world.endless.drain(..) {
        world.set.release(ticket, now);
    }
    world.now = now;
    world.run(SECONDS(20));
    let seen = world.run(SECONDS(40));
    assert!(world.is_well(&seen), "{seen:?}");
}

/// Those that are given up before they are answered would otherwise be missing where answers take too long.
#[test]
fn calls_that_nobody_waits_for_any_more_say_that_it_is_slow() {
    let mut world = World::new(8.0, 30.0);
    world.run(SECONDS(30));
    let before = world.set.snapshot(Tick::ZERO)[0]
        .limit
        .expect("there is one")
        .get();
    world.knee = 0.0;
    for _ in 0..40 {
        world.run(Duration::from_millis(150));
        for (ticket, ..) in std::mem::take(&mut world.calls) {
            world.set.release(ticket, world.now);
        }
    }
    let after = world.set.snapshot(Tick::ZERO)[0]
        .limit
        .expect("there is one")
        .get();
    assert!(after <= before / 3, "{after} after {before}");
}

#[test]
fn what_is_known_is_not_looked_for() {
    let mut set = set(NonZeroU32::new(3));
    let tickets: Vec<_> = std::iter::from_fn(|| {
        let pick = set.pick(&pool(), &Target::Any, &[], 0, Tick::ZERO);
        pick.ok().map(|pick| pick.ticket)
    })
    .collect();

    assert_eq!(tickets.len(), 3);
    assert_eq!(set.snapshot(Tick::ZERO)[0].limit, None);
}
