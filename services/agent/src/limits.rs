//! Limits of a worker's whole tree, kept by cgroups: of version 2 where that has the controllers, of
//! version 1 where they are there.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tether_proto::pool::TreeLimits;

/// What can be limited: the name of the controller, and what it keeps.
pub(crate) const CONTROLLERS: &[(&str, &str)] = &[
    ("memory", "limits on memory"),
    ("cpu", "limits on processor time"),
    ("pids", "limits on the number of processes"),
];

/// A share of processor time is given out anew this often.
const CPU_PERIOD_US: u64 = 100_000;

/// Where each controller can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Controllers {
    /// Those that the leaves of version 2 have.
    unified: Vec<&'static str>,
    /// Parents of this agent's leaves in hierarchies of version 1, not made before they are needed.
    apart: BTreeMap<&'static str, PathBuf>,
}

impl Controllers {
    /// Looks for them; `parent` is this agent's cgroup of version 2, `name` what its cgroups are called.
    pub(crate) fn find(parent: Option<&Path>, name: &str) -> Self {
        let mut found = Self::default();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for &(controller, _) in CONTROLLERS {
            if parent.is_some_and(|parent| enable(parent, controller)) {
                found.unified.push(controller);
            } else if let Some(own) = version_1(&mounts, &own, controller) {
                found.apart.insert(controller, own.join(name));
            }
        }
        found
    }

    /// Makes what keeps the limits of the incarnation called `name`: sets those of version 2 on `leaf`,
    /// and gives back the cgroups of version 1 to be joined beside it.
    ///
    /// # Errors
    /// When a limit is asked for that nothing here can keep: it is not silently left away.
    pub(crate) fn make(
        &self,
        limits: Option<&TreeLimits>,
        leaf: Option<&Path>,
        name: &Path,
    ) -> io::Result<Vec<PathBuf>> {
        let Some(limits) = limits else {
            return Ok(Vec::new());
        };
        let mut joined = Vec::new();
        for (controller, settings) in [
            ("memory", memory(limits.memory_bytes)),
            ("cpu", cpu(limits.cpu_millis)),
            ("pids", pids(limits.pids)),
        ] {
            let Some(settings) = settings else { continue };
            if let Some(leaf) = leaf.filter(|_| self.unified.contains(&controller)) {
                make_dir(leaf)?;
                set(leaf, settings.unified)?;
            } else if let Some(parent) = self.apart.get(controller) {
                make_dir(parent)?;
                let leaf = parent.join(name);
                make_dir(&leaf)?;
                set(&leaf, settings.apart)?;
                joined.push(leaf);
            } else {
                return Err(nothing_keeps(controller));
            }
        }
        Ok(joined)
    }

    /// Whether limits of this controller can be kept.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.unified.contains(&controller) || self.apart.contains_key(controller)
    }

    /// Removes the parents of version 1, should they be empty.
    pub(crate) fn remove(&self) {
        for parent in self.apart.values() {
            let _ = fs::remove_dir(parent);
        }
    }

    /// The parents of version 1.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &Path> {
        self.apart.values().map(PathBuf::as_path)
    }
}

type Setting = (&'static str, String);

struct Settings {
    unified: Vec<Setting>,
    apart: Vec<Setting>,
}

fn memory(bytes: u64) -> Option<Settings> {
    (bytes > 0).then(|| Settings {
        unified: vec![
            ("memory.max", bytes.to_string()),
            // A worker that may swap without end is slow instead of dead.
            ("memory.swap.max", "0".to_owned()),
            ("memory.oom.group", "1".to_owned()),
        ],
        apart: vec![("memory.limit_in_bytes", bytes.to_string())],
    })
}

fn cpu(millis: u32) -> Option<Settings> {
    let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
    (millis > 0).then(|| Settings {
        unified: vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))],
        apart: vec![
            ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ],
    })
}

fn pids(count: u32) -> Option<Settings> {
    (count > 0).then(|| Settings {
        unified: vec![("pids.max", count.to_string())],
        apart: vec![("pids.max", count.to_string())],
    })
}

fn set(leaf: &Path, settings: Vec<Setting>) -> io::Result<()> {
    for (file, value) in settings {
        let path = leaf.join(file);
        // Swap is counted only where the kernel was told to.
        if file == "memory.swap.max" && !path.exists() {
            continue;
        }
        fs::write(&path, &value).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot write `{value}` to `{}`: {error}", path.display()),
            )
        })?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io::Error::new(
            error.kind(),
            format!("cannot make the cgroup `{}`: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

fn nothing_keeps(controller: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "its template limits {controller}, and no cgroup controller `{controller}` can be used here: run the agent \
             as root, or delegate that controller to it (Delegate=yes in a systemd unit), or remove the limit"
        ),
    )
}

/// Where the hierarchy of version 2 is mounted.
pub(crate) fn unified_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// Has what is below a cgroup have every controller that the cgroup has itself.
pub(crate) fn hand_on(cgroup: &Path) {
    for (controller, _) in CONTROLLERS {
        enable(cgroup, controller);
    }
}

/// Whether leaves below `parent` have this controller, switched on if need be.
fn enable(parent: &Path, controller: &str) -> bool {
    let file = parent.join("cgroup.subtree_control");
    let has = || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.split_ascii_whitespace().any(|name| name == controller)
    };
    has() || (fs::write(&file, format!("+{controller}")).is_ok() && has())
}

/// This process's own cgroup in the hierarchy of version 1 that has the controller.
fn version_1(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, "cgroup", options, ..] = fields[..] else {
            return None;
        };
        options
            .split(',')
            .any(|option| option == controller)
            .then_some(path)
    })?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        names
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    })?;
    let own = Path::new(mount).join(path.trim_start_matches('/'));
    // In a container the path may be one of the host's, and then the mount itself is the own one.
    Some(if own.is_dir() { own } else { mount.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_of_version_1_is_found_by_mount_and_own_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("own")).unwrap();
        fs::create_dir(dir.path().join("own/place")).unwrap();
        let mounts = format!(
            "tmpfs / tmpfs rw 0 0\ncgroup {} cgroup rw,relatime,cpu,cpuacct 0 0\n",
            dir.path().display()
        );
        let own = "9:memory:/elsewhere\n3:cpu,cpuacct:/own/place\n0::/\n";

        let found = version_1(&mounts, own, "cpu");

        assert_eq!(found, Some(dir.path().join("own/place")));
        assert_eq!(version_1(&mounts, own, "memory"), None);
    }

    #[test]
    fn a_limit_that_nothing_can_keep_is_refused() {
        let limits = TreeLimits {
            memory_bytes: 1 << 20,
            ..TreeLimits::default()
        };

        let refused = Controllers::default().make(Some(&limits), None, Path::new("a.0.1"));

        let text = refused.unwrap_err().to_string();
        assert!(text.contains("no cgroup controller `memory`"), "{text}");
    }
}
