//! What is to be said of each attempt at a call, by what its caller was told and what workers wrote down.

use std::collections::BTreeMap;

use tether_tests::clerk::caller::{End, Told};

/// How long after its death calls may still have gone to a worker, in nanoseconds: it is noticed, not foretold.
pub(crate) const NOTICED: u64 = 2_000_000_000;

/// One time that a call was sent to a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) told: Told,
    /// Through which gateway.
    pub(crate) gateway: usize,
}

/// A SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) at: u64,
    /// Until when calls may have been sent there.
    pub(crate) until: u64,
    pub(crate) whom: Whom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whom {
    Gateway(usize),
    /// As a gateway names it.
    Worker(String),
}

/// What an attempt shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Answered, and done once.
    Answered,
    /// Nobody saw it, and that was said: it may be made again.
    NotSeen,
    /// It was at somebody who was killed.
    Killed,
    /// It was not answered in time.
    Lost,
    /// It failed as no kill excuses.
    Failed,
    /// What was said of it is not so.
    Untrue,
    /// It was begun more than once.
    Twice,
}

/// Judges an attempt that was begun so many times.
pub(crate) fn verdict(attempt: &Attempt, begun: usize, kills: &[Kill]) -> Verdict {
    let told = &attempt.told;
    let killed = |whom: &Whom| {
        let during = |kill: &&Kill| kill.at <= told.end && told.start <= kill.until;
        kills.iter().filter(during).any(|kill| kill.whom == *whom)
    };
    if begun > 1 {
        return Verdict::Twice;
    }
    match &told.how {
        End::Answered if begun == 1 => Verdict::Answered,
        End::Answered | End::Wrong(_) => Verdict::Untrue,
        End::Silent => Verdict::Lost,
        End::Broken(_) if killed(&Whom::Gateway(attempt.gateway)) => Verdict::Killed,
        End::Broken(_) => Verdict::Failed,
        End::Unseen(_) => seen(begun),
        End::Failed {
            code,
            outcome,
            worker,
            ..
        } => match outcome.as_deref() {
            Some("never_sent" | "refused") => seen(begun),
            Some("sent_unknown" | "started") => {
                let worker = worker.clone().map(Whom::Worker);
                match worker.is_some_and(|worker| killed(&worker)) {
                    true => Verdict::Killed,
                    false => Verdict::Failed,
                }
            }
            // DEADLINE_EXCEEDED.
            _ if *code == 4 => Verdict::Lost,
            _ => Verdict::Failed,
        },
    }
}

fn seen(begun: usize) -> Verdict {
    match begun {
        0 => Verdict::NotSeen,
        _ => Verdict::Untrue,
    }
}

/// How many of each, and what the first of each was told.
#[derive(Debug, Default)]
pub(crate) struct Sum(BTreeMap<Verdict, (usize, String)>);

impl Sum {
    pub(crate) fn of<'a>(
        attempts: impl IntoIterator<Item = &'a Attempt>,
        begun: impl Fn(u64) -> usize,
        kills: &[Kill],
    ) -> Self {
        let mut sum = Self::default();
        for attempt in attempts {
            let verdict = verdict(attempt, begun(attempt.told.id), kills);
            let (count, _) = sum
                .0
                .entry(verdict)
                .or_insert_with(|| (0, format!("{attempt:?}")));
            *count += 1;
        }
        sum
    }

    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.0.get(&verdict).map_or(0, |(count, _)| *count)
    }

    /// How many, and the first of them.
    pub(crate) fn words(&self, verdict: Verdict) -> String {
        match self.0.get(&verdict) {
            None => "0".to_owned(),
            Some((count, first)) => format!("{count}, the first: {first}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn attempt(how: End) -> Attempt {
        let told = Told {
            id: 1,
            start: 10 * SECOND,
            end: 11 * SECOND,
            how,
        };
        Attempt { told, gateway: 1 }
    }

    fn failed(outcome: &str) -> End {
        End::Failed {
            code: 14,
            outcome: Some(outcome.to_owned()),
            worker: Some("steady/0.7".to_owned()),
            why: String::new(),
        }
    }

    fn kill(at: u64, whom: Whom) -> [Kill; 1] {
        let (at, until) = (at * SECOND, (at + 1) * SECOND);
        [Kill { at, until, whom }]
    }

    #[test]
    fn what_was_said_has_to_agree_with_what_was_begun() {
        let cases = [
            (End::Answered, 1, Verdict::Answered),
            (End::Answered, 0, Verdict::Untrue),
            (End::Answered, 2, Verdict::Twice),
            (failed("never_sent"), 0, Verdict::NotSeen),
            (failed("refused"), 1, Verdict::Untrue),
            (End::Unseen(String::new()), 1, Verdict::Untrue),
            (End::Silent, 0, Verdict::Lost),
        ];
        for (how, begun, expected) in cases {
            let verdict = verdict(&attempt(how.clone()), begun, &[]);
            assert_eq!(verdict, expected, "{how:?}");
        }
    }

    #[test]
    fn only_a_kill_of_whoever_had_it_excuses_that_a_call_broke() {
        let worker = |name: &str| Whom::Worker(name.to_owned());
        let unknown = attempt(failed("sent_unknown"));
        let broken = attempt(End::Broken(String::new()));
        let cases = [
            (&unknown, kill(9, worker("steady/0.7")), Verdict::Killed),
            (&unknown, kill(7, worker("steady/0.7")), Verdict::Failed),
            (&unknown, kill(12, worker("steady/0.7")), Verdict::Failed),
            (&unknown, kill(10, worker("steady/1.8")), Verdict::Failed),
            (&unknown, kill(10, Whom::Gateway(1)), Verdict::Failed),
            (&broken, kill(10, Whom::Gateway(1)), Verdict::Killed),
            (&broken, kill(8, Whom::Gateway(1)), Verdict::Failed),
            (&broken, kill(10, Whom::Gateway(0)), Verdict::Failed),
        ];
        for (attempt, kills, expected) in cases {
            assert_eq!(verdict(attempt, 1, &kills), expected, "{kills:?}");
        }
    }
}
