//! The directory for sockets and locks of one user.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// Why there is no directory for sockets.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// It cannot be made or looked at.
    #[error(
        "cannot use the runtime directory `{0}`; set `TETHER_RUNTIME_DIR` to one this user may write"
    )]
    Io(PathBuf, #[source] io::Error),
    /// Somebody else could put sockets into it.
    #[error(
        "the runtime directory `{0}` is not a directory of this user alone (mode 0700); remove it, or set `TETHER_RUNTIME_DIR` to another"
    )]
    Unsafe(PathBuf),
}

/// The directory where services of this user listen and find each other, made if need be:
/// `$TETHER_RUNTIME_DIR`, else `/run/tether` for root, else `$XDG_RUNTIME_DIR/tether`, else
/// `/tmp/tether-UID`.
///
/// # Errors
/// When it cannot be made, or others may write into it.
pub fn runtime_dir() -> Result<PathBuf, RuntimeDirError> {
    let uid = rustix::process::getuid().as_raw();
    prepare(choose(|name| env::var(name).ok(), uid), uid)
}

fn choose(variable: impl Fn(&str) -> Option<String>, uid: u32) -> PathBuf {
    let set = |name| variable(name).filter(|value| value.starts_with('/'));
    match (set("TETHER_RUNTIME_DIR"), uid, set("XDG_RUNTIME_DIR")) {
        (Some(given), _, _) => given.into(),
        (None, 0, _) => "/run/tether".into(),
        (None, _, Some(user)) => Path::new(&user).join("tether"),
        (None, uid, None) => format!("/tmp/tether-{uid}").into(),
    }
}

fn prepare(path: PathBuf, uid: u32) -> Result<PathBuf, RuntimeDirError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path);
    // A name in a directory that everybody may write to can have been taken by anybody: what is
    // there must be a directory, not a link to one, and must be ours alone.
    let found = made.and_then(|()| fs::symlink_metadata(&path));
    match found {
        Err(error) => Err(RuntimeDirError::Io(path, error)),
        Ok(found) if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 => Ok(path),
        Ok(_) => Err(RuntimeDirError::Unsafe(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn the_first_place_that_applies_is_taken() {
        let with = |set: &[&str], uid| {
            let lookup = |name: &str| set.contains(&name).then(|| format!("/{name}"));
            choose(lookup, uid).display().to_string()
        };
        let both = ["TETHER_RUNTIME_DIR", "XDG_RUNTIME_DIR"];

        assert_eq!(with(&both, 0), "/TETHER_RUNTIME_DIR");
        assert_eq!(with(&both[1..], 0), "/run/tether");
        assert_eq!(with(&both[1..], 7), "/XDG_RUNTIME_DIR/tether");
        assert_eq!(with(&[], 7), "/tmp/tether-7");
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let path = root.path().join("tether");

        assert_eq!(prepare(path.clone(), uid).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert!(prepare(path.clone(), uid + 1).is_err());
        let link = root.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(
            prepare(link, uid),
            Err(RuntimeDirError::Unsafe(_))
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            prepare(path, uid),
            Err(RuntimeDirError::Unsafe(_))
        ));
    }
}
