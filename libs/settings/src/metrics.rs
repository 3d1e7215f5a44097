//! Where metrics are read.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::listen::{self, Listener};
use tether_types::Address;

use crate::{At as _, Wrong, bind_set};

/// What can be set under `[metrics]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where a process serves its metrics, `unix:/path` or `host:port`, at `/metrics`; nowhere when not set.
    pub listen: Option<String>,
    /// Whether other machines may be able to reach that address.
    pub insecure: bool,
}

const LISTEN: &str = "metrics.listen";

impl Metrics {
    /// Whether they can be served there; touches nothing.
    ///
    /// # Errors
    /// Names the setting that cannot be used.
    pub fn check(&self) -> Result<(), Wrong> {
        let Some(text) = &self.listen else {
            return Ok(());
        };
        let address: Address = text.parse().at(LISTEN)?;
        listen::check(&address, self.insecure).at(LISTEN)
    }

    /// Listens there, where it is set.
    ///
    /// # Errors
    /// Names the setting, the cause and what to do.
    pub async fn bind(&self) -> anyhow::Result<Option<Listener>> {
        bind_set(self.listen.as_deref(), self.insecure)
            .await
            .context("metrics cannot be served where `metrics.listen` says")
    }
}
