//! The connection that calls go over: made, told of, and made again.

use std::{future::poll_fn, sync::Arc, time::Duration};

use backon::BackoffBuilder as _;
use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason, RecvStream,
    client::{Builder, SendRequest},
};
use http::{Request, Response};
use tether_kit::listen::Stream;
use tether_port::Term;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    body::{Body, Sending},
    calls::Progress,
    failure::Outcome,
    gateways::Gateways,
    out::Out,
    traffic::{Traffic, Watched},
};

/// What one call may have in memory that nobody reads, and all together: so much that none waits for another.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// What one call may have in memory that the gateway does not read.
const SEND_BUFFER: usize = 1 << 20;

/// Calls under way before the gateway has said how many it takes.
const CALLS_AT_FIRST: usize = 100;

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
    sender: SendRequest<Bytes>,
    traffic: Traffic,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Sent {
    /// There is an answer, while what is still to be sent goes on.
    Answered(Response<RecvStream>, Option<AbortOnDropHandle<()>>),
    /// It went nowhere, and its body is here again where it is whole.
    Unsent(Option<Body>),
    /// It did not get through: not at all, or nobody knows how far.
    Lost(h2::Error, Outcome),
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
    pub(crate) async fn send(self, head: Request<()>, body: Body, progress: &Progress) -> Sent {
        let Self { link, found } = self;
        let give_up = || link.give_up(found.number);
        let Ok(mut sender) = found.sender.ready().await else {
            give_up();
            return Sent::Unsent(Some(body));
        };
        let (answer, stream) = match sender.send_request(head, false) {
            Ok(sent) => sent,
            Err(error) if error.is_io() || error.is_go_away() => {
                give_up();
                return Sent::Unsent(Some(body));
            }
            Err(error) => return Sent::Lost(error, Outcome::NotSent),
        };
        progress.set(Outcome::Unknown);
        let number = answer.stream_id().as_u32();
        let mut sending = Sending::new(body, stream);
        let error = match sending.until(answer).await {
            Ok(answer) => return Sent::Answered(answer, sending.go_on()),
            Err(error) => error,
        };
        // What breaks a connection is every stream's end, also of those that never left.
        let is_unsent = error.is_io() && !found.traffic.had_said(number);
        let was_refused = was_refused(&error);
        if is_unsent || was_refused || error.is_io() || error.is_go_away() {
            give_up();
        }
        match is_unsent || was_refused {
            true => {
                progress.set(Outcome::NotSent);
                Sent::Unsent(sending.untouched())
            }
            false => Sent::Lost(error, Outcome::Unknown),
        }
    }
}

/// Whether the gateway says that it has not begun and will not: by a refused stream, or by a goodbye that names an
/// earlier stream as its last.
fn was_refused(error: &h2::Error) -> bool {
    let refused = error.reason() == Some(Reason::REFUSED_STREAM);
    let left = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (refused || left)
}

/// Comes back once the other side has been silent for too long.
async fn silence(traffic: &Traffic, mut pings: PingPong, patience: Duration) {
    loop {
        sleep(patience).await;
        if traffic.has_heard() {
            continue;
        }
        // One that was not answered yet is still to be.
        let _ = pings.send_ping(Ping::opaque());
        let answered = poll_fn(|context| pings.poll_pong(context));
        if timeout(patience, answered).await.is_err() && !traffic.has_heard() {
            return;
        }
    }
}

/// Opens HTTP/2, and runs it in a task of its own until it ends.
async fn open(
    stream: Stream,
) -> Result<(SendRequest<Bytes>, Traffic, JoinHandle<String>), h2::Error> {
    let (watched, traffic) = Watched::of(stream);
    let (sender, mut connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(CALLS_AT_FIRST)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake(watched)
        .await?;
    let (pings, heard) = (connection.ping_pong(), traffic.clone());
    let running = tokio::spawn(async move {
        let silence = async {
            match pings {
                Some(pings) => silence(&heard, pings, SIGN_OF_LIFE).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = connection => match ended {
                Ok(()) => "it was closed".to_owned(),
                Err(error) => error.to_string(),
            },
            () = silence => "the gateway does not answer".to_owned(),
        }
    });
    Ok((sender, traffic, running))
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
                match open(stream).await {
                    Ok((sender, traffic, ended)) => {
                        delays = schedule.build();
                        let gateway = || Term::map([("gateway", address.to_string().into())]);
                        number += 1;
                        told.send_replace(Some(Current {
                            number,
                            sender,
                            traffic,
                        }));
                        out.soon(connection_is("up", gateway()));
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
                        sleep(LEAST_PAUSE).await;
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
            () = sleep(delays.next().unwrap_or_default()) => {}
            () = told.closed() => return,
        }
    }
}

fn connection_is(how: &'static str, about: Term) -> Term {
    Term::tagged("connection", [Term::Atom(how), about])
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener, task::yield_now};

    use super::*;
    use crate::port::{
        exchange::{self, Head},
        failure::Failed,
    };

    type Gateway = h2::server::Connection<tokio::net::TcpStream, Bytes>;

    /// A gateway that takes one call at a time.
    async fn accept(listener: &TcpListener) -> Gateway {
        let (socket, _) = listener.accept().await.unwrap();
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(1);
        builder.handshake(socket).await.unwrap()
    }

    async fn answer(gateway: &mut Gateway) {
        let (_, mut respond) = gateway.accept().await.unwrap().unwrap();
        let head = http::Response::new(());
        let mut stream = respond.send_response(head, false).unwrap();
        let message = Bytes::from_static(&[0, 0, 0, 0, 1, 7]);
        stream.send_data(message, false).unwrap();
        let trailers = [("grpc-status", "0")].map(|(key, value)| {
            let value = http::HeaderValue::from_static(value);
            (http::HeaderName::from_static(key), value)
        });
        stream
            .send_trailers(trailers.into_iter().collect())
            .unwrap();
    }

    type Calling = JoinHandle<Result<Bytes, Failed>>;

    fn call(link: &Link) -> (Calling, Progress) {
        let (link, progress) = (link.clone(), Progress::default());
        let told = progress.clone();
        let calling = tokio::spawn(async move {
            let (head, message) = (Head::new("/a.B/C", None), Bytes::new());
            let answered = exchange::unary(&link, &head, &message, &told).await;
            answered.map(|(_, message, _)| message)
        });
        (calling, progress)
    }

    #[tokio::test]
    async fn a_call_that_never_left_a_connection_that_breaks_goes_over_the_next() {
        let one = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let texts = [&one, &other].map(|listener| listener.local_addr().unwrap().to_string());
        let gateways = Gateways::new(&texts, None).unwrap();
        let (out, _frames) = Out::new();
        let link = Link::open(Arc::new(gateways), out);
        let mut first = accept(&one).await;
        // Once it is answered, what the gateway takes at once is known.
        let (answered, _) = call(&link);
        answer(&mut first).await;
        let running = tokio::spawn(async move {
            let (_, held) = first.accept().await.unwrap().unwrap();
            let held = Some(held);
            poll_fn(|context| first.poll_closed(context)).await.unwrap();
            drop(held);
        });
        answered.await.unwrap().unwrap();
        let (sent, _) = call(&link);
        let (waits, progress) = call(&link);
        while progress.get() == Outcome::NotSent {
            yield_now().await;
        }

        running.abort();
        let mut second = accept(&other).await;
        answer(&mut second).await;
        let serving = tokio::spawn(async move { second.accept().await.is_none() });

        assert_eq!(waits.await.unwrap().unwrap(), [7][..]);
        // The worker may have it.
        let failed = format!("{:?}", sent.await.unwrap().unwrap_err());
        assert!(failed.contains("Unknown"), "{failed}");
        serving.abort();
    }

    /// Whether a gateway is found to be silent, which answers or does not.
    async fn is_silent(answers: bool, patience: Duration, within: Duration) -> bool {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (watched, traffic) = Watched::new(near);
        let serving = tokio::spawn(async move {
            if answers {
                let mut served = h2::server::handshake(far).await.unwrap();
                let _ = poll_fn(|context| served.poll_closed(context)).await;
            } else {
                let _ = far.read_to_end(&mut Vec::new()).await;
            }
        });
        let handshake = Builder::new().handshake::<_, Bytes>(watched);
        let (_sender, mut connection) = handshake.await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let running = tokio::spawn(connection);
        let silent = timeout(within, silence(&traffic, pings, patience)).await;
        running.abort();
        serving.abort();
        silent.is_ok()
    }

    #[tokio::test]
    async fn a_gateway_that_answers_no_ping_is_given_up_and_one_that_does_is_not() {
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(1));
        assert!(is_silent(false, short, 20 * long).await);
        assert!(!is_silent(true, long, 3 * long).await);
    }
}
