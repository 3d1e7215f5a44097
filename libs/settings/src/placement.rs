//! Where workers may be and how they are replaced, as people write it in TOML.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tether_proto::pool as wire;

/// What can be set under `[pool.NAME.placement]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Labels that a node must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// What each worker takes of its node for itself alone.
    pub resources: BTreeMap<String, u32>,
    /// Which of the nodes that fit.
    pub prefer: Preference,
}

/// Which of several nodes that fit takes a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// The one with the fewest workers of the pool.
    #[default]
    Spread,
    /// The fullest one.
    Pack,
}

/// What can be set under `[pool.NAME.rollout]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// Workers beyond the size while others are replaced; one when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub surge: Option<u32>,
    /// Workers that may be missing from the size meanwhile; none when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
    /// Whether a change of the template replaces workers that run.
    pub on_change: OnChange,
}

/// When a change of the template reaches workers that run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// They are replaced, within the budget.
    #[default]
    Replace,
    /// They go on as they are; the next worker of each place is another.
    NextStart,
}

impl Placement {
    pub(crate) fn is_anywhere(&self) -> bool {
        *self == Self::default()
    }

    /// As the services speak of it; none where nothing is asked.
    pub(crate) fn to_wire(&self) -> Option<wire::Placement> {
        let prefer = match self.prefer {
            Preference::Spread => wire::Preference::Spread,
            Preference::Pack => wire::Preference::Pack,
        };
        (!self.is_anywhere()).then(|| wire::Placement {
            labels: self.labels.clone().into_iter().collect(),
            resources: self.resources.clone().into_iter().collect(),
            prefer: prefer.into(),
        })
    }
}

impl Rollout {
    pub(crate) fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// As the services speak of it; none where nothing is said.
    pub(crate) fn to_wire(&self) -> Option<wire::Rollout> {
        let on_change = match self.on_change {
            OnChange::Replace => wire::OnChange::Replace,
            OnChange::NextStart => wire::OnChange::NextStart,
        };
        (!self.is_usual()).then(|| wire::Rollout {
            surge: self.surge,
            max_unavailable: self.max_unavailable,
            on_change: on_change.into(),
        })
    }
}
