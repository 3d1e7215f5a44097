//! Discovery: tells gateways where workers serve, and why one stopped serving.
//!
//! It follows `serve/` in the store, where the arbiter writes, and the sources configured for pools no
//! agent runs. Both end up in one table with a revision of its own. A watcher gets a snapshot and then
//! one message per change; one that comes back says what it saw last and is told only what it missed.
//!
//! ```text
//! store "serve/" --watch--> follow --+
//!                                    +--> table + ring of changes <--pull-- watchers (gRPC)
//! static://, dns://, ... -> sourced -+                         ^
//!                                                              +-- DNS, for whoever asks
//!                                                              +-- catalog <--pull-- Envoy, gRPC clients (xDS)
//! ```
//!
//! # Invariants
//!
//! - **D1** Snapshot and changes of one instance add up to the table, wherever a watcher starts or resumes.
//! - **D2** A commit that ends an endpoint and records its death is one message that says both.
//! - **D3** Nothing is buffered for a watcher: it reads the ring when it is ready for more, and gets a
//!   fresh snapshot when the ring has moved on without it.
//! - **D4** While the store is away the last knowledge is kept and its age is told; afterwards every
//!   commit that was missed is told by itself, as long as the store still knows it.
//! - **D5** A slot of a configured pool never has two addresses under one incarnation, and all replicas of discovery
//!   give an address the same one.
//! - **D6** An answer of a source is taken as it is, save one that loses too many endpoints at once: those are held
//!   for a while. An error changes nothing, and its age is told.
//! - **D7** Of a pool whose sources have said nothing yet nothing is told, not even that nobody serves it: a watcher keeps
//!   what it knows from another life of the service.

mod board;
mod checker;
mod config;
mod dns_out;
mod follow;
mod health;
mod left_out;
mod numbering;
mod rpc;
mod sourced;
mod sources;
mod table;
mod xds;

use std::sync::Arc;

use board::Board;
use tether_discovery_backends as backends;
use tether_kit::serve::Server;
use tether_proto::discovery::discovery_service_server::DiscoveryServiceServer;
use tether_store::Store;
use tether_types::{InvalidName, PoolName};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub use config::{Check, Combine, Config, Empty, Health, PoolSource, Unusable, Xds};
pub use dns_out::{DnsOut, DnsPorts};
pub use rpc::Rpc;

/// Why discovery cannot start, or ended unasked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of its configuration cannot be used.
    #[error(transparent)]
    Config(#[from] Unusable),
    /// A configured pool has a name that is none.
    #[error("`discovery.pools` names a pool that cannot be")]
    Pool(#[from] InvalidName),
    /// A configured pool has a source that is none.
    #[error("`discovery.pools` has a source that cannot be used")]
    Source(#[from] backends::Error),
    /// A part of it failed.
    #[error("a part of discovery ended, and the rest cannot go on without it")]
    Ended(#[from] JoinError),
    /// A part of it ended that does not by itself, and why.
    #[error("a part of discovery ended, and the rest cannot go on without it: {0}")]
    Unasked(String),
}

/// The discovery service, ready to run.
pub struct Discovery {
    board: Arc<Board>,
    store: Arc<dyn Store>,
    sources: Vec<(PoolName, PoolSource, Vec<backends::Watch>)>,
    dns: Option<DnsPorts>,
    xds: Option<xds::Feed>,
}

impl Discovery {
    /// Checks `config` and prepares; nothing is asked of the store or of a source yet.
    ///
    /// # Errors
    /// Names the configured pool that cannot be.
    pub fn build(config: &Config, store: Arc<dyn Store>) -> Result<Self, Error> {
        config.check()?;
        let mut sources = Vec::new();
        for (name, pool) in &config.pools {
            let watches: Result<_, _> = pool.all().map(backends::open).collect();
            sources.push((PoolName::new(name)?, pool.clone(), watches?));
        }
        let configured = sources.iter().map(|(pool, ..)| pool.clone()).collect();
        let instance = tether_kit::process::fresh_word();
        let board = Arc::new(Board::new(instance, configured, config));
        let xds = config.xds.listen.as_ref();
        let xds = xds.map(|_| xds::Feed::new(config.xds.balance, board.ended().clone()));
        Ok(Self {
            board,
            store,
            sources,
            dns: None,
            xds,
        })
    }

    /// Answers DNS there too, while it runs.
    pub fn answer_dns(&mut self, ports: Option<DnsPorts>) {
        self.dns = ports;
    }

    /// The gRPC service; watchers wait until [`Discovery::run`] has read the store once.
    pub fn service(&self) -> DiscoveryServiceServer<Rpc> {
        DiscoveryServiceServer::new(Rpc::new(Arc::clone(&self.board)))
            .max_decoding_message_size(tether_kit::serve::MESSAGE_LIMIT)
    }

    /// Whether it has read the store, before which it has nothing to tell.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.board.loaded()
    }

    /// The server of xDS, where it is to be served.
    pub fn xds(&self) -> Option<Server> {
        self.xds.as_ref().map(xds::server)
    }

    /// Follows store and sources until `stop` is cancelled, then ends every watch.
    ///
    /// # Errors
    /// When a part of it fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        // However this ends, watchers end with it rather than wait for news that never come.
        let _ended = self.board.ended().clone().drop_guard();
        let mut parts = JoinSet::new();
        for (pool, terms, watches) in self.sources {
            let board = Arc::clone(&self.board);
            let sources = sources::feed(board, pool, terms, watches);
            parts.spawn(ended("the sources of a pool are followed no more", sources));
        }
        if let Some(feed) = self.xds {
            let feed = feed.follow(Arc::clone(&self.board));
            parts.spawn(ended("nothing is told by xDS any more", feed));
        }
        if let Some(ports) = self.dns {
            parts.spawn(dns_out::serve(Arc::clone(&self.board), ports));
        }
        let store = follow::follow(Arc::clone(&self.board), self.store);
        parts.spawn(ended("the store is followed no more", store));
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = parts.join_next() => Err(Error::Unasked(ended?)),
        }
    }
}

/// Says what it means when a part ends.
async fn ended(why: &'static str, part: impl Future<Output = ()>) -> String {
    part.await;
    why.to_owned()
}
