//! What holds the agent itself: the memory of its container, and what an out-of-memory kill there takes along.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tether_proto::{
    node::StartWorker,
    pool::{ResourceLimit, TreeLimits},
};

/// Version 1 writes a number near the largest where there is no limit.
const UNLIMITED: u64 = 1 << 60;

/// What the cgroups above an agent say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Container {
    /// The least that any of them may have.
    pub(crate) memory: Option<u64>,
    /// One process out of memory is the end of all, with `memory.oom.group`.
    pub(crate) ends_together: bool,
}

impl Container {
    /// Looks at this process's cgroups, with files below `root`.
    pub(crate) fn look(root: &Path) -> Self {
        let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mount = root.join("sys/fs/cgroup");
        let mut found = Self::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let hierarchy = match controllers {
                "" => mount.clone(),
                _ if controllers.split(',').any(|one| one == "memory") => mount.join("memory"),
                _ => continue,
            };
            for cgroup in upwards(&hierarchy, path) {
                found.take(&cgroup);
            }
        }
        found
    }

    fn take(&mut self, cgroup: &Path) {
        let read = |file| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        for file in ["memory.max", "memory.limit_in_bytes"] {
            // `max` is no number.
            let limit = read(file).trim().parse().ok();
            let limit = limit.filter(|&limit: &u64| limit < UNLIMITED);
            self.memory = self.memory.into_iter().chain(limit).min();
        }
        self.ends_together |= read("memory.oom.group").trim() == "1";
    }
}

/// A cgroup and all above it. In a container its path may be the machine's, and the root of the mount its own.
fn upwards(hierarchy: &Path, path: &str) -> Vec<PathBuf> {
    let own = hierarchy.join(path.trim_start_matches('/'));
    own.ancestors()
        .take_while(|dir| dir.starts_with(hierarchy))
        .map(Path::to_owned)
        .collect()
}

/// The most memory that a worker may have, so that it ends before its container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceiling {
    bytes: u64,
    /// Whether its whole tree can be held to it; else each of its processes is.
    by_cgroup: bool,
}

impl Ceiling {
    /// What is left of `container` when `reserve` is kept; none where either is not there, and an error where nothing is
    /// left.
    pub(crate) fn new(
        container: Option<u64>,
        reserve: u64,
        by_cgroup: bool,
    ) -> Result<Option<Self>, u64> {
        let Some(memory) = container.filter(|_| reserve > 0) else {
            return Ok(None);
        };
        match memory.checked_sub(reserve).filter(|&bytes| bytes > 0) {
            Some(bytes) => Ok(Some(Self { bytes, by_cgroup })),
            None => Err(memory),
        }
    }

    /// The same order, with no more memory than that.
    pub(crate) fn hold(self, mut order: StartWorker) -> StartWorker {
        let Some(template) = &mut order.template else {
            return order;
        };
        let lower = |bytes: u64| match bytes {
            0 => self.bytes,
            bytes => bytes.min(self.bytes),
        };
        if self.by_cgroup {
            let limits = template.tree_limits.get_or_insert_with(TreeLimits::default);
            limits.memory_bytes = lower(limits.memory_bytes);
        } else if template.forked_from.is_none() {
            // A fork has the limits of whom it is forked from.
            let limits = &mut template.resource_limits;
            let known = limits.iter().position(|limit| limit.name == DATA);
            let given = known.map(|at| limits.swap_remove(at));
            let held = |limit: Option<u64>| Some(limit.map_or(self.bytes, lower));
            limits.push(ResourceLimit {
                name: DATA.to_owned(),
                soft: held(given.as_ref().and_then(|limit| limit.soft)),
                hard: held(given.as_ref().and_then(|limit| limit.hard)),
            });
        }
        order
    }

    /// What keeps it, in words.
    pub(crate) fn means(self) -> &'static str {
        match self.by_cgroup {
            true => "a cgroup for each worker",
            false => "RLIMIT_DATA of each process, as no cgroup can be made",
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }
}

/// What counts towards it is what a process allocates, whatever it has mapped beside.
const DATA: &str = "data";

#[cfg(test)]
mod tests {
    use tether_proto::pool::Template;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn held(ceiling: Option<Ceiling>, template: Template) -> Template {
        let order = StartWorker {
            template: Some(template),
            ..StartWorker::default()
        };
        ceiling.unwrap().hold(order).template.unwrap()
    }

    #[test]
    fn the_least_of_all_cgroups_above_holds_and_one_that_ends_together_is_seen() {
        let pod = root(&[
            ("proc/self/cgroup", "0::/pod/agent\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "1048576\n"),
            ("sys/fs/cgroup/pod/memory.oom.group", "1\n"),
            ("sys/fs/cgroup/pod/agent/memory.max", "2097152\n"),
            ("sys/fs/cgroup/pod/agent/memory.oom.group", "0\n"),
        ]);
        assert_eq!(
            Container::look(pod.path()),
            Container {
                memory: Some(MIB),
                ends_together: true
            }
        );

        // In a container of version 1 its path is not there, and the mount shows its own cgroup.
        let docker = root(&[
            ("proc/self/cgroup", "4:memory:/docker/0a1b\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3145728\n"),
        ]);
        assert_eq!(Container::look(docker.path()).memory, Some(3 * MIB));
        let free = root(&[
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(Container::look(free.path()), Container::default());
    }

    #[test]
    fn a_worker_has_no_more_than_its_container_leaves_it() {
        let by_cgroup = Ceiling::new(Some(10 * MIB), 4 * MIB, true).unwrap();
        let asks = |memory_bytes| Template {
            tree_limits: Some(TreeLimits {
                memory_bytes,
                pids: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        let limits = |template| held(by_cgroup, template).tree_limits.unwrap();

        assert_eq!(limits(Template::default()).memory_bytes, 6 * MIB);
        assert_eq!(limits(asks(8 * MIB)).memory_bytes, 6 * MIB);
        assert_eq!(
            (limits(asks(MIB)).memory_bytes, limits(asks(MIB)).pids),
            (MIB, 7)
        );
    }

    #[test]
    fn without_cgroups_each_process_is_held_and_what_its_template_says_is_kept_where_it_is_less() {
        let by_process = Ceiling::new(Some(10 * MIB), 4 * MIB, false).unwrap();
        let data = |soft, hard| ResourceLimit {
            name: DATA.into(),
            soft,
            hard,
        };
        let limits = |given: Vec<ResourceLimit>| {
            let template = Template {
                resource_limits: given,
                ..Default::default()
            };
            held(by_process, template).resource_limits
        };

        assert_eq!(limits(vec![]), [data(Some(6 * MIB), Some(6 * MIB))]);
        assert_eq!(
            limits(vec![data(Some(MIB), None)]),
            [data(Some(MIB), Some(6 * MIB))]
        );
    }

    #[test]
    fn there_is_no_ceiling_that_nobody_asked_for_and_none_without_room() {
        assert_eq!(Ceiling::new(Some(MIB), 0, true), Ok(None));
        assert_eq!(Ceiling::new(None, MIB, true), Ok(None));
        assert_eq!(Ceiling::new(Some(MIB), MIB, true), Err(MIB));
    }
}
