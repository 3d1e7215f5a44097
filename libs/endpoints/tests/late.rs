//! E18: a worker that answers much later than the others.

use std::time::Duration;

use tether_clock::Tick;
use tether_endpoints::{
    Ages, Endpoint, Endpoints, Outlook, Pick, Refusal, Standing, Target, Ticket, Update, Why,
};
use tether_types::{Address, Incarnation, PoolName, WorkerId};

const MS: Duration = Duration::from_millis(1);
const WORKERS: u32 = 3;
/// Whose answers are late.
const SLOW: u32 = 0;

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

/// Workers, calls one after the other, and the time.
struct House {
    set: Endpoints,
    now: Tick,
    random: u64,
}

impl House {
    fn new() -> Self {
        let mut set = Endpoints::new(Outlook::default(), 0);
        let now = Tick::ZERO;
        set.on_heard(Ages::default(), now);
        let upserts = (0..WORKERS).map(|slot| Endpoint {
            worker: WorkerId {
                pool: pool(),
                slot,
                incarnation: Incarnation(1),
            },
            address: Address::Unix("/w".into()),
            draining: false,
            counted: false,
            unordered: false,
            capacity: std::num::NonZeroU32::new(2),
            weight: 0,
            standing: Standing::Near,
            tls: false,
            node: None,
        });
        set.apply_change(Update {
            upserts: upserts.collect(),
            ..Update::default()
        });
        Self {
            set,
            now,
            random: 1,
        }
    }

    fn pick(&mut self) -> Result<Ticket, Refusal> {
        self.random = self
            .random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(1);
        let Pick { mut ticket, .. } =
            self.set
                .pick(&pool(), &Target::Any, &[], self.random, self.now)?;
        ticket.on_sent(self.now);
        Ok(ticket)
    }

    fn answer(&mut self, mut ticket: Ticket, took: Duration) {
        self.now = self.now + took;
        self.set.on_answered(&mut ticket, true, self.now);
        self.set.on_code(&mut ticket, 0, self.now);
        self.set.release(ticket, self.now);
    }

    /// So many calls one after the other; answers how many the slow one had.
    fn calls(&mut self, count: usize, slow: Duration) -> usize {
        let mut of_slow = 0;
        for _ in 0..count {
            let ticket = self.pick().expect("somebody is free");
            let is_slow = ticket.worker().slot == SLOW;
            of_slow += usize::from(is_slow);
            self.answer(ticket, if is_slow { slow } else { 2 * MS });
        }
        of_slow
    }

    fn is_slow(&self) -> Vec<bool> {
        let views = self.set.snapshot_of(&pool(), self.now);
        views.iter().map(|view| view.is_slow).collect()
    }
}

#[test]
fn it_has_few_calls_more_and_is_seen_to_be_slow() {
    let mut house = House::new();

    let first = house.calls(100, 200 * MS);
    assert_eq!(house.is_slow(), [true, false, false]);
    assert!((5..15).contains(&first), "{first}");

    assert_eq!(house.calls(1_000, 200 * MS), 0);
}

#[test]
fn it_serves_where_the_others_are_busy_and_where_it_has_a_call_less() {
    let mut house = House::new();
    house.calls(100, 200 * MS);

    // Two each, and the slow one gives way by one alone.
    let tickets: Vec<_> = (0..6).map(|_| house.pick().expect("one is free")).collect();
    let slow = |tickets: &[Ticket]| {
        let slots = tickets.iter().map(|ticket| ticket.worker().slot);
        slots.filter(|slot| *slot == SLOW).count()
    };
    assert_eq!(slow(&tickets[..2]), 0);
    assert_eq!(slow(&tickets), 2);
    assert_eq!(
        house.pick().expect_err("all are full"),
        Refusal::NoWorker(Why::Busy)
    );
    for ticket in tickets {
        house.answer(ticket, MS);
    }
}

#[test]
fn one_that_is_fast_again_has_its_share_soon_after_ten_seconds() {
    let mut house = House::new();
    house.calls(100, 200 * MS);
    house.now = house.now + Duration::from_secs(10);

    let share = house.calls(300, 2 * MS);

    assert_eq!(house.is_slow(), [false; 3]);
    assert!((60..140).contains(&share), "{share}");
}

#[test]
fn one_that_stays_slow_has_one_call_in_ten_seconds() {
    let mut house = House::new();
    house.calls(100, 200 * MS);
    house.now = house.now + Duration::from_secs(10);

    assert_eq!(house.calls(1_000, 200 * MS), 1);
}

#[test]
fn calls_that_end_by_their_deadline_are_late_where_they_waited_long_enough() {
    const DEADLINE_EXCEEDED: u32 = 4;
    let late = |waited: Duration| {
        let mut house = House::new();
        house.calls(30, 2 * MS);
        for _ in 0..200 {
            let mut ticket = house.pick().expect("one is free");
            if ticket.worker().slot == SLOW {
                house.now = house.now + waited;
                house.set.on_code(&mut ticket, DEADLINE_EXCEEDED, house.now);
                house.set.release(ticket, house.now);
            } else {
                house.answer(ticket, 2 * MS);
            }
        }
        house.is_slow()[0]
    };

    assert!(late(100 * MS));
    assert!(!late(MS), "its callers had no time");
}
