//! A worker is started by the first who connects to its socket.

use tether_proto::common::DeathCause;
use tokio::net::UnixStream;

use crate::{
    lives::{cost, explained, trouble},
    node::{Node, Outcome, PATIENCE},
    phase::Fault,
};

pub(crate) async fn play(node: &mut Node, fault: Option<&Fault>) -> Result<String, String> {
    let played = act(node, fault).await;
    played.map_err(|error| format!("{error:#}"))?
}

async fn act(node: &mut Node, fault: Option<&Fault>) -> anyhow::Result<Result<String, String>> {
    let (worker, shim) = waiting(node).await?;
    node.focus(node.keepers(shim)?).await?;
    if let Some(fault) = fault {
        fault.arm(node).await?;
    }

    let caller = UnixStream::connect(node.callers()).await?;
    let served = node.serves(worker, PATIENCE).await;
    if served {
        node.order_stop(worker);
    }
    let death = node.death(worker).await?;
    let trouble = match trouble(&death, DeathCause::OrderedByOperator) {
        Ok(trouble) => trouble,
        Err(wrong) => return Ok(Err(wrong)),
    };
    if !served {
        // Its caller waits still, and has the next one started.
        let next = node.order_on_demand();
        anyhow::ensure!(
            node.serves(next, PATIENCE).await,
            "a waiting caller is forgotten after {trouble:?}"
        );
        node.order_stop(next);
        node.death(next).await?;
    }
    drop(caller);
    Ok(cost(node, trouble).await)
}

/// A worker that waits for its caller, and its shim.
async fn waiting(node: &mut Node) -> anyhow::Result<(u64, u32)> {
    let number = node.order_on_demand();
    match node.outcome(number).await? {
        Outcome::Ready(report) => Ok((number, report.pid)),
        Outcome::Dead(report) => {
            anyhow::bail!("a start without a fault: {:?}", explained(&report))
        }
    }
}
