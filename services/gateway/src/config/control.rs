//! Where a gateway takes orders of people on call.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::listen::{self, Listener};
use tether_settings::{At as _, Wrong};
use tether_types::Address;

/// Nowhere.
const OFF: &str = "off";

const LISTEN: &str = "gateway.control.listen";

/// Who reaches this may take workers away from everybody: it is never one of the addresses that calls come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// `unix:/path` or `host:port`, or `off`; when not set a socket beside the first unix socket that the gateway listens
    /// at, as in `gateway-control.sock`, and nowhere where it listens at none.
    pub listen: Option<String>,
    /// Whether other machines may be able to reach that address.
    pub insecure: bool,
}

impl Control {
    /// Whether it can be served there; touches nothing.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn check(&self) -> Result<(), Wrong> {
        match self.listen.as_deref() {
            None | Some(OFF) => Ok(()),
            Some(text) => {
                let address: Address = text.parse().at(LISTEN)?;
                listen::check(&address, self.insecure).at(LISTEN)
            }
        }
    }

    /// Listens there; `calls` are the addresses that calls come to.
    ///
    /// # Errors
    /// Names the setting, the cause and what to do.
    pub async fn bind(&self, calls: &[Address]) -> anyhow::Result<Option<Listener>> {
        let Some(address) = self.address(calls)? else {
            return Ok(None);
        };
        let listener = listen::bind(&address, self.insecure).await;
        let listener =
            listener.context("orders cannot be taken where `gateway.control.listen` says")?;
        Ok(Some(listener))
    }

    /// Where that is; `calls` are the addresses that calls come to.
    ///
    /// # Errors
    /// Where it is no address.
    pub fn address(&self, calls: &[Address]) -> anyhow::Result<Option<Address>> {
        Ok(match self.listen.as_deref() {
            None => control_of(calls),
            Some(OFF) => None,
            Some(text) => Some(text.parse()?),
        })
    }
}

/// Where a gateway takes orders that listens for calls at these addresses, unless it is told otherwise: whoever may open
/// the one socket may open the other.
pub fn control_of(calls: &[Address]) -> Option<Address> {
    let sockets = calls.iter().filter_map(|address| match address {
        Address::Unix(path) => beside(path),
        Address::Tcp { .. } => None,
    });
    sockets.map(Address::Unix).next()
}

fn beside(path: &Path) -> Option<PathBuf> {
    let mut name = path.file_stem()?.to_owned();
    name.push("-control");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    Some(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_taken_beside_the_first_socket_or_nowhere() {
        let of = |calls: &[&str]| {
            let calls: Vec<Address> = calls.iter().map(|text| text.parse().unwrap()).collect();
            control_of(&calls).map(|address| address.to_string())
        };

        let both = of(&["127.0.0.1:1", "unix:/run/tether/gateway.sock"]);
        assert_eq!(both.unwrap(), "unix:/run/tether/gateway-control.sock");
        assert_eq!(of(&["unix:/run/gate"]).unwrap(), "unix:/run/gate-control");
        assert_eq!(of(&["127.0.0.1:1"]), None);
    }

    #[test]
    fn what_others_could_reach_is_refused_unless_that_is_meant() {
        let at = |listen: &str, insecure| Control {
            listen: Some(listen.to_owned()),
            insecure,
        };

        let refused = at("10.0.0.1:7438", false).check().unwrap_err().to_string();
        assert!(refused.contains("insecure = true"), "{refused}");
        assert!(at("10.0.0.1:7438", true).check().is_ok());
        assert!(at("off", false).check().is_ok());
        assert!(at("somewhere", false).check().is_err());
    }
}
