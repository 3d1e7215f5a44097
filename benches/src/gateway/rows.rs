//! From what turns took to the rows of the evidence.

use crate::{
    figure::{Figure, Target},
    turns::{Turns, failures, row},
};

use super::{
    idle::{Idle, STREAMS},
    work::{Turn, Work},
};

const MIB: f64 = 1_048_576.0;

/// All rows of one load.
pub(super) fn work(work: &Work, turns: &[Turns<Turn>]) -> Vec<Figure> {
    let unit = work.unit.name();
    let cost = || {
        let name = format!("{}: processor time for 100,000 {unit}", work.name);
        row(name, "s", turns, |turn| {
            Some(turn.cpu?.as_secs_f64() / turn.outcome.done as f64 * 1e5)
        })
    };
    let rate = |turn: &Turn| Some(turn.outcome.done as f64 / turn.outcome.span.as_secs_f64());
    let failed = format!("{}: failed", work.name);
    let mut rows: Vec<_> = match work.targets {
        [] => vec![cost()],
        targets => targets
            .iter()
            .map(|target| cost().target(*target))
            .collect(),
    };
    rows.push(row(
        format!("{}: {unit} a second", work.name),
        "/s",
        turns,
        rate,
    ));
    for (part, share) in [("p50", 0.5), ("p99", 0.99)] {
        let delay = |turn: &Turn| Some(turn.outcome.at(share)? * 1e6);
        if work.timed() {
            rows.push(row(format!("{}: {part}", work.name), "us", turns, delay));
        }
    }
    rows.push(row(
        format!("{}: memory then", work.name),
        "MiB",
        turns,
        |turn| Some(turn.memory? as f64 / MIB),
    ));
    rows.push(failures(failed, "calls", turns, |turn| {
        (turn.outcome.failed as f64, turn.outcome.why.as_deref())
    }));
    rows
}

/// All rows of idle streams.
pub(super) fn idle(turns: &[Turns<Idle>]) -> Vec<Figure> {
    let at_rest = |turn: &Idle| Some(turn.at_rest? as f64 / MIB);
    let open = |turn: &Idle| Some(turn.open? as f64 / MIB);
    let each = |turn: &Idle| {
        let grown = turn.open?.saturating_sub(turn.at_rest?) as f64;
        Some(grown / (STREAMS - turn.failed).max(1) as f64 / 1024.0)
    };
    let beside = Target::Share(1.0, "haproxy");
    vec![
        row("memory at rest".to_owned(), "MiB", turns, at_rest),
        row(
            "memory with 10,000 idle streams".to_owned(),
            "MiB",
            turns,
            open,
        ),
        row("an idle stream".to_owned(), "KiB", turns, each).target(beside),
        failures(
            "idle streams that could not be opened".to_owned(),
            "streams",
            turns,
            |turn| (turn.failed as f64, turn.why.as_deref()),
        ),
    ]
}
