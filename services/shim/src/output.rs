//! The worker's output: always read, so that it never blocks, and kept within a limit.

use alloc::format;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, rename};
use rustix::io::Errno;
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::Logs;

use crate::files;

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
    #[inline(never)] // Nobody else's frame is to be as large.
    pub(crate) fn read_chunk(&mut self) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        // Not written to before the read: most of these pages are never needed.
        let mut space = [MaybeUninit::<u8>::uninit(); CHUNK_BYTES];
        match rustix::io::read(pipe, &mut space[..]) {
            Ok(([], _)) => self.pipe = None,
            Ok((bytes, _)) => {
                let bytes: &[u8] = bytes;
                self.log.append(bytes);
                self.remember(bytes);
                return bytes.len();
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
    path: Vec<u8>,
    keep: Logs,
    file: Option<OwnedFd>,
    size: u64,
    /// When its first byte was written.
    since: Tick,
    lost_bytes: u64,
}

impl Log {
    /// The log at `path`; a limit of 0 keeps none.
    pub(crate) fn new(path: &[u8], keep: Logs) -> Self {
        Self {
            path: path.to_vec(),
            keep,
            file: None,
            size: 0,
            since: BootClock.now(),
            lost_bytes: 0,
        }
    }

    /// Appends, rotating as often as it takes. What cannot be written is counted and dropped: a
    /// full disk must neither block the worker nor end it.
    fn append(&mut self, mut bytes: &[u8]) {
        let limit = self.keep.limit_bytes;
        while limit > 0 && !bytes.is_empty() {
            if self.size >= limit || self.is_old() {
                self.rotate();
            }
            let room = usize::try_from(limit - self.size).unwrap_or(usize::MAX);
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
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
            self.file = files::open(&self.path, flags, Mode::RUSR | Mode::WUSR).ok();
        }
        match rustix::io::write(self.file.as_ref()?, bytes) {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(Errno::INTR) => Some(0),
            Err(_) => None,
        }
    }

    fn is_old(&self) -> bool {
        let age = Duration::from_millis(self.keep.max_age_ms);
        !age.is_zero() && self.size > 0 && BootClock.now().since(self.since) >= age
    }

    /// Each older part moves one further, and the oldest is overwritten.
    fn rotate(&mut self) {
        for number in (1..self.keep.files.max(1)).rev() {
            let _ = rename(self.part(number), self.part(number + 1));
        }
        // Where it cannot be moved it is emptied: the limit is a promise to the disk.
        if rename(self.path.as_slice(), self.part(1)).is_err() {
            let _ = files::remove(&self.path);
        }
        self.file = None;
        self.size = 0;
        self.since = BootClock.now();
    }

    fn part(&self, number: u32) -> Vec<u8> {
        [&self.path, format!(".{number}").as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    fn log_at(path: &Path, keep: Logs) -> Log {
        Log::new(path.as_os_str().as_bytes(), keep)
    }

    fn keep(limit_bytes: u64, files: u32) -> Logs {
        Logs {
            limit_bytes,
            max_age_ms: 0,
            files,
        }
    }

    #[test]
    fn as_many_rotated_parts_are_kept_as_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = log_at(&path, keep(2, 2));

        log.append(b"aabbccdd");

        let parts = ["log.2", "log.1", "log", "log.3"]
            .map(|name| fs::read_to_string(dir.path().join(name)).unwrap_or_default());
        assert_eq!(parts, ["bb", "cc", "dd", ""]);
    }

    #[test]
    fn an_old_log_is_rotated_at_the_next_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let aged = Logs {
            max_age_ms: 1000,
            ..keep(100, 0)
        };
        let mut log = log_at(&path, aged);
        log.append(b"old");
        log.append(b"er");

        log.since = Tick::ZERO;
        log.append(b"new");

        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            fs::read_to_string(dir.path().join("log.1")).unwrap(),
            "older"
        );
    }

    #[test]
    fn a_log_keeps_the_newest_and_stays_within_two_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = log_at(&path, keep(10, 0));

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
        let mut log = Log::new(b"/dev/full", keep(1000, 0));

        log.append(b"twelve bytes");

        assert_eq!(log.lost_bytes, 12);
    }

    #[test]
    fn only_the_end_of_a_stream_is_remembered() {
        let (pipe, end) = rustix::pipe::pipe().unwrap();
        let mut capture = Capture::new(pipe, Log::new(b"/nowhere", keep(0, 0)), 4);

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
