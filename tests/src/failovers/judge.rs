//! What was seen against what had to follow.

use std::time::Duration;

use tether_clock::Tick;
use tether_tests::evidence::Evidence;

use crate::{
    plan::{Fault, ORDINARY, RESUMED, Renewals},
    play::Seen,
};

/// Events that nothing here may cause.
const LOSSES: [&str; 3] = ["NODE_LOST", "SESSION_LOST", "WORKER_DIED"];

/// The claim of one failover.
pub(crate) fn judge(name: &str, fault: Fault, owners: usize, seen: &Seen) -> Evidence {
    let (in_time, want, say) = renewals(fault, seen);
    let mut faults = losses(owners, seen);
    if fault.deposes_arbiter() && !seen.other_arbiter {
        faults.push("THE SAME ARBITER LEADS".to_owned());
    }
    if fault.deposes_member() && !seen.other_member {
        faults.push("THE SAME MEMBER OF ETCD LEADS".to_owned());
    }
    let pass = in_time && faults.is_empty();
    let say = match faults.is_empty() {
        true => format!("nothing lost; {say}"),
        false => format!("{}; {say}", faults.join(", ")),
    };
    Evidence::new(name, format!("nothing lost; {want}"), say, pass)
}

/// Whether renewals did what they had to, what that is, and what they did.
fn renewals(fault: Fault, seen: &Seen) -> (bool, String, String) {
    let span = |(begin, end): &(Tick, Tick)| end.since(*begin);
    let longest = seen.silences.iter().map(span).max();
    let ceased = longest.is_some_and(|longest| longest > ORDINARY);
    // The silence that the fault fell into, and each that is longer than those between heartbeats.
    let by_fault = |gap: &&(Tick, Tick)| gap.0 <= seen.begun || span(gap) > ORDINARY;
    let resumed = seen.silences.iter().filter(by_fault);
    let Some((longest, resumed)) = longest.zip(resumed.map(|(_, end)| *end).max()) else {
        let say = "no heartbeat was answered".to_owned();
        return (false, "heartbeats are answered".to_owned(), say);
    };
    let (after, of) = match fault.renewals() {
        Renewals::ResumeAfterEnd => (resumed.since(seen.ended), "its end"),
        Renewals::GoOn | Renewals::ResumeAfterFault => (resumed.since(seen.begun), "the fault"),
    };
    let say = format!(
        "renewals {} after {of}, longest silence {}",
        seconds(after),
        seconds(longest)
    );
    let bound = seconds(RESUMED);
    match fault.renewals() {
        Renewals::GoOn => (!ceased, format!("silence up to {}", seconds(ORDINARY)), say),
        Renewals::ResumeAfterFault => (
            after <= RESUMED,
            format!("renewals within {bound} of the fault"),
            say,
        ),
        Renewals::ResumeAfterEnd => (
            ceased && after <= RESUMED,
            format!("renewals cease, and again within {bound} of its end"),
            say,
        ),
    }
}

/// Everything that was lost.
fn losses(owners: usize, seen: &Seen) -> Vec<String> {
    let mut lost = Vec::new();
    for kind in LOSSES {
        let count = seen.events.get(kind).copied().unwrap_or_default();
        if count > 0 {
            lost.push(format!("{count} {kind}"));
        }
    }
    let started = seen.events.get("WORKER_STARTED").copied();
    if started != Some(seen.before.len()) {
        lost.push(format!("{} WORKER_STARTED", started.unwrap_or_default()));
    }
    if seen.before.is_empty() || seen.after != seen.before {
        lost.push(format!(
            "WORKERS {:?} ARE NOW {:?}",
            seen.before, seen.after
        ));
    }
    if seen.lives.len() != seen.before.len() || seen.lives.values().any(|lives| lives.len() != 1) {
        lost.push(format!("MORE OR LESS THAN ONE LIFE {:?}", seen.lives));
    }
    if seen.owners != owners {
        lost.push(format!("{} OF {owners} OWNERS", seen.owners));
    }
    lost
}

fn seconds(span: Duration) -> String {
    format!("{:.2} s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_nanos(millis * 1_000_000)
    }

    fn well() -> Seen {
        let workers = BTreeMap::from([("p/0#1".to_owned(), 7)]);
        Seen {
            begun: at(100_000),
            ended: at(108_000),
            silences: vec![(at(97_000), at(107_000)), (at(107_000), at(112_000))],
            other_arbiter: true,
            other_member: true,
            events: BTreeMap::from([("WORKER_STARTED".to_owned(), 1)]),
            before: workers.clone(),
            after: workers,
            lives: BTreeMap::from([("p-0".to_owned(), BTreeSet::from(["1".to_owned()]))]),
            owners: 2,
        }
    }

    fn holds(fault: Fault, seen: &Seen) -> bool {
        judge("a row", fault, 2, seen).holds()
    }

    #[test]
    fn renewals_that_resume_in_time_with_nothing_lost_are_all_there_is_to_want() {
        assert!(holds(Fault::ArbiterKilled, &well()));
    }

    #[test]
    fn each_loss_alone_fails_a_row() {
        let losses: [fn(&mut Seen); 9] = [
            |seen| seen.silences = vec![(at(97_000), at(109_100))],
            |seen| seen.silences.clear(),
            |seen| seen.other_arbiter = false,
            |seen| seen.events.extend([("NODE_LOST".to_owned(), 1)]),
            |seen| seen.events.extend([("WORKER_STARTED".to_owned(), 2)]),
            |seen| seen.after.extend([("p/0#1".to_owned(), 8)]),
            |seen| seen.after.clear(),
            |seen| {
                let two = BTreeSet::from(["1".to_owned(), "2".to_owned()]);
                seen.lives.extend([("p-0".to_owned(), two)]);
            },
            |seen| seen.owners = 1,
        ];

        for (number, loss) in losses.iter().enumerate() {
            let mut seen = well();
            loss(&mut seen);
            assert!(!holds(Fault::ArbiterKilled, &seen), "loss {number}");
        }
    }

    #[test]
    fn renewals_touch_no_disk_and_cease_without_a_quorum() {
        let mut seen = well();
        assert!(
            !holds(Fault::FileStalled, &seen),
            "they were silent for 10 s"
        );
        seen.silences = vec![(at(99_000), at(104_200)), (at(104_200), at(109_300))];
        assert!(holds(Fault::FileStalled, &seen));
        assert!(!holds(Fault::QuorumLost, &seen), "they never ceased");
        seen.silences = vec![(at(101_000), at(116_900))];
        assert!(holds(Fault::QuorumLost, &seen));
        seen.silences = vec![(at(101_000), at(117_100))];
        assert!(!holds(Fault::QuorumLost, &seen));
    }
}
