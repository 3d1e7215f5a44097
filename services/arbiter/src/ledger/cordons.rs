//! Nodes that take no workers because somebody said so: cordoned, or drained of those they have.
//!
//! What was said is kept apart from the node, under a key of its own, and stays when the node leaves: whoever
//! empties a machine to work on it has it back as it was left.

use tether_clock::Tick;
use tether_proto::{
    Failure, UNKNOWN_NODE,
    worker::{self as wire, EventKind, NodeState},
};
use tether_types::{NodeName, Reason};

use super::Ledger;
use crate::{effects::keys, record::CordonRecord};

/// How a node is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It takes no more.
    Cordoned,
    /// Nor does it keep those it has.
    Drained,
}

impl Ledger {
    pub(super) fn is_closed(&self, name: &NodeName) -> bool {
        self.closed.contains_key(name)
    }

    /// Whether the workers of a node are to leave it.
    pub(super) fn is_drained(&self, name: &NodeName) -> bool {
        self.closed.get(name) == Some(&Closed::Drained)
    }

    /// What was said of a node.
    pub(super) fn state_of(&self, name: &NodeName) -> NodeState {
        match self.closed.get(name) {
            None => NodeState::Open,
            Some(Closed::Cordoned) => NodeState::Cordoned,
            Some(Closed::Drained) => NodeState::Drained,
        }
    }

    /// Opens, cordons or drains a node. Saying it again changes nothing.
    ///
    /// # Errors
    /// When nothing is known of such a node, or no state was given.
    pub(crate) fn set_node_state(
        &mut self,
        name: &NodeName,
        state: NodeState,
        now: Tick,
    ) -> Result<wire::Node, Failure> {
        let refused = |text: String| Err(Failure::new(Reason::ConfigInvalid, text));
        let (closed, text) = match state {
            NodeState::Unspecified => {
                return refused("`state` is not set: say OPEN, CORDONED or DRAINED".to_owned());
            }
            NodeState::Open => (None, "takes workers again"),
            NodeState::Cordoned => (Some(Closed::Cordoned), "is cordoned: it takes no workers"),
            NodeState::Drained => (Some(Closed::Drained), "is drained: its workers leave it"),
        };
        if !self.nodes.contains_key(name) && !self.closed.contains_key(name) {
            let known: Vec<_> = self.nodes.keys().take(5).map(NodeName::as_str).collect();
            let text = format!(
                "no node is called `{name}`, there are: {}; `tether nodes` lists them",
                known.join(", ")
            );
            // For whoever takes that for the end of its work.
            return Err(Failure::new(Reason::ConfigInvalid, text).fact(UNKNOWN_NODE, name));
        }
        if self.closed.get(name).copied() != closed {
            match closed {
                Some(closed) => {
                    self.closed.insert(name.clone(), closed);
                    let drained = closed == Closed::Drained;
                    self.effects
                        .put(keys::cordon(name), CordonRecord { drained });
                }
                None => {
                    self.closed.remove(name);
                    self.effects.delete(keys::cordon(name));
                }
            }
            let text = format!("node `{name}` {text}");
            self.effects
                .node_event(EventKind::NodeStateChanged, name, text);
            self.place_waiting(now);
            self.roll_on(name, now);
        }
        Ok(self.view_node(name, now))
    }

    /// What an earlier arbiter was told.
    pub(super) fn restore_cordon(&mut self, name: NodeName, record: CordonRecord) {
        let closed = match record.drained {
            true => Closed::Drained,
            false => Closed::Cordoned,
        };
        self.closed.insert(name, closed);
    }
}
