//! The first bytes of a connection: HTTP/2, or somebody who should be told what this is.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use tether_kit::tls::HANDSHAKE;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{Sleep, sleep},
};

/// What every HTTP/2 connection begins with, and no other.
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// How long the other side may take to close a connection of which it has had all.
const LINGER: Duration = Duration::from_secs(1);

const NOT_GRPC: &str = "this is the Tether gateway, a gRPC endpoint over HTTP/2: \
    use a gRPC client, or `curl --http2-prior-knowledge` to look around\n";

/// Reads the first bytes. One that does not speak HTTP/2 is told so, as HTTP/1 would have it, and `None` is
/// answered.
pub(crate) async fn greet<S>(mut stream: S) -> io::Result<Option<Rewound<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut first = BytesMut::with_capacity(HTTP2.len());
    while first.len() < HTTP2.len() {
        let so_far = first.len();
        if stream.read_buf(&mut first).await? == 0 {
            return Ok(None);
        }
        let to_see = HTTP2.len().min(first.len());
        if first[so_far..to_see] != HTTP2[so_far..to_see] {
            if first[0] == HANDSHAKE {
                tracing::warn!("A client spoke TLS where plain text is spoken");
            }
            stream.write_all(refusal().as_bytes()).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
    }
    Ok(Some(Rewound {
        first: first.freeze(),
        stream,
        lingers: None,
    }))
}

fn refusal() -> String {
    let length = NOT_GRPC.len();
    format!(
        "HTTP/1.1 426 Upgrade Required\r\nupgrade: h2c\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{NOT_GRPC}"
    )
}

/// A stream of which the first bytes were looked at, and are there again.
///
/// It is shut down when its other side has heard all: the kernel resets a connection that is closed while something of
/// the other side is unread, which then loses the last answers, though they have come.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    first: Bytes,
    stream: S,
    /// There once nothing more is sent; until when the other side is waited for.
    lingers: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Rewound<S> {
    /// Waits until the other side has done, and passes over what it says.
    fn poll_linger(&mut self, cx: &mut Context<'_>, lingers: &mut Pin<Box<Sleep>>) -> Poll<()> {
        if lingers.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let mut space = [MaybeUninit::uninit(); 1024];
            let mut space = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space));
            if read.is_err() || space.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lingers = match self.lingers.take() {
            Some(lingers) => lingers,
            None => {
                ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
                Box::pin(sleep(LINGER))
            }
        };
        let lingered = self.poll_linger(cx, &mut lingers);
        self.lingers = Some(lingers);
        lingered.map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore";

    #[tokio::test]
    async fn http2_is_all_there_however_its_first_bytes_come() {
        for cut in 1..PREFACE.len() {
            let (mut client, server) = duplex(1024);
            let greeted = tokio::spawn(greet(server));
            client.write_all(&PREFACE[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&PREFACE[cut..]).await.unwrap();
            client.shutdown().await.unwrap();

            let mut stream = greeted.await.unwrap().unwrap().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();

            assert_eq!(all, PREFACE, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn whoever_does_not_speak_it_is_told() {
        for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRINCE", b"\x16\x03\x01"] {
            let (mut client, server) = duplex(1024);
            let greeted = tokio::spawn(greet(server));
            client.write_all(first).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();

            assert!(greeted.await.unwrap().unwrap().is_none());
            assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
            assert!(answer.ends_with(NOT_GRPC), "{answer}");
        }
    }

    #[tokio::test]
    async fn it_is_shut_down_when_the_other_side_has_done_or_for_too_long_has_not() {
        for goes in [true, false] {
            let (mut client, server) = duplex(1024);
            client.write_all(PREFACE).await.unwrap();
            let mut stream = greet(server).await.unwrap().unwrap();
            let shut = tokio::spawn(async move {
                stream.write_all(b"all").await?;
                stream.shutdown().await
            });
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"all");
            client.write_all(b"late").await.unwrap();
            assert!(!shut.is_finished());

            let began = tokio::time::Instant::now();
            let client = (!goes).then_some(client);
            shut.await.unwrap().unwrap();

            assert_eq!(began.elapsed() >= LINGER, !goes);
            drop(client);
        }
    }

    #[tokio::test]
    async fn one_that_goes_without_a_word_is_no_trouble() {
        let (client, server) = duplex(1024);
        drop(client);
        assert!(greet(server).await.unwrap().is_none());
    }
}
