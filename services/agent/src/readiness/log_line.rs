//! A text in what a worker writes, also where it wrote it before anybody looked.

use std::path::{Path, PathBuf};

use tether_shim_protocol::{STDERR_FILE, STDOUT_FILE};

use super::{FIRST_PAUSE, Last, rest};
use crate::output::Log;

/// Comes back when a line that contains `text` was written to either log of this directory.
pub(super) async fn written(dir: PathBuf, text: String, last: Last) {
    let mut streams = [STDOUT_FILE, STDERR_FILE].map(|name| Search::new(&dir, name, &text));
    let mut pause = FIRST_PAUSE;
    loop {
        for search in &mut streams {
            if search.find().await {
                return;
            }
        }
        let read: u64 = streams.iter().map(|search| search.read).sum();
        last.set(format!("none of the {read} bytes it wrote hold it"));
        rest(&mut pause).await;
    }
}

/// The search in one stream.
struct Search {
    /// The rotated log, read once and first, then the one that is written.
    logs: Vec<Log>,
    text: Vec<u8>,
    /// The end of what was read, in which the text may have begun.
    kept: Vec<u8>,
    read: u64,
}

impl Search {
    fn new(dir: &Path, name: &str, text: &str) -> Self {
        let logs = [name.to_owned(), format!("{name}.1")];
        Self {
            logs: logs.map(|name| Log::new(dir.join(name))).into(),
            text: text.as_bytes().to_owned(),
            kept: Vec::new(),
            read: 0,
        }
    }

    /// Whether the text is in what was written since the last look.
    async fn find(&mut self) -> bool {
        // Opened before the rotated one is read: what is rotated meanwhile is still read from it.
        if let [current, _] = &mut self.logs[..] {
            current.open().await;
        }
        while let Some(log) = self.logs.last_mut() {
            match log.next().await {
                Ok(Some(piece)) => {
                    if self.is_in(&piece) {
                        return true;
                    }
                }
                Ok(None) | Err(_) if self.logs.len() > 1 => drop(self.logs.pop()),
                // A log that cannot be read at the moment may be readable at the next look.
                Ok(None) | Err(_) => return false,
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
