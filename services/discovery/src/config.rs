//! The part of the configuration that discovery owns: `[discovery]`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// `[discovery]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many changes are remembered for watchers that come back.
    pub history: usize,
    /// How often a quiet stream gives a sign of life.
    #[serde(with = "tether_kit::config::duration")]
    pub sign_of_life: Duration,
    /// Pools that no agent runs, by name.
    pub pools: BTreeMap<String, PoolSource>,
}

/// `[discovery.pools.NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSource {
    /// Where its addresses come from: `static://host:port,host:port` or `dns://name:port`.
    pub source: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            history: 8192,
            sign_of_life: Duration::from_secs(5),
            pools: BTreeMap::new(),
        }
    }
}
