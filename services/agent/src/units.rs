//! Workers in units of their own: systemd starts the shim, and holds all of it by the unit's cgroup.
//!
//! ```text
//! agent -- StartTransientUnit --> systemd -> tether-POOL.SLOT.INCARNATION.AGENT.service
//!    `<------ launch.sock ------------------ shim -> worker
//! ```
//!
//! The unit's main process is this program again, which connects to where it was asked from and becomes the shim. From
//! there on all is as with one from the zygote: it holds the deadline, a later agent finds it, it says how its worker
//! ended. What systemd adds: a shim that is killed takes all of its unit with it, whoever else was killed, limits are
//! the unit's, and its own end tells what no shim can any more, as when the kernel killed all of the unit for want of
//! memory.

use std::{fs, io, os::unix::net::UnixStream, path::Path, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tether_proto::node::StartWorker;
use tether_systemd::{Active, Bounds, Bus, Ending, Limits, Systemd, Transient, Unit};
use tether_types::WorkerId;
use tokio::{net::UnixListener, sync::Mutex, time::timeout};

use crate::{keeper, launch, zygote};

/// The first argument of this program as the main process of a unit; the second is the incarnation's directory.
const FLAG: &str = "--shim";

/// Where it connects to.
const SOCKET_FILE: &str = "launch.sock";

/// How long a unit may take until its main process is there, on a machine under load.
const CONNECTED_WITHIN: Duration = Duration::from_secs(20);

/// What a shim takes to end all that it has, after the grace of its worker.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// Processes of a unit that are not the worker's: the shim, and the first of its namespace.
const OWN_TASKS: u32 = 2;

/// Where workers' units are, unless it is said.
const SLICE: &str = "tether-workers.slice";

/// The pool's launcher of which this is.
pub(crate) const LAUNCHER: &str = "systemd";

/// What can be set under `[agent.systemd]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whose systemd has the workers' units: `system`, `user`, or `off` for none. That of the system for root and of
    /// the user for others when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<Choice>,
}

/// Whose systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// That of the system.
    System,
    /// That of this user.
    User,
    /// None.
    Off,
}

/// The units of one agent.
#[derive(Debug)]
pub(crate) struct Units {
    bus: Option<Bus>,
    slice: String,
    /// What is in the name of each, as another agent may have the same worker's number on the same systemd.
    agent: String,
    open: Mutex<Option<Systemd>>,
}

/// What a unit is started with.
pub(crate) struct Wish<'a> {
    pub(crate) id: &'a WorkerId,
    pub(crate) order: &'a StartWorker,
    /// The process with whose unit it is to end.
    pub(crate) owner: Option<u32>,
    /// How many files it may have open; 0 is what systemd gives.
    pub(crate) files: u64,
}

impl Units {
    /// Those of the agent of which this is the inode of its workers' directory.
    pub(crate) fn new(config: &Config, slice: Option<&str>, inode: u64) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        Self {
            bus: match config.bus {
                None => Some(Bus::usual(is_root)),
                Some(Choice::System) => Some(Bus::System),
                Some(Choice::User) => Some(Bus::User),
                Some(Choice::Off) => None,
            },
            slice: slice.unwrap_or(SLICE).to_owned(),
            agent: format!("{inode:x}"),
            open: Mutex::default(),
        }
    }

    /// The unit in which the shim of this order is; none where it is in none of its own.
    pub(crate) fn of(&self, id: &WorkerId, order: &StartWorker) -> Option<String> {
        let WorkerId {
            pool,
            slot,
            incarnation,
        } = id;
        let agent = &self.agent;
        (order.launcher == LAUNCHER)
            .then(|| format!("tether-{pool}.{slot}.{incarnation}.{agent}.service"))
    }

    /// Which bus, in the words of keepers.
    pub(crate) fn bus(&self) -> &'static str {
        self.bus.map_or("off", Bus::word)
    }

    /// Whether units can be had here, and this user may manage them.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub(crate) async fn check(&self) -> Result<(), String> {
        if self.bus.is_none() {
            return Err("`agent.systemd.bus` is \"off\": remove it".to_owned());
        }
        let systemd = self.systemd().await.map_err(|error| error.to_string())?;
        let may = systemd.may_manage().await;
        may.map_err(|error| error.to_string())
    }

    async fn systemd(&self) -> io::Result<Systemd> {
        let Some(bus) = self.bus else {
            return Err(launch::refused(
                "it cannot be in a unit, as `agent.systemd.bus` is \"off\"".to_owned(),
            ));
        };
        let mut open = self.open.lock().await;
        match &*open {
            Some(systemd) if !systemd.is_closed() => Ok(systemd.clone()),
            _ => {
                let systemd = Systemd::connect(bus).await.map_err(io::Error::other)?;
                Ok(open.insert(systemd).clone())
            }
        }
    }

    /// Has a unit started whose main process becomes a shim, and waits for its link.
    ///
    /// # Errors
    /// When systemd refuses, or nothing comes of it.
    pub(crate) async fn begin(
        &self,
        name: &str,
        dir: &Path,
        wish: Wish<'_>,
    ) -> io::Result<UnixStream> {
        let systemd = self.systemd().await?;
        let socket = dir.join(SOCKET_FILE);
        let listener = UnixListener::bind(&socket)?;
        let mut is_ours = false;
        let begun = async {
            let unit = self.transient(&systemd, dir, wish).await?;
            systemd
                .start_transient(name, &unit)
                .await
                .map_err(io::Error::other)?;
            is_ours = true;
            match timeout(CONNECTED_WITHIN, listener.accept()).await {
                Ok(accepted) => accepted?.0.into_std(),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it was started, and its main process does not come",
                )),
            }
        };
        let begun = begun.await;
        let _ = fs::remove_file(&socket);
        match begun {
            // Where systemd refused, what has that name is somebody else's.
            Err(problem) if is_ours => Err(self.end_failed(name, &problem).await),
            begun => begun,
        }
    }

    async fn transient(
        &self,
        systemd: &Systemd,
        dir: &Path,
        wish: Wish<'_>,
    ) -> io::Result<Transient> {
        let program = keeper::program()?;
        let binds_to = match wish.owner {
            Some(owner) => unit_apart(systemd, owner).await,
            None => None,
        };
        let service = crate::service::errand(wish.id, wish.order, self.bus())?;
        let limits = match &service {
            // They are the service's, and not its keeper's.
            Some(_) => None,
            None => wish.order.template.as_ref().and_then(|it| it.tree_limits),
        };
        let limits = limits.unwrap_or_default();
        let (after, env) = match &service {
            Some((errand, _)) => keeper::after(&program, errand, dir)?,
            None => (Vec::new(), Vec::new()),
        };
        Ok(Transient {
            description: format!("Worker {} of Tether", wish.id),
            after,
            env,
            argv: vec![program, FLAG.to_owned(), dir.display().to_string()],
            slice: self.slice.clone(),
            binds_to: binds_to.unwrap_or_default(),
            stop_timeout: Duration::from_millis(wish.order.lease_grace_ms) + STOP_SLACK,
            files: wish.files,
            bounds: bounds(systemd.bus())?,
            limits: Limits {
                memory_bytes: limits.memory_bytes,
                cpu_millis: limits.cpu_millis,
                tasks: match limits.pids {
                    0 => 0,
                    pids => pids.saturating_add(OWN_TASKS),
                },
            },
        })
    }

    /// Ends a unit of which nothing came; the problem with what systemd knows of it.
    pub(crate) async fn end_failed(&self, name: &str, problem: &io::Error) -> io::Error {
        let ended = self.end(name).await;
        let ended = ended.map_or_else(String::new, |(_, how)| format!(", it ended with {how}"));
        let text = format!("unit `{name}`: {problem}{ended}: look at `journalctl -u {name}`");
        io::Error::new(problem.kind(), text)
    }

    /// Ends a unit that no shim answers for any more, and tells how its last run ended.
    pub(crate) async fn end(&self, name: &str) -> Option<(Ending, String)> {
        loop {
            match self.try_end(name).await {
                Ok(unit) => return unit.ending(true).map(|ending| (ending, unit.to_string())),
                Err(error) => {
                    tracing::error!(unit = name, %error, "Unit of a dead worker cannot be ended; its place stays empty until it is");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn try_end(&self, name: &str) -> io::Result<Unit> {
        let systemd = self.systemd().await?;
        let mut watch = systemd.watch(name).await.map_err(io::Error::other)?;
        let _ = systemd.hold(name).await;
        systemd.stop(name).await.map_err(io::Error::other)?;
        loop {
            let unit = systemd.unit(name).await.map_err(io::Error::other)?;
            if matches!(unit.active, Active::Inactive | Active::Failed) {
                let _ = systemd.reset_failed(name).await;
                let _ = systemd.let_go(name).await;
                return Ok(unit);
            }
            // A signal may be lost with the bus.
            let _ = timeout(Duration::from_secs(1), watch.changed()).await;
        }
    }
}

/// What is taken from this agent for good, which is taken from its workers too, as it is with launcher `exec`.
fn bounds(bus: Bus) -> io::Result<Bounds> {
    let bounds = Bounds::of(&fs::read_to_string("/proc/self/status")?);
    Ok(match bus {
        Bus::System => bounds,
        // A user's systemd may take no capability away, and has none to give.
        Bus::User => Bounds {
            capabilities: None,
            ..bounds
        },
    })
}

/// The service in which the owner is, where the agent is in another one.
async fn unit_apart(systemd: &Systemd, owner: u32) -> Option<String> {
    let own = systemd.service_of(std::process::id()).await;
    let owners = systemd.service_of(owner).await?;
    (own.as_ref() != Some(&owners)).then_some(owners)
}

/// Where this program was started as the main process of a unit, becomes a shim; comes back where it was not, or with
/// what it ended with.
pub(crate) fn become_shim_where_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    (words.next()? == FLAG).then_some(())?;
    let dir = words.next()?;
    let connected = UnixStream::connect(Path::new(&dir).join(SOCKET_FILE));
    // An agent that is gone before it was reached started nothing.
    let _ = connected.and_then(|link| -> io::Result<()> { Err(zygote::become_shim(link)) });
    Some(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_have_a_unit_of_the_same_name() {
        let id: WorkerId = "digits/0.7".parse().unwrap();
        let order = |launcher: &str| StartWorker {
            launcher: launcher.to_owned(),
            ..StartWorker::default()
        };
        let of =
            |inode, launcher| Units::new(&Config::default(), None, inode).of(&id, &order(launcher));

        let name = "tether-digits.0.7.2f.service";
        assert_eq!(of(0x2f, LAUNCHER).as_deref(), Some(name));
        assert_ne!(of(0x30, LAUNCHER), of(0x2f, LAUNCHER));
        assert_eq!(of(0x2f, "exec"), None);
    }
}
