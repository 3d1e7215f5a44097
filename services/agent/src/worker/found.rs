//! A worker that an earlier agent left, taken over in two steps: first it is held, which is what must not wait,
//! and then it is watched.
//!
//! ```text
//! Found::new: knock at the shim -> hold: it has answered, and the worker runs -> watch: its health, its task
//!                                       it has not yet                        -> the same, once it has
//!                                       nobody is there                       -> what is left of it ends
//! ```
//!
//! Nothing waits before [`Held::watch`], so an agent knocks at a thousand shims in a row, and while they wake
//! up and answer it is knocking at others.

use std::{
    io,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tether_clock::{BootClock, Clock as _};
use tether_proto::pool::Template;
use tether_shim_protocol::{DEATH_FILE, Message};
use tether_types::{Address, WorkerId};

use super::{SHIM_START, Task, Ties};
use crate::{
    health::{Health, Place},
    journal::Entry,
    launch,
    link::Reached,
};

/// Between two tries to reach a shim that does not listen yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The fewest workers that are worth a thread.
const SHARE: usize = 64;

/// What an earlier agent left of one incarnation: a running worker, or the record of its death.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: WorkerId,
    pub(crate) entry: Entry,
    pub(crate) dir: PathBuf,
    link: Option<Reached>,
}

/// One that somebody is responsible for again: what it and its shim say is not lost any more.
pub(crate) struct Held {
    task: Box<Task>,
    cgroup: Option<PathBuf>,
    link: Option<Reached>,
    /// Whether it runs, where its shim has said so.
    running: Option<Running>,
}

/// That a worker which was found runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) pid: u32,
    pub(super) was_ready: bool,
}

impl Running {
    /// What follows for whoever watches its health.
    pub(super) fn tell(self, health: &mut Health) {
        if self.was_ready {
            health.on_resumed(self.pid);
        } else {
            health.on_running(self.pid);
        }
    }
}

impl Found {
    /// Knocks at the shim of the worker in this directory, which the journal knows.
    pub(crate) fn new(id: WorkerId, dir: PathBuf, entry: Entry) -> Self {
        let link = Reached::connect(&dir).ok();
        Self {
            id,
            entry,
            dir,
            link,
        }
    }

    /// Takes responsibility for it, and hears what its shim has answered so far.
    pub(crate) fn hold(self, ties: Ties) -> Held {
        let Self {
            id,
            entry,
            dir,
            mut link,
        } = self;
        if let Some(server) = entry.server {
            ties.forkservers.hold(&id, server);
        }
        let address = entry
            .address
            .unwrap_or_else(|| Address::Unix(dir.join("worker.sock")));
        let mut task = Task::new(id, entry.order, address, ties);
        task.adopted = true;
        let mut running = None;
        if let Some(link) = &mut link
            && let Some(message) = link.try_next()
        {
            task.take_descriptors(&message, link.take_descriptors());
            if let Message::Hello(hello) = message {
                running = task.on_hello(&hello);
            }
        }
        Held {
            task,
            cgroup: entry.cgroup,
            link,
            running,
        }
    }
}

impl Held {
    /// Whether it is known to run.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Watches over it from here on, in a task of its own.
    pub(crate) fn watch(self) {
        let Self {
            task,
            cgroup,
            link,
            running,
        } = self;
        let Some((from, to)) = link.and_then(|link| link.split().ok()) else {
            tokio::spawn(find(task, cgroup));
            return;
        };
        let none = Template::default();
        let mut health = Box::new(Health::of_adopted(Place {
            id: &task.id,
            dir: &task.dir,
            own_dir: &launch::known_own_directory(&task.dir),
            cgroup,
            address: &task.address,
            template: task.order.template.as_ref().unwrap_or(&none),
            node: task.ties.ground.node.as_str(),
        }));
        if let Some(running) = running {
            running.tell(&mut health);
        }
        tokio::spawn(task.drive(from, to, health));
    }
}

/// Holds many, on all processors: each takes some system calls, and none waits for another.
pub(crate) fn hold(mut found: Vec<(Ties, Found)>) -> Vec<Held> {
    let one = |(ties, found): (Ties, Found)| found.hold(ties);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = found.len().div_ceil(threads).max(SHARE);
    thread::scope(|scope| {
        let mut others = Vec::new();
        while found.len() > share {
            let theirs = found.split_off(found.len() - share);
            others.push(scope.spawn(move || theirs.into_iter().map(one).collect::<Vec<_>>()));
        }
        let mut held: Vec<_> = found.into_iter().map(one).collect();
        for other in others {
            match other.join() {
                Ok(theirs) => held.extend(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        held
    })
}

/// Waits for a shim that could not be reached at once; where none comes, the worker is at its end.
async fn find(mut task: Box<Task>, cgroup: Option<PathBuf>) {
    match reach(&task.dir).await {
        Some(link) => Held {
            task,
            cgroup,
            link: Some(link),
            running: None,
        }
        .watch(),
        None => {
            // Nobody answers for it: what is left of it ends before it counts as dead.
            task.end_unit().await;
            task.end_remains().await;
            let recorded = task.recorded_death();
            task.bury(recorded, None).await;
        }
    }
}

/// The link to a shim that was started by an earlier agent. One that was started a moment before that
/// agent died may not listen yet.
async fn reach(dir: &Path) -> Option<Reached> {
    let deadline = BootClock.now() + SHIM_START;
    loop {
        match Reached::connect(dir) {
            Ok(link) => return Some(link),
            Err(_) if dir.join(DEATH_FILE).exists() => return None,
            // A socket nobody listens at belonged to a shim that is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
            Err(_) if BootClock.now() >= deadline => return None,
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
