//! The agent's part of the configuration, and the ground it prepares before it starts.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tether_kit::listen;
use tether_placement::{Counts, Labels, Unusable, check_label, check_resource};
use tether_types::{Address, InvalidName, NodeName, WorkerId};

use tether_shim_protocol::{Walls, zygote::Means};

use crate::{
    adopt::{self, Left},
    container::{Ceiling, Container},
    fates::Board,
    guarantee::{self, Guarantee},
    holds::Holds,
    launch,
    limits::{self, Controllers},
    metrics::Metrics,
    pages::Pages,
    remains,
    scope::Scope,
    sockets::Sockets,
    supervisors::Supervisors,
    units::Units,
    worker,
    zygote::Zygote,
};

/// What can be set under `[agent]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this node; the machine's host name when it is not set.
    pub node: Option<String>,
    /// Whether workers are put into cgroups of their own where cgroup v2 can be written; on unless
    /// switched off.
    pub no_cgroups: bool,
    /// Whether workers are put into PID namespaces of their own where those can be made; on unless
    /// switched off.
    pub no_namespaces: bool,
    /// The least that the agent must be able to guarantee of how workers' processes end, `G1` to `G5`; it
    /// does not start where it cannot.
    pub minimum_guarantee: Option<Guarantee>,
    /// Host at which workers that listen on TCP do so, and where gateways on other machines reach them:
    /// an address of this machine. The loopback address when it is not set.
    pub worker_host: Option<String>,
    /// By what pools can choose this node, as in `zone = "a"`.
    pub labels: Labels,
    /// What it has that workers take for themselves alone, as in `gpu = 4`.
    pub resources: Counts,
    /// Whether gateways learn of workers' ends from the arbiter alone, and not from this agent as well, which tells
    /// them earlier.
    pub no_fates: bool,
    /// How much of its container's memory the agent keeps from each worker: none may have more than the rest, so that it
    /// ends before its container does. Off where it is zero.
    #[serde(with = "tether_kit::config::size")]
    pub memory_reserve: u64,
    /// The slice of systemd in which workers are held in a scope of their own, apart from this agent's unit, so that they
    /// may outlive it: `tether-workers.slice`. In the agent's own cgroup when it is not set. Units of workers of launcher
    /// `systemd` are in it too, or in `tether-workers.slice`.
    pub slice: Option<String>,
    /// Where checkpoints of jobs are kept.
    pub checkpoints: tether_checkpoints::Config,
    /// How workers of launcher `systemd` are had.
    pub systemd: crate::units::Config,
    /// How workers of launcher `supervisord` are had.
    pub supervisord: crate::supervisors::Supervisord,
    /// How workers of launcher `runit` are had.
    pub runit: crate::supervisors::Runit,
}

/// Who holds this file below a runtime directory is its agent.
pub(crate) const LOCK: &str = "agent.lock";

/// Where workers listen unless it is said.
const LOOPBACK: &str = "127.0.0.1";

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has no usable name.
    #[error("the node needs a name: set `node` under [agent]")]
    Name(#[from] InvalidName),
    /// The runtime directory cannot be used.
    #[error("cannot use the runtime directory `{}`: make it writable for this user, or set TETHER_RUNTIME_DIR to one that is", path.display())]
    Runtime {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent runs on the same directory.
    #[error("another agent (pid {pid}) uses the runtime directory `{}`: stop it, or set TETHER_RUNTIME_DIR to another directory", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// The other agent's process id, as it wrote it down.
        pid: String,
    },
    /// The zygote cannot be run.
    #[error("cannot run the zygote, from which workers' shims are forked")]
    Zygote(#[source] io::Error),
    /// The kernel cannot enforce a lease here.
    #[error(
        "the kernel's timers do not kill on CLOCK_BOOTTIME here, so no lease could be enforced: a Linux of 3.0 or later is needed"
    )]
    NoTimer,
    /// Nothing of the container's memory would be left for a worker.
    #[error(
        "`agent.memory_reserve` keeps {reserve} bytes from workers, and the container's memory is {memory}: lower it, or give the container more"
    )]
    Reserve {
        /// What is to be kept from them.
        reserve: u64,
        /// What there is.
        memory: u64,
    },
    /// Less can be guaranteed than was demanded.
    #[error("`agent.minimum_guarantee` demands {wanted} ({}), and here it is {have} ({}): {advice}", wanted.means(), have.means())]
    Guarantee {
        /// What was demanded.
        wanted: Guarantee,
        /// What there is.
        have: Guarantee,
        /// How to get what is missing.
        advice: String,
    },
}

/// What an agent stands on.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) node: NodeName,
    /// Where this agent serves.
    pub(crate) address: Address,
    /// Which runtime directory, in which life of the machine: another agent on it knows the same workers.
    pub(crate) instance: String,
    /// One directory per incarnation below it.
    pub(crate) workers: PathBuf,
    /// Parent of the incarnations' cgroups, where cgroup v2 can be used.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) controllers: Controllers,
    /// The most memory that a worker may have, where the container's is to last longer.
    pub(crate) ceiling: Option<Ceiling>,
    /// What the kernel was seen to allow.
    means: Means,
    pub(crate) guarantee: Guarantee,
    pub(crate) labels: Labels,
    pub(crate) resources: Counts,
    pub(crate) zygote: Zygote,
    /// Units of systemd.
    pub(crate) units: Units,
    /// The ways to other supervisors.
    pub(crate) supervisors: Supervisors,
    pub(crate) sockets: Sockets,
    /// Where workers listen on TCP.
    pub(crate) worker_host: String,
    /// Where shims read how long their workers may go on.
    pub(crate) pages: Arc<Pages>,
    /// What gateways are told.
    pub(crate) fates: Arc<Board>,
    /// Who tells of a worker's death before its pidfd does.
    pub(crate) holds: Holds,
    pub(crate) metrics: Arc<Metrics>,
    /// Held for as long as the agent lives.
    _lock: File,
}

impl Config {
    /// The node's name.
    ///
    /// # Errors
    /// When neither the configuration nor the machine gives a usable one.
    pub fn node(&self) -> Result<NodeName, InvalidName> {
        match &self.node {
            Some(name) => NodeName::new(name),
            None => NodeName::new(rustix::system::uname().nodename().to_string_lossy()),
        }
    }

    /// Whether all labels can be given.
    ///
    /// # Errors
    /// Names the first that cannot.
    pub fn check_labels(&self) -> Result<(), Unusable> {
        let mut labels = self.labels.iter();
        labels.try_for_each(|(name, value)| check_label(name, value))
    }

    /// Whether all resources can be counted.
    ///
    /// # Errors
    /// Names the first that cannot.
    pub fn check_resources(&self) -> Result<(), Unusable> {
        let mut resources = self.resources.iter();
        resources.try_for_each(|(name, &count)| check_resource(name, count))
    }

    /// Where workers listen on TCP.
    fn worker_host(&self) -> &str {
        self.worker_host.as_deref().unwrap_or(LOOPBACK)
    }

    /// Whether workers may listen there; touches nothing.
    ///
    /// # Errors
    /// When it is no address of a machine, or others could read along and nobody allowed that.
    pub fn check_worker_host(&self, insecure: bool) -> Result<(), listen::Error> {
        let host = self.worker_host().to_owned();
        listen::check(&Address::Tcp { host, port: 0 }, insecure)
    }

    pub(crate) async fn prepare(
        &self,
        runtime: &Path,
        address: &Address,
        metrics: &mut tether_kit::metrics::Metrics,
    ) -> Result<(Ground, Left), Error> {
        let node = self.node()?;
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Runtime { path, source }
        };
        let workers = runtime.join("workers");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&workers)
            .map_err(wrong(&workers))?;

        let path = runtime.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(wrong(&path))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = fs::read_to_string(&path)
                .unwrap_or_default()
                .trim()
                .to_owned();
            return Err(Error::Taken {
                path: runtime.to_owned(),
                pid,
            });
        }
        lock.set_len(0).map_err(wrong(&path))?;
        lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
            .map_err(wrong(&path))?;

        let inode = fs::metadata(&workers).map_err(wrong(&workers))?.ino();
        // The directory's inode keeps two agents of one machine apart, and stays the same for the next agent
        // on it.
        let name = format!("tether-{node}-{inode:x}");
        let boot_id = tether_kit::process::boot_id().map_err(wrong(&workers))?;
        let scope = self.slice.as_deref().map(|slice| Scope::new(slice, &name));
        let zygote = Zygote::new(runtime, scope).map_err(Error::Zygote)?;
        let held = zygote.held().await.map_err(Error::Zygote)?;
        let cgroup = match (self.no_cgroups, held) {
            (true, _) => None,
            (false, Some(scope)) => cgroup_in(&scope, &name),
            (false, None) => own_cgroup(&name),
        };
        zygote.probe(cgroup.as_deref()).map_err(Error::Zygote)?;
        // While the canaries try, and before all else that takes its time: shims answer when they get round to it.
        let left = adopt::scan(&workers).map_err(wrong(&workers))?;
        let (means, reduced) = self.probed(&zygote)?;
        let guarantee = self.judge(means)?;
        let controllers = Controllers::find(cgroup.as_deref(), &name);
        let ceiling = self.ceiling(controllers.has("memory"))?;
        let ground = Ground {
            ceiling,
            fates: Arc::new(Board::new(node.clone())),
            address: address.clone(),
            holds: Holds::default(),
            node,
            instance: format!("{boot_id}/{inode:x}"),
            workers,
            controllers,
            cgroup: cgroup.filter(|_| means.cgroup),
            means,
            guarantee,
            labels: self.labels.clone(),
            resources: self.resources.clone(),
            zygote,
            units: Units::new(&self.systemd, self.slice.as_deref(), inode),
            supervisors: Supervisors::new(&self.supervisord, &self.runit),
            sockets: Sockets::inherit(),
            worker_host: self.worker_host().to_owned(),
            pages: Arc::default(),
            metrics: Arc::new(Metrics::declare(metrics, guarantee, reduced)),
            _lock: lock,
        };
        let journal = left.names();
        for parent in ground
            .cgroup
            .as_deref()
            .into_iter()
            .chain(ground.controllers.parents())
        {
            remains::remove_empty(parent, &journal);
        }
        Ok((ground, left))
    }

    /// What can be used here, and may be; and whether there might be more if it might.
    fn probed(&self, zygote: &Zygote) -> Result<(Means, bool), Error> {
        let mut means = zygote.probed().map_err(Error::Zygote)?;
        if !means.timer {
            return Err(Error::NoTimer);
        }
        // Cgroups that are switched off are not even tried.
        let reduced = self.no_cgroups || (self.no_namespaces && means.namespace);
        if self.no_namespaces {
            means.namespace = false;
            means.private_proc = false;
        }
        Ok((means, reduced))
    }

    /// How much memory a worker may have.
    fn ceiling(&self, by_cgroup: bool) -> Result<Option<Ceiling>, Error> {
        let reserve = self.memory_reserve;
        let container = Container::look(Path::new("/"));
        let ceiling = Ceiling::new(container.memory, reserve, by_cgroup)
            .map_err(|memory| Error::Reserve { reserve, memory })?;
        match ceiling {
            Some(ceiling) => tracing::info!(
                bytes = ceiling.bytes(),
                by = ceiling.means(),
                "No worker may have more memory"
            ),
            None if reserve > 0 => tracing::warn!(
                "`agent.memory_reserve` does nothing: no cgroup above this agent has a limit on memory"
            ),
            None => {}
        }
        Ok(ceiling)
    }

    /// How much that guarantees, and whether it is enough.
    fn judge(&self, means: Means) -> Result<Guarantee, Error> {
        let have = Guarantee::of(means, Zygote::is_first_in_container());
        if let Some(wanted) = self.minimum_guarantee
            && !have.satisfies(wanted)
        {
            let advice = guarantee::advice(means, self.no_namespaces, self.no_cgroups);
            return Err(Error::Guarantee {
                wanted,
                have,
                advice,
            });
        }
        tracing::info!(
            guarantee = %have,
            by = have.means(),
            not_covered = have.not_covered(),
            "Workers' processes end with them"
        );
        Ok(have)
    }
}

impl Ground {
    /// Removes the cgroups in which workers were.
    pub(crate) fn clear(&self) {
        // Fails while workers that outlive the agent are in it, and is then right to.
        if let Some(path) = &self.cgroup {
            let _ = fs::remove_dir(path);
        }
        self.controllers.remove();
    }

    /// How this launcher's supervisor is reached, in the words of keepers.
    pub(crate) fn way_to(&self, launcher: &str) -> String {
        let bus = || self.units.bus().to_owned();
        self.supervisors.at(launcher).unwrap_or_else(bus)
    }

    /// What will hold the processes of this incarnation together.
    pub(crate) fn walls(&self, id: &WorkerId, private_proc: Option<bool>) -> Walls {
        let leaf = self.cgroup.as_ref();
        Walls {
            namespace: self.means.namespace,
            user_namespace: self.means.user_namespace,
            private_proc: self.means.namespace
                && self.means.private_proc
                && private_proc.unwrap_or(true),
            cgroup: leaf.map(|parent| launch::bytes_of(worker::directory(parent, id))),
            cgroup_is_made: false,
            born_in_cgroup: self.means.born_in_cgroup,
            limiting: Vec::new(),
            forked_from: None,
        }
    }
}

/// Makes a parent for the incarnations' cgroups below the agent's own, where that is allowed.
pub(crate) fn own_cgroup(name: &str) -> Option<PathBuf> {
    let mount = limits::unified_mount()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    cgroup_in(&mount.join(own), name)
}

/// The same, below another.
fn cgroup_in(parent: &Path, name: &str) -> Option<PathBuf> {
    let path = parent.join(name);
    if let Err(error) = fs::create_dir(&path)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return None;
    }
    // A hierarchy without `cgroup.kill` (before Linux 5.14) gives nothing that the tree walk does not.
    let usable = path.join("cgroup.kill").exists() && path.join("cgroup.procs").exists();
    if !usable {
        let _ = fs::remove_dir(&path);
    }
    usable.then_some(path)
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.clear();
    }
}
