//! Serving metrics over HTTP/1.1, to whoever asks.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::listen::{Connection, Listener};

/// Where they are.
pub const PATH: &str = "/metrics";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections at a time: there are a few scrapers, and they keep theirs.
const CONNECTIONS: usize = 32;

/// A connection on which nothing is asked for this long is closed.
const IDLE: Duration = Duration::from_secs(120);

impl Metrics {
    /// Answers whoever asks at `listener`, until `stop` is cancelled.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        if let Ok(address) = listener.local_address() {
            tracing::info!(%address, path = PATH, "Metrics are served");
        }
        let metrics = Arc::new(self);
        let mut incoming = pin!(listener.incoming(stop.clone()));
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                Some(Ok(connection)) = incoming.next(), if open.len() < CONNECTIONS => {
                    open.spawn(converse(connection, Arc::clone(&metrics)));
                }
                Some(_) = open.join_next() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

async fn converse(connection: Connection, metrics: Arc<Metrics>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &metrics);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(connection), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "A reader of metrics went away");
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(
            StatusCode::NOT_FOUND,
            format!("metrics are at `{PATH}`\n").into(),
        );
    }
    if request.method() != Method::GET {
        let mut response = plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "metrics are to be read with GET\n".into(),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let mut response = plain(StatusCode::OK, metrics.text().into());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

fn plain(status: StatusCode, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use tether_types::Address;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;
    use crate::listen::bind;

    const SOON: Duration = Duration::from_secs(20);

    async fn ask(port: u16, head: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = timeout(SOON, stream.read_to_string(&mut text)).await;
        read.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn metrics_are_read_with_get_and_nothing_else_is_answered_with_them() {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), false).await.unwrap();
        let Ok(Address::Tcp { port, .. }) = listener.local_address() else {
            panic!("it listens on TCP");
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(Metrics::new().serve(listener, stop.clone()));

        let found = ask(port, "GET /metrics").await;
        assert!(found.starts_with("HTTP/1.1 200"), "{found}");
        assert!(found.contains(TEXT) && found.contains("tether_build_info{version="));
        let elsewhere = ask(port, "GET /").await;
        assert!(elsewhere.starts_with("HTTP/1.1 404") && elsewhere.contains("`/metrics`"));
        assert!(ask(port, "POST /metrics").await.starts_with("HTTP/1.1 405"));

        stop.cancel();
        timeout(SOON, serving).await.unwrap().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }
}
