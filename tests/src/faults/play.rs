//! Records what is called while nothing fails, and then plays each fault.

use rustix::io::Errno;

use crate::{
    demand,
    lives::{FOR_GOOD, lives, refusal},
    node::{Counts, Holdings, Node},
    owner,
    owner::Told,
    parting,
    parting::{BY_GUARD, Parting},
    phase::{Fault, Phase, plan},
    rows::{Rows, say},
};

const EXPECTED: &str = "it works, or ends with a cause and the next start works; nothing is left";

/// Makes the runs in which nothing fails, and from them the list of what shall: of each call the first few.
pub(crate) async fn record(first: u32, rows: &mut Rows) -> anyhow::Result<Vec<Fault>> {
    let mut node = Node::prepare("record", None).await?;
    let mut faults = Vec::new();
    for &phase in Phase::ALL {
        // How often a shim looks depends on how much it finds at one look: what counts is what comes every time.
        let mut counts: Option<Counts> = None;
        for _ in 0..if phase == Phase::Start { 1 } else { 2 } {
            node.clear().await?;
            let went = match phase {
                Phase::Start => node.join().await.map(|joined| {
                    let joined = joined.then(|| "worked".to_owned());
                    joined.ok_or_else(|| node.last_words())
                })?,
                _ => act(&mut node, phase, None).await,
            };
            let name = format!("without a fault {}", phase.word());
            rows.add(&name, "worked", went.and_then(as_if_nothing_happened));
            let (seen, _) = node.counts().await?;
            counts = Some(match counts {
                Some(before) => at_least(before, &seen),
                None => seen,
            });
        }
        faults.extend(plan(phase, &counts.unwrap_or_default(), first, rows));
    }
    let quiet = node.quiet(None).await.map(|()| "nothing".to_owned());
    rows.add("what is left without a fault", "nothing", quiet);
    node.end().await?;
    Ok(faults)
}

/// How often each call was made in either of two runs; that of one run alone stays, counted as never.
fn at_least(mut counts: Counts, other: &Counts) -> Counts {
    for call in other.keys() {
        counts.entry(call.clone()).or_default();
    }
    for (call, count) in &mut counts {
        *count = (*count).min(other.get(call).copied().unwrap_or_default());
    }
    counts
}

/// What happens in a phase, on an agent that has joined; with a fault or without.
async fn act(node: &mut Node, phase: Phase, fault: Option<&Fault>) -> Result<String, String> {
    match phase {
        Phase::Start | Phase::Birth | Phase::Life => {
            if phase == Phase::Birth {
                kill_zygote(node).await;
            }
            if let Some(fault) = fault {
                fault.arm(node).await.map_err(in_words)?;
            }
            lives(node).await
        }
        Phase::Adoption => parting::play(node, Parting::Adopted, fault).await,
        Phase::Lease => parting::play(node, Parting::Expired, fault).await,
        Phase::Link => parting::play(node, Parting::Tied, fault).await,
        Phase::Coupled => owner::play(node, Told::AtStart, fault).await,
        Phase::Owner => owner::play(node, Told::Later, fault).await,
        Phase::Demand => demand::play(node, fault).await,
    }
}

fn in_words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn as_if_nothing_happened(seen: String) -> Result<String, String> {
    if seen == "worked" || seen.starts_with(BY_GUARD) {
        Ok(seen)
    } else {
        Err(seen)
    }
}

/// Plays every fault, each on an agent that has come through all before it. Phases that mostly wait are played
/// beside those that do not.
pub(crate) async fn play(faults: &[Fault]) -> anyhow::Result<Rows> {
    let of = |phases: &[Phase]| -> Vec<&Fault> {
        let wanted = |fault: &&Fault| phases.contains(&fault.phase);
        faults.iter().filter(wanted).collect()
    };
    let (lives, ends, leases, owners) = (
        of(&[Phase::Start, Phase::Birth, Phase::Life]),
        of(&[Phase::Adoption, Phase::Link, Phase::Demand]),
        of(&[Phase::Lease]),
        of(&[Phase::Coupled, Phase::Owner]),
    );
    let played = tokio::join!(
        play_in_turn("lives", &lives),
        play_in_turn("ends", &ends),
        play_in_turn("leases", &leases),
        play_in_turn("owners", &owners)
    );
    let mut rows = Rows::default();
    for played in [played.0, played.1, played.2, played.3] {
        rows.extend(played?);
    }
    // What a shim does depends on how much it finds at one look; but hardly.
    let missed = rows.seen("not called");
    let share = missed * 20 <= faults.len();
    let seen = format!("{missed} of {}", faults.len());
    let seen = if share { Ok(seen) } else { Err(seen) };
    rows.add(
        "calls that were not made this time",
        "at most one in twenty",
        seen,
    );
    Ok(rows)
}

async fn play_in_turn(name: &str, faults: &[&Fault]) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let mut stage: Option<(Node, Phase, Holdings)> = None;
    for fault in faults {
        let played = if fault.phase == Phase::Start {
            play_start(fault).await?
        } else {
            let warmed = stage.take_if(|(_, phase, _)| *phase == fault.phase);
            if let Some((node, ..)) = stage.take() {
                node.end().await?;
            }
            let (mut node, phase, before) = match warmed {
                Some(stage) => stage,
                None => warm(name, fault.phase).await?,
            };
            let played = play_on(&mut node, fault, &before).await;
            if played.is_ok() {
                stage = Some((node, phase, before));
            } else {
                say(&tail(&node.log()));
                node.end().await?;
            }
            played
        };
        rows.add(&fault.name(), EXPECTED, played);
    }
    if let Some((node, ..)) = stage {
        node.end().await?;
    }
    Ok(rows)
}

/// An agent that has come through a phase already, and what it holds since.
async fn warm(name: &str, phase: Phase) -> anyhow::Result<(Node, Phase, Holdings)> {
    let mut node = Node::start(name).await?;
    let went = act(&mut node, phase, None).await;
    let went = went.and_then(as_if_nothing_happened);
    went.map_err(anyhow::Error::msg)?;
    node.clear().await?;
    node.quiet(None).await.map_err(anyhow::Error::msg)?;
    let holdings = node.holdings();
    Ok((node, phase, holdings))
}

async fn play_start(fault: &Fault) -> anyhow::Result<Result<String, String>> {
    let mut node = Node::prepare("start", None).await?;
    fault.arm(&mut node).await?;
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

async fn play_on(node: &mut Node, fault: &Fault, before: &Holdings) -> Result<String, String> {
    let went = act(node, fault.phase, Some(fault)).await;
    let (_, hits) = node.counts().await.map_err(in_words)?;
    node.clear().await.map_err(in_words)?;
    let went = went?;
    node.quiet(Some(before)).await?;
    match hits {
        0 if went == "worked" => Ok("not called".to_owned()),
        0 if went.starts_with(BY_GUARD) => Ok(format!("not called: {went}")),
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

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_as_often_as_it_was_made_every_time() {
        let call = |role: &str| (role.to_owned(), 0);
        let one = Counts::from([(call("shim"), 3), (call("init"), 1)]);
        let other = Counts::from([(call("shim"), 2), (call("zygote"), 5)]);

        let both = at_least(one, &other);

        let expected = [(call("shim"), 2), (call("init"), 0), (call("zygote"), 0)];
        assert_eq!(both, Counts::from(expected));
    }
}
