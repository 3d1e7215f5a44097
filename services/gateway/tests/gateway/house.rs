//! A gateway with its discovery, and whatever workers a test starts.

use std::{sync::Arc, time::Duration};

use tether_gateway::{Config, Engine, Gateway, Listener};
use tether_kit::tls::Acceptor;
use tether_proto::{common::Endpoint, gateway::control_service_client::ControlServiceClient};
use tether_types::Address;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    client::{Client, SOON},
    discovery::{Discovery, worker},
    worker::Worker,
};

pub(crate) const UNARY: &str = "/test.Echo/Unary";
pub(crate) const DIGITS: &[(&str, &str)] = &[("tether-pool", "digits")];

pub(crate) struct House {
    pub(crate) address: String,
    /// Where TLS is spoken, if anywhere.
    pub(crate) secure: String,
    pub(crate) discovery: Discovery,
    pub(crate) stop: CancellationToken,
    pub(crate) serving: JoinHandle<anyhow::Result<()>>,
    directory: tempfile::TempDir,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::with_arbiter(config, "unix:/nonexistent/arbiter.sock").await
    }

    pub(crate) async fn with_arbiter(config: Config, arbiter: &str) -> Self {
        Self::with_arbiters(config, &[arbiter]).await
    }

    pub(crate) async fn with_arbiters(config: Config, arbiters: &[&str]) -> Self {
        Self::build(config, arbiters, None).await
    }

    /// One that speaks TLS too, at a port of its own.
    pub(crate) async fn with_tls(config: Config, acceptor: Acceptor) -> Self {
        let arbiters = ["unix:/nonexistent/arbiter.sock"];
        Self::build(config, &arbiters, Some(acceptor)).await
    }

    async fn build(config: Config, arbiters: &[&str], tls: Option<Acceptor>) -> Self {
        let directory = tempfile::tempdir().expect("there is a place for files");
        let discovery = Discovery::start(directory.path());
        let (listener, address) = port().await;
        let mut listeners = vec![listener];
        let mut secure = String::new();
        if let Some(tls) = tls {
            let (listener, address) = port().await;
            listeners.push(listener.with_tls(Arc::new(tls)));
            secure = address;
        }
        let stop = CancellationToken::new();
        let parse = |arbiter: &&str| arbiter.parse().expect("it is an address");
        let arbiters = arbiters.iter().map(parse).collect();
        let config = Config {
            engine: engine(),
            ..config
        };
        let control = Address::Unix(directory.path().join("control.sock"));
        let control = tether_kit::listen::bind(&control, false).await;
        let gateway = Gateway::build(config, arbiters, Address::Unix(discovery.socket.clone()))
            .controlled_at(Some(control.expect("the directory is writable")));
        let serving = tokio::spawn(gateway.serve(listeners, stop.clone()));
        Self {
            address,
            secure,
            discovery,
            stop,
            serving,
            directory,
        }
    }

    /// Where people on call give orders.
    pub(crate) fn control(&self) -> ControlServiceClient<Channel> {
        let address = Address::Unix(self.directory.path().join("control.sock"));
        ControlServiceClient::new(tether_kit::channel::connect(&address))
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    /// Starts a worker in a slot of the pool `digits` and waits until the gateway uses it.
    pub(crate) async fn worker(&self, slot: u32) -> Worker {
        let worker = Worker::start().await;
        self.tell(slot, 1, &worker.address).await;
        worker
    }

    /// Tells of an endpoint and waits until the gateway knows it.
    pub(crate) async fn tell(&self, slot: u32, incarnation: u64, address: &str) {
        self.discovery
            .up(worker("digits", slot, incarnation), address, false);
        self.knows(slot, incarnation).await;
    }

    /// The same of one that speaks TLS.
    pub(crate) async fn tell_secure(&self, slot: u32, incarnation: u64, address: &str) {
        self.discovery.tell(Endpoint {
            worker: Some(worker("digits", slot, incarnation)),
            address: address.to_owned(),
            protocol: "grpcs".to_owned(),
            ..Endpoint::default()
        });
        self.knows(slot, incarnation).await;
    }

    pub(crate) async fn knows(&self, slot: u32, incarnation: u64) {
        let client = self.client().await;
        let pin = format!("digits/{slot}.{incarnation}");
        self.until("the worker is known", async || {
            // Which method it is does not matter: it need not exist.
            let answer = client
                .unary("/test.Echo/None", &[("tether-worker", &pin)], "")
                .await;
            answer.is_err_and(|status| status.code() == tonic::Code::Unimplemented)
        })
        .await;
    }

    /// Asks again until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + SOON;
        while !condition().await {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{what}: not within {SOON:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The engine that all tests are run with: `TETHER_GATEWAY_ENGINE=h2` takes the library.
pub(crate) fn engine() -> Engine {
    match std::env::var("TETHER_GATEWAY_ENGINE").as_deref() {
        Err(_) | Ok("own") => Engine::Own,
        Ok("h2") => Engine::H2,
        Ok(other) => panic!("there is no engine `{other}`"),
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
        self.serving.abort();
    }
}

async fn port() -> (Listener, String) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    (Listener::Tcp(listener), address)
}

/// Our reason for a failure.
pub(crate) fn reason(status: &Status) -> &'static str {
    tether_proto::reason_of(status).map_or("none of ours", tether_types::Reason::word)
}

/// A fact that a failure carries for programs.
pub(crate) fn fact(status: &Status, key: &str) -> Option<String> {
    use tonic_types::StatusExt as _;
    status.get_details_error_info()?.metadata.get(key).cloned()
}

/// When a failure says that trying again makes sense.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    use tonic_types::StatusExt as _;
    status.get_details_retry_info()?.retry_delay
}
