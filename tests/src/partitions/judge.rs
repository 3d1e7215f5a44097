//! What was seen against what had to follow.

use std::time::Duration;

use tether_history::Report;
use tether_tests::evidence::Evidence;

use crate::{
    plan::{Bounds, Cut, Heals, Mode, TIMES},
    round::Seen,
};

/// The claim of one cut.
pub(crate) fn judge((cut, mode, heals): (Cut, Mode, Heals), relay: bool, seen: &Seen) -> Evidence {
    let expected = TIMES.expected(cut, mode, heals, relay);
    let mut wants = Vec::new();
    let mut says = Vec::new();
    let mut pass = true;
    for (what, bounds, at) in [
        ("worker ends", expected.worker_ends, seen.worker_ended),
        ("starts again", expected.starts_again, seen.started_again),
        ("owner ends", expected.owner_ends, seen.owner_ended),
    ] {
        let (held, want, say) = compare(bounds, at);
        pass &= held;
        if bounds.is_some() || at.is_some() {
            wants.push(format!("{what} {want}"));
            says.push(format!("{what} {say}"));
        }
    }
    if wants.is_empty() {
        wants.push("nothing ends".to_owned());
        says.push("nothing ended".to_owned());
    }
    let once = seen.double_lives.is_empty()
        && match (seen.worker_ended, seen.started_again) {
            (Some(ended), Some(again)) => ended < again,
            (None, Some(_)) => false,
            (_, None) => true,
        };
    if !once {
        pass = false;
        says.push(format!("TWO LIVES AT ONCE {:?}", seen.double_lives));
    }
    let silent = seen.worker_ended.is_some() && seen.causes.is_empty();
    if silent || seen.causes.iter().any(|cause| cause == "UNKNOWN") {
        pass = false;
        says.push(format!("NO CAUSE {:?}", seen.causes));
    }
    if seen.living > 1 || seen.listed != seen.living {
        pass = false;
        says.push(format!("{} LIVE, {} LISTED", seen.living, seen.listed));
    }
    let name = format!("{cut}, {}, heals {}", mode.name(), heals.name());
    Evidence::new(name, wants.join("; "), says.join("; "), pass)
}

/// The claim of all that one cluster wrote of itself.
pub(crate) fn judge_histories(world: u32, report: anyhow::Result<Report>) -> Evidence {
    let name = format!("histories of cluster {world}");
    let report = match report {
        Ok(report) => report,
        Err(error) => return Evidence::failed(name, format!("{error:#}")),
    };
    let held: u64 = report.held.values().sum();
    let broken: Vec<_> = report.violations.iter().map(ToString::to_string).collect();
    let seen = match broken.is_empty() {
        true => format!(
            "{held} rules held in {} lines, none was broken",
            report.lines
        ),
        false => broken.join("; "),
    };
    Evidence::new(
        name,
        "no rule is broken",
        seen,
        broken.is_empty() && held > 0,
    )
}

fn compare(bounds: Option<Bounds>, seen: Option<Duration>) -> (bool, String, String) {
    let want = bounds.map_or_else(|| "never".to_owned(), |bounds| bounds.to_string());
    let say = seen.map_or_else(
        || "never".to_owned(),
        |seen| format!("{:.2} s", seen.as_secs_f64()),
    );
    let held = match (bounds, seen) {
        (Some(bounds), Some(seen)) => bounds.hold(seen),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    (held, want, say)
}
