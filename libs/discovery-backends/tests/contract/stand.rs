//! An HTTP server in this process whose answers a test gives, and which can be taken away and brought back.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures::{future::BoxFuture, stream::BoxStream};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// What is answered, perhaps bit by bit.
pub(crate) type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

/// All of a body at once.
pub(crate) fn whole(text: String) -> Body {
    let frame = Frame::data(Bytes::from(text));
    StreamBody::new(Box::pin(futures::stream::iter([Ok(frame)])))
}

/// Answers one request, by what is there now and by what comes.
pub(crate) type Answers<S> =
    fn(Request<Incoming>, Arc<Mutex<S>>, watch::Receiver<()>) -> BoxFuture<'static, Response<Body>>;

/// A server on a loopback port of its own, that answers by what a test has it know.
pub(crate) struct Stand<S> {
    address: SocketAddr,
    known: Arc<Mutex<S>>,
    changed: watch::Sender<()>,
    answers: Answers<S>,
    /// Ends with all its connections when dropped.
    tasks: Option<JoinSet<()>>,
}

impl<S: Send + 'static> Stand<S> {
    /// Serves from here on.
    pub(crate) async fn start(known: S, answers: Answers<S>) -> Self {
        let mut stand = Self {
            address: ([127, 0, 0, 1], 0).into(),
            known: Arc::new(Mutex::new(known)),
            changed: watch::Sender::new(()),
            answers,
            tasks: None,
        };
        stand.back().await;
        stand
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks at what it knows or changes it, and tells everybody who waits for a change.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut S) -> T) -> T {
        let changed = change(&mut self.known.lock().unwrap());
        self.changed.send_replace(());
        changed
    }

    /// Nobody listens, and all connections are closed.
    pub(crate) async fn away(&mut self) {
        if let Some(mut tasks) = self.tasks.take() {
            tasks.shutdown().await;
        }
    }

    /// Serves again, at the same address.
    pub(crate) async fn back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (known, changed, answers) =
            (Arc::clone(&self.known), self.changed.clone(), self.answers);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        let (known, changed) = (Arc::clone(&known), changed.clone());
                        let service = service_fn(move |request| {
                            let answer = answers(request, Arc::clone(&known), changed.subscribe());
                            async { Ok::<_, Infallible>(answer.await) }
                        });
                        connections.spawn(async move {
                            // A client that leaves is none of our concern.
                            let _ = http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        self.tasks = Some(tasks);
    }
}
