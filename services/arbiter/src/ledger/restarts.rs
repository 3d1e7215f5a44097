//! Jobs that go on by themselves: from the end of one attempt to the next.
//!
//! An attempt ends with the recorded death of its worker, and not before: one whose node is lost may go on there,
//! and is followed once that is provably over. The next one begins as soon as a worker of the pool is ready. A job
//! that gets on may die as often as it likes; one that dies again and again without a checkpoint is given up. Ends
//! that somebody wanted do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_clock::Tick;
use tether_proto::{
    common::{Death, DeathCause, WorkerRef},
    job::{Job, JobState},
};
use tether_types::{PoolName, WorkerId};

use super::{Ledger, Timed};

/// After the first death that counts, and after any.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Jobs that no worker does and one is to do, by pool.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    keys: BTreeMap<PoolName, BTreeSet<String>>,
    /// Pools where one may be found for them now.
    due: BTreeSet<PoolName>,
    /// Those that pause, and until when.
    paused: BTreeMap<(PoolName, String), Tick>,
}

impl Waiting {
    /// A job is as it is.
    pub(super) fn note(&mut self, pool: &PoolName, key: &str, job: &Job) {
        if job.state() == JobState::Waiting {
            let keys = self.keys.entry(pool.clone()).or_default();
            keys.insert(key.to_owned());
            self.due.insert(pool.clone());
        } else if let Some(keys) = self.keys.get_mut(pool)
            && keys.remove(key)
        {
            let is_last = keys.is_empty();
            self.paused.remove(&(pool.clone(), key.to_owned()));
            if is_last {
                self.forget(pool);
            }
        }
    }

    /// The pause that ends at `due` is over, if it still holds.
    fn resume(&mut self, pool: PoolName, key: String, due: Tick) {
        let at = (pool, key);
        if self.paused.get(&at) == Some(&due) {
            self.paused.remove(&at);
            self.look_again(&at.0);
        }
    }

    pub(super) fn forget(&mut self, pool: &PoolName) {
        let keys = self.keys.remove(pool);
        for key in keys.into_iter().flatten() {
            self.paused.remove(&(pool.clone(), key));
        }
        self.due.remove(pool);
    }

    /// Workers of a pool may be ready that were not.
    pub(super) fn look_again(&mut self, pool: &PoolName) {
        if self.keys.contains_key(pool) {
            self.due.insert(pool.clone());
        }
    }
}

/// The attempt at a job is over, as its worker is gone.
pub(super) fn lose(job: &mut Job, death: Option<&Death>) {
    job.death = death.cloned();
    let saved = job.checkpoint.as_ref().map(|saved| saved.fence);
    job.failures = if saved == Some(job.fence) {
        0
    } else if death.is_some_and(|death| is_ordered(death.cause())) {
        job.failures
    } else {
        job.failures.saturating_add(1)
    };
    job.set_state(if !job.cancelled_by.is_empty() {
        JobState::Cancelled
    } else if job.restarts > 0 && job.failures <= job.restarts {
        JobState::Waiting
    } else {
        JobState::Lost
    });
}

/// Whether somebody wanted the worker to end, which says nothing about what it did.
fn is_ordered(cause: DeathCause) -> bool {
    match cause {
        DeathCause::OwnerGone
        | DeathCause::AgentGone
        | DeathCause::OrderedByOperator
        | DeathCause::OrderedByScale
        | DeathCause::OrderedByOwner
        | DeathCause::OrderedByAgent
        | DeathCause::Recycled => true,
        DeathCause::Exited
        | DeathCause::Signaled
        | DeathCause::OutOfMemory
        | DeathCause::Unhealthy
        | DeathCause::LeaseExpired
        | DeathCause::NeverReady
        | DeathCause::SpawnFailed
        | DeathCause::Unknown
        | DeathCause::Unspecified => false,
    }
}

/// For how long a job waits that has failed so often in a row.
fn pause(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1));
    FIRST_PAUSE
        .saturating_mul(doubled.unwrap_or(u32::MAX))
        .min(LONGEST_PAUSE)
}

impl Ledger {
    /// A worker's death is recorded: what it did waits, or is lost.
    pub(super) fn end_attempts(&mut self, id: &WorkerId, death: &Death, now: Tick) {
        self.jobs.on_death(id, death, &mut self.effects);
        let worker = Some(WorkerRef::from(id));
        let keys = self.jobs.waiting.keys.get(&id.pool).into_iter().flatten();
        let failed = keys.filter_map(|key| {
            let job = self.jobs.get(&id.pool, key).ok()?;
            let paused = job.worker == worker && job.failures > 0;
            paused.then(|| (key.clone(), now + pause(job.failures)))
        });
        for (key, due) in failed.collect::<Vec<_>>() {
            let at = (id.pool.clone(), key.clone());
            self.jobs.waiting.paused.insert(at, due);
            self.wheel.arm(Timed::Job(id.pool.clone(), key, due), due);
        }
    }

    /// A job's pause may be over.
    pub(super) fn check_pause(&mut self, pool: PoolName, key: String, due: Tick, now: Tick) {
        if now < due {
            self.wheel.arm(Timed::Job(pool, key, due), due);
        } else {
            self.jobs.waiting.resume(pool, key, due);
        }
    }

    /// Gives jobs that wait to workers that are ready, those with the fewest first.
    pub(super) fn place_waiting_jobs(&mut self) {
        for pool in std::mem::take(&mut self.jobs.waiting.due) {
            let takers = self.takers(&pool);
            let mut takers: BTreeSet<_> = takers.into_iter().collect();
            if takers.is_empty() {
                continue;
            }
            let waiting = &self.jobs.waiting;
            let mut keys = waiting.keys.get(&pool).cloned().unwrap_or_default();
            keys.retain(|key| !waiting.paused.contains_key(&(pool.clone(), key.clone())));
            for key in keys {
                let Some(((stale, jobs), worker)) = takers.pop_first() else {
                    break;
                };
                if let Ok(job) = self.jobs.get(&pool, &key) {
                    self.attempt_by(&worker, job.clone());
                    takers.insert(((stale, jobs + 1), worker));
                } else {
                    takers.insert(((stale, jobs), worker));
                }
            }
        }
    }
}
