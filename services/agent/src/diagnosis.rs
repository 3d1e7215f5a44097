//! What an agent could guarantee here, for somebody who asks before starting one.

use std::{fs, io};

use crate::{
    Config,
    config::own_cgroup,
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
    let found = Zygote::new(&dir, None).and_then(|zygote| {
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
    })
}
