//! What a turn shows, out of what callers were told, workers wrote down, and was seen on its way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_tests::clerk::{
    book::{self, Entry, Step},
    caller::{End, Told},
};

use super::{site::Member, wire::Sent};
use crate::figure::median;

/// What is looked at together: the second with a failure.
const SECOND: u64 = 1_000_000_000;

/// How soon after a blow calls have to go elsewhere. Those that are sent there before are as those it had.
pub(super) const KNOWN_WITHIN: u64 = 5_000_000;

/// Something that was done to workers.
#[derive(Debug, Clone)]
pub(super) struct Blow {
    pub(super) at: u64,
    pub(super) victims: Vec<Member>,
    /// Until when they were dead or stopped for sure.
    pub(super) until: u64,
}

/// All that is known of a turn.
#[derive(Debug)]
pub(super) struct Evidence {
    /// In the order in which they were made.
    pub(super) told: Vec<Told>,
    pub(super) sent: Vec<Sent>,
    pub(super) entries: Vec<Entry>,
}

impl Evidence {
    /// Calls that had been sent to a victim, and had no answer, by when it has to be known that it was hit.
    pub(super) fn under_way(&self, blow: &Blow) -> Vec<&Told> {
        let known = blow.at + KNOWN_WITHIN;
        let there: BTreeSet<u64> = self
            .sent
            .iter()
            .filter(|sent| blow.has(sent.port) && sent.at <= known)
            .map(|sent| sent.id)
            .collect();
        let open = |one: &&Told| one.start <= known && blow.at < one.end;
        let told = self.told.iter().filter(open);
        told.filter(|one| there.contains(&one.id)).collect()
    }

    /// How long after the blow the last call was sent to a victim; nothing where none was. What reached the next worker
    /// in its place was not sent to it.
    pub(super) fn last_sent(&self, blow: &Blow) -> Duration {
        let next: BTreeSet<u64> = self
            .entries
            .iter()
            .filter(|entry| entry.at > blow.at && entry.step == Step::Came)
            .filter(|entry| {
                blow.victims
                    .iter()
                    .any(|victim| victim.is_before(&entry.clerk))
            })
            .map(|entry| entry.id)
            .collect();
        let late = self.sent.iter().filter(|sent| {
            let after = sent.at > blow.at && sent.at < blow.until;
            after && blow.has(sent.port) && !next.contains(&sent.id)
        });
        let last = late.map(|sent| sent.at - blow.at).max();
        Duration::from_nanos(last.unwrap_or(0))
    }

    /// Calls that were begun more than once.
    pub(super) fn twice(&self) -> usize {
        let begun = book::begun(&self.entries);
        begun.values().filter(|times| times.len() > 1).count()
    }

    /// Those that were not answered, the unanswered of these calls left out.
    pub(super) fn failed_but<'a>(&'a self, known: &[&Told]) -> Vec<&'a Told> {
        let known: BTreeSet<u64> = known.iter().map(|one| one.id).collect();
        let failed = self.told.iter().filter(|one| !one.is_answered());
        failed.filter(|one| !known.contains(&one.id)).collect()
    }

    /// The delay, in seconds, that 99 of a hundred calls do not exceed which were made in the second from then on.
    pub(super) fn p99(&self, from: u64) -> Option<f64> {
        let second = from..from + SECOND;
        let within = self.told.iter().filter(|one| second.contains(&one.start));
        p99(within.filter(|one| one.is_answered()).map(Told::took))
    }

    /// The same in the middle of all whole seconds.
    pub(super) fn p99_of_seconds(&self) -> Option<f64> {
        let (first, last) = (self.told.first()?.start, self.told.last()?.start);
        let seconds = (0..(last - first) / SECOND).map(|second| first + second * SECOND);
        median(seconds.filter_map(|from| self.p99(from)).collect())
    }

    /// How long workers were idle between two calls although the later one had been made before the earlier one ended.
    pub(super) fn gaps(&self) -> Vec<u64> {
        let made: BTreeMap<u64, u64> = self.told.iter().map(|one| (one.id, one.start)).collect();
        let (mut ended, mut gaps) = (BTreeMap::<&str, u64>::new(), Vec::new());
        for entry in &self.entries {
            match entry.step {
                Step::Came => {}
                Step::Ended => drop(ended.insert(&entry.clerk, entry.at)),
                Step::Began => {
                    let made = made.get(&entry.id);
                    if let Some((ended, made)) = ended.get(entry.clerk.as_str()).zip(made)
                        && made < ended
                    {
                        gaps.push(entry.at - ended);
                    }
                }
            }
        }
        gaps
    }

    /// Of each call that was answered, when it was made, how long it waited to begin, and how long it was served.
    pub(super) fn served(&self) -> Vec<(u64, u64, u64)> {
        let mut begun: BTreeMap<u64, u64> = BTreeMap::new();
        let mut worked: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for entry in &self.entries {
            match entry.step {
                Step::Came => {}
                Step::Began => drop(begun.insert(entry.id, entry.at)),
                Step::Ended => {
                    if let Some(began) = begun.get(&entry.id) {
                        worked.insert(entry.id, (*began, entry.at - began));
                    }
                }
            }
        }
        let answered = self.told.iter().filter(|one| one.is_answered());
        let served = answered.filter_map(|one| {
            let (began, work) = worked.get(&one.id)?;
            Some((one.start, began.saturating_sub(one.start), *work))
        });
        served.collect()
    }
}

impl Blow {
    fn has(&self, port: u16) -> bool {
        self.victims.iter().any(|victim| victim.port == port)
    }
}

impl Member {
    /// Whether that clerk has its place, and is another.
    fn is_before(&self, clerk: &str) -> bool {
        let place = clerk.split('.').next();
        clerk != self.clerk && place == self.clerk.split('.').next()
    }
}

/// The value, in seconds, that 99 of a hundred do not exceed.
pub(super) fn p99(nanos: impl Iterator<Item = u64>) -> Option<f64> {
    let mut all: Vec<u64> = nanos.collect();
    all.sort_unstable();
    let at = (all.len() * 99).div_ceil(100).checked_sub(1)?;
    Some(*all.get(at)? as f64 / SECOND as f64)
}

/// What a call that was not answered was told, in words.
pub(super) fn words(one: &Told) -> String {
    match &one.how {
        End::Failed { code, why, .. } => format!("grpc-status {code}: {why}"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn told(id: u64, start: u64, end: u64, how: End) -> Told {
        let (start, end) = (start * MS, end * MS);
        Told {
            id,
            start,
            end,
            how,
        }
    }

    fn sent(id: u64, port: u16, at: u64) -> Sent {
        let at = at * MS;
        Sent { id, port, at }
    }

    fn entry(id: u64, step: Step, at: u64, clerk: &str) -> Entry {
        Entry {
            id,
            step,
            at: at * MS,
            clerk: clerk.to_owned(),
        }
    }

    fn blow() -> Blow {
        let victim = Member {
            slot: 0,
            clerk: "0.1".to_owned(),
            pid: 1,
            port: 50,
        };
        Blow {
            at: 10 * MS,
            victims: vec![victim],
            until: 1_000 * MS,
        }
    }

    /// One call is at the victim when it is hit, one was answered before, one is sent to it before anybody knows and one
    /// afterwards, and one reaches the next in its place.
    fn evidence() -> Evidence {
        let broken = || End::Broken(String::new());
        Evidence {
            told: vec![
                told(1, 1, 3, End::Answered),
                told(2, 8, 14, broken()),
                told(3, 12, 30, broken()),
                told(8, 11, 15, broken()),
                told(4, 40, 43, End::Answered),
                told(5, 9, 12, End::Answered),
            ],
            sent: vec![
                sent(1, 50, 2),
                sent(2, 50, 9),
                sent(5, 51, 9),
                sent(8, 50, 14),
                sent(3, 50, 16),
                sent(3, 51, 20),
                sent(4, 50, 41),
            ],
            entries: vec![
                entry(1, Step::Began, 2, "0.1"),
                entry(3, Step::Began, 21, "1.1"),
                entry(3, Step::Began, 25, "2.1"),
                entry(4, Step::Came, 41, "0.2"),
                entry(4, Step::Began, 41, "0.2"),
                entry(4, Step::Ended, 43, "0.2"),
            ],
        }
    }

    #[test]
    fn what_was_at_a_victim_is_told_from_what_came_too_late() {
        let (evidence, blow) = (evidence(), blow());

        let under_way = evidence.under_way(&blow);
        let ids = |calls: &[&Told]| calls.iter().map(|one| one.id).collect::<Vec<_>>();

        assert_eq!(ids(&under_way), [2, 8]);
        assert_eq!(ids(&evidence.failed_but(&under_way)), [3]);
        assert_eq!(evidence.last_sent(&blow), Duration::from_millis(6));
    }

    #[test]
    fn a_call_that_began_at_two_workers_was_done_twice() {
        assert_eq!(evidence().twice(), 1);
    }

    #[test]
    fn a_call_waits_until_it_begins() {
        assert_eq!(evidence().served(), [(40 * MS, MS, 2 * MS)]);
    }

    #[test]
    fn a_worker_is_idle_for_nothing_while_a_call_that_was_made_does_not_begin() {
        let mut evidence = evidence();
        evidence.told.push(told(6, 42, 60, End::Answered));
        evidence.told.push(told(7, 58, 70, End::Answered));
        let step = |id, step, at| entry(id, step, at, "0.2");
        evidence.entries.push(step(6, Step::Began, 48));
        evidence.entries.push(step(6, Step::Ended, 50));
        evidence.entries.push(step(7, Step::Began, 59));

        assert_eq!(evidence.gaps(), [5 * MS]);
    }

    #[test]
    fn of_a_thousand_the_tenth_from_the_end_is_the_one() {
        assert_eq!(p99((1..=1_000).map(|ms| ms * MS)), Some(0.99));
        assert_eq!(p99(std::iter::empty()), None);
    }
}
