//! The connection that calls go over: made, told of, and made again.

use std::{sync::Arc, time::Duration};

use backon::BackoffBuilder as _;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tether_port::Term;
use tokio::sync::watch;

use super::{body::Body, gateways::Gateways, out::Out};

/// What one call may have in memory that nobody reads, and all together: so much that none waits for another.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// A gateway that says nothing for so long, and does not answer a ping for as long again, is gone.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// Before a gateway is tried again.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// A way to the gateways; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    current: watch::Receiver<Option<Current>>,
    /// The last connection that was found to take no more.
    stale: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Clone)]
struct Current {
    /// Which connection it is, counted from 1.
    number: u64,
    sender: SendRequest<Body>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Sent {
    /// There is an answer.
    Answered(Response<Incoming>),
    /// It went nowhere, and is here again where it is whole.
    Unsent(Option<Request<Body>>),
    /// It is not known how far it got.
    Unknown(hyper::Error),
}

impl Link {
    /// Begins to connect, for as long as somebody holds the link.
    pub(crate) fn open(gateways: Arc<Gateways>, out: Out) -> Self {
        let (told, current) = watch::channel(None);
        let (stale, found) = watch::channel(0);
        tokio::spawn(keep(gateways, out, told, found));
        Self {
            current,
            stale: Arc::new(stale),
        }
    }

    /// Waits for a connection.
    pub(crate) async fn ready(&self) -> Ready<'_> {
        let mut current = self.current.clone();
        let takes_calls = |current: &Option<Current>| {
            let stale = *self.stale.borrow();
            current
                .as_ref()
                .is_some_and(|current| current.number > stale)
        };
        let found = match current.wait_for(takes_calls).await.as_deref() {
            Ok(Some(current)) => Some(current.clone()),
            _ => None,
        };
        match found {
            Some(found) => Ready { link: self, found },
            // Whoever connects has gone, and this program with it.
            None => std::future::pending().await,
        }
    }

    /// No more calls go over this connection.
    fn give_up(&self, number: u64) {
        self.stale.send_if_modified(|stale| {
            let is_news = *stale < number;
            *stale = number.max(*stale);
            is_news
        });
    }
}

/// A connection that takes calls, or took them a moment ago.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    link: &'a Link,
    found: Current,
}

impl Ready<'_> {
    /// Sends a request.
    pub(crate) async fn send(self, request: Request<Body>) -> Sent {
        let Current { number, mut sender } = self.found;
        let mut failed = match sender.try_send_request(request).await {
            Ok(answer) => return Sent::Answered(answer),
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let was_refused = was_refused(failed.error());
        if unsent.is_some() || was_refused || sender.is_closed() {
            self.link.give_up(number);
        }
        match unsent {
            None if !was_refused => Sent::Unknown(failed.into_error()),
            unsent => Sent::Unsent(unsent),
        }
    }
}

/// Whether the gateway says that it has not begun and will not: by a refused stream, or by a goodbye that names an
/// earlier stream as its last.
fn was_refused(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let left = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            return h2.is_remote() && (refused || left);
        }
        source = error.source();
    }
    false
}

async fn keep(
    gateways: Arc<Gateways>,
    out: Out,
    told: watch::Sender<Option<Current>>,
    mut stale: watch::Receiver<u64>,
) {
    let schedule = backon::ExponentialBuilder::default()
        .with_min_delay(LEAST_PAUSE)
        .with_max_delay(Duration::from_millis(500))
        .with_jitter()
        .without_max_times();
    let mut delays = schedule.build();
    let mut is_first = true;
    let mut number = 0;
    loop {
        let error = match gateways.dial().await {
            Ok((stream, address)) => {
                let connected = Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .keep_alive_interval(SIGN_OF_LIFE)
                    .keep_alive_timeout(SIGN_OF_LIFE)
                    .keep_alive_while_idle(true)
                    .handshake(TokioIo::new(stream))
                    .await;
                match connected {
                    Ok((sender, connection)) => {
                        delays = schedule.build();
                        let gateway = || Term::map([("gateway", address.to_string().into())]);
                        number += 1;
                        told.send_replace(Some(Current { number, sender }));
                        out.soon(connection_is("up", gateway()));
                        let ended = tokio::spawn(connection);
                        // Calls that are under way end by themselves on one that takes no more.
                        tokio::select! {
                            ended = ended => tracing::warn!(?ended, gateway = %address, "The connection to the gateway ended"),
                            _ = stale.wait_for(|&stale| stale >= number) => tracing::info!(gateway = %address, "The gateway takes no more calls on this connection"),
                            () = told.closed() => return,
                        }
                        told.send_replace(None);
                        gateways.turn_away();
                        out.soon(connection_is("down", gateway()));
                        // One that takes connections and drops them must not be asked without a pause.
                        tokio::time::sleep(LEAST_PAUSE).await;
                        continue;
                    }
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        if std::mem::take(&mut is_first) {
            tracing::warn!(error, "No gateway can be reached; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(delays.next().unwrap_or_default()) => {}
            () = told.closed() => return,
        }
    }
}

fn connection_is(how: &'static str, about: Term) -> Term {
    Term::tagged("connection", [Term::Atom(how), about])
}
