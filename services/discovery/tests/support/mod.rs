//! A discovery service, and a watcher of it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tempfile::TempDir;
use tether_discovery::{Config, Discovery};
use tether_kit::{channel, listen, serve};
use tether_proto::{
    common::Endpoint,
    discovery::{
        WatchEndpointsRequest, WatchEndpointsResponse,
        discovery_service_client::DiscoveryServiceClient,
    },
};
use tether_store::{MemoryStore, Store};
use tether_types::Address;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A service on a socket in a directory of its own.
pub(crate) struct Running {
    pub(crate) client: DiscoveryServiceClient<Channel>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), serve::Error>>,
    pub(crate) ran: JoinHandle<Result<(), tether_discovery::Error>>,
    _directory: TempDir,
}

pub(crate) async fn start(config: Config, store: Arc<dyn Store>) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("discovery.sock"));
    let listener = listen::bind(&address, false).await.unwrap();
    let discovery = Discovery::build(&config, store).unwrap();
    let stop = CancellationToken::new();
    let server = serve::Server::new(tether_proto::DESCRIPTORS).service(discovery.service());
    Running {
        client: client(channel::connect(&address)),
        served: tokio::spawn(server.serve(listener, stop.clone(), Duration::from_secs(5))),
        ran: tokio::spawn(discovery.run(stop.clone())),
        stop,
        _directory: directory,
    }
}

/// One that takes snapshots of any size, as gateways do.
pub(crate) fn client(channel: Channel) -> DiscoveryServiceClient<Channel> {
    DiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

impl Running {
    pub(crate) async fn watch(
        &self,
        pool: &str,
        resume: Option<&WatchEndpointsResponse>,
    ) -> Messages {
        let request = WatchEndpointsRequest {
            pool: pool.to_owned(),
            resume_instance: resume.map_or_else(String::new, |seen| seen.instance.clone()),
            resume_revision: resume.map_or(0, |seen| seen.revision),
        };
        let stream = self.client.clone().watch_endpoints(request).await.unwrap();
        Messages(stream.into_inner())
    }
}

pub(crate) struct Messages(pub(crate) Streaming<WatchEndpointsResponse>);

impl Messages {
    pub(crate) async fn any(&mut self) -> WatchEndpointsResponse {
        let message = tokio::time::timeout(PATIENCE, self.0.message()).await;
        message
            .expect("a message comes")
            .unwrap()
            .expect("the watch goes on")
    }

    /// The next message that says something; signs of life are passed over.
    pub(crate) async fn next(&mut self) -> WatchEndpointsResponse {
        loop {
            let message = self.any().await;
            let quiet = WatchEndpointsResponse {
                instance: message.instance.clone(),
                revision: message.revision,
                source_age_ms: message.source_age_ms,
                ..WatchEndpointsResponse::default()
            };
            if message != quiet {
                return message;
            }
        }
    }
}

/// A table as a gateway keeps it, from messages alone.
#[derive(Default)]
pub(crate) struct Copy(pub(crate) BTreeMap<u32, Endpoint>);

impl Copy {
    pub(crate) fn take(&mut self, message: &WatchEndpointsResponse) {
        if message.snapshot {
            self.0.clear();
        }
        for gone in &message.removals {
            let gone = gone.worker.as_ref().unwrap();
            let removed = self
                .0
                .remove(&gone.slot)
                .expect("only what was told is removed");
            assert_eq!(removed.worker.as_ref(), Some(gone));
        }
        for upsert in &message.upserts {
            self.0
                .insert(upsert.worker.as_ref().unwrap().slot, upsert.clone());
        }
    }
}

pub(crate) fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}
