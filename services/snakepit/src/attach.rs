//! What a program and the process beside its worker say to each other: JSON, a line each, over a socket that is open
//! for as long as the program is attached.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// From a program to its worker: here is the owner of this epoch, and the BEAM is at this address.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attach {
    pub(crate) epoch: u64,
    pub(crate) elixir_address: String,
}

/// From a worker to its program.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// It serves at this port.
    Serves(u16),
    /// An owner of a later epoch is attached, or was: this one.
    Fenced(u64),
}

/// One end of such a socket.
#[derive(Debug)]
pub(crate) struct End {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl End {
    pub(crate) fn of(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            lines: BufReader::new(reader).lines(),
            writer,
        }
    }

    pub(crate) async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::of(UnixStream::connect(path).await?))
    }

    pub(crate) async fn say(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// What the other end says next; none once it is gone. Cancel-safe.
    pub(crate) async fn next<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<Option<T>> {
        match self.lines.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}
