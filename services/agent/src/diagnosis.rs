//! What an agent could guarantee here, for somebody who asks before starting one.

use std::{fs, io, path::Path};

use crate::{
    Config,
    config::own_cgroup,
    container::{Ceiling, Container},
    guarantee::{self, Guarantee},
    limits::{CONTROLLERS, Controllers},
    zygote::Zygote,
};

/// What was found.
#[derive(Debug, Clone)]
pub struct Diagnosis {
    /// The level an agent of this configuration would have.
    pub guarantee: Guarantee,
    /// How to get more; empty where there is no more.
    pub advice: String,
    /// Further means, each with whether it works.
    pub means: Vec<(&'static str, bool)>,
    /// What is likely to be regretted, and what to do.
    pub warnings: Vec<String>,
}

/// Tries out on this machine, as this user, what an agent of this configuration would. What it makes, it
/// removes. To be called within a tokio runtime.
///
/// # Errors
/// When a zygote cannot be run, or there is no directory for its log.
pub fn diagnose(config: &Config) -> io::Result<Diagnosis> {
    let name = format!("tether-doctor-{}", std::process::id());
    let dir = std::env::temp_dir().join(&name);
    fs::create_dir(&dir)?;
    let cgroup = if config.no_cgroups {
        None
    } else {
        own_cgroup(&name)
    };
    let found = Zygote::new(&dir).and_then(|zygote| {
        zygote.probe(cgroup.as_deref())?;
        zygote.probed()
    });
    let controllers = Controllers::find(cgroup.as_deref(), &name);
    if let Some(cgroup) = &cgroup {
        let _ = fs::remove_dir(cgroup);
    }
    let _ = fs::remove_dir_all(&dir);

    let mut seen = found?;
    if config.no_namespaces {
        seen.namespace = false;
        seen.private_proc = false;
    }
    let by_cgroup = controllers.has("memory");
    let warnings = warnings(
        Container::look(Path::new("/")),
        config.memory_reserve,
        by_cgroup,
    );
    let limits = CONTROLLERS
        .iter()
        .map(|&(controller, what)| (what, controllers.has(controller)));
    Ok(Diagnosis {
        guarantee: Guarantee::of(seen, false),
        advice: guarantee::advice(seen, config.no_namespaces, config.no_cgroups),
        means: [
            ("a lease ends by a timer of the kernel", seen.timer),
            ("PID namespaces", seen.namespace),
            ("a /proc of their own in them", seen.private_proc),
            ("cgroups of version 2", seen.cgroup),
            ("workers are born in them", seen.born_in_cgroup),
        ]
        .into_iter()
        .chain(limits)
        .collect(),
        warnings,
    })
}

/// What a container does to those in it.
fn warnings(container: Container, reserve: u64, by_cgroup: bool) -> Vec<String> {
    let mut found = Vec::new();
    let ceiling = Ceiling::new(container.memory, reserve, by_cgroup);
    if let Ok(None) = ceiling
        && let Some(memory) = container.memory
    {
        found.push(format!(
            "no worker has a ceiling below the {memory} bytes of this container, unless its template says so: set `agent.memory_reserve` to what the agent and the others are to keep"
        ));
    }
    if let Err(memory) = ceiling {
        found.push(format!(
            "`agent.memory_reserve` is {reserve} bytes, and this container has {memory}: nothing would be left for a worker"
        ));
    }
    if container.ends_together {
        let advice = match (by_cgroup, reserve) {
            (true, 0) => {
                "set `agent.memory_reserve`, so that a worker reaches a ceiling of its own first"
            }
            (true, _) => {
                "the ceiling of each worker is kept, but several at once may reach the container's"
            }
            (false, _) => {
                "no worker can have a cgroup here that would end before: set `agent.memory_reserve` or `resource_limits.data`, and the container's limit above their sum"
            }
        };
        found.push(format!(
            "`memory.oom.group` is set above this agent: one worker out of memory ends the agent and all workers with it; {advice}"
        ));
    }
    if !by_cgroup {
        found.push(
            "no cgroup of a worker's own can limit its memory: delegate one (Delegate=yes in a systemd unit, `--cgroupns=private` with writable cgroups in a container)"
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_ends_with_one_worker_is_warned_of_until_each_has_a_ceiling() {
        let pod = Container {
            memory: Some(4 << 30),
            ends_together: true,
        };

        let bare = warnings(pod, 0, false).join("\n");
        assert!(bare.contains("`memory.oom.group` is set"), "{bare}");
        assert!(
            bare.contains("no worker has a ceiling below the 4294967296"),
            "{bare}"
        );
        assert!(bare.contains("delegate one"), "{bare}");
        let held = warnings(pod, 1 << 30, true).join("\n");
        assert!(!held.contains("no worker has a ceiling") && held.contains("several at once"));
        assert!(warnings(pod, 4 << 30, true)[0].contains("nothing would be left"));
        assert_eq!(
            warnings(Container::default(), 0, true),
            Vec::<String>::new()
        );
    }
}
