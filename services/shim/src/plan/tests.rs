//! One property per invariant, over every order in which time, renewals, orders and losses come.

use proptest::{collection::vec, prelude::*};
use tether_shim_protocol::Orderer;

use super::*;

const ORDER: Cause = Cause::Ordered(Orderer::Operator);

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Renew(u64, u64),
    Stop(u64),
    Loss,
    Exit,
}

fn ms(ms: u64) -> Tick {
    Tick::ZERO + Duration::from_millis(ms)
}

/// A deadline some milliseconds from boot, or none.
fn deadline() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..8_000, 1 => Just(u64::MAX)]
}

fn at(deadline: u64) -> Tick {
    if deadline == u64::MAX {
        Tick::NEVER
    } else {
        ms(deadline)
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u64..1_500).prop_map(Event::Pass),
        3 => (deadline(), deadline()).prop_map(|(node, owner)| Event::Renew(node, owner)),
        2 => (0u64..3_000).prop_map(Event::Stop),
        1 => Just(Event::Loss),
        1 => Just(Event::Exit),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    (deadline(), deadline(), 0u64..3_000).prop_map(|(node, owner, grace)| {
        Plan::new(at(node), at(owner), Duration::from_millis(grace))
    })
}

/// Runs `events`, waking at each `next` as the shim does, and shows each step to `see`.
fn drive(plan: &mut Plan, events: &[Event], mut see: impl FnMut(&Plan, Tick, Step)) {
    let mut now = Tick::ZERO;
    for event in events {
        let mut until = now;
        let step = match *event {
            Event::Pass(by) => {
                until = now + Duration::from_millis(by);
                Step::Wait
            }
            Event::Renew(node, owner) => {
                plan.on_renewal(at(node), at(owner));
                Step::Wait
            }
            Event::Stop(grace) => plan.on_stop(ORDER, Duration::from_millis(grace), now),
            Event::Loss => plan.on_loss(Cause::AgentGone, now),
            Event::Exit => plan.on_exit(Cause::Exited, now),
        };
        if step != Step::Wait {
            see(plan, now, step);
        }
        while plan.next() <= until {
            now = now.max(plan.next());
            let step = plan.check(now);
            assert_ne!(step, Step::Wait, "woken for nothing at {now}: {plan:?}");
            see(plan, now, step);
        }
        now = until;
        see(plan, now, Step::Wait);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// D1.
    #[test]
    fn nothing_happens_early(mut plan in plan(), passes in vec(0u64..1_500, 1..10)) {
        let (deadline, grace) = (plan.deadline(), plan.grace);
        let events: Vec<_> = passes.into_iter().map(Event::Pass).collect();

        drive(&mut plan, &events, |_, now, step| {
            if step != Step::Wait {
                assert!(now + grace >= deadline, "{step:?} at {now}, deadline {deadline}");
            }
        });
    }

    /// D2.
    #[test]
    fn killing_has_begun_by_the_deadline(mut plan in plan(), events in vec(event(), 1..12)) {
        drive(&mut plan, &events, |plan, now, step| {
            // Judged once it has been woken for all that was due at this moment.
            let killing = matches!(plan.state, State::Killing { .. } | State::Over);
            let judged = step == Step::Wait;
            assert!(!judged || killing || now < plan.deadline(), "{plan:?} at {now}");
        });
    }

    /// D3.
    #[test]
    fn an_end_never_turns_back(mut plan in plan(), events in vec(event(), 1..12)) {
        let mut kill = Tick::NEVER;
        let mut rank = 0;

        drive(&mut plan, &events, |plan, _, _| {
            let next = match plan.state {
                State::Running => 0,
                State::Terminating { kill_at } => {
                    assert!(kill_at <= kill, "{plan:?} moved its kill from {kill}");
                    kill = kill_at;
                    1
                }
                State::Killing { .. } => 2,
                State::Over => 3,
            };
            assert!(next >= rank, "{plan:?}");
            rank = next;
        });
    }

    /// D4.
    #[test]
    fn the_first_cause_stands(mut plan in plan(), events in vec(event(), 1..12)) {
        let mut first = None;

        drive(&mut plan, &events, |plan, _, _| {
            if first.is_none() {
                first = plan.cause();
            }
            assert_eq!(plan.cause(), first);
            assert_eq!(plan.cause().is_some(), plan.state != State::Running);
        });
    }

    /// D5.
    #[test]
    fn every_wake_up_is_on_time_and_useful(mut plan in plan(), events in vec(event(), 1..12)) {
        drive(&mut plan, &events, |_, _, _| {});

        let due = plan.next();
        if due != Tick::NEVER && due > Tick::ZERO {
            let state = plan.state;
            prop_assert_eq!(plan.check(Tick::from_nanos(due.as_nanos() - 1)), Step::Wait);
            prop_assert_eq!(plan.state, state);
            prop_assert_ne!(plan.check(due), Step::Wait);
        }
    }
}

#[test]
fn a_second_order_shortens_and_never_lengthens_the_first() {
    let mut plan = Plan::new(Tick::NEVER, Tick::NEVER, Duration::ZERO);

    plan.on_stop(ORDER, Duration::from_millis(500), ms(0));
    plan.on_stop(ORDER, Duration::from_millis(900), ms(0));
    assert_eq!(plan.next(), ms(500));

    plan.on_stop(ORDER, Duration::from_millis(100), ms(0));
    assert_eq!(plan.next(), ms(100));
}

#[test]
fn renewals_carry_an_ordered_stop_past_the_old_deadline() {
    let mut plan = Plan::new(ms(1_000), Tick::NEVER, Duration::ZERO);

    plan.on_stop(ORDER, Duration::from_millis(5_000), ms(0));
    assert_eq!(plan.next(), ms(1_000));

    plan.on_renewal(ms(9_000), Tick::NEVER);
    assert_eq!(plan.next(), ms(5_000));
}

#[test]
fn a_main_process_that_leaves_during_a_stop_does_not_cut_the_grace() {
    let mut plan = Plan::new(Tick::NEVER, Tick::NEVER, Duration::ZERO);

    plan.on_stop(ORDER, Duration::from_millis(500), ms(0));

    assert_eq!(plan.on_exit(Cause::Signaled, ms(10)), Step::Wait);
    assert_eq!(plan.check(ms(500)), Step::Kill);
    assert_eq!(plan.cause(), Some(ORDER));
}

#[test]
fn once_the_worker_is_gone_nothing_more_is_planned() {
    let mut plan = Plan::new(ms(1_000), Tick::NEVER, Duration::ZERO);
    plan.on_loss(Cause::AgentGone, ms(0));

    plan.on_gone();

    assert_eq!((plan.next(), plan.guard()), (Tick::NEVER, Tick::NEVER));
    assert_eq!(plan.on_stop(ORDER, Duration::ZERO, ms(1)), Step::Wait);
    assert_eq!(plan.cause(), Some(Cause::AgentGone));
}

proptest! {
    /// A renewal that is stored at any moment is seen while three quarters of the time are left that were known
    /// of, but for the last moments; and who has no end, or is being killed, is not woken up.
    #[test]
    fn the_page_is_looked_at_while_most_of_the_time_is_left(plan in plan(), now in 0u64..8_000) {
        let (now, deadline) = (ms(now), plan.deadline());
        let look = plan.look(now);

        if deadline == Tick::NEVER {
            prop_assert_eq!(look, Tick::NEVER);
        } else {
            prop_assert!(look >= now + LOOK_MIN);
            let left = deadline.since(now);
            prop_assert!(look == now + LOOK_MIN || deadline.since(look) >= left / 4 * 3);
        }
        let mut killed = plan;
        killed.on_loss(ORDER, now);
        prop_assert_eq!(killed.look(now), Tick::NEVER);
    }
}
