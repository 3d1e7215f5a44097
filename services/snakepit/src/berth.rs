//! Berths: each program takes one of its own for as long as it lives, and finds there what an earlier one left.
//!
//! A berth is a directory, locked by whoever has it: the kernel lets go of the lock when the program ends, however it
//! ends. Of several programs that ask for the same worker at once each gets another berth; they look one after the
//! other, so that nobody passes over what another only looks at.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::request::Launch;

/// What its worker is started by.
const LAUNCH: &str = "launch.json";

/// Which life of the BEAM had its worker last.
const RUN_ID: &str = "run-id";

/// Where the process beside its worker is told who is attached.
const RELAY: &str = "relay.sock";

/// A berth that this program has.
#[derive(Debug)]
pub(crate) struct Berth {
    dir: PathBuf,
    name: String,
    _lock: File,
}

impl Berth {
    /// Takes a berth for a worker of this key: one where a worker lives, where that is wanted and there is one that
    /// nobody has, else the first that is free. Clears away berths that nobody has and nothing lives in.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(crate) fn claim(base: &Path, key: u64, with_worker: bool) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(base)?;
        let turn = File::open(base)?;
        flock(&turn, FlockOperation::LockExclusive)?;
        let own = format!("{key:016x}-");
        let mut names: Vec<String> = fs::read_dir(base)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        for name in names {
            let Some(berth) = Self::lock(base, &name)? else {
                continue;
            };
            if !berth.has_worker() {
                berth.remove();
            } else if with_worker && name.starts_with(&own) {
                return Ok(berth);
            }
        }
        for index in 0.. {
            let name = format!("{own}{index}");
            match DirBuilder::new().mode(0o700).create(base.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            if let Some(berth) = Self::lock(base, &name)? {
                return Ok(berth);
            }
        }
        unreachable!("numbers do not end")
    }

    /// None where somebody has it, or it is gone.
    fn lock(base: &Path, name: &str) -> io::Result<Option<Self>> {
        let dir = base.join(name);
        let lock = match File::open(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // What was locked may have been removed by who had it, and another one made in its berth.
        let same = fs::metadata(&dir).is_ok_and(|there| {
            lock.metadata()
                .is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
        });
        Ok(same.then(|| Self {
            name: name.to_owned(),
            dir,
            _lock: lock,
        }))
    }

    /// The same name for whoever has this berth after us.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn relay(&self) -> PathBuf {
        relay(&self.dir)
    }

    /// Whether the process beside a worker still listens.
    pub(crate) fn has_worker(&self) -> bool {
        UnixStream::connect(self.relay()).is_ok()
    }

    /// Whether this life of the BEAM has had the worker before. It has then killed its program, as it does with a
    /// worker that it distrusts: that one is not to come back.
    pub(crate) fn is_known_to(&self, run_id: &str) -> bool {
        let last = fs::read_to_string(self.dir.join(RUN_ID));
        !run_id.is_empty() && last.is_ok_and(|last| last == run_id)
    }

    /// Writes down which life of the BEAM has the worker from here on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn note(&self, run_id: &str) -> io::Result<()> {
        fs::write(self.dir.join(RUN_ID), run_id)
    }

    /// Writes down what is to be started here.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, launch: &Launch) -> io::Result<()> {
        let path = self.dir.join(LAUNCH);
        let whole = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&whole)?;
        file.write_all(&serde_json::to_vec(launch)?)?;
        // Whoever reads it finds all of it.
        fs::rename(whole, path)
    }

    /// Nothing lives here any more.
    pub(crate) fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What is to be started in this berth.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn launch(dir: &Path) -> io::Result<Launch> {
    Ok(serde_json::from_slice(&fs::read(dir.join(LAUNCH))?)?)
}

pub(crate) fn relay(dir: &Path) -> PathBuf {
    dir.join(RELAY)
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        os::unix::{ffi::OsStringExt as _, net::UnixListener},
    };

    use super::*;

    #[test]
    fn each_has_a_place_of_its_own_and_it_is_free_again_when_its_holder_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let claim = |key| Berth::claim(base.path(), key, true).unwrap();

        let (first, second, other) = (claim(1), claim(1), claim(2));
        assert_eq!(
            [first.name(), second.name(), other.name()],
            [
                "0000000000000001-0",
                "0000000000000001-1",
                "0000000000000002-0"
            ]
        );
        drop(first);
        assert_eq!(claim(1).name(), "0000000000000001-0");
    }

    #[test]
    fn where_a_worker_lives_is_taken_first_and_only_by_who_wants_that() {
        let base = tempfile::tempdir().unwrap();
        let claim = |key, with_worker| Berth::claim(base.path(), key, with_worker).unwrap();
        let (dead, living) = (claim(1, true), claim(1, true));
        let _worker = UnixListener::bind(living.relay()).unwrap();
        let dead_dir = dead.dir().to_owned();
        drop((dead, living));

        let wants_none = claim(1, false);
        assert_eq!(wants_none.name(), "0000000000000001-0");
        let adopts = claim(1, true);
        assert_eq!(adopts.name(), "0000000000000001-1");
        assert!(adopts.has_worker());
        assert_eq!(claim(1, true).name(), "0000000000000001-2");

        drop(wants_none);
        let _other = claim(2, true);
        assert!(
            !dead_dir.exists(),
            "what nobody has and nothing lives in is cleared away"
        );
    }

    #[test]
    fn a_place_knows_the_beam_that_had_it() {
        let base = tempfile::tempdir().unwrap();
        let berth = Berth::claim(base.path(), 1, true).unwrap();

        assert!(!berth.is_known_to("a") && !berth.is_known_to(""));
        berth.note("a").unwrap();
        assert!(berth.is_known_to("a") && !berth.is_known_to("b"));
        berth.note("").unwrap();
        assert!(!berth.is_known_to(""), "nobody can tell");
    }

    #[test]
    fn what_is_to_be_started_is_read_as_it_was_written_by_this_user_alone() {
        let base = tempfile::tempdir().unwrap();
        let berth = Berth::claim(base.path(), 1, true).unwrap();
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let written = Launch {
            argv: vec!["python3".into(), odd.clone()],
            cwd: "/srv".into(),
            env: vec![("SECRET".into(), odd)],
            port: Some(5000),
        };

        berth.write(&written).unwrap();

        assert_eq!(launch(berth.dir()).unwrap(), written);
        let mode = fs::metadata(berth.dir().join(LAUNCH)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
