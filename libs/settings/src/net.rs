//! Where the services listen, and where they find each other.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tether_kit::listen::{self, Listener};
use tether_types::{Address, InvalidAddress};

/// The gateway's TCP port, where nothing else is said.
const GATEWAY_TCP: &str = "127.0.0.1:7437";

/// What can be set under `[listen]`: each service's addresses, `unix:/path` or `host:port`. A service
/// that is not named listens on a unix socket in the runtime directory; the gateway also on
/// 127.0.0.1:7437.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// The gateway's.
    pub gateway: Vec<String>,
    /// The arbiter's.
    pub arbiter: Vec<String>,
    /// Discovery's.
    pub discovery: Vec<String>,
    /// The agent's.
    pub agent: Vec<String>,
    /// Whether plain text is allowed on addresses that other machines can reach.
    pub insecure: bool,
    /// The runtime directory: sockets and workers' directories; `/run/tether` for root.
    pub runtime_dir: Option<PathBuf>,
}

/// What can be set under `[connect]`: where to find services that run elsewhere.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connect {
    /// The arbiter; where it listens on this machine when not set.
    pub arbiter: Option<String>,
    /// Discovery; likewise.
    pub discovery: Option<String>,
}

/// One of the four services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The gateway.
    Gateway,
    /// The arbiter.
    Arbiter,
    /// Discovery.
    Discovery,
    /// The agent.
    Agent,
}

/// Where everything is, resolved.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    listen: Listen,
    connect: Connect,
    runtime: PathBuf,
}

impl Whereabouts {
    /// Resolves the runtime directory.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(listen: &Listen, connect: &Connect) -> anyhow::Result<Self> {
        let runtime = match &listen.runtime_dir {
            Some(dir) => dir.clone(),
            None => tether_kit::runtime_dir()?,
        };
        Ok(Self {
            listen: listen.clone(),
            connect: connect.clone(),
            runtime,
        })
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Where a service listens on this machine.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn listens(&self, place: Place) -> Result<Vec<Address>, InvalidAddress> {
        let (set, socket) = match place {
            Place::Gateway => (&self.listen.gateway, "gateway.sock"),
            Place::Arbiter => (&self.listen.arbiter, "arbiter.sock"),
            Place::Discovery => (&self.listen.discovery, "discovery.sock"),
            Place::Agent => (&self.listen.agent, "agent.sock"),
        };
        if !set.is_empty() {
            return set.iter().map(|text| text.parse()).collect();
        }
        let socket = Address::Unix(self.runtime.join(socket));
        Ok(match place {
            Place::Gateway => vec![socket, GATEWAY_TCP.parse()?],
            Place::Arbiter | Place::Discovery | Place::Agent => vec![socket],
        })
    }

    /// Where a service is to be found.
    ///
    /// # Errors
    /// Says which address is none.
    pub fn find(&self, place: Place) -> Result<Address, InvalidAddress> {
        let elsewhere = match place {
            Place::Arbiter => self.connect.arbiter.as_deref(),
            Place::Discovery => self.connect.discovery.as_deref(),
            Place::Gateway | Place::Agent => None,
        };
        match elsewhere {
            Some(text) => text.parse(),
            None => Ok(self.listens(place)?.swap_remove(0)),
        }
    }

    /// Listens at every address of a service.
    ///
    /// # Errors
    /// Names the address, the cause and what to do.
    pub async fn bind(&self, place: Place) -> anyhow::Result<Vec<Listener>> {
        let mut listeners = Vec::new();
        for address in self.listens(place)? {
            listeners.push(listen::bind(&address, self.listen.insecure).await?);
        }
        Ok(listeners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_on_sockets_of_this_machine() {
        let listen = Listen {
            runtime_dir: Some("/run/t".into()),
            ..Listen::default()
        };
        let at = Whereabouts::new(&listen, &Connect::default()).unwrap();

        assert_eq!(
            at.find(Place::Arbiter).unwrap().to_string(),
            "unix:/run/t/arbiter.sock"
        );
        assert!(
            at.listens(Place::Gateway)
                .unwrap()
                .iter()
                .all(Address::is_local)
        );
    }

    #[test]
    fn a_service_elsewhere_is_found_where_connect_says() {
        let listen = Listen {
            runtime_dir: Some("/run/t".into()),
            ..Listen::default()
        };
        let connect = Connect {
            arbiter: Some("10.0.0.1:7438".into()),
            ..Connect::default()
        };
        let at = Whereabouts::new(&listen, &connect).unwrap();

        assert_eq!(
            at.find(Place::Arbiter).unwrap().to_string(),
            "10.0.0.1:7438"
        );
    }
}
