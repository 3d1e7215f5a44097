//! `tether nodes` and `tether node`.

pub(crate) mod drain;

use std::collections::BTreeMap;

use serde::Serialize;
use tether_client::{Client, Problem};
use tether_proto::worker::{
    DeclareNodeDeadRequest, ListNodesRequest, Node, NodeState, SetNodeStateRequest,
};

use crate::{
    cli,
    output::{Output, Row},
};

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
    labels: BTreeMap<String, String>,
    resources: BTreeMap<String, u32>,
    resources_used: BTreeMap<String, u32>,
    state: &'static str,
    held_up_by: Vec<String>,
    awaited: bool,
}

impl From<Node> for NodeRow {
    fn from(node: Node) -> Self {
        let state = match node.state() {
            NodeState::Unspecified | NodeState::Open => OPEN,
            NodeState::Cordoned => "cordoned",
            NodeState::Drained if node.workers > 0 => "draining",
            NodeState::Drained => "drained",
        };
        Self {
            labels: node.labels.into_iter().collect(),
            resources: node.resources.into_iter().collect(),
            resources_used: node.resources_used.into_iter().collect(),
            state,
            held_up_by: node.held_up_by,
            awaited: node.awaited,
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

/// Of a node that takes workers.
const OPEN: &str = "open";

impl NodeRow {
    /// What it has of counted resources, and how much of that is taken.
    fn resources(&self) -> String {
        let resources = self.resources.iter().map(|(name, count)| {
            let used = self.resources_used.get(name).copied().unwrap_or(0);
            format!("{name}={used}/{count}")
        });
        resources.collect::<Vec<_>>().join(",")
    }

    fn labels(&self) -> String {
        let labels = self.labels.iter();
        let labels = labels.map(|(name, value)| format!("{name}={value}"));
        labels.collect::<Vec<_>>().join(",")
    }
}

impl Row for NodeRow {
    const HEAD: &'static [&'static str] = &[
        "NODE",
        "STATE",
        "WORKERS",
        "LAUNCHERS",
        "GUARANTEE",
        "LABELS",
        "USED",
        "BY",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.clone(),
            {
                let there = match (self.up, self.lost, self.awaited) {
                    (true, ..) => "up".to_owned(),
                    (_, true, _) => format!("lost, {}s", self.held_ms.div_ceil(1_000)),
                    (.., true) => "awaited".to_owned(),
                    // All that is known of it is what somebody said.
                    _ => "away".to_owned(),
                };
                match self.state {
                    OPEN => there,
                    closed => format!("{there}, {closed}"),
                }
            },
            self.workers.to_string(),
            self.launchers.join(","),
            self.guarantee.clone(),
            self.labels(),
            self.resources(),
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

pub(crate) async fn node(client: &Client, command: cli::Node, out: &Output) -> anyhow::Result<()> {
    match command {
        cli::Node::Cordon { name } => set_state(client, name, NodeState::Cordoned, out).await,
        cli::Node::Uncordon { name } => set_state(client, name, NodeState::Open, out).await,
        cli::Node::Drain(args) => drain::drain(client, args, out).await,
        cli::Node::Dead { name, witness } => dead(client, name, witness, out).await,
    }
}

/// Says whether a node takes workers, and prints it as it is then.
async fn set_state(
    client: &Client,
    node: String,
    state: NodeState,
    out: &Output,
) -> anyhow::Result<()> {
    let request = SetNodeStateRequest {
        node,
        state: state.into(),
    };
    let answer = client
        .workers()
        .set_node_state(request)
        .await
        .map_err(Problem::from)?
        .into_inner();
    let rows: Vec<_> = answer.node.into_iter().map(NodeRow::from).collect();
    out.list(&rows)?;
    if !out.is_json() {
        for held_up in rows.iter().flat_map(|row| &row.held_up_by) {
            out.note(&format!("still there: {held_up}"));
        }
    }
    Ok(())
}

/// Attests that a node is dead.
async fn dead(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_node_is_shown_as_awaited_while_it_has_a_lease_and_as_away_when_it_is_gone() {
        let shown = |awaited, state: NodeState| {
            let node = Node {
                awaited,
                state: state.into(),
                ..Node::default()
            };
            NodeRow::from(node).cells()[1].clone()
        };

        assert_eq!(shown(true, NodeState::Cordoned), "awaited, cordoned");
        assert_eq!(shown(true, NodeState::Open), "awaited");
        assert_eq!(shown(false, NodeState::Drained), "away, drained");
    }
}
