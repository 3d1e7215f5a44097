//! One slot driven by random events against a model of the process it looks after; each assertion
//! cites the invariant of the crate's front page that it checks.

use std::time::Duration;

use proptest::{collection::vec, prelude::*, sample::select};
use tether_clock::Tick;
use tether_supervise::{
    Action, Delay, GaveUp, Intensity, Phase, Plan, Recycle, RestartPolicy, Slot, StartTerms,
    Starts, StopTerms, Worn,
};
use tether_types::{DeathCause, Incarnation, Orderer};

const MAX_RESTARTS: u32 = 4;

/// A worker's memory does not count before it was ready for this long.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Event {
    Advance(u64),
    Spawned,
    SpawnFailed {
        permanent: bool,
    },
    Ready,
    Exit {
        clean: bool,
    },
    Memory(u64),
    Calls(u64),
    /// It can be spared, whether it is worn or not.
    Recycle,
    /// It is not to become ready.
    Abandon,
    Stop,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let millis = prop_oneof![0..100u64, 0..3_000u64, 0..20_000u64];
    let event = prop_oneof![
        10 => millis.prop_map(Event::Advance),
        8 => Just(Event::Spawned),
        1 => prop::bool::weighted(0.1).prop_map(|permanent| Event::SpawnFailed { permanent }),
        4 => Just(Event::Ready),
        4 => any::<bool>().prop_map(|clean| Event::Exit { clean }),
        2 => (0..200_u64).prop_map(Event::Memory),
        2 => (0..200_u64).prop_map(Event::Calls),
        2 => Just(Event::Recycle),
        1 => Just(Event::Abandon),
    ];
    (vec(event, 1..150), any::<Option<prop::sample::Index>>()).prop_map(|(mut events, stop)| {
        if let Some(at) = stop {
            events.insert(at.index(events.len()), Event::Stop);
        }
        events
    })
}

fn plans() -> impl Strategy<Value = Plan> {
    (
        select(RestartPolicy::ALL),
        (1..1_000u64, 1..4u32, 1..8u64),
        prop_oneof![Just(0u32), 0..=1_000_000u32],
        (1_000..60_000u64, 100..10_000u64),
        (
            prop::option::of(1_000..20_000u64),
            prop::option::of(1..200u64),
            prop::option::of(1..200u64),
        ),
    )
        .prop_map(
            |(restart, (initial, factor, times), jitter_ppm, (window, reset), recycle)| Plan {
                start: StartTerms {
                    timeout: Duration::from_secs(5),
                },
                stop: StopTerms {
                    grace: Duration::from_secs(3),
                },
                restart,
                delay: Delay {
                    initial: Duration::from_millis(initial),
                    factor,
                    max: Duration::from_millis(initial * times),
                    jitter_ppm,
                    reset_after: Duration::from_millis(reset),
                },
                intensity: Intensity {
                    max_restarts: MAX_RESTARTS,
                    window: Duration::from_millis(window),
                },
                recycle: Recycle {
                    max_lifetime: recycle.0.map(Duration::from_millis),
                    max_memory_bytes: recycle.1,
                    max_calls: recycle.2,
                },
            },
        )
}

/// The process as its environment sees it, and what it has seen of the slot.
struct World {
    slot: Slot,
    plan: Plan,
    now: Tick,
    spawning: bool,
    running: bool,
    told_to_stop: bool,
    stop_ordered: bool,
    given_up: Option<GaveUp>,
    last: Option<Incarnation>,
    /// Those after a failure, and those after a worker was recycled.
    restarts: Vec<Tick>,
    replaced: u64,
    starts_without_ready: u32,
    failures_in_a_row: u32,
    ready_since: Option<Tick>,
    born: Tick,
    memory: u64,
    calls: u64,
    worn: Option<Worn>,
    /// Since when it is drained, and whether the next start replaces it.
    drained: Option<Tick>,
    /// Whether it was stopped before it was ready, through no fault of its own.
    abandoned: bool,
    replaces: bool,
}

impl World {
    fn new(plan: Plan, adopt: bool, seed: u64) -> Self {
        let now = Tick::ZERO + Duration::from_secs(1);
        let slot = if adopt {
            Slot::adopted(plan, Incarnation(6), now, seed, now)
        } else {
            Slot::new(plan, Incarnation(7), seed, now)
        };
        Self {
            slot,
            plan,
            now,
            spawning: false,
            running: adopt,
            told_to_stop: false,
            stop_ordered: false,
            given_up: None,
            last: adopt.then_some(Incarnation(6)),
            restarts: Vec::new(),
            replaced: 0,
            starts_without_ready: 0,
            failures_in_a_row: 0,
            ready_since: None,
            born: now,
            memory: 0,
            calls: 0,
            worn: None,
            drained: None,
            abandoned: false,
            replaces: false,
        }
    }

    fn is_recycled(&self) -> bool {
        (self.drained.is_some() || self.abandoned) && self.told_to_stop && !self.stop_ordered
    }

    /// Plays one event if a real process could cause it here.
    fn play(&mut self, event: Event) {
        let action = match event {
            Event::Advance(millis) => {
                let target = self.now + Duration::from_millis(millis);
                let due = self.slot.next_deadline();
                self.now = target;
                let action = self.slot.check(target);
                assert_eq!(
                    action.is_some(),
                    due.is_some_and(|due| due <= target),
                    "a deadline is when something is done, and only then"
                );
                action
            }
            Event::Spawned if self.spawning => {
                (self.spawning, self.running) = (false, true);
                self.born = self.now;
                self.slot.on_spawned(self.now)
            }
            Event::SpawnFailed { permanent } if self.spawning => {
                self.spawning = false;
                let action = self.slot.on_spawn_failed(permanent, self.now);
                let tried_again = matches!(self.slot.phase(), Phase::Backoff { .. });
                assert!(
                    !(permanent && tried_again),
                    "a permanent failure is not tried again"
                );
                self.check_wait();
                action
            }
            Event::Ready if self.running => {
                self.slot.on_ready(self.now);
                if !self.told_to_stop && self.ready_since.is_none() {
                    self.ready_since = Some(self.now);
                    self.starts_without_ready = 0;
                }
                None
            }
            Event::Exit { clean } if self.running => {
                self.running = false;
                let recycled = self.is_recycled();
                if self.drained.is_none() && !self.told_to_stop {
                    self.forgive();
                }
                let over = self.plan.restart == RestartPolicy::Never
                    || (self.plan.restart == RestartPolicy::Transient
                        && clean
                        && !self.told_to_stop);
                let action = self.slot.on_exit(clean, self.now);
                if recycled {
                    self.replaces = true;
                    assert_eq!(
                        self.slot.phase(),
                        Phase::Backoff { until: self.now },
                        "S7: what replaces it does not wait"
                    );
                    assert_eq!(action, None);
                } else {
                    if over {
                        assert_eq!(self.slot.phase(), Phase::Stopped);
                    }
                    self.check_wait();
                }
                action
            }
            Event::Memory(bytes) if self.running => {
                self.memory = bytes;
                self.slot.on_memory(bytes);
                self.slot.check(self.now)
            }
            Event::Calls(calls) if self.running => {
                self.calls = calls;
                self.slot.on_calls(calls);
                self.slot.check(self.now)
            }
            Event::Recycle => {
                let ready = self.running
                    && self.ready_since.is_some()
                    && self.drained.is_none()
                    && !self.told_to_stop;
                assert_eq!(self.slot.recycle(self.now), ready, "S7: from ready, once");
                if ready {
                    self.forgive();
                    self.drained = Some(self.now);
                }
                None
            }
            Event::Abandon => {
                let starting = self.running && self.ready_since.is_none() && !self.told_to_stop;
                let action = self.slot.abandon();
                assert_eq!(action.is_some(), starting, "S7: before it is ready, once");
                if starting {
                    self.abandoned = true;
                    self.starts_without_ready = self.starts_without_ready.saturating_sub(1);
                }
                action
            }
            Event::Stop => {
                self.stop_ordered = true;
                self.slot.stop(DeathCause::Ordered(Orderer::Operator))
            }
            Event::Spawned
            | Event::SpawnFailed { .. }
            | Event::Ready
            | Event::Exit { .. }
            | Event::Memory(_)
            | Event::Calls(_) => return,
        };
        if let Some(action) = action {
            self.carry_out(action);
        }
        self.look();
    }

    fn forgive(&mut self) {
        let well = |since| self.now.since(since) >= self.plan.delay.reset_after;
        if self.ready_since.is_some_and(well) {
            self.failures_in_a_row = 0;
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Spawn { incarnation } => {
                assert!(
                    !self.spawning && !self.running,
                    "S1: a second live incarnation"
                );
                assert!(!self.stop_ordered, "S3: spawned after a stop");
                assert!(self.given_up.is_none(), "spawned after it was given up");
                assert!(self.last.is_none_or(|last| last < incarnation), "S6");
                if self.last.replace(incarnation).is_some() {
                    if std::mem::take(&mut self.replaces) {
                        self.replaced += 1;
                    } else {
                        self.restarts.push(self.now);
                    }
                }
                let window = self.plan.intensity.window;
                let recent = self
                    .restarts
                    .iter()
                    .filter(|&&at| self.now.since(at) < window);
                assert!(recent.count() <= MAX_RESTARTS as usize, "S2: too often");
                self.starts_without_ready += 1;
                assert!(
                    self.starts_without_ready <= MAX_RESTARTS + 1,
                    "S2: never ready"
                );
                (self.spawning, self.told_to_stop, self.ready_since) = (true, false, None);
                (self.memory, self.calls) = (0, 0);
                (self.worn, self.drained, self.abandoned) = (None, None, false);
            }
            Action::Stop { grace, why } => {
                assert!(self.running, "nothing to stop");
                assert!(!self.told_to_stop, "S4: told twice");
                assert_eq!(grace, self.plan.stop.grace);
                let expected = match self.drained {
                    _ if self.stop_ordered => DeathCause::Ordered(Orderer::Operator),
                    Some(since) => {
                        assert!(
                            self.now >= since + grace,
                            "S7: stopped before it was drained"
                        );
                        DeathCause::Recycled
                    }
                    None if self.abandoned => DeathCause::Recycled,
                    None => DeathCause::NeverReady,
                };
                assert_eq!(why, expected);
                self.told_to_stop = true;
            }
            Action::Worn { why } => {
                assert!(self.running && self.drained.is_none() && !self.told_to_stop);
                assert_eq!(self.worn.replace(why), None, "said twice");
                let Some(since) = self.ready_since else {
                    panic!("S7: worn before it was ready");
                };
                let recycle = self.plan.recycle;
                match why {
                    Worn::Lifetime => {
                        let age = self.now.since(self.born);
                        assert!(
                            age >= recycle.max_lifetime.expect("it has one").mul_f64(0.9),
                            "{age:?}"
                        );
                    }
                    Worn::Memory => {
                        assert!(self.memory >= recycle.max_memory_bytes.expect("it has one"));
                        assert!(self.now >= since + SETTLE);
                    }
                    Worn::Calls => {
                        assert!(self.calls >= recycle.max_calls.expect("it has one"));
                    }
                }
            }
            Action::GiveUp { why } => {
                assert!(!self.spawning && !self.running && self.given_up.is_none());
                self.given_up = Some(why);
            }
        }
    }

    /// S5, right after a process ended.
    fn check_wait(&mut self) {
        let Phase::Backoff { until } = self.slot.phase() else {
            return;
        };
        let Delay {
            initial,
            factor,
            max,
            jitter_ppm,
            ..
        } = self.plan.delay;
        let wait = until.since(self.now).as_secs_f64();
        let jitter = f64::from(jitter_ppm) / 1e6;
        let base = (initial.as_secs_f64() * f64::from(factor).powf(self.failures_in_a_row.into()))
            .min(max.as_secs_f64());

        assert!(
            wait >= base * (1.0 - jitter) - 1e-8,
            "S5: {wait} is short of {base}"
        );
        assert!(
            wait <= base * (1.0 + jitter) + 1e-8,
            "S5: {wait} is beyond {base}"
        );
        assert!(wait <= max.as_secs_f64() * (1.0 + jitter) + 1e-8, "S5");
        self.failures_in_a_row += 1;
    }

    /// What holds between any two events.
    fn look(&self) {
        let seen = self.slot.snapshot();
        assert_eq!(
            seen.incarnation.is_some(),
            self.spawning || self.running,
            "{seen:?}"
        );
        let runs = matches!(
            seen.phase,
            Phase::Starting { .. }
                | Phase::Ready { .. }
                | Phase::Draining { .. }
                | Phase::Stopping { .. }
        );
        assert_eq!(runs, self.running, "{seen:?}");
        assert_eq!(seen.restarts, self.restarts.len() as u64 + self.replaced);
        // Nobody passes its age, its memory or its calls in silence.
        if let Phase::Ready { since } = seen.phase {
            let recycle = self.plan.recycle;
            let old = recycle
                .max_lifetime
                .is_some_and(|lifetime| self.now >= self.born + lifetime);
            let large = recycle
                .max_memory_bytes
                .is_some_and(|limit| self.memory >= limit && self.now >= since + SETTLE);
            let served = recycle.max_calls.is_some_and(|limit| self.calls >= limit);
            let due = self.slot.next_deadline().is_some_and(|due| due <= self.now);
            assert!(
                !(old || large || served) || self.worn.is_some() || due,
                "S7: worn, and nobody says so"
            );
        }
        // A stop order outlasts a process that has not ended yet, and nothing else does.
        let must_end = seen.phase == Phase::Stopped;
        assert!(!must_end || !(self.spawning || self.running), "{seen:?}");
        if self.stop_ordered && !self.spawning && !self.running {
            assert_eq!(seen.phase, Phase::Stopped, "S3");
        }
        if self.stop_ordered && self.running {
            assert!(self.told_to_stop, "S3: left running");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// S1 S2 S3 S4 S5 S6
    #[test]
    fn a_slot_keeps_its_invariants_whatever_its_process_does(
        plan in plans(), adopt in any::<bool>(), seed in any::<u64>(), events in events(),
    ) {
        let mut world = World::new(plan, adopt, seed);

        for event in events {
            world.play(event);
        }
    }

    /// S2
    #[test]
    fn a_worker_that_never_gets_ready_is_given_up_after_the_allowed_restarts(
        plan in plans(), seed in any::<u64>(), clean in any::<bool>(), hangs in any::<bool>(),
    ) {
        let plan = Plan { restart: RestartPolicy::Always, ..plan };
        let mut world = World::new(plan, false, seed);

        for _ in 0..=MAX_RESTARTS {
            let due = world.slot.next_deadline().map_or(0, |due| due.since(world.now).as_millis() as u64 + 1);
            world.play(Event::Advance(due));
            world.play(Event::Spawned);
            if hangs {
                world.play(Event::Advance(5_000));
            }
            world.play(Event::Exit { clean });
        }

        // Fast failures may use up the window first; with as many starts, both limits agree.
        prop_assert!(world.given_up.is_some());
        prop_assert_eq!(world.slot.next_deadline(), None);
        prop_assert_eq!(world.restarts.len(), MAX_RESTARTS as usize);
    }

    /// S5
    #[test]
    fn a_wait_grows_to_its_maximum_and_never_overflows(
        initial in 1..u64::MAX, factor in 1..u32::MAX, jitter_ppm in 0..=1_000_000u32,
        seed in any::<u64>(), restart in any::<u32>(),
    ) {
        let max = Duration::from_nanos(u64::MAX);
        let initial = Duration::from_nanos(initial);
        let delay = Delay { initial, factor, max, jitter_ppm, reset_after: Duration::ZERO };

        prop_assert!(delay.base(restart) <= delay.base(restart.saturating_add(1)));
        prop_assert!(delay.base(0) == initial && delay.base(restart) <= max);
        prop_assert!(delay.after(restart, seed) <= max);
        prop_assert_eq!(delay.after(restart, seed), delay.after(restart, seed));
    }
}

proptest! {
    /// S8
    #[test]
    fn no_second_sees_more_starts_than_the_limit_and_none_waits_for_nothing(
        limit in 1..20u32, pauses in vec(0..400u64, 1..200), change in prop::option::of((0..200usize, 1..20u32)),
    ) {
        let mut starts = Starts::new(limit);
        let (mut now, mut limit, mut taken) = (Tick::ZERO, limit as usize, Vec::new());
        for (index, pause) in pauses.into_iter().enumerate() {
            if let Some((at, changed)) = change && at == index {
                starts.change(changed);
                // What was taken under another limit is no measure of this one.
                taken = taken.split_off(taken.len().saturating_sub(changed as usize));
                limit = changed as usize;
            }
            now = now + Duration::from_millis(pause / 4);
            let next = starts.next_deadline();
            let within = taken.iter().filter(|&&at| now < at + Duration::from_secs(1)).count();
            prop_assert_eq!(starts.try_take(now), within < limit);
            if within < limit {
                taken.push(now);
            } else {
                prop_assert!(next.is_some_and(|next| next > now && next <= now + Duration::from_secs(1)));
                prop_assert!(starts.clone().try_take(next.unwrap()), "the deadline is when it can be tried");
            }
        }
    }

    #[test]
    fn a_lifetime_loses_a_tenth_at_most(seed in any::<u64>(), seconds in 1..1_000_000_000u64) {
        let lifetime = Duration::from_secs(seconds);
        let recycle = Recycle { max_lifetime: Some(lifetime), ..Recycle::default() };

        let cut = recycle.lifetime(seed).unwrap();

        prop_assert!(cut <= lifetime && cut >= lifetime / 10 * 9, "{cut:?}");
        prop_assert_eq!(recycle.lifetime(seed), Some(cut));
    }
}

#[test]
fn workers_that_were_started_together_are_not_replaced_together() {
    let recycle = Recycle {
        max_lifetime: Some(Duration::from_secs(3_600)),
        ..Recycle::default()
    };

    let mut lifetimes: Vec<_> = (0..100).map(|seed| recycle.lifetime(seed)).collect();
    lifetimes.sort();
    lifetimes.dedup();

    assert!(lifetimes.len() > 95, "{} of 100", lifetimes.len());
}

#[test]
fn a_worker_may_be_recycled_more_often_than_it_may_fail() {
    let mut slot = Slot::new(Plan::default(), Incarnation(1), 0, Tick::ZERO);

    let mut now = Tick::ZERO;
    for _ in 0..100 {
        assert!(matches!(slot.check(now), Some(Action::Spawn { .. })));
        slot.on_spawned(now);
        slot.on_ready(now);
        assert!(slot.recycle(now));
        now = slot.next_deadline().unwrap();
        assert!(matches!(slot.check(now), Some(Action::Stop { .. })));
        assert_eq!(slot.on_exit(false, now), None);
    }

    slot.check(now);
    slot.on_spawned(now);
    slot.on_ready(now);
    assert_eq!(slot.on_exit(false, now), None, "its first failure");
    assert_eq!(slot.snapshot().restarts, 100);
}

#[test]
fn a_run_as_long_as_the_window_makes_up_for_every_restart_before_it() {
    let plan = Plan::default();
    let mut slot = Slot::new(plan, Incarnation(1), 0, Tick::ZERO);
    let fail = |slot: &mut Slot, well: Duration| {
        let due = slot.next_deadline().unwrap();
        slot.check(due);
        slot.on_spawned(due);
        slot.on_ready(due);
        slot.on_exit(false, due + well)
    };

    for _ in 0..3 {
        for _ in 1..plan.intensity.max_restarts {
            assert_eq!(fail(&mut slot, Duration::ZERO), None);
        }
        assert_eq!(fail(&mut slot, plan.intensity.window), None);
    }
    let first = slot.next_deadline().unwrap();

    let given_up = (0..=plan.intensity.max_restarts).find_map(|_| fail(&mut slot, Duration::ZERO));
    assert!(
        given_up.is_some(),
        "and after {first:?} it is given up again"
    );
}

#[test]
fn slots_that_failed_together_do_not_start_together() {
    let delay = Plan::default().delay;

    let mut waits: Vec<_> = (0..100).map(|seed| delay.after(0, seed)).collect();
    waits.sort();
    waits.dedup();

    assert_eq!(waits.len(), 100);
}

#[test]
fn a_permanent_failure_gives_up_at_once_and_an_order_to_stop_is_still_taken() {
    let now = Tick::ZERO;
    let mut slot = Slot::new(Plan::default(), Incarnation(1), 0, now);

    assert_eq!(
        slot.check(now),
        Some(Action::Spawn {
            incarnation: Incarnation(1)
        })
    );
    let given_up = slot.on_spawn_failed(true, now);

    assert_eq!(
        given_up,
        Some(Action::GiveUp {
            why: GaveUp::CannotStart
        })
    );
    assert_eq!(slot.next_deadline(), None);
    assert_eq!(slot.stop(DeathCause::Ordered(Orderer::Scale)), None);
    assert_eq!(slot.phase(), Phase::Stopped);
}

#[test]
fn a_worker_that_keeps_failing_after_it_was_ready_is_given_up_as_too_often() {
    let mut slot = Slot::new(Plan::default(), Incarnation(1), 0, Tick::ZERO);

    let mut given_up = None;
    while let (None, Some(due)) = (given_up, slot.next_deadline()) {
        slot.check(due);
        slot.on_spawned(due);
        slot.on_ready(due);
        given_up = slot.on_exit(false, due);
    }

    assert_eq!(
        given_up,
        Some(Action::GiveUp {
            why: GaveUp::TooOften
        })
    );
    assert_eq!(slot.snapshot().restarts, 5);
}
