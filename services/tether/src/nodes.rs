//! `tether nodes`.

use serde::Serialize;
use tether_client::{Client, Problem};
use tether_proto::worker::{ListNodesRequest, Node};

use crate::output::{Output, Row};

/// One node.
#[derive(Debug, Serialize)]
struct NodeRow {
    node: String,
    up: bool,
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
            if self.up { "up" } else { "awaited" }.to_owned(),
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
