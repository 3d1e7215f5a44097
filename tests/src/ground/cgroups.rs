//! Cgroups that a booted machine gets for its own, so that several can stand side by side.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// What their names begin with; the number of the process that made them follows.
const PREFIX: &str = "tether-ground-";

/// One in each hierarchy that systemd uses; removed when it is dropped.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// Also that of the machine.
    pub(super) name: String,
    pub(super) paths: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes them, and removes those of processes that were killed.
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
        for hierarchy in &hierarchies {
            sweep(hierarchy);
        }
        let paths = hierarchies.iter().map(|hierarchy| hierarchy.join(&name));
        // Where none can be made the machine does not boot, and says why.
        let paths = paths.filter(|path| fs::create_dir(path).is_ok()).collect();
        Self { name, paths }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.paths {
            remove(path);
        }
    }
}

/// Where the hierarchy of version 2 is mounted, and that of version 1 which has no controller but systemd's name.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let mounts = mounts.lines().filter_map(|line| {
        let [_, path, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        let named = kind == "cgroup" && options.split(',').any(|option| option == "name=systemd");
        (kind == "cgroup2" || named).then(|| PathBuf::from(path))
    });
    mounts.collect()
}

/// Removes what killed processes left.
fn sweep(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let maker = name.strip_prefix(PREFIX);
        let maker = maker.and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a cgroup with all below it; what still runs there keeps it.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_gets_cgroups_where_systemd_looks_for_its_own() {
        let mixed = "cgroup /c/memory cgroup rw,memory 0 0\n\
                     cgroup /c/systemd cgroup rw,relatime,name=systemd 0 0\n\
                     cgroup /c/unified cgroup2 rw 0 0\n";

        let found = hierarchies(mixed);

        assert_eq!(found, [Path::new("/c/systemd"), Path::new("/c/unified")]);
    }
}
