//! Serving one connection of a client, and letting go of it in an orderly way.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::Connection;
use tether_kit::listen::{Listener, Stream};
use tokio_util::sync::CancellationToken;

use crate::{
    forward::Forwarder,
    greeting::{Rewound, greet},
    lanes::Lanes,
    upstream::{CONNECTION_WINDOW, HEADER_LIST, STREAM_WINDOW},
};

/// Calls that one client may have under way on one connection.
const MAX_STREAMS: u32 = 100_000;
/// Calls a client may cancel before the gateway has looked at them; more is an attack.
const MAX_PENDING_RESETS: usize = 1_000;
/// The most that waits in HTTP/2 for one client that does not take it, of one call, in bytes.
const SEND_BUFFER: usize = 256 << 10;

/// What tells connections to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Take no new calls, finish those under way.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) close: CancellationToken,
}

/// Accepts connections until told to drain.
pub(crate) async fn accept(listener: Listener, lanes: Arc<Lanes>, drain: CancellationToken) {
    while let Some(stream) = drain.run_until_cancelled(listener.next()).await {
        lanes.serve(stream);
    }
}

/// Serves a connection until its client leaves, or for as long as `ending` lets it.
pub(crate) async fn serve(stream: Stream, number: u64, forwarder: Arc<Forwarder>, ending: Ending) {
    let serving = async {
        let Some(stream) = greet(stream).await? else {
            return Ok(());
        };
        let connection = settings().handshake(stream).await?;
        take_calls(connection, number, forwarder, &ending.drain).await
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::debug!(error = format!("{error:#}"), "A client's connection broke");
        },
        () = ending.close.cancelled() => {}
    }
}

async fn take_calls(
    mut connection: Connection<Rewound<Stream>, Bytes>,
    number: u64,
    forwarder: Arc<Forwarder>,
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    let mut drains = false;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = drain.cancelled(), if !drains => {
                drains = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(accepted) = accepted else {
            return Ok(());
        };
        let (request, respond) = accepted?;
        let forwarder = Arc::clone(&forwarder);
        tokio::spawn(async move { forwarder.serve(request, respond, number).await });
    }
}

fn settings() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_window_size(STREAM_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        // Counted over the life of a connection, and a BEAM keeps its connection for months.
        .max_local_error_reset_streams(None);
    builder
}
