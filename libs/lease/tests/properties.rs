//! One property per invariant of the crate's front page, on clocks that drift and networks that
//! lose, delay, repeat and reorder.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, option, prelude::*};
use tether_clock::Tick;
use tether_lease::{Beat, Fence, Grantor, Holder, Margins, Standing, Tenure, Terms};
use tether_types::Epoch;

const MS: u64 = 1_000_000;

/// A clock whose rate is off by `ppm`, read at a true time in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Drifting {
    ppm: i64,
}

impl Drifting {
    fn rate(self) -> u128 {
        u128::try_from(1_000_000 + self.ppm).unwrap()
    }

    fn at(self, truth: u64) -> Tick {
        Tick::from_nanos(u64::try_from(u128::from(truth) * self.rate() / 1_000_000).unwrap())
    }

    /// The first true time at which the clock shows `tick` or more.
    fn when(self, tick: Tick) -> u64 {
        u64::try_from((u128::from(tick.as_nanos()) * 1_000_000).div_ceil(self.rate())).unwrap()
    }
}

/// One beat: how long after the last, how long each way or lost, and whether its answer comes twice.
#[derive(Debug, Clone)]
struct Send {
    gap_ms: u64,
    out_ms: Option<u64>,
    back_ms: Option<u64>,
    again_ms: Option<u64>,
    new_ttl_ms: Option<u64>,
}

#[derive(Debug, Clone)]
struct Scenario {
    ttl_ms: u64,
    margins: Margins,
    holder: Drifting,
    grantor: Drifting,
    grant_out_ms: u64,
    grant_back_ms: u64,
    sends: Vec<Send>,
    restarts_ms: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    GrantArrives,
    HolderSends(usize),
    BeatArrives {
        send: usize,
        sent: Tick,
        ack_seen: u64,
    },
    AckArrives {
        send: usize,
        sent: Tick,
        ttl: Duration,
    },
    GrantorRestarts,
}

fn delay_ms() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 3 => 0..200u64, 1 => 0..20_000u64]
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let send = (
        0..4_000u64,
        option::weighted(0.8, delay_ms()),
        option::weighted(0.8, delay_ms()),
        option::weighted(0.2, delay_ms()),
        option::weighted(0.1, 1_000..20_000u64),
    );
    let rate = prop_oneof![Just(-1.0), Just(1.0), -1.0..1.0f64];
    let clocks = (
        prop_oneof![Just(0u32), Just(5_000), Just(50_000)],
        rate.clone(),
        rate,
    );
    (
        (1_000..20_000u64, 1..500u64, clocks),
        (delay_ms(), delay_ms()),
        vec(send, 0..30),
        vec(0..60_000u64, 0..2),
    )
        .prop_map(
            |((ttl_ms, slack_ms, (rho_ppm, holder, grantor)), grant, sends, restarts_ms)| {
                let drift = |part: f64| Drifting {
                    ppm: (part * f64::from(rho_ppm)) as i64,
                };
                let send = |(gap_ms, out_ms, back_ms, again_ms, new_ttl_ms)| Send {
                    gap_ms,
                    out_ms,
                    back_ms,
                    again_ms,
                    new_ttl_ms,
                };
                Scenario {
                    ttl_ms,
                    margins: Margins {
                        rho_ppm,
                        slack: Duration::from_millis(slack_ms),
                        kill_budget: Duration::from_millis(100),
                    },
                    holder: drift(holder),
                    grantor: drift(grantor),
                    grant_out_ms: grant.0,
                    grant_back_ms: grant.1,
                    sends: sends.into_iter().map(send).collect(),
                    restarts_ms,
                }
            },
        )
}

/// Events in the order of true time; those of one instant in the order they were added.
#[derive(Default)]
struct Agenda {
    events: BTreeMap<(u64, usize), Event>,
    added: usize,
}

impl Agenda {
    fn add(&mut self, truth: u64, event: Event) {
        self.events.insert((truth, self.added), event);
        self.added += 1;
    }
}

/// Plays the scenario and returns the true time at which the grantor called the lease free, with
/// the holder as it was a nanosecond earlier and as it is once everything in flight has arrived.
fn play(scenario: &Scenario) -> (Option<Standing>, Option<Standing>) {
    let terms_of = |ttl_ms| Terms::new(Duration::from_millis(ttl_ms), scenario.margins).unwrap();
    let received = scenario.grant_out_ms * MS;
    let mut grantor = Grantor::grant(terms_of(scenario.ttl_ms), scenario.grantor.at(received));
    let mut longest_ms = scenario.ttl_ms;
    let mut holder: Option<Holder> = None;
    let mut ack_seen = 0;
    let mut just_before_free = None;

    let mut agenda = Agenda::default();
    agenda.add(received + scenario.grant_back_ms * MS, Event::GrantArrives);
    for &at_ms in &scenario.restarts_ms {
        agenda.add(received + at_ms * MS, Event::GrantorRestarts);
    }
    let mut truth = received + scenario.grant_back_ms * MS;
    for (send, beat) in scenario.sends.iter().enumerate() {
        truth += beat.gap_ms * MS;
        agenda.add(truth, Event::HolderSends(send));
    }

    let mut end = truth;
    loop {
        let free_at = grantor
            .next_deadline()
            .map(|tick| scenario.grantor.when(tick));
        let next = agenda
            .events
            .first_key_value()
            .map(|(&(truth, _), _)| truth);
        if let Some(free_at) = free_at
            && next.is_none_or(|next| free_at <= next)
        {
            assert_eq!(grantor.check(scenario.grantor.at(free_at)), Tenure::Free);
            let before = scenario.holder.at(free_at - 1);
            just_before_free = holder.clone().map(|mut holder| holder.check(before));
            end = end.max(free_at);
            continue;
        }
        let Some(((truth, _), event)) = agenda.events.pop_first() else {
            break;
        };
        end = end.max(truth);
        let now = scenario.holder.at(truth);
        match event {
            Event::GrantArrives => {
                // A grant that took longer to arrive than it lasts is void from the start.
                holder = Some(Holder::granted(terms_of(scenario.ttl_ms), Tick::ZERO));
            }
            Event::HolderSends(send) => {
                let alive = holder
                    .as_mut()
                    .is_some_and(|h| h.check(now) != Standing::Expired);
                if let (true, Some(out_ms)) = (alive, scenario.sends[send].out_ms) {
                    let beat = Event::BeatArrives {
                        send,
                        sent: now,
                        ack_seen,
                    };
                    agenda.add(truth + out_ms * MS, beat);
                }
            }
            Event::BeatArrives {
                send,
                sent,
                ack_seen,
            } => {
                let beat = &scenario.sends[send];
                if let Some(ttl_ms) = beat.new_ttl_ms {
                    grantor.retune(terms_of(ttl_ms));
                    longest_ms = longest_ms.max(ttl_ms);
                }
                let seq = u64::try_from(send).unwrap() + 1;
                let outcome = grantor.on_beat(seq, ack_seen, scenario.grantor.at(truth));
                let ttl = match outcome {
                    Beat::Extended => grantor.terms().ttl(),
                    Beat::Unproven | Beat::Stale => Duration::ZERO,
                    Beat::Ended => continue,
                };
                for delay_ms in [beat.back_ms, beat.again_ms].into_iter().flatten() {
                    agenda.add(truth + delay_ms * MS, Event::AckArrives { send, sent, ttl });
                }
            }
            Event::AckArrives { send, sent, ttl } => {
                ack_seen = ack_seen.max(u64::try_from(send).unwrap() + 1);
                if let Some(holder) = &mut holder {
                    holder.on_ack(sent, ttl, now);
                }
            }
            Event::GrantorRestarts => {
                if grantor.next_deadline().is_some() {
                    let now = scenario.grantor.at(truth);
                    grantor = Grantor::after_restart(terms_of(longest_ms), now);
                }
            }
        }
    }
    let at_end = holder.map(|mut holder| holder.check(scenario.holder.at(end)));
    (just_before_free, at_end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// L1
    #[test]
    fn a_holder_has_expired_before_its_grantor_calls_the_lease_free(scenario in scenario()) {
        let (just_before_free, at_end) = play(&scenario);

        prop_assert!(matches!(just_before_free, None | Some(Standing::Expired)), "{just_before_free:?}");
        prop_assert_eq!(at_end, Some(Standing::Expired));
    }

    /// L2
    #[test]
    fn an_answer_is_worth_what_its_beat_earned_however_late_or_often_it_arrives(
        acks in vec((0..5_000u64, 0..40_000u64, 0..60_000u64), 1..20),
        order in vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let terms = Terms::usual(Duration::from_secs(60)).unwrap();
        let mut holder = Holder::granted(terms, Tick::ZERO);
        let worth = |sent_ms: u64, ttl_ms: u64| {
            Tick::from_nanos(sent_ms * MS + ttl_ms * MS / 1_000 * 995)
        };
        let mut furthest = worth(0, 60_000);

        // Every answer arrives within the first lease, so that none meets an expired holder.
        for index in order {
            let (sent_ms, ttl_ms, flight_ms) = acks[index.index(acks.len())];
            let now = Tick::from_nanos((sent_ms + flight_ms).min(59_000) * MS);
            holder.on_ack(Tick::from_nanos(sent_ms * MS), Duration::from_millis(ttl_ms), now);
            furthest = furthest.max(worth(sent_ms, ttl_ms));

            prop_assert_eq!(holder.deadline(), furthest);
        }
    }

    /// L2
    #[test]
    fn an_answer_to_a_beat_from_the_future_earns_no_more_than_one_sent_now(
        ahead_ms in 1..1_000_000u64, ttl_ms in 0..u64::MAX / MS,
    ) {
        let terms = Terms::usual(Duration::from_secs(60)).unwrap();
        let now = Tick::from_nanos(1_000 * MS);
        let ttl = Duration::from_millis(ttl_ms);
        let (mut honest, mut ahead) = (Holder::granted(terms, Tick::ZERO), Holder::granted(terms, Tick::ZERO));

        honest.on_ack(now, ttl, now);
        ahead.on_ack(now + Duration::from_millis(ahead_ms), ttl, now);

        prop_assert_eq!(ahead.deadline(), honest.deadline());
        prop_assert!(ahead.deadline().since(now) <= Duration::from_secs(31 * 24 * 3600));
    }

    /// L3
    #[test]
    fn an_expired_holder_stays_expired_whatever_arrives(
        late_ms in 0..10_000u64,
        checked_first in any::<bool>(),
        acks in vec((0..80_000u64, 0..100_000u64, 0..10_000u64), 1..10),
    ) {
        let mut holder = Holder::granted(Terms::usual(Duration::from_secs(60)).unwrap(), Tick::ZERO);
        let mut now = holder.deadline() + Duration::from_millis(late_ms);
        if checked_first {
            prop_assert_eq!(holder.check(now), Standing::Expired);
        }

        for (sent_ms, ttl_ms, pause_ms) in acks {
            let sent = Tick::from_nanos(sent_ms * MS);
            let standing = holder.on_ack(sent, Duration::from_millis(ttl_ms), now);
            prop_assert_eq!(standing, Standing::Expired);

            // Not even a clock that goes back brings it to life again.
            prop_assert_eq!(holder.check(Tick::ZERO), Standing::Expired);
            prop_assert_eq!(holder.next_deadline(), None);
            now = now + Duration::from_millis(pause_ms);
        }
    }

    /// L4
    #[test]
    fn no_epoch_is_admitted_after_a_higher_one(epochs in vec(0..20u64, 1..40)) {
        let mut fence = Fence::default();
        let mut highest = 0;

        for epoch in epochs {
            let admitted = fence.admit(Epoch(epoch));

            prop_assert_eq!(admitted.is_ok(), epoch >= highest);
            highest = highest.max(epoch);
            prop_assert_eq!(fence.seen(), Epoch(highest));
        }
    }

    /// L5
    #[test]
    fn only_a_beat_that_proves_a_round_trip_extends(
        beats in vec((1..4u64, 0..6u64, 0..3_000u64), 1..40),
    ) {
        let terms = Terms::usual(Duration::from_secs(200)).unwrap();
        let mut grantor = Grantor::grant(terms, Tick::ZERO);
        let (mut seq, mut now) = (0, Tick::ZERO);

        for (number, (step, behind, pause_ms)) in beats.into_iter().enumerate() {
            seq += step;
            now = now + Duration::from_millis(pause_ms);
            let before = grantor.remaining(now);
            let outcome = grantor.on_beat(seq, seq.saturating_sub(behind), now);

            let proven = number == 0 || (1..=2).contains(&behind.min(seq));
            prop_assert_eq!(outcome, if proven { Beat::Extended } else { Beat::Unproven });
            if proven {
                prop_assert!(grantor.remaining(now) > terms.ttl());
            } else {
                prop_assert_eq!(grantor.remaining(now), before);
            }
        }
    }
}
