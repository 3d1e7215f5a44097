//! Serving one connection of a client, and letting go of it in an orderly way.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::server::Connection;
use tether_kit::{
    listen::{Listener, Stream},
    tls::Acceptor,
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use crate::{
    ending::Ending,
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
/// How long one that has just come may take for that and its first call once the gateway drains.
const FIRST_CALL: Duration = Duration::from_millis(500);

/// Accepts connections until told to drain. What is accepted at that moment `counts` already.
pub(crate) async fn accept(
    listener: Listener,
    lanes: Arc<Lanes>,
    drain: CancellationToken,
    _counts: TaskTrackerToken,
) {
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
        let greeted = tokio::select! {
            greeted = timeout(GREETING, greeted) => greeted??,
            () = last_call(&ending.drain) => None,
        };
        let Some(connection) = greeted else {
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

/// Waits until those who came just before the gateway drains have had the time to make their call.
async fn last_call(drain: &CancellationToken) {
    drain.cancelled().await;
    sleep(FIRST_CALL).await;
}

async fn take_calls(
    mut connection: Connection<Rewound<Stream>, Bytes>,
    number: u64,
    forwarder: Arc<Forwarder>,
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    // One that has made no call yet is about to: told to go just before that, many clients have it fail.
    let mut was_used = false;
    let mut unused = pin!(last_call(drain));
    let mut drains = false;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = drain.cancelled(), if !drains && was_used => {
                drains = true;
                connection.graceful_shutdown();
                continue;
            }
            () = &mut unused, if !drains => {
                drains = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(accepted) = accepted else {
            return Ok(());
        };
        let (request, respond) = accepted?;
        was_used = true;
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
