//! Calls in the name of a session, and what becomes of them when it is over.

use std::{pin::Pin, sync::Arc, time::Duration};

use tether_gateway::{Config, WhenStale};
use tether_proto::gateway::{
    OwnerEpoch, ReportCallsRequest, ReportCallsResponse, WatchOwnersRequest, WatchOwnersResponse,
    gateway_service_server::{GatewayService, GatewayServiceServer},
};
use tokio::{net::UnixListener, sync::watch, task::AbortHandle};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    client::Client,
    house::{House, UNARY, reason},
};

/// An arbiter that knows one owner, and can fall silent without a word.
pub(crate) struct Arbiter {
    directory: tempfile::TempDir,
    /// The owner's epoch; 0 without a session.
    pub(crate) epoch: Arc<watch::Sender<u64>>,
    silent: Arc<watch::Sender<bool>>,
    serving: AbortHandle,
}

#[derive(Clone)]
struct Told {
    epoch: Arc<watch::Sender<u64>>,
    silent: Arc<watch::Sender<bool>>,
}

impl Told {
    fn word(epoch: u64, seq: u64) -> WatchOwnersResponse {
        let session = OwnerEpoch {
            owner: "beam@a".to_owned(),
            epoch,
        };
        WatchOwnersResponse {
            seq,
            snapshot: true,
            owners: if epoch > 0 { vec![session] } else { Vec::new() },
            gone: Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl GatewayService for Told {
    async fn report_calls(
        &self,
        _: Request<Streaming<ReportCallsRequest>>,
    ) -> Result<Response<ReportCallsResponse>, Status> {
        Err(Status::unimplemented("this one counts no calls"))
    }

    type WatchOwnersStream =
        Pin<Box<dyn Stream<Item = Result<WatchOwnersResponse, Status>> + Send>>;

    async fn watch_owners(
        &self,
        request: Request<Streaming<WatchOwnersRequest>>,
    ) -> Result<Response<Self::WatchOwnersStream>, Status> {
        let (epoch, silent) = (self.epoch.subscribe(), self.silent.subscribe());
        let state = (request.into_inner(), epoch, silent, 0);
        let stream = futures::stream::unfold(
            state,
            |(mut asked, mut epoch, mut silent, mut seq)| async move {
                tokio::select! {
                    request = asked.message() => seq = request.ok()??.seq,
                    changed = epoch.changed() => changed.ok()?,
                }
                // Nothing is read and nothing is said, as by a process that is stopped.
                silent.wait_for(|silent| !silent).await.ok()?;
                let word = Self::word(*epoch.borrow_and_update(), seq);
                Some((Ok(word), (asked, epoch, silent, seq)))
            },
        );
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Arbiter {
    pub(crate) fn start(epoch: u64) -> Self {
        let directory = tempfile::tempdir().expect("there is a place for files");
        let socket = directory.path().join("arbiter.sock");
        let listener = UnixListener::bind(socket).expect("the directory is writable");
        let epoch = Arc::new(watch::Sender::new(epoch));
        let silent = Arc::new(watch::Sender::new(false));
        let told = Told {
            epoch: Arc::clone(&epoch),
            silent: Arc::clone(&silent),
        };
        let server = Server::builder().add_service(GatewayServiceServer::new(told));
        let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self {
            directory,
            epoch,
            silent,
            serving: serving.abort_handle(),
        }
    }

    pub(crate) async fn house(&self, config: Config) -> House {
        let socket = self.directory.path().join("arbiter.sock");
        House::with_arbiter(config, &format!("unix:{}", socket.display())).await
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Makes a call in the name of the owner's session with this epoch; tells our reason where it is refused.
async fn act(client: &Client, epoch: &str) -> Result<(), &'static str> {
    let metadata = [
        ("tether-pool", "digits"),
        ("tether-owner", "beam@a"),
        ("tether-epoch", epoch),
    ];
    let answer = client.unary(UNARY, &metadata, "x").await;
    answer.map(drop).map_err(|status| reason(&status))
}

#[tokio::test]
async fn a_session_acts_until_it_is_taken_over_and_the_later_one_until_it_is_over() {
    let arbiter = Arbiter::start(7);
    let house = arbiter.house(Config::default()).await;
    let _worker = house.worker(0).await;
    let client = house.client().await;

    assert_eq!(act(&client, "7").await, Ok(()));
    assert_eq!(act(&client, "6").await, Err("LEASE_FENCED"));
    let ahead = act(&client, "9");
    let opens = async { arbiter.epoch.send_replace(9) };
    let (ahead, _) = tokio::join!(ahead, opens);
    assert_eq!(
        ahead,
        Ok(()),
        "a session that is told of a moment later is waited for"
    );
    assert_eq!(act(&client, "7").await, Err("LEASE_FENCED"));

    arbiter.epoch.send_replace(0);
    house
        .until("it is over", async || {
            act(&client, "9").await == Err("LEASE_EXPIRED")
        })
        .await;
    let plain = client.unary(UNARY, &[("tether-pool", "digits")], "x").await;
    assert!(plain.is_ok(), "a call in nobody's name is no concern of it");
}

#[tokio::test]
async fn a_gateway_that_does_not_hear_the_arbiter_lets_nobody_act_and_lets_all_others_call() {
    let arbiter = Arbiter::start(7);
    let config = Config {
        fence_max_age: Duration::from_millis(1_200),
        ..Config::default()
    };
    let house = arbiter.house(config).await;
    let _worker = house.worker(0).await;
    let client = house.client().await;
    assert_eq!(act(&client, "7").await, Ok(()));

    arbiter.silent.send_replace(true);
    house
        .until("it is refused", async || {
            act(&client, "7").await == Err("ARBITER_UNREACHABLE")
        })
        .await;

    let plain = client.unary(UNARY, &[("tether-pool", "digits")], "x").await;
    assert!(plain.is_ok());
    arbiter.silent.send_replace(false);
    house
        .until("it acts again", async || act(&client, "7").await == Ok(()))
        .await;
}

#[tokio::test]
async fn where_the_configuration_says_so_calls_go_on_while_nobody_can_tell() {
    let config = Config {
        when_fence_is_stale: WhenStale::Allow,
        ..Config::default()
    };
    let house = House::with(config).await;
    let _worker = house.worker(0).await;

    assert_eq!(act(&house.client().await, "7").await, Ok(()));
}
