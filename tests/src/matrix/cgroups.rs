//! The cgroups that agents made for the workers of a world.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where cgroup v2 is mounted.
pub(crate) fn unified() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| path.into())
    })
}

/// The cgroups that an agent made for this node, in the harness's own.
pub(crate) fn of(node: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let (Some(mount), Some(own)) = (unified(), own) else {
        return Vec::new();
    };
    let entries = fs::read_dir(mount.join(own))
        .into_iter()
        .flatten()
        .flatten();
    let ours = entries.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .contains(&format!("{node}-"))
    });
    ours.map(|entry| entry.path()).collect()
}

/// Removes a cgroup with all below it; one with members stays.
pub(crate) fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
