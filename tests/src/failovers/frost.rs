//! Processes that stand still because their cgroup does.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Freezes a process in a cgroup named after the folder of its world.
pub(crate) fn freeze(pid: u32, folder: &Path) -> io::Result<()> {
    let path = make(folder)?;
    fs::write(path.join("cgroup.procs"), pid.to_string())?;
    fs::write(path.join("cgroup.freeze"), "1")
}

/// Why nothing can be frozen here, if nothing can.
pub(crate) fn impossible(folder: &Path) -> Option<String> {
    let tried = || {
        let path = make(folder)?;
        fs::write(path.join("cgroup.freeze"), "0")?;
        fs::remove_dir(path)
    };
    tried().err().map(|error: io::Error| error.to_string())
}

fn make(folder: &Path) -> io::Result<PathBuf> {
    let path = place(folder).ok_or_else(|| io::Error::other("no cgroup v2 is mounted"))?;
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(path),
    }
}

/// Where the cgroup of a world is, or would be.
fn place(folder: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount?.join(own).join(folder.file_name()?))
}

/// Whatever of a world is frozen goes on, and goes back to where it was: else it would be frozen again with the
/// next one.
pub(crate) fn thaw(folder: &Path) {
    let Some(path) = place(folder) else { return };
    let _ = fs::write(path.join("cgroup.freeze"), "0");
    let frozen = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in frozen.lines() {
        let _ = fs::write(path.with_file_name("cgroup.procs"), pid);
    }
}

/// Removes the cgroup of a world that has ended; tells whether there is none any more.
pub(crate) fn remove(folder: &Path) -> bool {
    place(folder).is_none_or(|path| fs::remove_dir(&path).is_ok() || !path.exists())
}
