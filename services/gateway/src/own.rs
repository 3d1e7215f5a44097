//! The services that the gateway answers itself: its health, and reflection of its schemas.

use http::{Request, Response};
use tonic::{body::Body, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt as _;

use crate::client::Messages;

/// Why reflection cannot fail to start.
const READABLE: &str = "the schemas compiled into the gateway are readable";

#[derive(Clone)]
pub(crate) struct OwnServices {
    routes: Routes,
    health: HealthReporter,
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
        Self { routes, health }
    }

    /// Says whether the gateway can do its work, to whoever asks for the health of "".
    pub(crate) async fn set_serving(&self, serving: bool) {
        let status = match serving {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        self.health.set_service_status("", status).await;
    }

    pub(crate) async fn serve(&self, request: Request<Messages>) -> Response<Body> {
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
