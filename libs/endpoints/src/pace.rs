//! Which workers answer much later than the others of their pool (E18).
//!
//! What is usual comes from the middle of the pool, and only how a worker compares with it counts: nobody has to say how long
//! calls take. Who is late gives way by one call and is not left alone: a worker with heavier calls than the others has as
//! many of them as ever, and one that has become slow is given more only where the others have their hands full.

use std::time::Duration;

use tether_clock::Tick;

/// So many times what is usual is late.
const TIMES: u32 = 10;

/// What takes no longer is in time, whatever is usual.
const LEAST: Duration = Duration::from_millis(20);

/// By how many late answers have to outnumber those in time. Fewer may be an accident: the first ones of a worker often are
/// late. More do not count, so that one in time is enough to be as the others.
const MANY: u8 = 5;

/// How long one gives way before it is given a call as the others are, to see.
const TRIAL: Duration = Duration::from_secs(10);

/// How often it is seen what is usual.
const REVIEW: Duration = Duration::from_millis(250);

/// A stream may end long after its answer began, which then says nothing of now.
const FRESH: Duration = Duration::from_secs(2);

/// What is usual in a pool.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// What is late; none while there is nobody to compare.
    late: Option<Duration>,
    next: Option<Tick>,
}

/// How late one worker is.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// How long its answers took, the last eight for most of it, in nanoseconds; 0 where there were none.
    smoothed: u64,
    /// By how many its late answers outnumber those in time, of late.
    excess: u8,
    /// Until when it gives way.
    until: Tick,
}

impl Pace {
    /// Whether it is time to see what is usual.
    pub(crate) fn is_due(&self, now: Tick) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// Sees what is usual for all these.
    pub(crate) fn review<'a>(&mut self, lags: impl Iterator<Item = &'a Lag>, now: Tick) {
        self.next = Some(now + REVIEW);
        let mut all = 0;
        let counted = lags.inspect(|_| all += 1);
        let mut times: Vec<_> = counted
            .map(|lag| lag.smoothed)
            .filter(|time| *time > 0)
            .collect();
        // One that has never answered is compared as well.
        self.late = (all > 1 && !times.is_empty()).then(|| {
            // Of two the faster one: it shows what can be had.
            let middle = (times.len() - 1) / 2;
            let (_, usual, _) = times.select_nth_unstable(middle);
            (Duration::from_nanos(*usual) * TIMES).max(LEAST)
        });
    }

    /// What is late, where that is known.
    pub(crate) fn late(&self) -> Option<Duration> {
        self.late
    }
}

/// Whether an answer that began then says something of now.
pub(crate) fn is_fresh(answered: Tick, now: Tick) -> bool {
    now.since(answered) <= FRESH
}

impl Lag {
    /// An answer of it began after so long.
    pub(crate) fn on_answer(&mut self, took: Duration, late: Option<Duration>, now: Tick) {
        let took_nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.smoothed = match self.smoothed {
            0 => took_nanos,
            smoothed => smoothed - smoothed / 8 + took_nanos / 8,
        };
        match late {
            Some(late) if took >= late => self.on_late(now),
            _ => self.excess = self.excess.saturating_sub(1),
        }
    }

    /// An answer of it was late, or did not come for so long.
    pub(crate) fn on_late(&mut self, now: Tick) {
        self.excess = (self.excess + 1).min(MANY);
        // Calls that it has anyway, as by their key, do not put its trial off.
        if self.is_late() && self.until <= now {
            self.until = now + TRIAL;
        }
    }

    /// Whether it answers much later than the others.
    pub(crate) fn is_late(&self) -> bool {
        self.excess >= MANY
    }

    /// Whether it gives way to others.
    pub(crate) fn gives_way(&self, now: Tick) -> bool {
        self.is_late() && now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(time: Duration) -> Tick {
        Tick::ZERO + time
    }

    fn took(times: &[u32]) -> Lag {
        let mut lag = Lag::default();
        for time in times {
            lag.on_answer(*time * MS, Some(20 * MS), Tick::ZERO);
        }
        lag
    }

    /// What is late in a pool of workers that have answered once, and others that have not.
    fn late(of: &[u32], silent: usize) -> Option<Duration> {
        let mut lags: Vec<_> = of.iter().map(|time| took(&[*time])).collect();
        lags.extend((0..silent).map(|_| Lag::default()));
        let mut pace = Pace::default();
        pace.review(lags.iter(), Tick::ZERO);
        pace.late()
    }

    #[test]
    fn what_is_late_comes_from_the_middle_of_those_that_have_answered() {
        assert_eq!(late(&[5, 7, 900], 0), Some(70 * MS));
        assert_eq!(late(&[5, 900], 0), Some(50 * MS), "of two the faster one");
        assert_eq!(late(&[1, 1, 1], 0), Some(LEAST));
        assert_eq!(late(&[5], 1), Some(50 * MS));
        assert_eq!(late(&[5], 0), None, "nobody to compare with");
        assert_eq!(late(&[], 2), None);
    }

    #[test]
    fn five_late_answers_give_way_until_one_is_in_time_or_ten_seconds_have_passed() {
        let lag = took(&[2, 200, 200, 200, 200]);
        assert!(!lag.gives_way(Tick::ZERO), "four");
        let mut lag = took(&[2, 200, 200, 200, 200, 200, 200]);
        assert!(lag.gives_way(after(TRIAL - MS)));
        assert!(!lag.gives_way(after(TRIAL)), "for a trial");

        lag.on_late(after(TRIAL));
        assert!(lag.gives_way(after(TRIAL * 2 - MS)), "it was late again");
        lag.on_answer(2 * MS, Some(20 * MS), after(TRIAL));
        assert!(!lag.gives_way(after(TRIAL)));
        lag.on_late(after(TRIAL));
        assert!(lag.gives_way(after(TRIAL)), "that was a quick call");
    }

    #[test]
    fn quick_calls_between_slow_ones_hide_nothing_while_they_are_fewer() {
        let mixed: Vec<_> = [2, 200, 200].into_iter().cycle().take(20).collect();
        assert!(took(&mixed).is_late());
        let even: Vec<_> = [200, 2].into_iter().cycle().take(40).collect();
        assert!(!took(&even).is_late());
    }

    #[test]
    fn late_calls_that_come_anyway_do_not_put_the_trial_off() {
        let mut lag = took(&[200; 5]);
        for second in 1..10 {
            lag.on_late(after(Duration::from_secs(second)));
        }
        assert!(!lag.gives_way(after(TRIAL)));
        assert!(lag.is_late());
    }

    #[test]
    fn what_is_usual_is_seen_again_after_a_while() {
        let mut pace = Pace::default();
        assert!(pace.is_due(Tick::ZERO));
        pace.review([].into_iter(), Tick::ZERO);
        assert!(!pace.is_due(after(REVIEW - MS)));
        assert!(pace.is_due(after(REVIEW)));
    }
}
