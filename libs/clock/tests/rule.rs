//! The rule against each single clock, on machines whose clocks are off, are slewed, and which sleep.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tether_clock::{GrantorTime, HolderTime, Reading, Tick};

const MS: u64 = 1_000_000;

/// What happens between two readings: true time, how fast each clock goes meanwhile in parts per million,
/// how long the machine sleeps, and how much later than the first clock each of the others is read.
#[derive(Debug, Clone)]
struct Stretch {
    truth: u64,
    raw_ppm: i64,
    slew_ppm: i64,
    asleep: u64,
    apart: [u64; 2],
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    let truth = prop_oneof![Just(MS), 0..2_000 * MS, 0..60_000 * MS];
    let slew = prop_oneof![Just(0), -5_000..5_000_i64, -100_000..100_000_i64];
    let asleep = prop_oneof![5 => Just(0), 1 => 0..7_200_000 * MS];
    let stretch = (
        truth,
        -5_000..5_000_i64,
        slew,
        asleep,
        [0..20_000_u64, 0..20_000],
    );
    let stretch = stretch.prop_map(|(truth, raw_ppm, slew_ppm, asleep, apart)| Stretch {
        truth,
        raw_ppm,
        slew_ppm,
        asleep,
        apart,
    });
    vec(stretch, 1..40)
}

fn at_rate(span: u64, ppm: i64) -> u64 {
    span * u64::try_from(1_000_000 + ppm).unwrap_or(0) / 1_000_000
}

/// What the three clocks show after each stretch, as raw time, `MONOTONIC` and `BOOTTIME`.
fn shown(stretches: &[Stretch]) -> Vec<[u64; 3]> {
    let mut clocks = [5_000 * MS, 7_000 * MS, 9_000 * MS];
    let mut shown = vec![clocks];
    for stretch in stretches {
        clocks[0] += at_rate(stretch.truth, stretch.raw_ppm);
        clocks[1] += at_rate(stretch.truth, stretch.slew_ppm);
        clocks[2] += at_rate(stretch.truth, stretch.slew_ppm) + stretch.asleep;
        let [monotonic, boot] = stretch.apart;
        // `BOOTTIME` is read last.
        let seen = [
            clocks[0],
            clocks[1] + monotonic,
            clocks[2] + monotonic + boot,
        ];
        // No clock goes back.
        let last = shown[shown.len() - 1];
        shown.push([0, 1, 2].map(|clock| seen[clock].max(last[clock])));
    }
    shown
}

fn reading([raw, monotonic, boot]: [u64; 3]) -> Reading {
    Reading::new(raw, monotonic, boot)
}

/// How far a clock went between two readings; raw time counts with the sleep.
fn went(from: [u64; 3], to: [u64; 3]) -> [u64; 3] {
    let steady = |[raw, monotonic, boot]: [u64; 3]| raw + boot.saturating_sub(monotonic);
    [
        steady(to).saturating_sub(steady(from)),
        to[1] - from[1],
        to[2] - from[2],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A holder never counts less than any clock of its machine, over any interval.
    #[test]
    fn a_holder_counts_at_least_what_every_clock_counts(stretches in stretches()) {
        let shown = shown(&stretches);
        let mut time = HolderTime::new(reading(shown[0]));
        let ticks: Vec<_> = shown.iter().map(|&seen| time.on_reading(reading(seen))).collect();

        for from in 0..shown.len() {
            for to in from..shown.len() {
                let counted = ticks[to].since(ticks[from]);
                for clock in went(shown[from], shown[to]) {
                    prop_assert!(counted >= Duration::from_nanos(clock), "{from} to {to}: {counted:?} {clock}");
                }
            }
        }
    }

    /// A grantor never counts more than raw time with sleep or `MONOTONIC`, over any interval.
    #[test]
    fn a_grantor_counts_at_most_what_every_clock_counts(stretches in stretches()) {
        let shown = shown(&stretches);
        let mut time = GrantorTime::new(reading(shown[0]), Duration::from_secs(30));
        let ticks: Vec<_> = shown.iter().map(|&seen| time.on_reading(reading(seen))).collect();

        for from in 0..shown.len() {
            for to in from..shown.len() {
                let counted = ticks[to].since(ticks[from]);
                let [steady, monotonic, _] = went(shown[from], shown[to]);
                prop_assert!(counted <= Duration::from_nanos(steady.min(monotonic)));
                prop_assert!(counted <= Duration::from_secs(30) * u32::try_from(to - from).unwrap());
            }
        }
    }

    /// A timer of the kernel set to a holder's deadline goes off no later than the holder would itself,
    /// as long as `BOOTTIME` keeps pace from the last reading on.
    #[test]
    fn a_deadline_on_the_kernels_clock_has_all_that_was_counted_so_far(stretches in stretches(), left in 0..60_000u64) {
        let shown = shown(&stretches);
        let mut time = HolderTime::new(reading(shown[0]));
        let sent = time.on_reading(reading(shown[0]));
        let deadline = sent + Duration::from_millis(left);
        for &seen in &shown {
            let now = time.on_reading(reading(seen));
            let boot = Tick::from_nanos(seen[2]);
            let timer = time.on_boot(deadline);

            prop_assert_eq!(timer.since(boot), deadline.since(now));
            prop_assert_eq!(timer <= boot, deadline <= now);
        }
        prop_assert_eq!(time.on_boot(Tick::NEVER), Tick::NEVER);
    }

    /// Two threads read in one order and tell in the other: nothing is counted twice or goes back.
    #[test]
    fn readings_told_in_the_wrong_order_change_nothing(stretches in stretches(), swap in 0..39usize) {
        let mut shown = shown(&stretches);
        let (mut holder, mut grantor) = (
            HolderTime::new(reading(shown[0])),
            GrantorTime::new(reading(shown[0]), Duration::MAX),
        );
        let (first, last) = (shown[0], shown[shown.len() - 1]);
        let swap = swap % shown.len();
        if swap + 1 < shown.len() {
            shown.swap(swap, swap + 1);
        }
        let mut before = (Tick::ZERO, Tick::ZERO);
        let begin = (holder.on_reading(reading(first)), grantor.on_reading(reading(first)));
        for &seen in &shown {
            let now = (holder.on_reading(reading(seen)), grantor.on_reading(reading(seen)));
            prop_assert!(now.0 >= before.0 && now.1 >= before.1);
            before = now;
        }
        let [steady, monotonic, boot] = went(first, last);
        prop_assert!(before.0.since(begin.0) >= Duration::from_nanos(steady.max(monotonic).max(boot)));
        prop_assert!(before.1.since(begin.1) <= Duration::from_nanos(steady.min(monotonic)));
    }
}

/// The numbers the decision rests on: what a nap, a slew and an inattentive grantor come to.
#[test]
fn what_sleep_and_slews_do_is_on_the_safe_side() {
    let start = Reading::new(0, 0, 0);
    let mut holder = HolderTime::new(start);
    let mut grantor = GrantorTime::new(start, Duration::from_secs(3_600));
    let second = 1_000 * MS;

    // Ten seconds, in which NTP slews by a tenth, and a nap of a minute.
    let seen = Reading::new(10 * second, 9 * second, 69 * second);

    assert_eq!(holder.on_reading(seen).as_nanos(), 70 * second);
    assert_eq!(grantor.on_reading(seen).as_nanos(), 9 * second);
    let mut absent = GrantorTime::new(start, Duration::from_secs(2));
    assert_eq!(absent.on_reading(seen).as_nanos(), 2 * second);
}
