//! Writing a history.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tether_clock::{Clock, Tick};

use crate::{Record, What};

/// The end of the names of history files.
pub(crate) const SUFFIX: &str = "jsonl";

/// How many lives of one service one directory holds the files of.
const LIVES_MAX: u32 = 1_000_000;

static INSTALLED: OnceLock<Recorder> = OnceLock::new();

/// Has [`note`] write to this recorder, for the whole process. The first one counts.
pub fn install(recorder: Recorder) {
    let _ = INSTALLED.set(recorder);
}

/// Whether [`note`] writes anything: what is costly to put together is put together only then.
pub fn is_on() -> bool {
    INSTALLED.get().is_some()
}

/// Writes a line that says what has just happened, where a recorder is installed.
pub fn note(what: impl FnOnce() -> What) {
    if let Some(recorder) = INSTALLED.get() {
        recorder.record(what());
    }
}

/// What is left until `until`, in nanoseconds, as the lines say it.
pub fn left(until: Tick, now: Tick) -> u64 {
    u64::try_from(until.since(now).as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a history.
///
/// Each line is one write, so a kill costs at most the last one. A line that cannot be written is lost: a
/// full disk must not end leases.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    clock: Box<dyn Clock>,
}

impl Recorder {
    /// Writes to a new file in a directory, which is made where it is missing: `SERVICE.1.jsonl`, or with the
    /// next number where a life before has that one. Tells which.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub fn open(
        dir: &Path,
        service: &str,
        boot: &str,
        clock: impl Clock,
    ) -> io::Result<(Self, PathBuf)> {
        fs::create_dir_all(dir)?;
        let (file, path) = first_free(dir, service)?;
        let clock = Box::new(clock);
        let recorder = Self { file, clock };
        recorder.write(What::Opened {
            service: service.to_owned(),
            boot: boot.to_owned(),
        })?;
        Ok((recorder, path))
    }

    /// Writes a line that says what has just happened.
    pub fn record(&self, what: What) {
        let _ = self.write(what);
    }

    fn write(&self, what: What) -> io::Result<()> {
        let at = self.clock.now().as_nanos();
        let mut line = serde_json::to_vec(&Record { at, what })?;
        line.push(b'\n');
        (&self.file).write_all(&line)
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
