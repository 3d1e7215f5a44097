//! The agent's end of the link to a shim: frames over a unix stream.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as Stream,
    },
    path::Path,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
        SocketFlags, SocketType, connect, recvmsg, socket_with,
    },
};
use tether_shim_protocol::{Decoder, Message, SOCKET_FILE, encode, zygote::FDS_MAX};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Longer than all a shim says but a death with the last words of its worker.
const BUFFER_BYTES: usize = 2 << 10;

/// A connection to a shim that was found, of which the runtime knows nothing yet.
#[derive(Debug)]
pub(crate) struct Reached {
    stream: OwnedFd,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
}

/// Receives from a shim.
#[derive(Debug)]
pub(crate) struct FromShim {
    stream: OwnedReadHalf,
    decoder: Decoder,
    /// Came beside what was received.
    descriptors: Vec<OwnedFd>,
}

/// Sends to a shim.
#[derive(Debug)]
pub(crate) struct ToShim(OwnedWriteHalf);

/// Splits a connected stream into the two directions.
pub(crate) fn split(stream: UnixStream) -> (FromShim, ToShim) {
    let (read, write) = stream.into_split();
    (
        FromShim {
            stream: read,
            decoder: Decoder::default(),
            descriptors: Vec::new(),
        },
        ToShim(write),
    )
}

impl Reached {
    /// Connects to the shim in this runtime directory; waits neither for room nor for an answer.
    ///
    /// # Errors
    /// When nobody listens there, or too many wait already.
    pub(crate) fn connect(dir: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&stream, &SocketAddrUnix::new(dir.join(SOCKET_FILE))?)?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            descriptors: Vec::new(),
        })
    }

    /// A message that has come already. What there is to be known of a broken link, [`FromShim`] will tell.
    pub(crate) fn try_next(&mut self) -> Option<Message> {
        let Self {
            stream,
            decoder,
            descriptors,
        } = self;
        receive(stream, decoder, descriptors).ok()?;
        decoder.next_message().ok()?
    }

    /// The descriptors that came beside what was received so far.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// The two directions, for the runtime to wait at.
    ///
    /// # Errors
    /// When it cannot wait for one more.
    pub(crate) fn split(self) -> io::Result<(FromShim, ToShim)> {
        let stream = UnixStream::from_std(Stream::from(self.stream))?;
        let (mut from, to) = split(stream);
        (from.decoder, from.descriptors) = (self.decoder, self.descriptors);
        Ok((from, to))
    }
}

impl FromShim {
    /// The descriptors that came beside what was received so far.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// The next message; none when the shim has gone. Cancel-safe: bytes read stay in the decoder.
    ///
    /// # Errors
    /// When the bytes make no sense.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.decoder.next_message().map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            let Self {
                stream,
                decoder,
                descriptors,
            } = &mut *self;
            let stream: &UnixStream = (*stream).as_ref();
            let received = stream
                .async_io(Interest::READABLE, || receive(stream, decoder, descriptors))
                .await;
            match received {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(
    stream: impl AsFd,
    decoder: &mut Decoder,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // Not one for each: there may be a thousand shims, and most say nothing for days.
    let mut buffer = [0; BUFFER_BYTES];
    let mut buffers = [IoSliceMut::new(&mut buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match recvmsg(&stream, &mut buffers, &mut control, flags) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    decoder.push(&buffer[..received.bytes]);
    Ok(received.bytes)
}

impl ToShim {
    /// Sends one message. A shim that is gone is noticed by the reading side, so a failure here
    /// needs no answer of its own.
    pub(crate) async fn send(&mut self, message: &Message) {
        if let Err(error) = self.0.write_all(&encode(message)).await {
            tracing::debug!(%error, "Shim takes no more messages");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener};

    use tether_shim_protocol::Cause;

    use super::*;

    #[tokio::test]
    async fn what_a_found_shim_has_said_is_heard_at_once_and_nothing_is_lost_of_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Reached::connect(dir.path()).is_err());
        let listener = UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap();
        let said = [Cause::Exited, Cause::Recycled, Cause::Unhealthy]
            .map(|cause| Message::Ending { cause });
        let [first, second, third] = said.each_ref().map(encode);

        let mut reached = Reached::connect(dir.path()).unwrap();
        assert_eq!(reached.try_next(), None);
        let (mut shim, _) = listener.accept().unwrap();
        let (begun, rest) = third.split_at(3);
        shim.write_all(&[&first, &second, begun].concat()).unwrap();
        assert_eq!(reached.try_next().as_ref(), Some(&said[0]));
        let (mut from, _to) = reached.split().unwrap();
        shim.write_all(rest).unwrap();
        drop(shim);

        assert_eq!(from.next().await.unwrap().as_ref(), Some(&said[1]));
        assert_eq!(from.next().await.unwrap().as_ref(), Some(&said[2]));
        assert_eq!(from.next().await.unwrap(), None);
    }
}
