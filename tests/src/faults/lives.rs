//! Workers that are started, stopped and killed, and what may come of it where one call fails.

use tether_proto::{common::DeathCause, node::WorkerReport};

use crate::{
    lineage::Pinned,
    node::{Node, Outcome},
};

/// Three workers: one is stopped with its daemon, one is killed, one is stopped. At most one of them may fail,
/// with a cause, and after the last one that did another must not.
pub(crate) async fn lives(node: &mut Node) -> Result<String, String> {
    let mut trouble = Vec::new();
    let mut last_failed = false;
    for turn in 0..4 {
        if turn == 3 && !last_failed {
            break;
        }
        let habit = if turn == 0 { "daemon" } else { "stubborn" };
        let begun = node
            .begin(habit)
            .await
            .map_err(|error| format!("{error:#}"))?;
        let report = match begun {
            (number, Outcome::Ready(ready)) => {
                if turn == 1 {
                    // Where the fault has killed it already there is nobody to pin.
                    let _ = Pinned::new(ready.pid).is_ok_and(|worker| worker.kill());
                } else {
                    node.order_stop(number);
                }
                node.death(number)
                    .await
                    .map_err(|error| format!("{error:#}"))?
            }
            (_, Outcome::Dead(report)) => report,
        };
        let expected = if turn == 1 {
            DeathCause::Signaled
        } else {
            DeathCause::OrderedByOperator
        };
        last_failed = false;
        if cause(&report) != expected {
            trouble.push(explained(&report)?);
            last_failed = true;
        }
    }
    match trouble.len() {
        0 => Ok("worked".to_owned()),
        1 if !last_failed => Ok(format!("{}, then worked", trouble[0])),
        _ => Err(format!("one fault, and then: {}", trouble.join("; "))),
    }
}

pub(crate) fn cause(report: &WorkerReport) -> DeathCause {
    report
        .death
        .as_ref()
        .map_or(DeathCause::Unspecified, |death| death.cause())
}

/// Stands behind the words of a death after which nobody would start again.
pub(crate) const FOR_GOOD: &str = "(for good)";

/// A death in words; wrong where it has none.
pub(crate) fn explained(report: &WorkerReport) -> Result<String, String> {
    let death = report.death.clone().unwrap_or_default();
    let silent = death.detail.is_empty()
        && matches!(
            death.cause(),
            DeathCause::Unspecified | DeathCause::Unknown | DeathCause::SpawnFailed
        );
    let text = format!("{}: {}", death.cause().as_str_name(), death.detail);
    if silent {
        Err(format!("a death without a cause: {text}"))
    } else if report.permanent {
        Ok(format!("{text} {FOR_GOOD}"))
    } else {
        Ok(text)
    }
}

/// What came of a worker that was to die of this: nothing where it did, else its death in words.
pub(crate) fn trouble(
    report: &WorkerReport,
    expected: DeathCause,
) -> Result<Option<String>, String> {
    if cause(report) == expected {
        Ok(None)
    } else {
        explained(report).map(Some)
    }
}

/// What is to be seen of a scene: that it worked, or what the fault cost, once another start shows that this
/// was all.
pub(crate) async fn cost(node: &mut Node, trouble: Option<String>) -> Result<String, String> {
    let Some(trouble) = trouble else {
        return Ok("worked".to_owned());
    };
    let next = async {
        let (number, outcome) = node.begin("stubborn").await?;
        let Outcome::Ready(_) = outcome else {
            return Ok(outcome);
        };
        node.order_stop(number);
        node.death(number).await.map(Outcome::Dead)
    };
    match next.await {
        Err(error) => Err(format!("{trouble}, and then: {error:#}")),
        Ok(Outcome::Dead(report)) if cause(&report) == DeathCause::OrderedByOperator => {
            Ok(format!("{trouble}, then worked"))
        }
        Ok(Outcome::Dead(report) | Outcome::Ready(report)) => {
            Err(format!("{trouble}, and then: {}", explained(&report)?))
        }
    }
}

/// Whether these are the words of one who says why it does not start.
pub(crate) fn refusal(words: &str) -> Result<String, String> {
    if words.contains("zygote") || words.contains("timers do not kill") {
        Ok(format!("refused: {words}"))
    } else {
        Err(format!("ended with `{words}`"))
    }
}
