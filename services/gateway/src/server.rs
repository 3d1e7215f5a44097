//! Serving one connection of a client, and letting go of it in an orderly way.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::server::Connection;
use tether_kit::{
    listen::{Listener, Stream},
    tls::Acceptor,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    forward::Forwarder,
    greeting::{Rewound, greet},
    lanes::Lanes,
    upstream::{CONNECTION_WINDOW, HEADER_LIST, SEND_BUFFER},
};

/// Calls that one client may have under way on one connection.
const MAX_STREAMS: u32 = 100_000;
/// Calls a client may cancel before the gateway has looked at them; more is an attack.
const MAX_PENDING_RESETS: usize = 1_000;
/// What one call may send while nobody takes it, in bytes: as long as it waits for a worker nothing is read of it.
const CLIENT_WINDOW: u32 = 256 << 10;
/// How long a client may take to say that it speaks HTTP/2.
const GREETING: Duration = Duration::from_secs(10);

/// What tells connections to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Whoever watches is to know that it drains.
    pub(crate) notice: CancellationToken,
    /// Take no new calls, finish those under way.
    pub(crate) drain: CancellationToken,
    /// End now.
    pub(crate) close: CancellationToken,
}

/// Accepts connections until told to drain.
pub(crate) async fn accept(listener: Listener, lanes: Arc<Lanes>, drain: CancellationToken) {
    while let Some(stream) = drain.run_until_cancelled(listener.next()).await {
        lanes.serve(stream, listener.tls().cloned());
    }
}

/// Serves a connection until its client leaves, or for as long as `ending` lets it.
pub(crate) async fn serve(
    stream: Stream,
    tls: Option<Arc<Acceptor>>,
    number: u64,
    forwarder: Arc<Forwarder>,
    ending: Ending,
) {
    let serving = async {
        let greeted = async {
            let stream = match tls {
                None => stream,
                Some(tls) => Box::pin(tls.accept(stream)).await?,
            };
            match greet(stream).await? {
                Some(stream) => Ok(Some(settings().handshake(stream).await?)),
                None => anyhow::Ok(None),
            }
        };
        // One that has said nothing has no call that a drain would have to wait for.
        let greeted = ending.drain.run_until_cancelled(timeout(GREETING, greeted));
        let Some(Some(connection)) = greeted.await.transpose()?.transpose()? else {
            return Ok(());
        };
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
        .initial_window_size(CLIENT_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        // Counted over the life of a connection, and a BEAM keeps its connection for months.
        .max_local_error_reset_streams(None);
    builder
}
