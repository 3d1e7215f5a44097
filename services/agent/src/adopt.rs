//! Finds what an earlier agent left in the runtime directory.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    forkserver,
    journal::Entry,
    worker::{self, Found, Held},
};

/// How many dead workers' directories are kept for their logs.
const HISTORY_MAX: usize = 32;

/// How many are given to the runtime at a time.
const HANDFUL: usize = 16;

/// What an earlier agent left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) workers: Vec<Found>,
    pub(crate) forkservers: Vec<Found>,
    /// Directories that only hold the logs of the dead, oldest first.
    pub(crate) history: History,
}

impl Left {
    /// The names of all directories of which something may live.
    pub(crate) fn names(&self) -> BTreeSet<&OsStr> {
        let found = self.workers.iter().chain(&self.forkservers);
        found.filter_map(|found| found.dir.file_name()).collect()
    }
}

/// Directories of dead workers, kept for their logs up to a bound (P5).
#[derive(Debug, Default)]
pub(crate) struct History(std::collections::VecDeque<PathBuf>);

impl History {
    /// Keeps one more, and removes the oldest beyond the bound.
    pub(crate) fn keep(&mut self, dir: PathBuf) {
        self.0.push_back(dir);
        while self.0.len() > HISTORY_MAX {
            // One that wrote nothing takes one call, which matters where workers live for a moment.
            if let Some(oldest) = self.0.pop_front()
                && fs::remove_dir(&oldest).is_err()
                && let Err(error) = fs::remove_dir_all(&oldest)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(dir = %oldest.display(), %error, "Cannot remove the logs of a dead worker");
            }
        }
    }
}

/// Looks through the runtime directory, and knocks at each shim that may be there.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn scan(workers: &Path) -> io::Result<Left> {
    let mut left = Left::default();
    let mut history = Vec::new();
    for entry in fs::read_dir(workers)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(worker::named) else {
            continue;
        };
        let dir = entry.path();
        let Some(meant) = Entry::find(&dir) else {
            history.push((entry.metadata()?.modified()?, dir));
            continue;
        };
        let of_kind = if forkserver::is_one(&id) {
            &mut left.forkservers
        } else {
            &mut left.workers
        };
        of_kind.push(Found::new(id, dir, meant));
    }
    history.sort();
    for (_, path) in history {
        left.history.keep(path);
    }
    Ok(left)
}

/// Has all of them watched, a few at a time: that of a thousand workers keeps the runtime busy, and the first
/// words with the arbiter are not to wait behind it.
pub(crate) async fn watch(mut held: Vec<Held>) {
    // First those of whom nothing is told yet.
    held.sort_by_key(Held::is_running);
    for (number, held) in held.into_iter().enumerate() {
        held.watch();
        if number % HANDFUL == HANDFUL - 1 {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_bounded_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for incarnation in 0..HISTORY_MAX + 5 {
            fs::create_dir(dir.path().join(format!("digits.0.{incarnation}"))).unwrap();
        }
        fs::create_dir(dir.path().join("not a worker")).unwrap();
        fs::create_dir(dir.path().join("a.b.3.9")).unwrap();
        fs::write(dir.path().join("a.b.3.9/order"), "").unwrap();

        let left = scan(dir.path()).unwrap();

        let ids: Vec<_> = left.workers.iter().map(|it| it.id.to_string()).collect();
        assert_eq!(ids, ["a.b/3.9"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), HISTORY_MAX + 2);
    }
}
