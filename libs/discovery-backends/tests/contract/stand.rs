//! An HTTP server in this process whose answers a test gives, and which can be taken away and brought back.

use std::{future::Future, net::SocketAddr};

use futures::stream::BoxStream;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

/// What is answered, perhaps bit by bit.
pub(crate) type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>;

/// All of a body at once.
pub(crate) fn whole(text: String) -> Body {
    let frame = Frame::data(Bytes::from(text));
    StreamBody::new(Box::pin(futures::stream::iter([Ok(frame)])))
}

/// A server on a loopback port of its own.
pub(crate) struct Stand {
    pub(crate) address: SocketAddr,
    /// Ends with all its connections when dropped.
    tasks: Option<JoinSet<()>>,
}

impl Stand {
    /// Serves with `answer` from here on.
    pub(crate) async fn start<F>(
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut stand = Self {
            address: ([127, 0, 0, 1], 0).into(),
            tasks: None,
        };
        stand.back(answer).await;
        stand
    }

    /// Nobody listens, and all connections are closed.
    pub(crate) async fn away(&mut self) {
        if let Some(mut tasks) = self.tasks.take() {
            tasks.shutdown().await;
        }
    }

    /// Serves again, at the same address.
    pub(crate) async fn back<F>(
        &mut self,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        let answer = answer.clone();
                        let service = service_fn(move |request| {
                            let answer = answer(request);
                            async { Ok::<_, std::convert::Infallible>(answer.await) }
                        });
                        connections.spawn(async move {
                            // A client that leaves is none of our concern.
                            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        self.tasks = Some(tasks);
    }
}
