//! The services that the gateway answers itself: its health, and reflection of its schemas.

use std::sync::Arc;

use http::{Request, Response};
use tether_kit::serve::{LIVENESS, READINESS};
use tokio::sync::watch;
use tonic::{body::Body, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt as _;

use crate::client::Messages;

/// Why reflection cannot fail to start.
const READABLE: &str = "the schemas compiled into the gateway are readable";

/// What every other server of Tether's calls its own health too.
const HEALTH: &str = "grpc.health.v1.Health";

#[derive(Clone)]
pub(crate) struct OwnServices {
    routes: Routes,
    health: HealthReporter,
    ready: Arc<watch::Sender<bool>>,
}

impl OwnServices {
    pub(crate) fn new() -> Self {
        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tether_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = Routes::new(health_service)
            .add_service(reflection().build_v1().expect(READABLE))
            .add_service(reflection().build_v1alpha().expect(READABLE))
            .prepare();
        Self {
            routes,
            health,
            ready: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Whether the gateway can do its work, as it changes.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Says whether the gateway can do its work, to whoever asks for the health of "" or of its readiness; and that it
    /// lives, to whoever asks for that.
    pub(crate) async fn set_serving(&self, serving: bool) {
        let status = match serving {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for name in ["", READINESS] {
            self.health.set_service_status(name, status).await;
        }
        for name in [LIVENESS, HEALTH] {
            let lives = ServingStatus::Serving;
            self.health.set_service_status(name, lives).await;
        }
        self.ready.send_replace(serving);
    }

    pub(crate) async fn serve(&self, request: Request<Messages>) -> Response<Body> {
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
