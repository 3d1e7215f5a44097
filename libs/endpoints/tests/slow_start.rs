//! E2 for a worker that has just become ready.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;
use tether_clock::Tick;
use tether_endpoints::{Ages, Endpoint, Endpoints, Outlook, Standing, Target, Update};
use tether_types::{Address, Incarnation, PoolName, WorkerId};

const SLOW: Duration = Duration::from_secs(60);

fn pool() -> PoolName {
    PoolName::new("digits").expect("it is a name")
}

fn at(seconds: u64) -> Tick {
    Tick::ZERO + Duration::from_secs(seconds)
}

fn up(set: &mut Endpoints, slot: u32, draining: bool, now: Tick) {
    set.on_heard(Ages::default(), now);
    set.apply_change(Update {
        upserts: vec![Endpoint {
            worker: WorkerId {
                pool: pool(),
                slot,
                incarnation: Incarnation(1),
            },
            address: Address::Unix("/w".into()),
            draining,
            counted: false,
            unordered: false,
            capacity: None,
            weight: 0,
            standing: Standing::Near,
            tls: false,
            node: None,
        }],
        ..Update::default()
    });
}

fn set(workers: u32) -> Endpoints {
    let outlook = Outlook {
        slow_start: SLOW,
        ..Outlook::default()
    };
    let mut set = Endpoints::new(outlook, 0);
    for slot in 0..workers {
        up(&mut set, slot, false, at(0));
    }
    set
}

/// How many of so many calls that are under way are those of one worker, once each has been replaced by others.
fn under_way(set: &mut Endpoints, slot: u32, calls: usize, now: Tick) -> usize {
    let mut tickets = VecDeque::new();
    let mut random = 1u64;
    for _ in 0..20 * calls {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let pick = set.pick(&pool(), &Target::Any, &[], random, now);
        tickets.push_back(pick.expect("they take any number").ticket);
        if tickets.len() > calls {
            set.release(tickets.pop_front().expect("it is there"), now);
        }
    }
    let of_it = tickets
        .iter()
        .filter(|ticket| ticket.worker().slot == slot)
        .count();
    for ticket in tickets {
        set.release(ticket, now);
    }
    of_it
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn its_share_grows_in_a_line(others in 1u32..6, age in 0u64..90, again in any::<bool>()) {
        let mut set = set(others);
        // Ready for the first time, or again after it was drained.
        up(&mut set, others, again, at(1_000 - u64::from(again)));
        up(&mut set, others, false, at(1_000));
        let calls = 40 * others as usize;

        let got = under_way(&mut set, others, calls, at(1_000 + age));

        let due = (age as f64 / 60.0).clamp(0.1, 1.0);
        let expected = calls as f64 * due / (f64::from(others) + due);
        prop_assert!((got as f64 - expected).abs() <= 2.0, "{got} of {calls}, not {expected}");
    }
}

/// A gateway that has just begun knows of all of them for as long.
#[test]
fn those_that_are_heard_of_together_have_equal_shares() {
    let mut set = set(4);
    let got = under_way(&mut set, 0, 40, at(1));
    assert!((9..=11).contains(&got), "{got}");
}

#[test]
fn a_worker_that_is_told_again_goes_on_where_it_was() {
    let mut set = set(1);
    up(&mut set, 1, false, at(1_000));
    up(&mut set, 1, false, at(1_030));

    let got = under_way(&mut set, 1, 30, at(1_030));
    assert!((9..=11).contains(&got), "{got}");
}
