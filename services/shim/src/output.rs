//! The worker's output: always read, so that it never blocks, and kept within a limit.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::io::Errno;

/// One read of a full pipe takes four of these; a larger one would only add to the resident set.
const CHUNK_BYTES: usize = 16 * 1024;

/// The most a pipe can hold, and so the most that is read once the worker is gone.
const PIPE_MAX_BYTES: usize = 1 << 20;

/// One stream of the worker: pipe, log and the last bytes.
#[derive(Debug)]
pub(crate) struct Capture {
    pipe: Option<OwnedFd>,
    log: Log,
    tail: Vec<u8>,
    tail_limit: usize,
}

impl Capture {
    pub(crate) fn new(pipe: OwnedFd, log: Log, tail_limit: usize) -> Self {
        Self {
            pipe: Some(pipe),
            log,
            tail: Vec::new(),
            tail_limit,
        }
    }

    /// The pipe, until its last writer has closed it.
    pub(crate) fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// Reads one chunk and says how much it got.
    pub(crate) fn read_chunk(&mut self) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        let mut bytes = [0; CHUNK_BYTES];
        match rustix::io::read(pipe, &mut bytes) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                self.log.append(&bytes[..count]);
                self.remember(&bytes[..count]);
                return count;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.pipe = None,
        }
        0
    }

    /// Reads what a dead worker left in the pipe. A process outside the tree that was handed the
    /// other end may go on writing, so this ends after what a pipe can hold.
    pub(crate) fn drain(&mut self) {
        let mut read = 0;
        while read < PIPE_MAX_BYTES {
            match self.read_chunk() {
                0 => return,
                count => read += count,
            }
        }
    }

    /// The last bytes of the stream.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Bytes that could not be written to the log.
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.log.lost_bytes
    }

    fn remember(&mut self, bytes: &[u8]) {
        self.tail
            .extend(&bytes[bytes.len().saturating_sub(self.tail_limit)..]);
        self.tail
            .drain(..self.tail.len().saturating_sub(self.tail_limit));
    }
}

/// A log file that is moved to `.1` when it reaches its limit, so that two limits bound both.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    limit: u64,
    file: Option<File>,
    size: u64,
    lost_bytes: u64,
}

impl Log {
    /// The log at `path`; a `limit` of 0 keeps none.
    pub(crate) fn new(path: impl Into<PathBuf>, limit: u64) -> Self {
        let path = path.into();
        let size = fs::metadata(&path).map_or(0, |data| data.len());
        Self {
            path,
            limit,
            file: None,
            size,
            lost_bytes: 0,
        }
    }

    /// Appends, rotating as often as it takes. What cannot be written is counted and dropped: a
    /// full disk must neither block the worker nor end it.
    fn append(&mut self, mut bytes: &[u8]) {
        while self.limit > 0 && !bytes.is_empty() {
            if self.size >= self.limit {
                self.rotate();
            }
            let room = usize::try_from(self.limit - self.size).unwrap_or(usize::MAX);
            match self.write(&bytes[..bytes.len().min(room)]) {
                Some(0) => {}
                Some(count) => {
                    self.size += count as u64;
                    bytes = &bytes[count..];
                }
                None => {
                    self.lost_bytes += bytes.len() as u64;
                    return;
                }
            }
        }
    }

    /// Writes once: the count, or `None` where nothing can be written at present.
    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            self.file = options
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.path)
                .ok();
        }
        match self.file.as_mut()?.write(bytes) {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => Some(0),
            Err(_) => None,
        }
    }

    fn rotate(&mut self) {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        // Where it cannot be moved it is emptied: the limit is a promise to the disk.
        if fs::rename(&self.path, older).is_err() {
            let _ = fs::remove_file(&self.path);
        }
        self.file = None;
        self.size = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_the_newest_and_stays_within_two_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::new(&path, 10);

        for chunk in ["0123456", "789abcdefghijkl", "mn", "", "o"] {
            log.append(chunk.as_bytes());
        }

        assert_eq!(fs::read_to_string(&path).unwrap(), "klmno");
        assert_eq!(
            fs::read_to_string(dir.path().join("log.1")).unwrap(),
            "abcdefghij"
        );
        assert_eq!(log.lost_bytes, 0);
    }

    #[test]
    fn a_full_disk_is_counted_and_nothing_else() {
        let mut log = Log::new("/dev/full", 1000);

        log.append(b"twelve bytes");

        assert_eq!(log.lost_bytes, 12);
    }

    #[test]
    fn only_the_end_of_a_stream_is_remembered() {
        let (pipe, end) = rustix::pipe::pipe().unwrap();
        let mut capture = Capture::new(pipe, Log::new("/nowhere", 0), 4);

        for chunk in ["ab", "cdefgh", "i"] {
            rustix::io::write(&end, chunk.as_bytes()).unwrap();
            capture.read_chunk();
        }
        drop(end);
        capture.drain();

        assert_eq!(capture.tail(), b"fghi");
        assert!(capture.pipe().is_none());
    }
}
