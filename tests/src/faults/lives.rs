//! Each system call of shim and zygote fails once while workers are started, stopped and killed.

use rustix::io::Errno;
use tether_proto::{common::DeathCause, node::WorkerReport};

use crate::{
    calls::{self, Call},
    lineage::Pinned,
    node::{Counts, Holdings, Node, Outcome},
    rows::{Rows, say},
};

/// When calls are made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The agent starts, and has its zygote try what the kernel allows.
    Start,
    /// A zygote is started in the place of a killed one.
    Birth,
    /// Workers live and die.
    Life,
}

impl Phase {
    pub(crate) const ALL: &'static [Self] = &[Self::Start, Self::Birth, Self::Life];

    fn word(self) -> &'static str {
        match self {
            Self::Start => "as the agent starts",
            Self::Birth => "as a zygote is replaced",
            Self::Life => "in workers' lives",
        }
    }

    /// Whose calls are of interest. What a shim does is the same in two of them.
    fn concerns(self, role: &str) -> bool {
        match self {
            Self::Start => role != "agent",
            Self::Birth => role == "zygote",
            Self::Life => role != "agent",
        }
    }
}

/// One call that is to fail.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    phase: Phase,
    role: String,
    call: &'static Call,
    nth: u32,
    errno: Errno,
}

impl Fault {
    pub(crate) fn name(&self) -> String {
        format!(
            "{} {} #{} {} {}",
            self.role,
            self.call.name,
            self.nth,
            calls::word(self.errno),
            self.phase.word()
        )
    }
}

const EXPECTED: &str = "it works, or ends with a cause and the next start works; nothing is left";

/// Makes the run in which nothing fails, and from it the list of what shall: of each call the first few.
pub(crate) async fn record(first: u32, rows: &mut Rows) -> anyhow::Result<Vec<Fault>> {
    let mut node = Node::prepare("record", None).await?;
    let mut faults = Vec::new();
    for &phase in Phase::ALL {
        node.clear().await?;
        let went = match phase {
            Phase::Start => node.join().await.map(|joined| {
                let joined = joined.then(|| "worked".to_owned());
                joined.ok_or_else(|| node.last_words())
            })?,
            Phase::Birth => {
                kill_zygote(&node).await;
                lives(&mut node).await
            }
            Phase::Life => lives(&mut node).await,
        };
        let name = format!("without a fault {}", phase.word());
        rows.add(&name, "worked", went.and_then(as_if_nothing_happened));
        let (counts, _) = node.counts().await?;
        faults.extend(plan(phase, &counts, first, rows));
    }
    let quiet = node.quiet(None).await.map(|()| "nothing".to_owned());
    rows.add("what is left without a fault", "nothing", quiet);
    node.end().await?;
    Ok(faults)
}

fn as_if_nothing_happened(seen: String) -> Result<String, String> {
    if seen == "worked" {
        Ok(seen)
    } else {
        Err(seen)
    }
}

/// The faults that a record calls for; a call that nobody has thought of is a row that fails.
fn plan(phase: Phase, counts: &Counts, first: u32, rows: &mut Rows) -> Vec<Fault> {
    let mut faults = Vec::new();
    for ((role, number), &count) in counts.iter().filter(|((role, _), _)| phase.concerns(role)) {
        let Some(call) = calls::find(*number) else {
            let wrong = format!("number {number} is not: add it with what it can fail with");
            rows.add(&format!("calls of {role}"), "each is known", Err(wrong));
            continue;
        };
        let first = if call.errnos.is_empty() { 0 } else { first };
        for nth in 1..=count.min(first) {
            let errno = call.errnos[(nth as usize - 1) % call.errnos.len()];
            faults.push(Fault {
                phase,
                role: role.clone(),
                call,
                nth,
                errno,
            });
        }
    }
    faults
}

/// Plays every fault, each on an agent that has come through all before it.
pub(crate) async fn play(faults: &[Fault]) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let mut stage: Option<(Node, Holdings)> = None;
    let mut missed = 0;
    for fault in faults {
        let played = match fault.phase {
            Phase::Start => play_start(fault).await?,
            Phase::Birth | Phase::Life => {
                let (mut node, before) = match stage.take() {
                    Some(stage) => stage,
                    None => warm().await?,
                };
                let played = play_life(&mut node, fault, &before).await;
                if played.is_ok() {
                    stage = Some((node, before));
                } else {
                    say(&tail(&node.log()));
                    node.end().await?;
                }
                played
            }
        };
        missed += u32::from(
            played
                .as_ref()
                .is_ok_and(|seen| seen.starts_with("not called")),
        );
        rows.add(&fault.name(), EXPECTED, played);
    }
    if let Some((node, _)) = stage {
        node.end().await?;
    }
    // What a shim does depends on how much it finds at one look; but hardly.
    let share = missed as usize * 20 <= faults.len();
    let seen = format!("{missed} of {}", faults.len());
    let seen = if share { Ok(seen) } else { Err(seen) };
    rows.add(
        "calls that were not made this time",
        "at most one in twenty",
        seen,
    );
    Ok(rows)
}

/// An agent that has had workers, and what it holds since.
async fn warm() -> anyhow::Result<(Node, Holdings)> {
    let mut node = Node::start("faults").await?;
    let went = lives(&mut node).await.and_then(as_if_nothing_happened);
    went.map_err(anyhow::Error::msg)?;
    node.quiet(None).await.map_err(anyhow::Error::msg)?;
    let holdings = node.holdings();
    Ok((node, holdings))
}

async fn play_start(fault: &Fault) -> anyhow::Result<Result<String, String>> {
    let mut node = Node::prepare("start", None).await?;
    node.arm(
        &fault.role,
        fault.call.number,
        fault.nth,
        fault.errno.raw_os_error(),
    )
    .await?;
    let joined = node.join().await;
    let seen = match joined {
        Ok(true) => {
            let level = node.hello.guarantee.clone();
            match lives(&mut node).await {
                Ok(went) => node
                    .quiet(None)
                    .await
                    .map(|()| format!("{went} at {level}")),
                Err(wrong) => Err(wrong),
            }
        }
        Ok(false) => refusal(&node.last_words()),
        Err(error) => Err(format!("{error:#}")),
    };
    let hits = node.counts().await.map_or(0, |(_, hits)| hits);
    node.end().await?;
    Ok(seen.map(|seen| {
        if hits == 0 {
            format!("not called: {seen}")
        } else {
            seen
        }
    }))
}

/// Whether these are the words of one who says why it does not start.
pub(crate) fn refusal(words: &str) -> Result<String, String> {
    if words.contains("zygote") || words.contains("timers do not kill") {
        Ok(format!("refused: {words}"))
    } else {
        Err(format!("ended with `{words}`"))
    }
}

async fn play_life(node: &mut Node, fault: &Fault, before: &Holdings) -> Result<String, String> {
    let wrong = |error: anyhow::Error| format!("{error:#}");
    if fault.phase == Phase::Birth {
        kill_zygote(node).await;
    }
    node.arm(
        &fault.role,
        fault.call.number,
        fault.nth,
        fault.errno.raw_os_error(),
    )
    .await
    .map_err(wrong)?;
    let went = lives(node).await;
    let (_, hits) = node.counts().await.map_err(wrong)?;
    node.clear().await.map_err(wrong)?;
    let went = went?;
    node.quiet(Some(before)).await?;
    match hits {
        0 if went == "worked" => Ok("not called".to_owned()),
        0 => Err(format!("nothing failed, and yet: {went}")),
        // What is not permitted may be so for ever; all else that fails here passes.
        _ if went.contains(FOR_GOOD) && fault.errno != Errno::PERM => {
            Err(format!("nobody would start it again: {went}"))
        }
        _ => Ok(went),
    }
}

async fn kill_zygote(node: &Node) {
    if let Some(zygote) = node.zygote() {
        zygote.kill();
        // The kernel hands its children on before the agent hears of it.
        let gone = async || (!zygote.lives()).then_some(());
        let _ = tether_tests::eventually_within(crate::node::PATIENCE, gone).await;
    }
}

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

fn cause(report: &WorkerReport) -> DeathCause {
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

/// The end of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_nobody_thought_of_fails_a_row_and_the_others_fail_in_turn() {
        let counts = Counts::from([
            (("shim".to_owned(), 0), 5),
            (("shim".to_owned(), 9_999), 1),
            (("agent".to_owned(), 1), 7),
        ]);
        let mut rows = Rows::default();

        let faults = plan(Phase::Life, &counts, 2, &mut rows);

        let names: Vec<_> = faults.iter().map(Fault::name).collect();
        assert_eq!(
            names,
            [
                "shim read #1 EIO in workers' lives",
                "shim read #2 EINTR in workers' lives"
            ]
        );
        assert_eq!(rows.seen("number 9999"), 1);
    }
}
