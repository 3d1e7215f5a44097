//! The one task of a connection that touches its socket.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tether_http2::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::{Sleep, sleep},
};

use crate::shared::Shared;

/// How much is read at once: this at first, and more where that fills it.
const READ: usize = 8 << 10;
const MOST_READ: usize = 64 << 10;
/// How often is read before others have their turn.
const READS: usize = 8;
/// How many times as often where nothing can be written any more.
const LAST_READS: usize = 16;
/// How long a socket may take to be closed: longer than a gateway waits for the other side to do so.
const CLOSING: Duration = Duration::from_secs(2);
/// How many pieces are written at once.
const PIECES: usize = 32;

#[derive(Debug)]
pub(crate) struct Driver<S> {
    io: S,
    shared: Arc<Shared>,
    input: BytesMut,
    read: usize,
    /// Whether what was written is still to be flushed.
    flushes: bool,
    /// Whether it has asked for another turn although nothing wakes it.
    pub(crate) comes_back: bool,
    /// Until when the socket may take to be closed.
    closing: Option<Pin<Box<Sleep>>>,
    /// Why the connection is over, once it is.
    ended: Option<Result<(), Error>>,
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        // Whatever was said before: streams that are under way now may have been begun with.
        let kind = io::ErrorKind::ConnectionAborted;
        let error = Error::Io(kind, "it was given up".to_owned());
        self.shared.lock().fail(&error);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(crate) fn new(io: S, shared: Arc<Shared>) -> Self {
        Self {
            io,
            shared,
            input: BytesMut::new(),
            read: READ,
            flushes: false,
            comes_back: false,
            closing: None,
            ended: None,
        }
    }

    /// Writes what is there, reads what is there, and hands it on. Ends with the connection.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.comes_back = false;
        if let Err(error) = self.write(cx) {
            self.hear_out(cx);
            return self.lost(error);
        }
        if self.ended.is_none() {
            match self.read(cx) {
                // What calls have to say to it is written when they have run.
                Ok(true) => {
                    self.comes_back = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(false) => {}
                Err(error) => return self.lost(error),
            }
        }
        let (is_over, is_written) = {
            let mut core = self.shared.lock();
            (
                core.connection.is_over(),
                core.connection.output().is_empty(),
            )
        };
        // A last word is written if the other side takes it.
        if self.ended.is_none() && !(is_over && is_written) {
            return Poll::Pending;
        }
        ready!(self.poll_close(cx));
        Poll::Ready(self.ended.clone().unwrap_or(Ok(())))
    }

    /// Whether the other side hears of the end does not matter any more, so that it has not long to.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.io).poll_shutdown(cx).is_ready() {
            return Poll::Ready(());
        }
        let closing = self.closing.get_or_insert_with(|| Box::pin(sleep(CLOSING)));
        closing.as_mut().poll(cx)
    }

    /// What the other side said before it closed is still there to be read.
    fn hear_out(&mut self, cx: &mut Context<'_>) {
        for _ in 0..LAST_READS {
            if self.ended.is_some() || !matches!(self.read(cx), Ok(true)) {
                return;
            }
        }
    }

    fn lost(&mut self, error: Error) -> Poll<Result<(), Error>> {
        self.shared.lock().fail(&error);
        Poll::Ready(Err(error))
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut core = self.shared.lock();
        core.on_drive(cx);
        let mut wrote = false;
        let output = core.connection.output();
        while !output.is_empty() {
            let mut room = [IoSlice::new(&[]); PIECES];
            let count = output.slices(&mut room);
            let io = Pin::new(&mut self.io);
            let written = match &room[..count] {
                [one] => io.poll_write(cx, one),
                many => io.poll_write_vectored(cx, many),
            };
            match written {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(written)) => output.advance(written),
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
            wrote = true;
        }
        if wrote {
            core.connection.on_written();
            self.flushes = true;
            core.wake_writers();
            core.wake_openers();
        }
        // With TLS what was written may still be on its way.
        if self.flushes {
            self.flushes = Pin::new(&mut self.io).poll_flush(cx)?.is_pending();
        }
        Ok(())
    }

    /// Answers whether it has to come back although nothing wakes it.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut has_read = false;
        for _ in 0..READS {
            if self.input.capacity() - self.input.len() < self.read / 2 {
                self.input.reserve(self.read);
            }
            let room = self.input.capacity() - self.input.len();
            let reading = pin!(self.io.read_buf(&mut self.input));
            let count = match reading.poll(cx) {
                Poll::Pending => {
                    let has_output = || !self.shared.lock().connection.output().is_empty();
                    return Ok(has_read && has_output());
                }
                Poll::Ready(count) => count?,
            };
            if count == 0 {
                self.on_end();
                return Ok(true);
            }
            self.read = next_read(self.read, room, count);
            has_read = true;
            if let Err(error) = self.parse() {
                self.shared.lock().fail(&error);
                self.ended = Some(Err(error));
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn parse(&mut self) -> Result<(), Error> {
        let mut core = self.shared.lock();
        let parsed = loop {
            match core.connection.next(&mut self.input) {
                Ok(Some(event)) => core.on_event(event),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        core.on_parsed();
        if self.input.is_empty() && self.read == READ && self.input.capacity() > READ {
            self.input = BytesMut::new();
        }
        parsed
    }

    /// Nothing more comes.
    fn on_end(&mut self) {
        let mut core = self.shared.lock();
        let had_streams = core.connection.has_open_streams() || core.has_requests();
        let closed = core.connection.is_closed();
        let kind = io::ErrorKind::UnexpectedEof;
        let error = Error::Io(kind, "the other side closed it".to_owned());
        core.fail(&error);
        self.ended = Some(match had_streams && closed.is_none() {
            true => Err(error),
            false => Ok(()),
        });
    }
}

/// How much is read at once when so much came where there was this much room: more where it was filled, and less again
/// when little comes.
fn next_read(read: usize, room: usize, count: usize) -> usize {
    if count == room {
        return (read * 2).min(MOST_READ);
    }
    match count < read / 8 {
        true => (read / 2).max(READ),
        false => read,
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tether_http2::{Config, Role};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn nothing_is_kept_of_the_room_that_much_was_read_into() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut driver = Driver::new(far, Shared::new(Role::Server, Config::default()));
        let mut cx = Context::from_waker(Waker::noop());
        // Frames of a kind that nobody knows, and then small ones.
        let large = [&[0, 0x40, 0, 0xee, 0, 0, 0, 0, 0][..], &[0; 0x4000]].concat();
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let said = [&hello[..], &large.repeat(12)].concat();
        near.write_all(&said).await.expect("there is room");
        assert!(driver.poll(&mut cx).is_pending());
        assert_eq!(driver.read, MOST_READ);
        for _ in 0..4 {
            near.write_all(&[0, 0, 0, 0xee, 0, 0, 0, 0, 0])
                .await
                .expect("there is room");
            assert!(driver.poll(&mut cx).is_pending());
        }
        assert!(driver.input.capacity() <= READ);
    }

    #[test]
    fn more_is_read_at_once_where_much_comes_and_less_again_where_little_does() {
        let mut read = READ;
        for _ in 0..10 {
            read = next_read(read, read, read);
        }
        assert_eq!(read, MOST_READ);
        assert_eq!(next_read(read, read, read / 2), MOST_READ);
        for _ in 0..10 {
            read = next_read(read, read, 100);
        }
        assert_eq!(read, READ);
    }
}
