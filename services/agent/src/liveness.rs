//! Whether a worker that was ready still works: decided here, asked elsewhere.
//!
//! A worker is judged by what it answers, by how often it reports, or by both. What is asked and how is
//! [`crate::readiness`]; here answers are counted and deadlines kept.
//!
//! # Invariants
//!
//! - **H1** A worker that never fails `failures` times in a row, and reports in time, is never ended.
//! - **H2** A worker that answers nothing is found out: at the latest `failures` times the longer of
//!   interval and timeout, after the first question.
//! - **H3** At most one question is under way, and two begin at least an interval apart.
//! - **H4** It is asked for the first time within an interval; an adopted one only after a whole interval.
//! - **H5** A verdict is final.
//!
//! No clock is read here. Every call is told what time it is.

use std::time::{Duration, Instant};

use tether_proto::pool::Template;

use crate::readiness::span;

/// What the template leaves open.
const INTERVAL_MS: u64 = 5_000;
const TIMEOUT_MS: u64 = 2_000;
const FAILURES: u32 = 3;

/// How a worker is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Between two questions.
    pub(crate) interval: Duration,
    /// How long an answer may take.
    pub(crate) timeout: Duration,
    /// Failures in a row after which it is ended.
    pub(crate) failures: u32,
    /// Longest time between two `WATCHDOG=1`.
    pub(crate) watchdog: Option<Duration>,
}

impl Terms {
    /// Those of a template; none where it does not ask to look.
    pub(crate) fn of(template: &Template) -> Option<Self> {
        let liveness = template.liveness.as_ref()?;
        let or = |ms: u64, default| Duration::from_millis(if ms == 0 { default } else { ms });
        Some(Self {
            interval: or(liveness.interval_ms, INTERVAL_MS),
            timeout: or(liveness.timeout_ms, TIMEOUT_MS),
            failures: match liveness.failures {
                0 => FAILURES,
                some => some,
            },
            watchdog: (liveness.watchdog_ms > 0)
                .then(|| Duration::from_millis(liveness.watchdog_ms)),
        })
    }
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until the next deadline.
    Wait,
    /// It is to be asked.
    Ask,
    /// It is to be ended, for this reason.
    End(String),
}

/// The judgement of one worker, from when it was ready.
#[derive(Debug)]
pub(crate) struct Liveness {
    terms: Terms,
    /// Whether anything is asked at all, or only its reports count.
    asks: bool,
    /// When the question under way was asked.
    asked: Option<Instant>,
    next_question: Instant,
    failed: u32,
    watchdog: Option<Duration>,
    bark: Option<Instant>,
    verdict: Option<String>,
}

impl Liveness {
    /// Begins to judge a worker that is ready. `spread`, from 0 to 1, is where in its interval the first
    /// question falls, so that the workers of a node are not all asked in the same moment.
    pub(crate) fn new(terms: Terms, asks: bool, spread: f64, adopted: bool, now: Instant) -> Self {
        let first = terms.interval.mul_f64(spread.clamp(0.0, 1.0));
        let whole = if adopted {
            terms.interval
        } else {
            Duration::ZERO
        };
        Self {
            terms,
            asks,
            asked: None,
            next_question: now + whole + first,
            failed: 0,
            watchdog: terms.watchdog,
            // Counted from here also for an adopted one: what it said while nobody listened is lost.
            bark: terms.watchdog.map(|longest| now + longest),
            verdict: None,
        }
    }

    /// The question under way was answered, or not.
    pub(crate) fn on_answer(&mut self, answer: Result<(), String>, now: Instant) -> Next {
        let Some(asked) = self.asked.take() else {
            return self.check(now);
        };
        self.next_question = now.max(asked + self.terms.interval);
        match answer {
            Ok(()) => self.failed = 0,
            Err(why) => {
                self.failed += 1;
                if self.failed >= self.terms.failures {
                    let times = match self.failed {
                        1 => String::new(),
                        times => format!(", {times} times in a row"),
                    };
                    self.end(format!("{why}{times}"));
                }
            }
        }
        self.check(now)
    }

    /// It said `WATCHDOG=1`.
    pub(crate) fn on_alive(&mut self, now: Instant) {
        self.bark = self.watchdog.map(|longest| now + longest);
    }

    /// It said `WATCHDOG_USEC=`: from here on this is the longest time, and zero is none.
    pub(crate) fn on_watchdog(&mut self, longest: Duration, now: Instant) {
        self.watchdog = (longest > Duration::ZERO).then_some(longest);
        self.on_alive(now);
    }

    /// Only time passed.
    pub(crate) fn check(&mut self, now: Instant) -> Next {
        if self.bark.is_some_and(|bark| now >= bark) {
            let longest = span(self.watchdog.unwrap_or_default());
            self.end(format!("it did not send WATCHDOG=1 within {longest}"));
        }
        if let Some(why) = &self.verdict {
            return Next::End(why.clone());
        }
        if self.asks && self.asked.is_none() && now >= self.next_question {
            self.asked = Some(now);
            return Next::Ask;
        }
        Next::Wait
    }

    /// When to call [`Liveness::check`] at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let question = (self.asks && self.asked.is_none()).then_some(self.next_question);
        [question, self.bark].into_iter().flatten().min()
    }

    /// How long an answer may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.terms.timeout
    }

    fn end(&mut self, why: String) {
        self.verdict.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHY: &str = "no answer to grpc.health.v1 within 2 s";

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    prop_compose! {
        fn terms()(interval in 1_u64..50, timeout in 1_u64..50, failures in 1_u32..5, watchdog in prop::option::of(1_u64..80)) -> Terms {
            Terms { interval: ms(interval), timeout: ms(timeout), failures, watchdog: watchdog.map(ms) }
        }
    }

    /// One worker, watched every millisecond: answers as told, and reports as often as told.
    struct Run {
        start: Instant,
        machine: Liveness,
        /// When each question was asked.
        questions: Vec<u64>,
        verdict: Option<(u64, String)>,
    }

    impl Run {
        /// `answers` tells of each question how long its answer takes (no longer than the timeout) and
        /// whether it is a good one; `reports` how long each report is after the one before.
        fn watch(
            terms: Terms,
            spread: f64,
            adopted: bool,
            answers: &[(u64, bool)],
            reports: &[u64],
            until: u64,
        ) -> Self {
            let start = Instant::now();
            let machine = Liveness::new(terms, !answers.is_empty(), spread, adopted, start);
            let mut run = Self {
                start,
                machine,
                questions: Vec::new(),
                verdict: None,
            };
            let mut answer_at: Option<(u64, bool)> = None;
            let mut reports = reports.iter().scan(0, |at, pause| {
                *at += pause;
                Some(*at)
            });
            let mut report_at = reports.next();
            for at in 0..until {
                let now = run.start + ms(at);
                if report_at == Some(at) {
                    run.machine.on_alive(now);
                    report_at = reports.next();
                }
                let next = match answer_at {
                    Some((due, good)) if due <= at => {
                        answer_at = None;
                        let answer = if good { Ok(()) } else { Err(WHY.to_owned()) };
                        run.machine.on_answer(answer, now)
                    }
                    _ => run.machine.check(now),
                };
                match next {
                    Next::Wait => {
                        let due = run.machine.next_deadline();
                        assert!(due.is_none_or(|due| due > now), "overslept");
                    }
                    Next::Ask => {
                        assert!(answer_at.is_none(), "H3: two questions at once");
                        let (takes, good) = answers[run.questions.len() % answers.len()];
                        run.questions.push(at);
                        answer_at = Some((at + takes, good));
                    }
                    Next::End(why) => {
                        if let Some((_, before)) = &run.verdict {
                            assert_eq!(*before, why, "H5");
                        }
                        run.verdict.get_or_insert((at, why));
                    }
                }
                assert!(
                    run.verdict.is_none() || matches!(run.machine.check(now), Next::End(_)),
                    "H5"
                );
            }
            run
        }
    }

    proptest! {
        /// H1, H3, H4.
        #[test]
        fn a_worker_that_answers_often_enough_and_reports_in_time_is_never_ended(
            terms in terms(), spread in 0.0..1.0_f64, adopted: bool, takes in 0_u64..50,
        ) {
            let takes = takes.min(terms.timeout.as_millis() as u64);
            // As many failures as it may have in a row, then a good answer, over and over.
            let mut answers = vec![(takes, false); terms.failures as usize - 1];
            answers.push((takes, true));
            let reports: Vec<_> = terms.watchdog.map_or_else(Vec::new, |longest| {
                vec![(longest.as_millis() as u64 - 1).max(1); 2_000]
            });
            // Reports every millisecond cannot be in time for a watchdog of one.
            prop_assume!(terms.watchdog.is_none_or(|longest| longest > ms(1)));

            let run = Run::watch(terms, spread, adopted, &answers, &reports, 1_000);

            prop_assert_eq!(&run.verdict, &None, "H1");
            let interval = terms.interval.as_millis() as u64;
            for pair in run.questions.windows(2) {
                prop_assert!(pair[1] - pair[0] >= interval, "H3: {pair:?}");
            }
            let first = run.questions[0];
            let whole = if adopted { interval } else { 0 };
            prop_assert!((whole..=whole + interval).contains(&first), "H4: {first}");
        }

        /// H2, H5.
        #[test]
        fn a_worker_that_answers_nothing_is_found_out_in_time(terms in terms(), spread in 0.0..1.0_f64) {
            let terms = Terms { watchdog: None, ..terms };
            let timeout = terms.timeout.as_millis() as u64;

            let run = Run::watch(terms, spread, false, &[(timeout, false)], &[], 1_000);

            let (at, why) = run.verdict.expect("H2");
            let longest = terms.interval.max(terms.timeout).as_millis() as u64;
            prop_assert!(at - run.questions[0] <= longest * u64::from(terms.failures), "H2: {at}");
            prop_assert_eq!(run.questions.len(), terms.failures as usize);
            prop_assert!(why.starts_with(WHY));
            let counted = format!("{} times in a row", terms.failures);
            prop_assert!(terms.failures == 1 || why.ends_with(&counted), "{}", why);
        }

        #[test]
        fn a_worker_that_does_not_report_is_ended_when_its_watchdog_runs_out_and_not_before(
            terms in terms(), longest in 2_u64..80, reports in prop::collection::vec(1_u64..80, 0..5),
        ) {
            let terms = Terms { watchdog: Some(ms(longest)), ..terms };
            let reports: Vec<_> = reports.into_iter().map(|pause| pause.min(longest - 1)).collect();
            let last: u64 = reports.iter().sum();

            let run = Run::watch(terms, 0.5, false, &[], &reports, 1_000);

            let (at, why) = run.verdict.expect("it was silent");
            prop_assert_eq!(at, last + longest);
            prop_assert_eq!(why, format!("it did not send WATCHDOG=1 within {longest} ms"));
        }
    }

    #[test]
    fn a_worker_may_change_the_time_of_its_watchdog_and_switch_it_off() {
        let now = Instant::now();
        let terms = Terms {
            interval: ms(5),
            timeout: ms(5),
            failures: 1,
            watchdog: Some(ms(10)),
        };
        let mut machine = Liveness::new(terms, false, 0.0, false, now);

        machine.on_watchdog(ms(30), now);
        assert_eq!(machine.check(now + ms(29)), Next::Wait);
        machine.on_alive(now + ms(29));
        assert_eq!(machine.next_deadline(), Some(now + ms(59)));
        machine.on_watchdog(Duration::ZERO, now + ms(30));
        assert_eq!(machine.next_deadline(), None);
        assert_eq!(machine.check(now + ms(500)), Next::Wait);
    }
}
