//! What gateways are told of workers directly, beside the way by arbiter and discovery that lasts.
//!
//! ```text
//!  worker's task --tell, announce--> board --a queue each--> streams --> gateways
//!  node          --permit----------->  |  <--------- what they have taken in
//! ```
//!
//! # Invariants
//!
//! - **F1** What was said of an incarnation only goes on: one that ends never runs again, one that died never ends.
//! - **F2** A stream begins with all there is, and misses nothing after it: one that cannot keep up is ended.
//! - **F3** An end that is announced has been taken in by every gateway that listens, or [`WITHIN`] is over.

mod service;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::fate::{Fate, Permission, WorkerFate};
use tether_types::{Death, NodeName, PoolName, WorkerId};
use tokio::sync::{mpsc, watch};

pub(crate) use service::Fates;

use crate::permission::{Permissions, shorter};

/// How long an announced end waits for gateways to have heard of it. One that is there takes a millisecond.
const WITHIN: Duration = Duration::from_millis(100);

/// Changes that one stream may be behind.
const QUEUE: usize = 4_096;

/// All that is said.
#[derive(Debug)]
pub(crate) struct Board {
    node: NodeName,
    said: Mutex<Said>,
    /// Told when a gateway has taken something in, or is gone.
    taken: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Said {
    /// Counts changes.
    number: u64,
    workers: BTreeMap<WorkerId, WorkerFate>,
    readers: BTreeMap<u64, Reader>,
    /// How many there have been.
    came: u64,
    granted: Permissions,
    is_over: bool,
}

/// One stream.
#[derive(Debug)]
struct Reader {
    queue: mpsc::Sender<(u64, Change)>,
    /// Up to where its gateway has taken it in.
    seen: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Told(WorkerFate),
    Gone(WorkerId),
}

/// The beginning of a stream.
#[derive(Debug)]
struct Reading {
    reader: u64,
    number: u64,
    workers: Vec<WorkerFate>,
    changes: mpsc::Receiver<(u64, Change)>,
}

impl Board {
    pub(crate) fn new(node: NodeName) -> Self {
        Self {
            node,
            said: Mutex::default(),
            taken: watch::Sender::default(),
        }
    }

    /// Says how it stands with a worker; passed over where that is said, or was left behind (F1).
    pub(crate) fn tell(&self, id: &WorkerId, fate: Fate, death: Option<&Death>) {
        self.lock().tell(id, fate, death);
    }

    /// Says that a worker is about to end, and waits until gateways know (F3).
    pub(crate) async fn announce(&self, id: &WorkerId) {
        let mut taken = self.taken.subscribe();
        let number = {
            let mut said = self.lock();
            said.tell(id, Fate::Ending, None);
            said.number
        };
        let heard = async { while !self.is_taken_in(number) && taken.changed().await.is_ok() {} };
        if tokio::time::timeout(WITHIN, heard).await.is_err() {
            tracing::debug!(worker = %id, "A gateway has not taken in that a worker is about to end");
        }
    }

    /// The death of a worker is recorded: nothing is said of it any more.
    pub(crate) fn forget(&self, id: &WorkerId) {
        let mut said = self.lock();
        if said.workers.remove(id).is_some() {
            said.pass_on(&Change::Gone(id.clone()));
        }
    }

    /// This is how long workers may go on.
    pub(crate) fn permit(&self, granted: &Permissions) {
        self.lock().granted = granted.clone();
    }

    /// Ends all streams, for good.
    pub(crate) fn close(&self) {
        let mut said = self.lock();
        said.is_over = true;
        said.readers.clear();
        drop(said);
        self.taken.send_replace(());
    }

    /// Begins a stream; none where this is over.
    fn read(&self) -> Option<Reading> {
        let mut said = self.lock();
        if said.is_over {
            return None;
        }
        let (queue, changes) = mpsc::channel(QUEUE);
        said.came += 1;
        let (reader, number) = (said.came, said.number);
        // What a stream begins with has to be taken in as well.
        said.readers.insert(reader, Reader { queue, seen: 0 });
        Some(Reading {
            reader,
            number,
            workers: said.workers.values().cloned().collect(),
            changes,
        })
    }

    /// A gateway has taken its stream in up to here.
    fn on_seen(&self, reader: u64, number: u64) {
        if let Some(reader) = self.lock().readers.get_mut(&reader) {
            reader.seen = reader.seen.max(number);
        }
        self.taken.send_replace(());
    }

    /// A stream is over.
    fn leave(&self, reader: u64) {
        self.lock().readers.remove(&reader);
        self.taken.send_replace(());
    }

    fn is_taken_in(&self, number: u64) -> bool {
        let said = self.lock();
        said.readers.values().all(|reader| reader.seen >= number)
    }

    /// For how long the workers of each pool may take calls, as of now.
    fn permissions(&self) -> Vec<Permission> {
        permissions(&self.lock().granted, BootClock.now())
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn tell(&mut self, id: &WorkerId, fate: Fate, death: Option<&Death>) {
        let before = self
            .workers
            .get(id)
            .map_or(Fate::Unspecified, |told| told.fate());
        if !goes_on(before, fate) {
            return;
        }
        let told = WorkerFate {
            worker: Some(id.into()),
            fate: fate.into(),
            death: death.map(Into::into),
        };
        self.workers.insert(id.clone(), told.clone());
        self.pass_on(&Change::Told(told));
    }

    fn pass_on(&mut self, change: &Change) {
        self.number += 1;
        let number = self.number;
        // Whoever is so far behind begins anew (F2).
        self.readers
            .retain(|_, reader| reader.queue.try_send((number, change.clone())).is_ok());
    }
}

/// Whether a worker of which the one was said may be said the other of (F1).
fn goes_on(before: Fate, after: Fate) -> bool {
    match after {
        Fate::Unspecified => false,
        Fate::Running | Fate::Doubtful => before < Fate::Ending && before != after,
        Fate::Ending | Fate::Dying | Fate::Dead => before < after,
    }
}

/// What is left for the workers of each pool, with the time that they may live without an arbiter: until then nobody
/// else has their places. Whoever counts it may have a clock that is slow.
fn permissions(granted: &Permissions, now: Tick) -> Vec<Permission> {
    // Without a lease nothing was granted, and nothing is taken.
    let pools = granted.pools.iter().filter(|_| granted.node != Tick::ZERO);
    let left = |(pool, owner): (&PoolName, &crate::permission::PoolPermission)| {
        let until = owner.alive(granted.node).min(owner.deadline);
        let left = shorter(until.since(now)).as_millis();
        Permission {
            pool: pool.to_string(),
            remaining_ms: u64::try_from(left).unwrap_or(u64::MAX),
        }
    };
    pools.map(left).collect()
}

#[cfg(test)]
mod tests;
