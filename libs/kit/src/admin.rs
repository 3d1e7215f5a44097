//! Whether a process lives and serves, for whoever runs it: in plain text, at an address of its own, whatever its
//! service port speaks.
//!
//! By gRPC, `grpc.health.v1` for [`LIVENESS`], [`READINESS`] and the same for ""; by HTTP/1.1, for those who ask no other
//! way, at [`PATH`]`liveness` and [`PATH`]`readiness`: 200 or 503.

use std::task::{Context, Poll};

use futures::{
    StreamExt as _,
    future::{Either, Ready, ready},
    stream,
};
use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, transport};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{Service, layer::layer_fn};

use crate::{
    listen::Listener,
    serve::{Error, LIVENESS, READINESS, Server},
};

/// What the paths begin with that are asked by HTTP/1.1.
pub const PATH: &str = "/health/";

/// It has no methods to describe but health's own.
const NO_SCHEMAS: &[u8] = &[];

/// Answers at `listener` until `over`. It lives for as long as it answers; it is ready while all of `parts` say so, and
/// not from `stop` on.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: Listener,
    parts: Vec<watch::Receiver<bool>>,
    stop: CancellationToken,
    over: CancellationToken,
) -> Result<(), Error> {
    if let Ok(address) = listener.local_address() {
        tracing::info!(%address, "Health is answered");
    }
    let (routes, health) = Server::new(NO_SCHEMAS).routes().await?;
    let said = watch::Sender::new(false);
    let plain = said.subscribe();
    tell(&health, false).await;
    let serving = transport::Server::builder()
        .accept_http1(true)
        .layer(layer_fn(move |grpc| Plain {
            grpc,
            ready: plain.clone(),
        }))
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.incoming(over.clone()), over.cancelled_owned());
    let follow = async {
        let changes = parts.clone().into_iter().map(|part| {
            // Its end is the last change.
            Box::pin(stream::unfold(Some(part), async |part| {
                let mut part = part?;
                let is_there = part.changed().await.is_ok();
                Some(((), is_there.then_some(part)))
            }))
        });
        let mut changes = stream::select_all(changes);
        while !stop.is_cancelled() {
            // A part that has ended is not there to serve.
            let serves =
                |part: &watch::Receiver<bool>| part.has_changed().is_ok() && *part.borrow();
            let all = parts.iter().all(serves);
            said.send_replace(all);
            tell(&health, all).await;
            tokio::select! {
                Some(()) = changes.next() => {}
                () = stop.cancelled() => {}
            }
        }
        said.send_replace(false);
        tell(&health, false).await;
        std::future::pending().await
    };
    tokio::select! {
        ended = serving => Ok(ended?),
        never = follow => never,
    }
}

async fn tell(health: &HealthReporter, serves: bool) {
    let status = match serves {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for name in ["", READINESS] {
        health.set_service_status(name, status).await;
    }
}

/// Answers HTTP/1.1, and leaves the rest to gRPC.
#[derive(Debug, Clone)]
struct Plain<S> {
    grpc: S,
    ready: watch::Receiver<bool>,
}

impl<S, B> Service<Request<B>> for Plain<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.grpc.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.version() == Version::HTTP_2 {
            return Either::Right(self.grpc.call(request));
        }
        Either::Left(ready(Ok(answer(
            request.uri().path(),
            *self.ready.borrow(),
        ))))
    }
}

fn answer(path: &str, is_ready: bool) -> Response<Body> {
    let (status, text) = match path.strip_prefix(PATH) {
        Some(LIVENESS) => (StatusCode::OK, "it lives\n"),
        Some(READINESS) if is_ready => (StatusCode::OK, "it serves\n"),
        Some(READINESS) => (StatusCode::SERVICE_UNAVAILABLE, "it does not serve now\n"),
        _ => (
            StatusCode::NOT_FOUND,
            "ask for /health/liveness or /health/readiness, or by gRPC for grpc.health.v1\n",
        ),
    };
    let mut response = Response::new(Body::new(text.to_owned()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
