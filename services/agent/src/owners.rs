//! Watches the processes of owners: their end is observed by pidfd, not timed out.
//!
//! Each shim of a coupled pool watches its owner itself and kills without asking anyone; what is
//! seen here tells the arbiter that the session is over. One thread polls all of them, so that a
//! busy runtime does not delay the news.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc::Receiver, mpsc::Sender},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tether_proto::{
    common::DeathCause,
    node::{OwnerExit, WorkerReport},
};
use tether_shim_protocol::Identity;
use tether_sys::Seen;
use tether_types::{Epoch, OwnerName, WorkerId};
use tokio::sync::mpsc::UnboundedSender;

use crate::permission::Permissions;

/// When to look again at a process that the system refused to show.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// One session of an owner.
type Key = (OwnerName, Epoch);

/// The processes to watch, each with the session that named it.
type Wanted = BTreeMap<Key, Identity>;

/// The owner processes under watch; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Owners {
    wanted: Wanted,
    watcher: Option<Sender<Wanted>>,
    wake: Arc<OwnedFd>,
}

impl Owners {
    /// Starts the thread that watches; ends of processes are told to `exits`.
    ///
    /// # Errors
    /// When the kernel refuses a thread or a descriptor.
    pub(crate) fn new(exits: UnboundedSender<OwnerExit>) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (watcher, told) = std::sync::mpsc::channel();
        let woken = Arc::clone(&wake);
        std::thread::Builder::new()
            .name("owners".to_owned())
            .spawn(move || {
                if let Err(error) = watch(&told, &woken, &exits) {
                    tracing::error!(%error, "Owners' processes are no longer watched; their leases decide alone");
                }
            })?;
        Ok(Self {
            wanted: Wanted::new(),
            watcher: Some(watcher),
            wake,
        })
    }

    /// Watches exactly the processes that are named now.
    pub(crate) fn watch(&mut self, permissions: &Permissions) {
        let pools = permissions.pools.values();
        let wanted: Wanted = pools
            .filter_map(|pool| Some(((pool.owner.clone(), pool.epoch), pool.process?)))
            .collect();
        if wanted != self.wanted {
            self.wanted.clone_from(&wanted);
            if let Some(watcher) = &self.watcher {
                let _ = watcher.send(wanted);
            }
            self.wake();
        }
    }

    fn wake(&self) {
        // Full means that the thread is about to look anyway.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.watcher = None;
        self.wake();
    }
}

fn watch(
    told: &Receiver<Wanted>,
    wake: &OwnedFd,
    exits: &UnboundedSender<OwnerExit>,
) -> io::Result<()> {
    use std::sync::mpsc::TryRecvError;

    let mut watched: BTreeMap<Key, OwnedFd> = BTreeMap::new();
    // Those that could not be looked at, for want of descriptors or memory.
    let mut unseen = Wanted::new();
    loop {
        let _ = rustix::io::read(wake, &mut [0; 8]);
        loop {
            match told.try_recv() {
                Ok(wanted) => {
                    watched.retain(|key, _| wanted.contains_key(key));
                    unseen = wanted;
                    unseen.retain(|key, _| !watched.contains_key(key));
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        unseen.retain(|key, process| {
            match open(*process) {
                Seen::Alive(pidfd) => drop(watched.insert(key.clone(), pidfd)),
                Seen::Gone => tell(exits, key),
                Seen::Not => return true,
            }
            false
        });
        let again = (!unseen.is_empty()).then_some(LOOK_AGAIN);
        let ended: Vec<Key> = {
            let keys = watched.keys().cloned().collect::<Vec<_>>();
            let mut fds: Vec<_> = std::iter::once(PollFd::new(wake, PollFlags::IN))
                .chain(
                    watched
                        .values()
                        .map(|pidfd| PollFd::new(pidfd, PollFlags::IN)),
                )
                .collect();
            match poll(&mut fds, again.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = fds[1..].iter().map(|fd| !fd.revents().is_empty());
            keys.into_iter()
                .zip(ready)
                .filter_map(|(key, ready)| ready.then_some(key))
                .collect()
        };
        for key in ended {
            watched.remove(&key);
            tell(exits, &key);
        }
    }
}

fn tell(exits: &UnboundedSender<OwnerExit>, key: &Key) {
    let _ = exits.send(exit_of(key));
}

fn exit_of((owner, epoch): &Key) -> OwnerExit {
    OwnerExit {
        owner: owner.to_string(),
        epoch: epoch.0,
    }
}

/// The end of an owner's process, where that ended this worker. Told together with the death, and not when the thread
/// that watches owners comes to it: an arbiter that took the owner for alive would fill the place.
pub(crate) fn exit_behind(report: &WorkerReport, permissions: &Permissions) -> Option<OwnerExit> {
    let death = report.death.as_ref()?;
    if death.cause() != DeathCause::OwnerGone {
        return None;
    }
    let id = WorkerId::try_from(report.worker.as_ref()?).ok()?;
    let pool = permissions.pool(&id.pool)?;
    has_ended(pool.process?).then(|| exit_of(&(pool.owner.clone(), pool.epoch)))
}

/// Whether it is certain that this process has ended; one that nobody has reaped has.
fn has_ended(process: Identity) -> bool {
    match open(process) {
        Seen::Gone => true,
        Seen::Not => false,
        Seen::Alive(pidfd) => {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            poll(&mut fds, Some(&AT_ONCE)).is_ok_and(|ready| ready > 0)
        }
    }
}

fn open(process: Identity) -> Seen {
    let ticks = || tether_kit::process::start_ticks(process.pid);
    tether_sys::look(process.pid, || {
        ticks().map(|ticks| ticks == process.start_ticks)
    })
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use tether_clock::Tick;
    use tether_proto::common::{self, WorkerRef};
    use tether_shim_protocol::{OnLinkLoss, OnOwnerExit};
    use tether_types::PoolName;

    use super::*;
    use crate::permission::PoolPermission;

    fn permissions(pid: u32, start_ticks: u64) -> Permissions {
        let pool = PoolPermission {
            owner: OwnerName::new("beam").unwrap(),
            epoch: Epoch(3),
            deadline: Tick::NEVER,
            process: Some(Identity { pid, start_ticks }),
            on_owner_exit: OnOwnerExit::Kill,
            on_link_loss: OnLinkLoss::Kill,
            grace: std::time::Duration::ZERO,
            job_grace: std::time::Duration::ZERO,
            jobs: std::collections::BTreeSet::new(),
        };
        Permissions {
            nearer: 0,
            node: Tick::NEVER,
            pools: [(PoolName::new("digits").unwrap(), pool)].into(),
        }
    }

    #[test]
    fn a_death_by_the_end_of_its_owner_tells_that_end_and_no_other_death_does() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let ticks = tether_kit::process::start_ticks(child.id()).unwrap();
        let permissions = permissions(child.id(), ticks);
        let report = |pool: &str, cause: DeathCause| WorkerReport {
            worker: Some(WorkerRef::from(&format!("{pool}/0.1").parse().unwrap())),
            death: Some(common::Death {
                cause: cause.into(),
                ..common::Death::default()
            }),
            ..WorkerReport::default()
        };
        let behind = |report: &WorkerReport| {
            exit_behind(report, &permissions).map(|exit| (exit.owner, exit.epoch))
        };
        let by_owner = report("digits", DeathCause::OwnerGone);
        assert_eq!(behind(&by_owner), None, "its lease was over, and it lives");

        child.kill().unwrap();
        // As nobody has reaped it, its number is still its own.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while behind(&by_owner).is_none() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(behind(&by_owner), Some(("beam".to_owned(), 3)));
        child.wait().unwrap();
        assert_eq!(behind(&by_owner), Some(("beam".to_owned(), 3)));
        assert_eq!(behind(&report("digits", DeathCause::Signaled)), None);
        assert_eq!(behind(&report("others", DeathCause::OwnerGone)), None);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_a_reused_pid_counts_as_its_end() {
        let (exits, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let mut owners = Owners::new(exits).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let ticks = tether_kit::process::start_ticks(child.id()).unwrap();

        owners.watch(&permissions(child.id(), ticks));
        child.kill().unwrap();
        child.wait().unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(10), seen.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((exit.owner.as_str(), exit.epoch), ("beam", 3));

        owners.watch(&Permissions::default());
        owners.watch(&permissions(std::process::id(), ticks + 1));
        let exit = tokio::time::timeout(Duration::from_secs(10), seen.recv())
            .await
            .unwrap();
        assert!(exit.is_some());
    }
}
