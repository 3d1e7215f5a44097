//! The agent's end of the link to a shim: frames over a unix stream.

use std::io;

use tether_shim_protocol::{Decoder, Message, encode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A shim says little, and there may be a thousand of them.
const BUFFER_BYTES: usize = 2 << 10;

/// Receives from a shim.
#[derive(Debug)]
pub(crate) struct FromShim {
    stream: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
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
            buffer: vec![0; BUFFER_BYTES],
        },
        ToShim(write),
    )
}

impl FromShim {
    /// The next message; none when the shim has gone. Cancel-safe: bytes read stay in the decoder.
    ///
    /// # Errors
    /// When the bytes make no sense.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.decoder.next_message().map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) => return Ok(None),
                Ok(read) => self.decoder.push(&self.buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
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
