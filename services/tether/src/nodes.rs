//! `tether nodes` and `tether node`.

use serde::Serialize;
use tether_client::{Client, Problem};
use tether_proto::worker::{DeclareNodeDeadRequest, ListNodesRequest, Node};

use crate::output::{Output, Row};

/// One node.
#[derive(Debug, Serialize)]
struct NodeRow {
    node: String,
    up: bool,
    lost: bool,
    held_ms: u64,
    guarantee: String,
    guarantee_by: String,
    not_covered: String,
    launchers: Vec<String>,
    workers: u32,
}

impl From<Node> for NodeRow {
    fn from(node: Node) -> Self {
        Self {
            node: node.name,
            up: node.up,
            lost: node.lost,
            held_ms: node.held_ms,
            guarantee: node.guarantee,
            guarantee_by: node.guarantee_by,
            not_covered: node.not_covered,
            launchers: node.launchers,
            workers: node.workers,
        }
    }
}

impl Row for NodeRow {
    const HEAD: &'static [&'static str] =
        &["NODE", "STATE", "WORKERS", "LAUNCHERS", "GUARANTEE", "BY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.clone(),
            match (self.up, self.lost) {
                (true, _) => "up".to_owned(),
                (false, false) => "awaited".to_owned(),
                (false, true) => format!("lost, {}s", self.held_ms.div_ceil(1_000)),
            },
            self.workers.to_string(),
            self.launchers.join(","),
            self.guarantee.clone(),
            self.guarantee_by.clone(),
        ]
    }
}

pub(crate) async fn nodes(client: &Client, out: &Output) -> anyhow::Result<()> {
    let nodes = client
        .workers()
        .list_nodes(ListNodesRequest {})
        .await
        .map_err(Problem::from)?
        .into_inner()
        .nodes;
    out.list(&nodes.into_iter().map(NodeRow::from).collect::<Vec<_>>())
}

/// Attests that a node is dead.
pub(crate) async fn dead(
    client: &Client,
    node: String,
    witness: Option<String>,
    out: &Output,
) -> anyhow::Result<()> {
    let user = || std::env::var("USER").unwrap_or_else(|_| "an operator".to_owned());
    let witness = witness.unwrap_or_else(|| format!("{} with `tether node dead`", user()));
    let request = DeclareNodeDeadRequest {
        node: node.clone(),
        witness,
    };
    let answer = client
        .workers()
        .declare_node_dead(request)
        .await
        .map_err(Problem::from)?
        .into_inner();
    match out.is_json() {
        true => Ok(()),
        false => out.line(&format!(
            "node {node} is forgotten, and the places of its {} workers are filled again",
            answer.workers
        )),
    }
}
