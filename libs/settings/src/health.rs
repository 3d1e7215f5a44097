//! `--health`: asks the service that runs with a configuration whether it serves, for those who can only start programs:
//! the engine of a container on an empty base.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::config;
use tether_probe::Question;

use crate::{Connect, Listen, Place, Whereabouts};

/// Longest time for the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that has to be known of the configuration.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Settings {
    listen: Listen,
    connect: Connect,
}

/// Whether the service that runs with this configuration says SERVING of `service`; of itself as a whole
/// where that is empty.
pub(crate) async fn ask(
    place: Place,
    file: Option<&Path>,
    sets: &[String],
    service: &str,
) -> anyhow::Result<()> {
    let loaded = config::load::<Settings>(file, std::env::vars(), sets);
    let Settings { listen, connect } = loaded
        .map_err(|report| anyhow::anyhow!("{report:?}"))?
        .value;
    let at = Whereabouts::new(&listen, &connect)?.listens_plainly(place)?;
    let address = at.context("it speaks TLS alone: have it listen on a unix socket too")?;
    let answer = Question::grpc(&address, service).ask(PATIENCE).await;
    answer.map_err(|why| anyhow::anyhow!("`{address}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_listen_is_not_well_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = format!("listen.runtime_dir={}", directory.path().display());

        let told = ask(Place::Arbiter, None, &[runtime], "").await.unwrap_err();

        assert!(told.to_string().contains("arbiter.sock"), "{told}");
    }

    #[tokio::test]
    async fn one_that_speaks_tls_alone_cannot_be_asked_and_says_so() {
        let sets = ["listen.gateway=[\"https://127.0.0.1:1\"]".to_owned()];

        let told = ask(Place::Gateway, None, &sets, "").await.unwrap_err();

        assert!(told.to_string().contains("TLS alone"), "{told}");
    }
}
