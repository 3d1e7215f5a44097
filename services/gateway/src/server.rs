//! Accepting connections, and letting go of them in an orderly way.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use futures::StreamExt as _;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tether_kit::listen::{Connection, Listener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    forward::Forwarder,
    upstream::{CONNECTION_WINDOW, HEADER_LIST, STREAM_WINDOW},
};

/// Calls that one client may have under way on one connection.
const MAX_STREAMS: u32 = 100_000;
/// Calls a client may cancel before the gateway has looked at them; more is an attack.
const MAX_PENDING_RESETS: usize = 1_000;

/// What tells connections to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Take no new calls, finish those under way.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) close: CancellationToken,
}

/// Accepts connections until told to drain.
pub(crate) async fn accept(
    listener: Listener,
    forwarder: Arc<Forwarder>,
    connections: TaskTracker,
    ending: Ending,
) {
    let mut incoming = pin!(listener.incoming(ending.close.clone()));
    loop {
        tokio::select! {
            () = ending.drain.cancelled() => return,
            Some(Ok(connection)) = incoming.next() => {
                let number = forwarder.connections.fetch_add(1, Ordering::Relaxed);
                let serving = serve(connection, number, Arc::clone(&forwarder), ending.clone());
                connections.spawn(serving);
            }
        }
    }
}

async fn serve(connection: Connection, number: u64, forwarder: Arc<Forwarder>, ending: Ending) {
    let service = service_fn(move |request| {
        let forwarder = Arc::clone(&forwarder);
        async move { Ok::<_, Infallible>(forwarder.serve(request, number).await) }
    });
    let builder = settings();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = ending.close.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A client's connection broke");
    }
}

fn settings() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // HTTP/1 is accepted only to tell the client what this is.
    builder.http1().timer(TokioTimer::new()).keep_alive(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        // Counted over the life of a connection, and a BEAM keeps its connection for months.
        .max_local_error_reset_streams(None)
        .auto_date_header(false);
    builder
}
