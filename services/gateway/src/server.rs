//! Serving one connection of a client, and letting go of it in an orderly way.

use std::{pin::pin, sync::Arc, time::Duration};

use tether_kit::{
    listen::{Listener, Stream},
    tls::Acceptor,
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use crate::{
    crew::Crew,
    ending::Ending,
    forward::Forwarder,
    greeting::{Rewound, greet},
    lanes::Lanes,
    wire::{self, Server},
};

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
                Some(stream) => {
                    let engine = forwarder.config.engine.into();
                    let accepted = wire::accept(engine, stream, &wire::TO_CLIENTS).await;
                    Ok(Some(accepted?))
                }
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
        take_calls(connection, number, forwarder, &ending).await
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
    mut connection: Server<Rewound<Stream>>,
    number: u64,
    forwarder: Arc<Forwarder>,
    ending: &Ending,
) -> anyhow::Result<()> {
    let drain = &ending.drain;
    let crew =
        Crew::new(move |(request, respond)| Arc::clone(&forwarder).serve(request, respond, number));
    let mut cut = pin!(ending.cut.cancelled());
    let mut is_cut = false;
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
            () = &mut cut, if !is_cut => {
                is_cut = true;
                crew.rouse();
                continue;
            }
        };
        let Some(accepted) = accepted else {
            return Ok(());
        };
        was_used = true;
        crew.take(accepted?);
    }
}
