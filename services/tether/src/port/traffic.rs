//! What of a connection has left this process, and whether anything came: between HTTP/2 and the socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tether_kit::listen::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What was seen of one connection; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    said: Said,
    has_heard: bool,
    is_severed: bool,
}

impl Traffic {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything came since this was asked last.
    pub(crate) fn has_heard(&self) -> bool {
        std::mem::take(&mut self.seen().has_heard)
    }

    /// Nothing leaves from here on: the connection breaks with what is said next.
    pub(crate) fn sever(&self) {
        self.seen().is_severed = true;
    }

    /// Whether the head of this stream has left, on a connection that is broken: nothing more leaves from here on.
    pub(crate) fn had_said(&self, stream: u32) -> bool {
        let mut seen = self.seen();
        seen.is_severed = true;
        stream <= seen.said.last
    }
}

/// The frames that a client says, followed only so far that it is known which stream was opened last. Streams are
/// opened in the order of their numbers.
#[derive(Debug)]
struct Said {
    last: u32,
    /// Bytes before the next frame.
    before: usize,
    /// Of that as much as was said.
    head: [u8; HEAD],
    length: usize,
}

const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;

impl Default for Said {
    fn default() -> Self {
        Self {
            last: 0,
            before: PREFACE,
            head: [0; HEAD],
            length: 0,
        }
    }
}

impl Said {
    fn on(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.before.min(bytes.len());
            self.before -= skipped;
            bytes = &bytes[skipped..];
            let more = bytes.len().min(HEAD - self.length);
            if more == 0 {
                return;
            }
            self.head[self.length..self.length + more].copy_from_slice(&bytes[..more]);
            self.length += more;
            bytes = &bytes[more..];
            if self.length == HEAD {
                self.length = 0;
                let [a, b, c, kind, _, id @ ..] = self.head;
                self.before = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if kind == HEADERS {
                    self.last = self.last.max(u32::from_be_bytes(id));
                }
            }
        }
    }
}

/// A socket that is watched.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    io: S,
    traffic: Traffic,
    /// Whether a part of what it could not write may have left.
    tells_nothing: bool,
}

impl Watched<Stream> {
    /// Under TLS what is written goes out as several records, and of those before the one that failed nothing is told.
    pub(crate) fn of(stream: Stream) -> (Self, Traffic) {
        let tells_nothing = matches!(stream, Stream::Tls(_));
        let (watched, traffic) = Self::new(stream);
        let watched = Self {
            tells_nothing,
            ..watched
        };
        (watched, traffic)
    }
}

impl<S> Watched<S> {
    pub(crate) fn new(io: S) -> (Self, Traffic) {
        let traffic = Traffic::default();
        let watched = Self {
            io,
            traffic: traffic.clone(),
            tells_nothing: false,
        };
        (watched, traffic)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.traffic.seen().has_heard = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self {
            io,
            traffic,
            tells_nothing,
        } = &mut *self;
        // Held while it is written: who asks what has left is answered before or after that.
        let mut seen = traffic.seen();
        if seen.is_severed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = ready!(Pin::new(io).poll_write_vectored(context, pieces));
        let mut left = match &written {
            Ok(written) => *written,
            Err(_) if *tells_nothing => usize::MAX,
            Err(_) => 0,
        };
        for piece in pieces {
            let part = piece.len().min(left);
            seen.said.on(&piece[..part]);
            left -= part;
        }
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, stream: u32, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, 0], &stream.to_be_bytes()].concat();
        [head, vec![1; payload]].concat()
    }

    #[test]
    fn a_stream_has_left_once_its_head_has_however_that_is_cut() {
        let said = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 18),
            frame(HEADERS, 1, 30),
            frame(0, 1, 70_000),
            frame(HEADERS, 3, 0),
            frame(8, 0, 4),
            frame(HEADERS, 5, 12),
        ]
        .concat();
        let ends = [
            (24 + 27 + 9, 1),
            (24 + 27 + 39 + 70_009 + 9, 3),
            (said.len() - 12, 5),
        ];
        for step in [1, 2, 7, 9, 4_096, said.len()] {
            let mut scan = Said::default();
            let mut length = 0;
            for part in said.chunks(step) {
                scan.on(part);
                length += part.len();
                let left = ends.iter().filter(|(end, _)| *end <= length);
                assert_eq!(
                    scan.last,
                    left.map(|(_, id)| *id).max().unwrap_or(0),
                    "{length}"
                );
            }
        }
    }

    /// Fails to write.
    struct Breaks;

    impl AsyncWrite for Breaks {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_may_have_left_before_a_write_failed_counts_as_said() {
        for tells_nothing in [true, false] {
            let (watched, traffic) = Watched::new(Breaks);
            let mut watched = Watched {
                tells_nothing,
                ..watched
            };
            let said = [vec![0; PREFACE], frame(HEADERS, 1, 3)].concat();

            let failed = watched.write_all(&said).await;

            let kind = failed.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::ConnectionReset);
            assert_eq!(traffic.had_said(1), tells_nothing);
        }
    }

    #[tokio::test]
    async fn nothing_leaves_once_it_was_asked_what_has_left() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut watched, traffic) = Watched::new(near);
        watched.write_all(&[0; PREFACE]).await.unwrap();
        watched.write_all(&frame(HEADERS, 1, 3)).await.unwrap();
        assert!(!traffic.has_heard());
        far.write_all(b"x").await.unwrap();
        watched.read_u8().await.unwrap();
        assert!(traffic.has_heard() && !traffic.has_heard());

        assert!(traffic.had_said(1) && !traffic.had_said(3));

        let refused = watched.write_all(&frame(HEADERS, 3, 3)).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
