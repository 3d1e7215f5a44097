//! Serving one connection of a client, and letting go of it in an orderly way.

use std::{sync::Arc, time::Duration};

use tether_kit::{
    listen::{Listener, Stream},
    tls::Acceptor,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    crew::Crew,
    forward::Forwarder,
    greeting::{Rewound, greet},
    lanes::Lanes,
    wire::{self, Server},
};

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
                Some(stream) => {
                    let engine = forwarder.config.engine.into();
                    let accepted = wire::accept(engine, stream, &wire::TO_CLIENTS).await;
                    Ok(Some(accepted?))
                }
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
    mut connection: Server<Rewound<Stream>>,
    number: u64,
    forwarder: Arc<Forwarder>,
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    let crew = Crew::new();
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
        crew.take(Arc::clone(&forwarder).serve(request, respond, number));
    }
}
