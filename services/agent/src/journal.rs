//! What was meant to run, written down before it is started: one entry in each incarnation's directory.
//!
//! An agent that is killed at any point leaves either no entry, and then nothing was started, or a whole
//! one, and then the next agent knows what to look for, where, and what holds it together. The entry goes
//! when the death is recorded; a directory without one holds logs and nothing else.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use prost::Message as _;
use tether_proto::node::StartWorker;
use tether_shim_protocol::{SOCKET_FILE, Walls};
use tether_types::{Address, WorkerId};

use crate::launch;

/// The entry's file: lines that people can read, an empty one, and the order as it came.
const FILE: &str = "order";

/// Modes of that file. The one that could be executed is of a worker that was ready: a mark that takes no file
/// of its own, and goes with the entry.
const PLAIN: u32 = 0o600;
const READY: u32 = 0o700;

/// One incarnation as it was meant.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Entry {
    pub(crate) order: StartWorker,
    /// Where it listens.
    pub(crate) address: Option<Address>,
    /// Whether it lives in a PID namespace of its own.
    pub(crate) namespace: bool,
    /// Its cgroup of version 2.
    pub(crate) cgroup: Option<PathBuf>,
    /// Its cgroups of version 1.
    pub(crate) limiting: Vec<PathBuf>,
    /// The fork server that it is asked of.
    pub(crate) server: Option<WorkerId>,
}

impl Entry {
    /// What is to be started.
    pub(crate) fn new(
        order: StartWorker,
        address: Address,
        walls: &Walls,
        server: Option<WorkerId>,
    ) -> Self {
        let path = |bytes: &Vec<u8>| launch::path_of(bytes).to_owned();
        Self {
            order,
            address: Some(address),
            namespace: walls.namespace,
            cgroup: walls.cgroup.as_ref().map(path),
            limiting: walls.limiting.iter().map(path).collect(),
            server,
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = Vec::new();
        let mut line = |key: &str, value: &[u8]| {
            text.extend([key.as_bytes(), b" ", value, b"\n"].concat());
        };
        if let Some(address) = &self.address {
            line("address", address.to_string().as_bytes());
        }
        if self.namespace {
            line("namespace", b"own");
        }
        if let Some(server) = &self.server {
            // Incarnation 0, which its short form leaves out.
            line("server", server.to_string().as_bytes());
        }
        let limiting = self.limiting.iter().map(|path| ("limiting", path));
        for (key, path) in self
            .cgroup
            .iter()
            .map(|path| ("cgroup", path))
            .chain(limiting)
        {
            line(key, path.as_os_str().as_encoded_bytes());
        }
        text.push(b'\n');
        text.extend(self.order.encode_to_vec());
        let unfinished = dir.join("order.new");
        let written = fs::write(&unfinished, text);
        let written = written.and_then(|()| fs::rename(&unfinished, dir.join(FILE)));
        // Half of one takes room, most likely where there is none.
        written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    /// That of a directory that somebody may have left; none where the death is recorded, or nothing was
    /// started. One that makes no sense is one all the same: something may live of it.
    pub(crate) fn find(dir: &Path) -> Option<Self> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => Some(Self::parse(&bytes).unwrap_or_default()),
            Err(_) => (!is_history(dir)).then(Self::default),
        }
    }

    /// Reads it back; none where nothing was started.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read(dir.join(FILE)).ok()?)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut entry = Self::default();
        let mut rest = bytes;
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if line.is_empty() {
                entry.order = StartWorker::decode(rest).ok()?;
                return Some(entry);
            }
            let space = line.iter().position(|byte| *byte == b' ')?;
            let value = &line[space + 1..];
            match &line[..space] {
                b"address" => entry.address = str::from_utf8(value).ok()?.parse().ok(),
                b"namespace" => entry.namespace = true,
                b"server" => entry.server = str::from_utf8(value).ok()?.parse().ok(),
                b"cgroup" => entry.cgroup = Some(launch::path_of(value).to_owned()),
                b"limiting" => entry.limiting.push(launch::path_of(value).to_owned()),
                // A later version's, about something this one does not know.
                _ => {}
            }
        }
    }

    /// Whether what the cgroup holds is all there can be: in a namespace of its own nothing is out of the
    /// kernel's sight, whatever it did to its environment and its cgroup, and it ended with the shim.
    pub(crate) fn is_sealed(&self) -> bool {
        self.namespace && self.cgroup.is_some()
    }
}

/// Whether the directory is of a worker whose death is recorded.
pub(crate) fn is_history(dir: &Path) -> bool {
    !dir.join(FILE).exists()
}

/// Marks the worker as one that was ready, or takes the mark back: one that was need not be asked again by an
/// agent that comes later, and some could not be.
///
/// # Errors
/// When the entry's mode cannot be changed.
pub(crate) fn mark(dir: &Path, ready: bool) -> io::Result<()> {
    let mode = if ready { READY } else { PLAIN };
    fs::set_permissions(dir.join(FILE), fs::Permissions::from_mode(mode))
}

/// Whether the worker was ready.
pub(crate) fn is_marked(dir: &Path) -> bool {
    let mode = fs::metadata(dir.join(FILE)).map(|of| of.permissions().mode());
    mode.is_ok_and(|mode| mode & 0o777 == READY)
}

/// Takes the entry away: the death is recorded. With it goes the socket of a shim that was killed.
pub(crate) fn close(dir: &Path) {
    let _ = fs::remove_file(dir.join(FILE));
    let _ = fs::remove_file(dir.join(SOCKET_FILE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_written_and_half_of_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry {
            order: StartWorker {
                owner: "checkout\n\nhost".into(),
                lease_grace_ms: 7,
                ..StartWorker::default()
            },
            address: Some("unix:/run/with space/w.sock".parse().unwrap()),
            namespace: true,
            cgroup: Some("/sys/fs/cgroup/t/a.0.1".into()),
            limiting: vec!["/sys/fs/cgroup/memory/t/a.0.1".into()],
            server: Some("forkserver/7".parse().unwrap()),
        };

        assert!(is_history(dir.path()));
        entry.write(dir.path()).unwrap();

        assert!(!is_history(dir.path()));
        assert!(!is_marked(dir.path()));
        mark(dir.path(), true).unwrap();
        assert!(is_marked(dir.path()));
        mark(dir.path(), false).unwrap();
        assert!(!is_marked(dir.path()));
        assert_eq!(Entry::read(dir.path()), Some(entry));
        let bytes = fs::read(dir.path().join(FILE)).unwrap();
        for length in 0..bytes.len() {
            fs::write(dir.path().join(FILE), &bytes[..length]).unwrap();
            let half = Entry::read(dir.path());
            assert!(half.is_none_or(
                |half| half.order.owner != "checkout\n\nhost" || half.order.lease_grace_ms == 0
            ));
        }
        close(dir.path());
        assert!(is_history(dir.path()));
    }
}
