//! A clerk: a small gRPC server with one hand, which sleeps for as long as a call takes.

use std::{path::Path, sync::mpsc, thread, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use h2::{
    RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    book::{Book, Step},
    order::{METHOD, Order},
};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A message that says SERVING.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// How a clerk works.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// How long a call takes that does not say.
    pub work: Duration,
    /// How many times as long each takes as it should.
    pub slowness: u32,
}

/// A call that waits for the clerk's hand.
struct Job {
    order: Order,
    done: oneshot::Sender<()>,
}

/// Serves at an address until told to stop, and then what has come by then.
///
/// # Errors
/// When it cannot listen or write.
pub async fn serve(
    address: &str,
    book: &Path,
    manner: Manner,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (hand, jobs) = mpsc::channel();
    let writes = Book::open(book)?;
    let book = Book::open(book)?;
    thread::spawn(move || work(&jobs, &writes, manner));
    let clerk = std::sync::Arc::new(Clerk { hand, book });
    let tasks = TaskTracker::new();
    let listener = Listener::bind(address).await?;
    while let Some(stream) = stop.run_until_cancelled(listener.accept()).await {
        let (clerk, stop, calls) = (std::sync::Arc::clone(&clerk), stop.clone(), tasks.clone());
        let stream = stream?;
        // A connection that breaks is seen by who made it.
        tasks.spawn(async move { clerk.connection(stream, stop, calls).await.ok() });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// One call after the other.
fn work(jobs: &mpsc::Receiver<Job>, book: &Book, manner: Manner) {
    for Job { order, done } in jobs {
        // Nobody waits for it any more.
        if done.is_closed() {
            continue;
        }
        let asked = match order.work {
            Duration::ZERO => manner.work,
            asked => asked,
        };
        if book.write(order.id, Step::Began).is_err() {
            return;
        }
        thread::sleep(asked * manner.slowness);
        let _ = book.write(order.id, Step::Ended);
        let _ = done.send(());
    }
}

#[derive(Debug)]
struct Clerk {
    hand: mpsc::Sender<Job>,
    book: Book,
}

impl Clerk {
    async fn connection(
        self: std::sync::Arc<Self>,
        stream: Box<dyn Stream>,
        stop: CancellationToken,
        calls: TaskTracker,
    ) -> anyhow::Result<()> {
        let mut connection = server::handshake(stream).await?;
        let mut stopping = false;
        loop {
            let call = tokio::select! {
                call = connection.accept() => call,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.graceful_shutdown();
                    continue;
                }
            };
            let Some(call) = call else { return Ok(()) };
            let (request, respond) = call?;
            let clerk = std::sync::Arc::clone(&self);
            calls.spawn(async move { clerk.answer(request, respond).await.ok() });
        }
    }

    async fn answer(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> anyhow::Result<()> {
        let (head, mut body) = request.into_parts();
        // As some ask for health without gRPC.
        if head.method == Method::GET {
            respond.send_response(Response::new(()), true)?;
            return Ok(());
        }
        let mut message = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            message.extend_from_slice(&chunk);
        }
        let message = match head.uri.path() {
            HEALTH => Bytes::from_static(SERVING),
            METHOD => {
                let nameless = Order {
                    id: 0,
                    work: Duration::ZERO,
                };
                let order = Order::next(&message).map_or(nameless, |(order, _)| order);
                self.book.write(order.id, Step::Came)?;
                let (done, served) = oneshot::channel();
                self.hand
                    .send(Job { order, done })
                    .ok()
                    .context("the hand is gone")?;
                tokio::select! {
                    served = served => served?,
                    // Taken back: what has not begun does not.
                    reset = std::future::poll_fn(|cx| respond.poll_reset(cx)) => drop(reset?),
                }
                message.into()
            }
            other => anyhow::bail!("there is no method `{other}`"),
        };
        let mut response = Response::new(());
        let grpc = HeaderValue::from_static("application/grpc");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, grpc);
        let mut stream = respond.send_response(response, false)?;
        stream.send_data(message, false)?;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Ok(stream.send_trailers(trailers)?)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(address: &str) -> anyhow::Result<Self> {
        Ok(match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(UnixListener::bind(path)?),
            None => Self::Tcp(TcpListener::bind(address).await?),
        })
    }

    async fn accept(&self) -> anyhow::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}
