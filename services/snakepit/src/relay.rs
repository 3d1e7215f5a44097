//! The worker's way to its BEAM: a gRPC server at an address that stays, whoever owns the worker.
//!
//! It ends calls rather than passing connections on: gRPC in Python backs off while its peer is away, and the first
//! calls of a worker that is adopted would fail.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tether_kit::serve::{CONNECTION_WINDOW, STREAM_WINDOW};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attach::{Attach, End, Word},
    local,
    passing::{Passing, unavailable},
    upstream::Upstream,
};

/// Snakepit's own channel allows more calls at once than hyper does by itself.
const STREAMS: u32 = 10_000;

/// After a connection that could not be accepted: nothing is to take a whole processor meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Who owns the worker, and where that one's BEAM is.
#[derive(Debug)]
pub(crate) struct Owners {
    attached: Mutex<Attached>,
    /// Where the worker serves; none before it does.
    port: watch::Sender<Option<u16>>,
}

#[derive(Debug, Default)]
struct Attached {
    /// The latest that ever was.
    epoch: u64,
    to: Option<Owner>,
}

#[derive(Debug, Clone)]
struct Owner {
    beam: Arc<Upstream>,
    /// Cancelled when it is attached no more.
    over: CancellationToken,
}

impl Default for Owners {
    fn default() -> Self {
        Self {
            attached: Mutex::default(),
            port: watch::Sender::new(None),
        }
    }
}

impl Owners {
    /// The worker serves at this port.
    pub(crate) fn serves(&self, port: u16) {
        self.port.send_replace(Some(port));
    }

    fn with<T>(&self, see: impl FnOnce(&mut Attached) -> T) -> T {
        see(&mut self.attached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self) -> Option<Owner> {
        self.with(|attached| attached.to.clone())
    }

    /// Takes this one for the owner, in the place of any before.
    ///
    /// # Errors
    /// Tells the epoch of the one that came later.
    fn attach(&self, attach: Attach) -> Result<Owner, u64> {
        self.with(|attached| {
            if attach.epoch < attached.epoch {
                return Err(attached.epoch);
            }
            let owner = Owner {
                beam: Arc::new(Upstream::new(attach.elixir_address)),
                over: CancellationToken::new(),
            };
            attached.epoch = attach.epoch;
            if let Some(before) = attached.to.replace(owner.clone()) {
                before.over.cancel();
            }
            Ok(owner)
        })
    }

    /// This one is gone.
    fn detach(&self, owner: &Owner) {
        owner.over.cancel();
        self.with(|attached| {
            attached.to.take_if(|to| Arc::ptr_eq(&to.beam, &owner.beam));
        });
    }

    /// Has an owner attached for as long as its connection lasts.
    async fn serve(&self, mut end: End) -> io::Result<()> {
        let Some(attach) = end.next().await? else {
            return Ok(());
        };
        let owner = match self.attach(attach) {
            Ok(owner) => owner,
            Err(epoch) => return end.say(&Word::Fenced(epoch)).await,
        };
        let attached = async {
            let mut port = self.port.subscribe();
            let port = port
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|port| *port);
            if let Some(port) = port {
                end.say(&Word::Serves(port)).await?;
            }
            // It has nothing more to say: this is its end.
            end.next::<Attach>().await
        };
        let displaced = tokio::select! {
            _ = attached => false,
            () = owner.over.cancelled() => true,
        };
        self.detach(&owner);
        if displaced {
            let epoch = self.with(|attached| attached.epoch);
            end.say(&Word::Fenced(epoch)).await?;
        }
        Ok(())
    }
}

/// Who came; none, after a pause, where that failed: too many open files pass, and the relay is there for as long as
/// the worker lives.
async fn or_pause<T>(accepted: io::Result<T>) -> Option<T> {
    if accepted.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
    accepted.ok()
}

/// Serves programs that come to own the worker.
pub(crate) async fn serve_owners(listener: UnixListener, owners: Arc<Owners>) {
    loop {
        let Some((stream, _)) = or_pause(listener.accept().await).await else {
            continue;
        };
        let owners = Arc::clone(&owners);
        tokio::spawn(async move { owners.serve(End::of(stream)).await });
    }
}

/// Serves what the worker asks of its BEAM.
pub(crate) async fn serve_callbacks(listener: TcpListener, owners: Arc<Owners>) {
    loop {
        let Some((stream, _)) = or_pause(listener.accept().await).await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let owners = Arc::clone(&owners);
        let answer = move |request| {
            let owners = Arc::clone(&owners);
            async move { call_back(&owners, request).await }
        };
        tokio::spawn(serve(stream, answer));
    }
}

/// Serves what gateways ask of the worker.
pub(crate) async fn serve_calls(listener: UnixListener, worker: Arc<Upstream>) {
    let never = CancellationToken::new();
    loop {
        let Some((stream, _)) = or_pause(listener.accept().await).await else {
            continue;
        };
        let (worker, never) = (Arc::clone(&worker), never.clone());
        let answer = move |request| {
            let (worker, never) = (Arc::clone(&worker), never.clone());
            async move { forward(&worker, request, never).await }
        };
        tokio::spawn(serve(stream, answer));
    }
}

pub(crate) async fn serve<A>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> A + Send + Sync + 'static,
) where
    A: Future<Output = Response<Passing>> + Send + 'static,
{
    let answer = service_fn(move |request| {
        let answer = answer(request);
        async { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    // A connection that breaks has nobody left to be told.
    let _ = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn call_back(owners: &Owners, request: Request<Incoming>) -> Response<Passing> {
    if let Some(answer) = local::answer(request.uri().path()) {
        // Read to its end, or it is reset.
        let _ = request.into_body().collect().await;
        return head(Passing::answer(answer));
    }
    match owners.current() {
        Some(owner) => forward(&owner.beam, request, owner.over).await,
        None => refuse("no BEAM is attached to this worker"),
    }
}

async fn forward(
    to: &Upstream,
    request: Request<Incoming>,
    over: CancellationToken,
) -> Response<Passing> {
    let answered = tokio::select! {
        answered = to.send(request) => answered,
        () = over.cancelled() => Err(io::Error::other("the BEAM that was to answer is gone")),
    };
    match answered {
        Ok(answer) => answer.map(|from| Passing::Through {
            from,
            over: Box::pin(over.cancelled_owned()),
            ended: false,
        }),
        Err(error) => refuse(&error.to_string()),
    }
}

fn head(body: Passing) -> Response<Passing> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn refuse(why: &str) -> Response<Passing> {
    let mut response = head(Passing::nothing());
    response.headers_mut().extend(unavailable(why));
    response
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, getrlimit, setrlimit};
    use tokio::{net::UnixStream, time::timeout};

    use super::*;

    /// Attaches an owner of this epoch.
    async fn attach(owners: &Arc<Owners>, epoch: u64) -> End {
        let (own, other) = UnixStream::pair().unwrap();
        let owners = Arc::clone(owners);
        tokio::spawn(async move { owners.serve(End::of(other)).await });
        let mut end = End::of(own);
        let elixir_address = format!("h:{epoch}");
        let attach = Attach {
            epoch,
            elixir_address,
        };
        end.say(&attach).await.unwrap();
        end
    }

    #[tokio::test]
    async fn an_earlier_owner_is_put_out_by_a_later_one_and_does_not_come_back() {
        let owners = Arc::new(Owners::default());
        owners.serves(4711);
        let mut first = attach(&owners, 5).await;
        assert_eq!(first.next().await.unwrap(), Some(Word::Serves(4711)));
        let call = owners.current().unwrap().over;

        let mut second = attach(&owners, 7).await;
        assert_eq!(second.next().await.unwrap(), Some(Word::Serves(4711)));
        assert_eq!(first.next().await.unwrap(), Some(Word::Fenced(7)));
        assert!(call.is_cancelled(), "what waits for the first is told so");

        let mut again = attach(&owners, 5).await;
        assert_eq!(again.next().await.unwrap(), Some(Word::Fenced(7)));
        assert_eq!(again.next::<Word>().await.unwrap(), None);
        assert!(!owners.current().unwrap().over.is_cancelled());
    }

    /// Each test runs in a process of its own: the limit is nobody else's.
    #[tokio::test]
    async fn who_comes_while_files_run_out_is_served_when_there_are_some_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.sock");
        let owners = Arc::new(Owners::default());
        owners.serves(4711);
        let listener = UnixListener::bind(&path).unwrap();
        let mut end = End::of(UnixStream::connect(&path).await.unwrap());
        let given = getrlimit(Resource::Nofile);
        let mut none = given;
        none.current = Some(0);
        setrlimit(Resource::Nofile, none).unwrap();

        let mut serving = tokio::spawn(serve_owners(listener, Arc::clone(&owners)));
        let ended = timeout(2 * PAUSE, &mut serving).await;

        setrlimit(Resource::Nofile, given).unwrap();
        assert!(ended.is_err(), "{ended:?}");
        let attach = Attach {
            epoch: 1,
            elixir_address: "h:1".to_owned(),
        };
        end.say(&attach).await.unwrap();
        assert_eq!(end.next().await.unwrap(), Some(Word::Serves(4711)));
    }

    #[tokio::test]
    async fn who_is_attached_early_hears_of_the_port_once_there_is_one_and_is_gone_with_its_connection()
     {
        let owners = Arc::new(Owners::default());
        let mut early = attach(&owners, 1).await;
        owners.serves(4711);
        assert_eq!(early.next().await.unwrap(), Some(Word::Serves(4711)));
        let over = owners.current().unwrap().over;

        drop(early);

        over.cancelled().await;
        assert!(owners.current().is_none());
    }
}
