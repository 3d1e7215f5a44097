//! Writing a history.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tether_clock::{Clock, Tick};

use crate::{Record, What};

/// The end of the names of history files.
pub(crate) const SUFFIX: &str = "jsonl";

/// How many lives of one service one directory holds the files of.
const LIVES_MAX: u32 = 1_000_000;

/// Writes a history, or does nothing where none is wanted. Clones write to one file.
///
/// Each line is one write, so a kill costs at most the last one. A line that cannot be written is lost: a
/// full disk must not end leases.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    file: File,
    clock: Arc<dyn Clock>,
}

impl Recorder {
    /// Writes nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// Writes to a new file in a directory, which is made where it is missing: `SERVICE.1.jsonl`, or with the
    /// next number where a life before has that one. Tells which.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub fn open(
        dir: &Path,
        service: &str,
        boot: &str,
        clock: Arc<dyn Clock>,
    ) -> io::Result<(Self, PathBuf)> {
        fs::create_dir_all(dir)?;
        let (file, path) = first_free(dir, service)?;
        let open = Open { file, clock };
        let opened = What::Opened {
            service: service.to_owned(),
            boot: boot.to_owned(),
        };
        open.write(open.clock.now(), opened)?;
        Ok((Self(Some(Arc::new(open))), path))
    }

    /// Whether anything is written: what is costly to put together is put together only then.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Writes a line that says what has just happened.
    pub fn record(&self, what: impl FnOnce() -> What) {
        if let Some(open) = &self.0 {
            let _ = open.write(open.clock.now(), what());
        }
    }

    /// Writes a line that says what happened at `at`.
    pub fn record_at(&self, at: Tick, what: impl FnOnce() -> What) {
        if let Some(open) = &self.0 {
            let _ = open.write(at, what());
        }
    }
}

fn first_free(dir: &Path, service: &str) -> io::Result<(File, PathBuf)> {
    for life in 1..LIVES_MAX {
        let path = dir.join(format!("{service}.{life}.{SUFFIX}"));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|file| (file, path)),
        }
    }
    Err(io::Error::other("the directory is full of earlier ones"))
}

impl Open {
    fn write(&self, at: Tick, what: What) -> io::Result<()> {
        let at = at.as_nanos();
        let mut line = serde_json::to_vec(&Record { at, what })?;
        line.push(b'\n');
        (&self.file).write_all(&line)
    }
}
