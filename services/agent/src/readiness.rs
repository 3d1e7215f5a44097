//! Asks a worker whether it serves.

use std::time::Duration;

use tether_proto::pool::{Readiness, ReadinessKind};
use tether_types::Address;
use tokio::net::{TcpStream, UnixStream};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Between two questions: short, as a worker that is ready and not asked is time lost.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Longest time between two questions.
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// A worker that takes longer to answer is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Comes back when the worker is ready; how long to wait for that is for others to decide.
pub(crate) async fn ready(address: Address, readiness: Option<Readiness>) {
    let kind = readiness.map_or(ReadinessKind::Grpc, |readiness| readiness.kind());
    let mut pause = FIRST_PAUSE;
    // A socket that accepts comes first: asking gRPC of a worker that does not listen yet would
    // begin its reconnection delays.
    while !accepts(&address).await {
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LAST_PAUSE);
    }
    if kind == ReadinessKind::Connect {
        return;
    }
    let mut client = HealthClient::new(tether_kit::channel::connect(&address));
    pause = FIRST_PAUSE;
    loop {
        let asked = client.check(HealthCheckRequest::default());
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        if let Ok(Ok(answer)) = answer
            && answer.into_inner().status() == ServingStatus::Serving
        {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LAST_PAUSE);
    }
}

async fn accepts(address: &Address) -> bool {
    match address {
        Address::Unix(path) => UnixStream::connect(path).await.is_ok(),
        Address::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).await.is_ok(),
    }
}
