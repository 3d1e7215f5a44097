//! Keys that several services use: the arbiter writes them, discovery follows them.
//!
//! | key | value |
//! |---|---|
//! | `serve/pools/POOL` | empty; the pool exists |
//! | `serve/endpoints/POOL/SLOT` | prost `tether.common.v1.Endpoint` |
//! | `serve/deaths/POOL/SLOT` | prost `tether.discovery.v1.EndpointRemoval`, the slot's last death, written by the commit that deletes the endpoint |
//! | `serve/losses/NODE` | prost `tether.discovery.v1.NodeLoss`: endpoints of that node are over although they are there, until the last of them is deleted or the node is back |

use std::fmt;

use tether_types::{NodeName, PoolName, Slot};

/// What every key in this module starts with.
pub const SERVE: &str = "serve/";

/// What is under [`SERVE`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServeKey {
    /// A pool exists.
    Pool(PoolName),
    /// A slot serves.
    Endpoint(PoolName, Slot),
    /// A slot's last death.
    Death(PoolName, Slot),
    /// A node's lease was lost.
    Loss(NodeName),
}

impl ServeKey {
    /// Reads a key back; `None` for one that is not of this module.
    pub fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.strip_prefix(SERVE)?.split_once('/')?;
        if kind == "pools" {
            return Some(Self::Pool(PoolName::new(rest).ok()?));
        }
        if kind == "losses" {
            return Some(Self::Loss(NodeName::new(rest).ok()?));
        }
        let (pool, slot) = rest.split_once('/')?;
        let (pool, slot) = (PoolName::new(pool).ok()?, slot.parse().ok()?);
        match kind {
            "endpoints" => Some(Self::Endpoint(pool, slot)),
            "deaths" => Some(Self::Death(pool, slot)),
            _ => None,
        }
    }
}

impl fmt::Display for ServeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(pool) => write!(f, "{SERVE}pools/{pool}"),
            Self::Endpoint(pool, slot) => write!(f, "{SERVE}endpoints/{pool}/{slot}"),
            Self::Death(pool, slot) => write!(f, "{SERVE}deaths/{pool}/{slot}"),
            Self::Loss(node) => write!(f, "{SERVE}losses/{node}"),
        }
    }
}

/// Key of a pool's existence.
pub fn pool(pool: &PoolName) -> String {
    ServeKey::Pool(pool.clone()).to_string()
}

/// Key of a slot's endpoint.
pub fn endpoint(pool: &PoolName, slot: Slot) -> String {
    ServeKey::Endpoint(pool.clone(), slot).to_string()
}

/// Key of a slot's last death.
pub fn death(pool: &PoolName, slot: Slot) -> String {
    ServeKey::Death(pool.clone(), slot).to_string()
}

/// Key of the loss of a node.
pub fn loss(node: &NodeName) -> String {
    ServeKey::Loss(node.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_it_was_written() {
        let name = PoolName::new("train.er").unwrap();
        for (text, key) in [
            (pool(&name), ServeKey::Pool(name.clone())),
            (endpoint(&name, 3), ServeKey::Endpoint(name.clone(), 3)),
            (death(&name, 0), ServeKey::Death(name.clone(), 0)),
            (
                loss(&NodeName::new("n-1.a").unwrap()),
                ServeKey::Loss(NodeName::new("n-1.a").unwrap()),
            ),
        ] {
            assert_eq!(ServeKey::parse(&text), Some(key));
        }
        for stranger in [
            "",
            "serve/",
            "serve/pools/a/b",
            "serve/endpoints/a",
            "serve/x/a/1",
            "serve/losses/a/1",
        ] {
            assert_eq!(ServeKey::parse(stranger), None, "{stranger}");
        }
    }
}
