//! In the child: becomes the user, with the limits, that the template asks for.

use alloc::vec::Vec;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit, umask};
use rustix::thread::{
    CpuSet, Gid, Uid, sched_setaffinity, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use tether_shim_protocol::{Credentials, Limit, SpawnFailure, Stage, Terms};

use crate::launch::failed;

/// Limits by the number that `setrlimit(2)` gives them on Linux.
const RESOURCES: &[Resource] = &[
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Applies all of it. What takes rights comes before they are given up with the user.
pub(crate) fn apply(terms: &Terms) -> Result<(), SpawnFailure> {
    let limits = |errno| failed(Stage::Limits, errno);
    for limit in &terms.limits {
        set(*limit).map_err(limits)?;
    }
    if let Some(nice) = terms.nice {
        setpriority_process(None, nice).map_err(limits)?;
    }
    if !terms.cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in &terms.cpus {
            let cpu = *cpu as usize;
            if cpu >= CpuSet::MAX_CPU {
                return Err(limits(Errno::INVAL));
            }
            set.set(cpu);
        }
        sched_setaffinity(None, &set).map_err(limits)?;
    }
    if let Some(mask) = terms.umask {
        umask(Mode::from_raw_mode(mask));
    }
    if let Some(who) = &terms.credentials {
        become_user(who).map_err(|errno| failed(Stage::User, errno))?;
    }
    Ok(())
}

fn set(limit: Limit) -> rustix::io::Result<()> {
    let resource = RESOURCES.get(usize::from(limit.resource));
    let bound = |value: u64| (value != u64::MAX).then_some(value);
    let new = Rlimit {
        current: bound(limit.soft),
        maximum: bound(limit.hard),
    };
    setrlimit(*resource.ok_or(Errno::INVAL)?, new)
}

/// Groups first: a user without rights may not change them any more.
fn become_user(who: &Credentials) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    let gid = Gid::from_raw(who.gid);
    set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(who.uid);
    set_thread_res_uid(uid, uid, uid)
}
