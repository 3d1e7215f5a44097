//! Attempts at jobs: who does which, from the first one to one that takes over from a lost node.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_proto::{
    Failure,
    common::WorkerRef,
    job::{Job, JobState},
};
use tether_types::{PoolName, Reason, WorkerId};

use super::{Ledger, jobs::worker_of, unknown_pool};
use crate::effects::keys;

/// Jobs of one pool that are kept at once, done ones included (P5).
const JOBS_MAX: usize = 10_000;

/// Longest key, in bytes.
const KEY_MAX: usize = 256;

impl Ledger {
    /// Starts a job on the ready worker with the fewest, or finds the one with this key. A lost job
    /// is started again, from its last checkpoint.
    ///
    /// # Errors
    /// When there is no such pool, no ready worker, or too many jobs.
    pub(crate) fn start_job(&mut self, pool: &str, key: &str) -> Result<(Job, bool), Failure> {
        if key.is_empty() || key.len() > KEY_MAX || key.contains('/') {
            let text = format!(
                "a job key has 1 to {KEY_MAX} bytes and no `/`, not `{}`",
                key.escape_default()
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        if !self.pools.contains_key(&name) {
            return Err(self.no_pool(pool));
        }
        let before = self.jobs.get(&name, key).ok().cloned();
        if let Some(job) = before.clone()
            && job.state() != JobState::Lost
        {
            return Ok((job, true));
        }
        if self.jobs.0.get(&name).map_or(0, BTreeMap::len) >= JOBS_MAX {
            let text = format!(
                "pool `{name}` already keeps {JOBS_MAX} jobs: acknowledge the results of those that are done"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        Ok((self.attempt(&name, key, before)?, false))
    }

    /// Has a job done by the ready worker with the fewest, under a new fence.
    fn attempt(&mut self, name: &PoolName, key: &str, before: Option<Job>) -> Result<Job, Failure> {
        let Some(worker) = self.least_busy(name) else {
            let text = format!(
                "no worker of pool `{name}` is ready to take the job `{key}`; `tether ps` shows why"
            );
            return Err(
                Failure::new(Reason::NoWorkerReady, text).retry_after(Duration::from_secs(1))
            );
        };
        let before = before.unwrap_or_default();
        let mut job = Job {
            key: key.to_owned(),
            pool: name.to_string(),
            worker: Some(WorkerRef::from(&worker)),
            fence: self.next_incarnation().0,
            attempt: before.attempt + 1,
            checkpoint: before.checkpoint,
            ..Job::default()
        };
        job.set_state(JobState::Running);
        let jobs = self.jobs.0.entry(name.clone()).or_default();
        jobs.insert(key.to_owned(), job.clone());
        self.effects.put(keys::job(name, key), job.clone());
        self.begin_hold(&worker);
        Ok(job)
    }

    fn least_busy(&self, name: &PoolName) -> Option<WorkerId> {
        let busy = self.jobs.busy(name);
        let pool = self.pools.get(name)?;
        let ready = pool.places.iter().filter_map(|(slot, place)| {
            let live = place.live.as_ref()?;
            let worker = (slot, live.incarnation);
            // One that is about to be replaced is kept by a job, and takes one only where there is no other.
            let order = (self.is_stale(pool, place), busy.get(&worker));
            (place.serves && place.is_ready()).then_some((order, worker))
        });
        let (_, (slot, incarnation)) = ready.min_by_key(|&(order, _)| order)?;
        Some(WorkerId {
            pool: pool.name().clone(),
            slot,
            incarnation,
        })
    }

    /// Takes over a job whose worker is on a lost node, once nothing but the job keeps that worker alive: it
    /// may go on there, and nobody listens to it any more. True where another attempt has begun.
    ///
    /// # Errors
    /// When there is no such job, its worker may come back soon, or nobody can take it.
    pub(crate) fn adopt_job(
        &mut self,
        pool: &str,
        key: &str,
        now: Tick,
    ) -> Result<(Job, bool), Failure> {
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        let job = self.jobs.get(&name, key)?.clone();
        match job.state() {
            JobState::Lost => {}
            JobState::Orphaned => self.may_be_taken(&job, now)?,
            JobState::Running | JobState::Done | JobState::Unspecified => return Ok((job, false)),
        }
        let adopted = self.attempt(&name, key, Some(job.clone()))?;
        if let Some(zombie) = worker_of(&job) {
            self.end_hold(&zombie, now);
        }
        Ok((adopted, true))
    }

    /// Whether the grace of an orphaned job's pool is over.
    fn may_be_taken(&self, job: &Job, now: Tick) -> Result<(), Failure> {
        let left = worker_of(job).map_or_else(Default::default, |id| self.grace_left(&id, now));
        if left.is_zero() {
            return Ok(());
        }
        let text = format!(
            "job `{}` may go on soon where it is: its node is lost, and may be back within {left:.1?}; ask again then, or attest with `tether node dead` that the node is dead",
            job.key
        );
        Err(Failure::new(Reason::NoWorkerReady, text).retry_after(left))
    }
}
