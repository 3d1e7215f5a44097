//! `[discovery.xds]`: where Envoy and gRPC clients ask.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::listen::{self, Listener};
use tether_types::Address;
use tether_xds::Balance;

use super::Unusable;

const LISTEN: &str = "discovery.xds.listen";

/// `[discovery.xds]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Xds {
    /// Where xDS is served, `host:port` or `unix:/path`; nowhere when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Whether other machines may be able to reach that address.
    pub insecure: bool,
    /// How clients pick among the endpoints of a pool.
    pub balance: Balance,
}

impl Xds {
    /// Whether it can be served there; touches nothing.
    pub(super) fn check(&self) -> Result<(), Unusable> {
        let Some(text) = &self.listen else {
            return Ok(());
        };
        let unusable = |why: String| Unusable {
            key: LISTEN.to_owned(),
            why,
        };
        let address: Address = text.parse().map_err(|error| unusable(format!("{error}")))?;
        listen::check(&address, self.insecure).map_err(|error| unusable(error.to_string()))
    }

    /// Listens there, where it is set.
    ///
    /// # Errors
    /// Names the setting, the cause and what to do.
    pub async fn bind(&self) -> anyhow::Result<Option<Listener>> {
        tether_settings::bind_set(self.listen.as_deref(), self.insecure)
            .await
            .context("xDS cannot be served where `discovery.xds.listen` says")
    }
}
