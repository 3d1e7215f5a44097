//! What ports leave that are killed: the directory of the services in them, to which nobody comes back.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use tether_agent::Abandoned;

/// How such a directory's name begins.
pub(super) const PREFIX: &str = "tether-port-";

/// What in it is of no use to workers, should they still live.
pub(super) const CHECKPOINTS: &str = "checkpoints";

/// Removes what is left of ports whose process is gone, in the directory where they make theirs.
pub(super) fn remove(below: &Path) {
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    let own = rustix::process::geteuid().as_raw();
    for entry in entries {
        let is_ports = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        // In a directory for everybody the name alone says nothing.
        let is_own =
            || matches!(entry.metadata(), Ok(about) if about.is_dir() && about.uid() == own);
        let path = entry.path();
        if !is_ports || !is_own() {
            continue;
        }
        let Some(left) = Abandoned::take(&path) else {
            continue;
        };
        let what = match left.has_workers() {
            true => path.join(CHECKPOINTS),
            false => path,
        };
        match fs::remove_dir_all(&what) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(left = %what.display(), %error, "Cannot remove what a port has left that was killed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_left_goes_and_what_lives_or_is_of_others_stays() {
        let below = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = below.path().join(name);
            fs::create_dir_all(dir.join(CHECKPOINTS).join("job")).unwrap();
            fs::write(dir.join("agent.lock"), "1\n").unwrap();
            dir
        };
        let left = make("tether-port-left");
        let lives = make("tether-port-lives");
        let lock = fs::File::open(lives.join("agent.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let works = make("tether-port-works");
        let worker = works.join("workers/digits.0.1");
        fs::create_dir_all(&worker).unwrap();
        fs::write(worker.join("order"), "").unwrap();
        let shim = UnixListener::bind(worker.join("shim.sock")).unwrap();
        let other = make("tether-other");
        std::os::unix::fs::symlink(&other, below.path().join("tether-port-link")).unwrap();

        remove(below.path());

        assert!(!left.exists());
        assert!(lives.join(CHECKPOINTS).exists() && other.join(CHECKPOINTS).exists());
        assert!(worker.exists() && !works.join(CHECKPOINTS).exists());
        drop(shim);

        remove(below.path());
        assert!(!works.exists());
    }
}
