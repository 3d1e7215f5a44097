//! DNS over TCP: as `hickory-server` takes it, but for so many connections at most, and without a rush where there are
//! no more of them to be had.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use hickory_server::{
    net::{
        runtime::{TokioTime, iocompat::AsyncIoTokioAsStd},
        tcp::TcpStream,
        xfer::Protocol,
    },
    server::{Request, RequestHandler, ResponseHandle, TimeoutStream},
};
use tokio::{
    net::{self, TcpListener},
    sync::Semaphore,
    task::JoinSet,
};

/// So many connections at once; more wait until one of these is closed.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// A connection over which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(5);
/// So many answers wait for a connection that does not take them.
const ANSWERS_WAITING: usize = 16;
/// How long it takes a process that has no more files to have one again, perhaps.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until no connection can come any more; why.
pub(super) async fn serve(
    listener: TcpListener,
    handler: impl RequestHandler + Clone,
) -> io::Error {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            return io::ErrorKind::Other.into();
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let handler = handler.clone();
                connections.spawn(async move {
                    answer(stream, from, handler).await;
                    drop(turn);
                });
            }
            // It listens no more.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return error,
            Err(error) => {
                tracing::warn!(%error, "A connection for DNS could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one connection, a question after the other.
async fn answer(stream: net::TcpStream, from: SocketAddr, handler: impl RequestHandler) {
    let stream = AsyncIoTokioAsStd(stream);
    let (stream, answers) = TcpStream::from_stream_with_buffer_size(stream, from, ANSWERS_WAITING);
    let mut questions = TimeoutStream::new(stream, IDLE);
    while let Some(Ok(question)) = questions.next().await {
        let (bytes, _) = question.into_parts();
        // Who sends what is no question has nothing to ask.
        let Ok(request) = Request::from_bytes(bytes, from, Protocol::Tcp) else {
            return;
        };
        let answer = ResponseHandle::new(from, answers.clone(), Protocol::Tcp);
        handler
            .handle_request::<_, TokioTime>(&request, answer)
            .await;
    }
}
