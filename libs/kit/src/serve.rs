//! Serving gRPC: health and reflection beside the service's own methods, and a stop that ends.

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use tether_types::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Service, util::MapResponseLayer};

use crate::listen::Listener;

/// The health that every server tells for as long as its process answers.
pub const LIVENESS: &str = "liveness";
/// The same as that of the server as a whole, "": whether it serves now.
pub const READINESS: &str = "readiness";

/// The largest message a control service takes; give it to `max_decoding_message_size`.
pub const MESSAGE_LIMIT: usize = 8 << 20;
const MAX_HEADERS: u32 = 64 << 10;
/// What may be under way on a connection, so that one stream that nobody reads does not stop the others.
///
/// Half of this is also h2's budget for small messages nobody has read yet (256 bytes each): with its
/// defaults, or an adaptive window, a burst of about a hundred ends the connection with
/// `ENHANCE_YOUR_CALM`. Both ends of a connection need it.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// What may be under way on each of its streams.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// A peer that vanished without a word is noticed within these two together.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long cut connections may take to notice.
const CUT: Duration = Duration::from_secs(1);

/// Why serving ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors are not a `FileDescriptorSet`.
    #[error("the schemas for reflection cannot be read")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serving failed")]
    Transport(#[from] transport::Error),
}

/// A gRPC server in the making.
#[derive(Debug)]
pub struct Server {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
    ready: Option<watch::Receiver<bool>>,
    descriptors: &'static [u8],
}

impl Server {
    /// A server that describes itself by `descriptors`, an encoded `FileDescriptorSet`.
    pub fn new(descriptors: &'static [u8]) -> Self {
        Self {
            routes: Routes::builder(),
            names: Vec::new(),
            ready: None,
            descriptors,
        }
    }

    /// Its services, and the server as a whole, count as healthy only while `ready` says so. Health and
    /// reflection themselves always do: whoever asks for the health of [`LIVENESS`], or of
    /// `grpc.health.v1.Health`, asks whether this process answers.
    #[must_use]
    pub fn ready(mut self, ready: watch::Receiver<bool>) -> Self {
        self.ready = Some(ready);
        self
    }

    /// Adds a generated service; it counts as healthy from the start.
    #[must_use]
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// The routes with health and reflection added, for a server that serves more than gRPC methods
    /// it knows; and the reporter that says what is healthy.
    ///
    /// # Errors
    /// When the descriptors cannot be read.
    pub async fn routes(mut self) -> Result<(Routes, HealthReporter), Error> {
        let (health, service) = tonic_health::server::health_reporter();
        self = self.service(service);
        let mut reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(self.descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        for name in &self.names {
            reflection = reflection.with_service_name(*name);
            health
                .set_service_status(*name, ServingStatus::Serving)
                .await;
        }
        for name in [LIVENESS, READINESS] {
            health
                .set_service_status(name, ServingStatus::Serving)
                .await;
        }
        self.routes.add_service(reflection.build_v1()?);
        Ok((self.routes.routes(), health))
    }

    /// Serves until `stop` is cancelled, then finishes what is under way for at most `drain` and cuts
    /// what is left.
    ///
    /// # Errors
    /// When the descriptors cannot be read or the transport fails.
    pub async fn serve(
        self,
        listener: Listener,
        stop: CancellationToken,
        drain: Duration,
    ) -> Result<(), Error> {
        let names = self.names.clone();
        let ready = self.ready.clone();
        let (routes, health) = self.routes().await?;
        if ready.as_ref().is_some_and(|ready| !*ready.borrow()) {
            // Nobody is to be told otherwise before the first look below.
            set_all(&health, &names, ServingStatus::NotServing).await;
        }
        let cut = CancellationToken::new();
        let serving = transport::Server::builder()
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .layer(MapResponseLayer::new(explain))
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                listener.incoming(cut.clone()),
                stop.clone().cancelled_owned(),
            );
        let patience = async {
            let follow = follow(ready, &names, &health);
            stop.run_until_cancelled(follow).await;
            set_all(&health, &names, ServingStatus::NotServing).await;
            tokio::time::sleep(drain).await;
        };
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            () = patience => {}
        }
        tracing::warn!(
            ?drain,
            "Calls still under way at the end of the drain are cut"
        );
        cut.cancel();
        // What does not notice within this time has no connection any more and ends with the process.
        let _ = tokio::time::timeout(CUT, serving).await;
        Ok(())
    }
}

/// Says of all services what `ready` says, for ever.
async fn follow(
    ready: Option<watch::Receiver<bool>>,
    names: &[&'static str],
    health: &HealthReporter,
) {
    if let Some(mut ready) = ready {
        loop {
            let status = match *ready.borrow_and_update() {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            set_all(health, names, status).await;
            if ready.changed().await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

async fn set_all(health: &HealthReporter, names: &[&'static str], status: ServingStatus) {
    for name in names.iter().copied().chain(["", READINESS]) {
        health.set_service_status(name, status).await;
    }
}

/// Gives the refusal of a large message the code, the reason and the advice that clients branch on.
fn explain(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    match status
        .message()
        .split_once("decoded message length too large:")
    {
        Some((_, sizes)) if status.code() == Code::OutOfRange => {
            let reason =
                ErrorDetails::with_error_info(Reason::MessageTooLarge.word(), "tether", []);
            let text = format!("the message is too large:{sizes}; send less at once");
            Status::with_error_details(Code::ResourceExhausted, text, reason).into_http()
        }
        _ => response,
    }
}
