//! The agent's end of the link to a shim: frames over a unix stream.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use tether_shim_protocol::{Decoder, Message, encode, zygote::FDS_MAX};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Longer than all a shim says but a death with the last words of its worker.
const BUFFER_BYTES: usize = 2 << 10;

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
    stream: &UnixStream,
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
        match recvmsg(stream.as_fd(), &mut buffers, &mut control, flags) {
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
