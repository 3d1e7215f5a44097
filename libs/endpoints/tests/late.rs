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

/// Calls of which those at the slow one are not served but end in another way after so long; the others take 2 ms.
fn given_up(waited: Duration, mut end: impl FnMut(&mut Endpoints, Ticket, Tick)) -> Vec<bool> {
    let mut house = House::new();
    for _ in 0..200 {
        let ticket = house.pick().expect("one is free");
        if ticket.worker().slot == SLOW {
            house.now = house.now + waited;
            end(&mut house.set, ticket, house.now);
        } else {
            house.answer(ticket, 2 * MS);
        }
    }
    house.is_slow()
}

#[test]
fn one_that_never_answers_is_late_where_callers_had_enough_time() {
    const DEADLINE_EXCEEDED: u32 = 4;
    let by_deadline = |set: &mut Endpoints, mut ticket: Ticket, now: Tick| {
        set.on_code(&mut ticket, DEADLINE_EXCEEDED, now);
        set.release(ticket, now);
    };
    let by_its_own = |set: &mut Endpoints, mut ticket: Ticket, now: Tick| {
        set.on_answered(&mut ticket, true, now);
        by_deadline(set, ticket, now);
    };
    let by_cancel = |set: &mut Endpoints, ticket: Ticket, now: Tick| {
        set.release(ticket, now);
    };
    let slow = [true, false, false];

    assert_eq!(given_up(100 * MS, by_deadline), slow);
    assert_eq!(given_up(100 * MS, by_its_own), slow, "the worker's word");
    assert_eq!(given_up(100 * MS, by_cancel), slow, "the caller left");
    assert_eq!(given_up(MS, by_deadline), [false; 3], "that was soon");
    assert_eq!(given_up(MS, by_cancel), [false; 3]);
}

#[test]
fn calls_that_were_refused_out_of_hand_and_streams_of_long_ago_are_not_in_time() {
    const NOT_FOUND: u32 = 5;
    let mut house = House::new();
    house.calls(100, 200 * MS);
    let worker = Target::Worker {
        slot: SLOW,
        incarnation: Incarnation(1),
    };
    let ticket = |house: &mut House| {
        let pick = house.set.pick(&pool(), &worker, &[], 0, house.now);
        let mut ticket = pick.expect("it is free").ticket;
        ticket.on_sent(house.now);
        house.set.on_answered(&mut ticket, true, house.now);
        ticket
    };

    let mut refused = ticket(&mut house);
    house.set.on_code(&mut refused, NOT_FOUND, house.now);
    house.set.release(refused, house.now);
    let mut stream = ticket(&mut house);
    house.now = house.now + Duration::from_secs(60);
    house.set.on_code(&mut stream, 0, house.now);
    house.set.release(stream, house.now);

    assert_eq!(house.is_slow(), [true, false, false]);
}
