//! Finds what an earlier agent left in the runtime directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tether_types::WorkerId;

use crate::{forkserver, journal, worker};

/// How many dead workers' directories are kept for their logs.
const HISTORY_MAX: usize = 32;

/// Workers to take over, and directories that only hold the logs of the dead, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) workers: Vec<(WorkerId, PathBuf)>,
    pub(crate) forkservers: Vec<(WorkerId, PathBuf)>,
    pub(crate) history: History,
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

/// Looks through the runtime directory.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn scan(workers: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let mut history = Vec::new();
    for entry in fs::read_dir(workers)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(worker::named) else {
            continue;
        };
        if journal::is_history(&entry.path()) {
            history.push((entry.metadata()?.modified()?, entry.path()));
        } else if forkserver::is_one(&id) {
            found.forkservers.push((id, entry.path()));
        } else {
            found.workers.push((id, entry.path()));
        }
    }
    history.sort();
    for (_, path) in history {
        found.history.keep(path);
    }
    Ok(found)
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

        let found = scan(dir.path()).unwrap();

        let ids: Vec<_> = found.workers.iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(ids, ["a.b/3.9"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), HISTORY_MAX + 2);
    }
}
