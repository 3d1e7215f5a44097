//! The agent is killed beside a running worker: what its shim does then, and with the next agent. Another
//! worker beside it must not notice anything.

use std::time::Duration;

use tether_clock::{BootClock, Clock as _};
use tether_proto::common::DeathCause;

use crate::{
    lives::{cause, cost, explained, trouble},
    node::{LEASE, Node, Outcome, Pool},
    phase::Fault,
};

/// By how much a death may come late: what a grantor waits beyond the end of a lease.
pub(crate) const MARGIN: Duration = Duration::from_millis(500);

/// By how much before the end of a lease, counted from here, a guard may go off: an agent counts from when it
/// sent a beat, and in steps. Whom the guard ends with its shim, while there is no agent, nobody knows the cause of.
const GUARD_EARLY: Duration = Duration::from_millis(150);

/// Begins what is said of such an end. On a busy machine it may come without a fault: each call of the shim is
/// listened to, and its kernel timer waits for none of them.
pub(crate) const BY_GUARD: &str = "ended by its guard";

/// What becomes of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    /// It lives, and the next agent stops it.
    Adopted,
    /// It lives until its lease ends, which nobody renews.
    Expired,
    /// It may not outlive its agent.
    Tied,
}

impl Parting {
    fn pool(self) -> Pool {
        match self {
            Self::Adopted => Pool::Free,
            Self::Expired => Pool::Leased,
            Self::Tied => Pool::Tied,
        }
    }

    fn cause(self) -> DeathCause {
        match self {
            Self::Adopted => DeathCause::OrderedByOperator,
            Self::Expired => DeathCause::OwnerGone,
            Self::Tied => DeathCause::AgentGone,
        }
    }
}

pub(crate) async fn play(
    node: &mut Node,
    parting: Parting,
    fault: Option<&Fault>,
) -> Result<String, String> {
    let played = act(node, parting, fault).await;
    played.map_err(|error| format!("{error:#}"))?
}

async fn act(
    node: &mut Node,
    parting: Parting,
    fault: Option<&Fault>,
) -> anyhow::Result<Result<String, String>> {
    let neighbour = started(node, Pool::Free).await?.0;
    let (worker, pid) = started(node, parting.pool()).await?;
    node.focus(node.keepers(pid)?).await?;
    if let Some(fault) = fault {
        fault.arm(node).await?;
    }

    let last_beat = node.lose_agent().await?;
    let end = match parting {
        Parting::Adopted => None,
        Parting::Expired => Some(last_beat + LEASE + MARGIN),
        Parting::Tied => Some(BootClock.now() + MARGIN),
    };
    if let Some(end) = end
        && !node.is_gone_by(worker, end).await
    {
        return Ok(Err("it outlives its permission".to_owned()));
    }
    let gone = BootClock.now();
    anyhow::ensure!(node.join().await?, "no next agent: {}", node.last_words());

    let death = match node.outcome(worker).await? {
        Outcome::Dead(report) => report,
        Outcome::Ready(_) => {
            anyhow::ensure!(end.is_none(), "the dead was adopted");
            node.order_stop(worker);
            node.death(worker).await?
        }
    };
    if let Err(wrong) = is_well(node, neighbour).await? {
        return Ok(Err(format!("its neighbour: {wrong}")));
    }
    let by_guard = parting == Parting::Expired && gone + GUARD_EARLY >= last_beat + LEASE;
    if by_guard && cause(&death) == DeathCause::Unknown {
        return Ok(cost(node, Some(BY_GUARD.to_owned())).await);
    }
    if end.is_some() && cause(&death) == DeathCause::Unknown {
        return Ok(Err(format!(
            "its cause is lost: {}",
            explained(&death).unwrap_or_else(|wrong| wrong)
        )));
    }
    match trouble(&death, parting.cause()) {
        Ok(trouble) => Ok(cost(node, trouble).await),
        Err(wrong) => Ok(Err(wrong)),
    }
}

/// A worker that is ready, and its process.
async fn started(node: &mut Node, pool: Pool) -> anyhow::Result<(u64, u32)> {
    let number = node.order_start("stubborn", pool);
    match node.outcome(number).await? {
        Outcome::Ready(report) => Ok((number, report.pid)),
        Outcome::Dead(report) => {
            anyhow::bail!("a start without a fault: {:?}", explained(&report))
        }
    }
}

/// Whether a worker that was adopted lives, and dies when it is told to.
async fn is_well(node: &mut Node, number: u64) -> anyhow::Result<Result<(), String>> {
    let death = match node.outcome(number).await? {
        Outcome::Dead(report) => report,
        Outcome::Ready(_) => {
            node.order_stop(number);
            node.death(number).await?
        }
    };
    Ok(match trouble(&death, DeathCause::OrderedByOperator) {
        Ok(None) => Ok(()),
        Ok(Some(wrong)) | Err(wrong) => Err(wrong),
    })
}
