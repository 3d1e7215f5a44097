//! Where a process says whether it lives and serves.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::listen::{self, Listener};
use tether_types::Address;

use crate::{At as _, Wrong, bind_set};

/// What can be set under `[admin]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where a process answers probes, `unix:/path` or `host:port`, in plain text; nowhere when not set.
    pub listen: Option<String>,
    /// Whether other machines may be able to reach that address.
    pub insecure: bool,
}

const LISTEN: &str = "admin.listen";

impl Admin {
    /// The address, where it is set; touches nothing.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn address(&self) -> Result<Option<Address>, Wrong> {
        let Some(text) = &self.listen else {
            return Ok(None);
        };
        let address = text.parse().at(LISTEN)?;
        listen::check(&address, self.insecure).at(LISTEN)?;
        Ok(Some(address))
    }

    /// Whether probes can be answered there; touches nothing.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn check(&self) -> Result<(), Wrong> {
        self.address().map(drop)
    }

    /// Listens there, where it is set.
    ///
    /// # Errors
    /// Names the setting, the cause and what to do.
    pub async fn bind(&self) -> anyhow::Result<Option<Listener>> {
        bind_set(self.listen.as_deref(), self.insecure)
            .await
            .context("probes cannot be answered where `admin.listen` says")
    }
}
