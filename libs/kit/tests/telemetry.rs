//! A span reaches a real collector over gRPC, at the latest when the process finishes.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]
#![cfg(feature = "otlp")]

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tether_kit::telemetry::{self, Settings};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_reaches_the_collector_when_the_guard_finishes() {
    let (sent, mut received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(sent)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let settings = Settings {
        json: true,
        filter: "info".to_owned(),
        collector: Some(format!("http://{address}")),
        history: None,
    };

    let guard = telemetry::start("tether-test", &settings).unwrap();
    tracing::info_span!("lease.renew", worker.id = "trainer/3").in_scope(|| {});
    guard.finish().await;

    let export = tokio::time::timeout(Duration::from_secs(5), received.recv()).await;
    let export = export.expect("spans are sent").unwrap();
    let text = format!("{export:?}");
    for part in ["lease.renew", "trainer/3", "tether-test"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(telemetry::start("tether-test", &settings).is_err());
    let wrong = Settings {
        filter: "info,=,=".to_owned(),
        ..settings
    };
    let error = telemetry::start("tether-test", &wrong).unwrap_err();
    assert!(error.to_string().contains("TETHER_LOG=info,=,="), "{error}");
}
