//! `tether node drain --wait`: until the node has no worker, or until there is no more time.

use std::{collections::BTreeSet, fmt, time::Duration};

use anyhow::Context as _;
use tether_client::{Client, Problem};
use tether_proto::{
    UNKNOWN_NODE,
    worker::{
        ListNodesRequest, ListWorkersRequest, Node, NodeState, SetNodeStateRequest,
        StopWorkerRequest, Worker,
    },
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;

use super::NodeRow;
use crate::{
    cli, config,
    output::{Output, worker_name},
};

/// Between two looks at the node.
const LOOK: Duration = Duration::from_millis(500);

/// What is asked to stop has its own grace, and is gone after it. This is for an arbiter that does not say so.
const STOPPING: Duration = Duration::from_secs(600);

/// The node has workers still, and there is no more time.
#[derive(Debug)]
pub(crate) struct Late {
    node: String,
    /// Those it has, and what holds them up.
    left: String,
    given: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, left, given } = self;
        write!(
            f,
            "node {node} is not empty after {given:?}: {left}; it stays drained, and empties as there is room elsewhere"
        )
    }
}

impl std::error::Error for Late {}

pub(crate) async fn drain(client: &Client, args: cli::Drain, out: &Output) -> anyhow::Result<()> {
    let own = args.name.is_none();
    let node = match args.name {
        Some(name) => name,
        None => own_name(&args.settings)?,
    };
    if !args.wait && !args.stop {
        return super::set_state(client, node, NodeState::Drained, out).await;
    }
    let deadline = Instant::now() + args.timeout;
    if let Err(unknown) = close(client, &node, deadline).await? {
        if !own {
            return Err(unknown.into());
        }
        // It has not joined yet, or was forgotten since.
        out.note(&format!("nobody knows a node {node}: it has no workers"));
        return Ok(());
    }
    let mut watch = Watch {
        client,
        node: &node,
        told: String::new(),
        out,
    };
    match watch.until_empty(deadline).await? {
        Ok(row) => out.list(&[row]),
        Err(left) if !args.stop => Err(watch.late(&left, args.timeout).into()),
        Err(left) => {
            out.note(&format!("asked to stop, each with its own grace: {left}"));
            let deadline = Instant::now() + STOPPING;
            match watch.until_stopped(deadline).await? {
                Ok(row) => out.list(&[row]),
                Err(left) => Err(watch.late(&left, args.timeout + STOPPING).into()),
            }
        }
    }
}

/// The name of the node whose agent has this configuration.
fn own_name(settings: &cli::Settings) -> anyhow::Result<String> {
    let (loaded, _) = config::load(settings)?;
    let name = loaded.value.agent.node();
    Ok(name
        .context("this machine's node has no usable name")?
        .to_string())
}

/// Has it drained, with whoever answers before then; says so where nobody knows it.
async fn close(
    client: &Client,
    node: &str,
    deadline: Instant,
) -> anyhow::Result<Result<(), Problem>> {
    let request = || SetNodeStateRequest {
        node: node.to_owned(),
        state: NodeState::Drained.into(),
    };
    loop {
        let asked = timeout_at(deadline, client.workers().set_node_state(request())).await;
        let problem = match asked.context("no gateway has answered in time")? {
            Ok(_) => return Ok(Ok(())),
            Err(status) => Problem::from(status),
        };
        if problem.facts.iter().any(|(fact, _)| fact == UNKNOWN_NODE) {
            return Ok(Err(problem));
        }
        if problem.code != Code::Unavailable || Instant::now() + LOOK >= deadline {
            return Err(problem.into());
        }
        sleep(LOOK).await;
    }
}

/// Whoever waits for it, told what changes.
struct Watch<'a> {
    client: &'a Client,
    node: &'a str,
    told: String,
    out: &'a Output,
}

impl Watch<'_> {
    /// Waits until it is empty; says what is left where the time is over first.
    async fn until_empty(&mut self, deadline: Instant) -> anyhow::Result<Result<NodeRow, String>> {
        let mut left = "nothing is known of it".to_owned();
        loop {
            match timeout_at(deadline, self.look()).await {
                Err(_) => return Ok(Err(left)),
                // A gateway that is away comes back, or the time is over.
                Ok(Err(problem)) => left = format!("the gateway says: {problem}"),
                Ok(Ok((node, workers))) => match self.told(node, &workers) {
                    Ok(row) => return Ok(Ok(row)),
                    Err(still) => left = still,
                },
            }
            if Instant::now() + LOOK >= deadline {
                return Ok(Err(left));
            }
            sleep(LOOK).await;
        }
    }

    /// Asks all that are left to stop, and those too that come to light meanwhile.
    async fn until_stopped(
        &mut self,
        deadline: Instant,
    ) -> anyhow::Result<Result<NodeRow, String>> {
        let mut asked = BTreeSet::new();
        loop {
            if let Ok(Ok((_, workers))) = timeout_at(deadline, self.look()).await {
                for worker in workers {
                    let request = StopWorkerRequest {
                        worker: worker.worker.clone(),
                        ..StopWorkerRequest::default()
                    };
                    let name = worker_name(worker.worker.as_ref());
                    if asked.contains(&name) {
                        continue;
                    }
                    // It may have ended by itself since.
                    if self.client.workers().stop_worker(request).await.is_ok() {
                        asked.insert(name);
                    }
                }
            }
            let soon = deadline.min(Instant::now() + 2 * LOOK);
            match self.until_empty(soon).await? {
                Err(_) if Instant::now() + LOOK < deadline => {}
                seen => return Ok(seen),
            }
        }
    }

    /// The node, where it is known, and its workers.
    async fn look(&self) -> Result<(Option<Node>, Vec<Worker>), Problem> {
        let mut client = self.client.workers();
        let nodes = client.list_nodes(ListNodesRequest {}).await;
        let nodes = nodes.map_err(Problem::from)?.into_inner().nodes;
        let all = ListWorkersRequest::default();
        let workers = client.list_workers(all).await.map_err(Problem::from)?;
        let mut workers = workers.into_inner().workers;
        workers.retain(|worker| worker.node == self.node);
        let node = nodes.into_iter().find(|node| node.name == self.node);
        Ok((node, workers))
    }

    /// Says what has changed, and what is left of it.
    fn told(&mut self, node: Option<Node>, workers: &[Worker]) -> Result<NodeRow, String> {
        let held_up = node
            .as_ref()
            .map_or(Vec::new(), |node| node.held_up_by.clone());
        let counted = node.as_ref().map_or(0, |node| node.workers);
        if workers.is_empty() && counted == 0 {
            let gone = Node {
                name: self.node.to_owned(),
                state: NodeState::Drained.into(),
                ..Node::default()
            };
            return Ok(NodeRow::from(node.unwrap_or(gone)));
        }
        let names = workers
            .iter()
            .map(|worker| worker_name(worker.worker.as_ref()));
        let left = left(names.collect(), counted, &held_up);
        if left != self.told {
            if !self.out.is_json() {
                self.out.note(&format!("{}: {left}", self.node));
            }
            self.told.clone_from(&left);
        }
        Err(left)
    }

    fn late(&self, left: &str, given: Duration) -> Late {
        Late {
            node: self.node.to_owned(),
            left: left.to_owned(),
            given,
        }
    }
}

/// Which workers there are still, and why.
fn left(names: Vec<String>, counted: u32, held_up: &[String]) -> String {
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX).max(counted);
    let workers = if count == 1 { "worker" } else { "workers" };
    let mut text = format!("{count} {workers} left");
    if !names.is_empty() {
        text = format!("{text} ({})", names.join(", "));
    }
    for why in held_up {
        text = format!("{text}; {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_what_holds_it_up() {
        let names = || vec!["a/0.1".to_owned()];

        assert_eq!(left(names(), 1, &[]), "1 worker left (a/0.1)");
        assert_eq!(
            left(names(), 2, &["pool `a` has no room".to_owned()]),
            "2 workers left (a/0.1); pool `a` has no room"
        );
    }
}
