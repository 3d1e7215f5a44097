//! A text in what a worker writes, also where it wrote it before anybody looked.

use std::path::{Path, PathBuf};

use tether_shim_protocol::{STDERR_FILE, STDOUT_FILE};

use super::{Last, pause::Pauses};
use crate::output::Log;

/// Comes back when a line that contains `text` was written to either log of this directory.
pub(super) async fn written(dir: PathBuf, text: String, last: Last) {
    let mut streams = [STDOUT_FILE, STDERR_FILE].map(|name| Search::new(&dir, name, &text));
    let mut pauses = Pauses::new();
    loop {
        for search in &mut streams {
            if search.find().await {
                return;
            }
        }
        let read: u64 = streams.iter().map(|search| search.read).sum();
        last.set(format!("none of the {read} bytes it wrote hold it"));
        pauses.rest().await;
    }
}

/// The search in one stream.
struct Search {
    log: Log,
    text: Vec<u8>,
    /// The end of what was read, in which the text may have begun.
    kept: Vec<u8>,
    read: u64,
}

impl Search {
    fn new(dir: &Path, name: &str, text: &str) -> Self {
        Self {
            log: Log::new(dir.join(name)),
            text: text.as_bytes().to_owned(),
            kept: Vec::new(),
            read: 0,
        }
    }

    /// Whether the text is in what was written since the last look.
    async fn find(&mut self) -> bool {
        // A log that cannot be read at the moment may be readable at the next look.
        while let Ok(Some(piece)) = self.log.next().await {
            if self.is_in(&piece) {
                return true;
            }
        }
        false
    }

    fn is_in(&mut self, piece: &[u8]) -> bool {
        self.read += piece.len() as u64;
        self.kept.extend_from_slice(piece);
        let wanted = self.text.len().max(1);
        if self.kept.windows(wanted).any(|window| window == self.text) || self.text.is_empty() {
            return true;
        }
        let done = self.kept.len().saturating_sub(wanted - 1);
        self.kept.drain(..done);
        false
    }
}
