//! An owner whose gateway takes its calls and answers none.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{pin::Pin, time::Duration};

use tether_client::{Client, Lost, SessionOptions};
use tether_kit::{listen, serve::Server};
use tether_proto::session::{
    CloseSessionRequest, CloseSessionResponse, KeepAliveRequest, KeepAliveResponse,
    ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse,
    session_service_server::{SessionService, SessionServiceServer},
};
use tether_types::Address;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const TTL: Duration = Duration::from_secs(2);

/// Grants a session, and then finds no arbiter for its beats.
struct Silent;

#[tonic::async_trait]
impl SessionService for Silent {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<KeepAliveResponse, Status>> + Send>>;

    async fn open_session(
        &self,
        _: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        Ok(Response::new(OpenSessionResponse {
            epoch: 7,
            ttl_ms: u64::try_from(TTL.as_millis()).unwrap(),
            beat_ms: 200,
            ..OpenSessionResponse::default()
        }))
    }

    async fn keep_alive(
        &self,
        _: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        std::future::pending().await
    }

    async fn close_session(
        &self,
        _: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        std::future::pending().await
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_session_whose_stream_is_never_opened_is_lost_at_its_own_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("gateway.sock"));
    let listener = listen::bind(&address, false).await.unwrap();
    let server = Server::new(tether_proto::DESCRIPTORS).service(SessionServiceServer::new(Silent));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(listener, stop.clone(), Duration::ZERO));
    let client = Client::connect(&address);
    let opened = Instant::now();
    let owner = "beam@here".parse().unwrap();
    let options = SessionOptions::default();
    let session = client.open_session(owner, options).await.unwrap();

    let lost = tokio::time::timeout(TTL * 3, session.lost()).await;

    let lost = lost.expect("it is told");
    assert!(matches!(lost, Lost::Expired(_)), "{lost:?}");
    assert!(opened.elapsed() >= TTL / 2);
    assert!(session.acting().check().is_err());
    stop.cancel();
    serving.abort();
}
