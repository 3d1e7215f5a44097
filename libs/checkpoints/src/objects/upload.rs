//! Bytes on their way into the store.

use std::{fmt, io, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, buffered::BufWriter};
use ring::digest::{Context, SHA256};
use tokio::{io::AsyncWriteExt as _, sync::OwnedSemaphorePermit};

use crate::{
    error::{Address, Error},
    name::{Name, Sha256},
};

/// What is smaller goes in one piece.
const PIECE: u64 = 8 << 20;

/// A bucket takes 10,000 of an upload.
const PIECES: u64 = 9_000;

/// Pieces of one upload that are on their way at once, beside the one that is filled.
const PIECES_AT_ONCE: usize = 2;

/// How large a piece of an upload is.
pub(super) fn piece(bytes: u64) -> usize {
    let piece = PIECE.max(bytes.div_ceil(PIECES));
    usize::try_from(piece).unwrap_or(usize::MAX)
}

/// Bytes on their way. Nothing can be seen of them before they are whole.
pub struct Upload {
    writer: BufWriter,
    _turn: Option<OwnedSemaphorePermit>,
    hash: Context,
    left: u64,
    sha256: Sha256,
    address: Address,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("Upload");
        told.field("left", &self.left).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn begin(
        store: Arc<dyn ObjectStore>,
        address: Address,
        name: &Name,
        sha256: Sha256,
        bytes: u64,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let writer = BufWriter::with_capacity(store, name.path(), piece(bytes));
        Self {
            writer: writer.with_max_concurrency(PIECES_AT_ONCE),
            _turn: turn,
            hash: Context::new(&SHA256),
            left: bytes,
            sha256,
            address,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are more than were announced, or as the store says.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        let many = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let left = self.left.checked_sub(many);
        self.left = left.ok_or(Error::Torn("there are more"))?;
        self.hash.update(&bytes);
        let put = self.writer.put(bytes).await;
        put.map_err(|error| self.address.tell(error))
    }

    /// That was all: it is durable when this returns.
    ///
    /// # Errors
    /// When that is not what was announced, or as the store says.
    pub async fn finish(mut self) -> Result<(), Error> {
        let torn = match self.hash.clone().finish().as_ref() == self.sha256 {
            _ if self.left > 0 => Some("there are less"),
            false => Some("their SHA-256 is another"),
            true => None,
        };
        if let Some(torn) = torn {
            self.abort().await;
            return Err(Error::Torn(torn));
        }
        let told = |source: io::Error| {
            self.address.tell(object_store::Error::Generic {
                store: "checkpoints",
                source: source.into(),
            })
        };
        self.writer.shutdown().await.map_err(told)
    }

    /// Lets go of what was written. An upload in pieces that is only dropped stays in its bucket.
    pub async fn abort(&mut self) {
        // What a bucket keeps of it for all that is for its lifecycle rules, and of a directory for the next sweep.
        let _ = self.writer.abort().await;
    }
}
