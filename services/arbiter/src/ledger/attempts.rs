//! Attempts at jobs: who does which, from the first one to one that takes over from a lost node.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_proto::{
    Failure,
    common::WorkerRef,
    job::{Job, JobState, StartJobRequest},
};
use tether_types::{PoolName, Reason, WorkerId};

use super::{
    Ledger,
    jobs::{save, worker_of},
    unknown_pool,
};
use crate::effects::keys;

/// Jobs of one pool that are kept at once, done ones included (P5).
const JOBS_MAX: usize = 10_000;

/// Longest specification, in bytes, and how much of them a pool keeps.
const SPEC_MAX: usize = 64 << 10;
const SPECS_MAX: usize = 64 << 20;

/// How many attempts in a row may die without a checkpoint, where nobody says.
const RESTARTS: u32 = 3;

/// Longest key, in bytes.
const KEY_MAX: usize = 256;

/// Whether a worker is about to be replaced, and how many jobs it does.
pub(super) type Burden = (bool, usize);

impl Ledger {
    /// Starts a job on the ready worker with the fewest, or finds the one with this key. A lost job
    /// is started again, from its last checkpoint.
    ///
    /// # Errors
    /// When there is no such pool, no ready worker, too many jobs, or the key is that of another one.
    pub(crate) fn start_job(&mut self, request: StartJobRequest) -> Result<(Job, bool), Failure> {
        let StartJobRequest {
            pool,
            key,
            spec,
            restarts,
            ..
        } = request;
        if key.is_empty() || key.len() > KEY_MAX || key.contains('/') {
            let text = format!(
                "a job key has 1 to {KEY_MAX} bytes and no `/`, not `{}`",
                key.escape_default()
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let name = PoolName::new(&pool).map_err(|_| unknown_pool(&pool, &self.pools))?;
        if !self.pools.contains_key(&name) {
            return Err(self.no_pool(&pool));
        }
        let before = match self.jobs.get(&name, &key) {
            Ok(job) if !spec.is_empty() && spec != job.spec => {
                let text = format!(
                    "job `{key}` of pool `{name}` was started with another `spec`: use another key, or none to find it as it is"
                );
                return Err(Failure::new(Reason::ConfigInvalid, text));
            }
            Ok(job) if job.state() != JobState::Lost => return Ok((job.clone(), true)),
            Ok(job) => Job {
                failures: 0,
                ..job.clone()
            },
            Err(_) => {
                self.check_room(&name, &spec)?;
                Job {
                    key: key.clone(),
                    pool: name.to_string(),
                    spec,
                    restarts: restarts.unwrap_or(RESTARTS),
                    ..Job::default()
                }
            }
        };
        let new = before.attempt == 0;
        let job = self.attempt(&name, before)?;
        if new && !job.spec.is_empty() {
            self.effects
                .put_bytes(keys::job_spec(&name, &key), job.spec.clone());
        }
        Ok((job, false))
    }

    /// Whether a pool can keep one job more.
    fn check_room(&self, name: &PoolName, spec: &[u8]) -> Result<(), Failure> {
        let bytes = spec.len();
        if bytes > SPEC_MAX {
            let text = format!(
                "a job's `spec` has at most {SPEC_MAX} bytes, not {bytes}: keep it elsewhere and give its address"
            );
            return Err(Failure::new(Reason::MessageTooLarge, text));
        }
        let many = self.jobs.all.get(name).map_or(0, BTreeMap::len) >= JOBS_MAX;
        if many || self.jobs.spec_bytes(name) + bytes > SPECS_MAX {
            let text = format!(
                "pool `{name}` keeps at most {JOBS_MAX} jobs and {SPECS_MAX} bytes of their `spec`: acknowledge the results of those that are done"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        Ok(())
    }

    /// Has a job done by the ready worker with the fewest, under a new fence.
    fn attempt(&mut self, name: &PoolName, before: Job) -> Result<Job, Failure> {
        let Some(worker) = self.least_busy(name) else {
            let text = format!(
                "no worker of pool `{name}` is ready to take the job `{}`; `tether ps` shows why",
                before.key
            );
            return Err(
                Failure::new(Reason::NoWorkerReady, text).retry_after(Duration::from_secs(1))
            );
        };
        Ok(self.attempt_by(&worker, before))
    }

    /// The next attempt at a job, which this worker makes.
    pub(super) fn attempt_by(&mut self, worker: &WorkerId, before: Job) -> Job {
        let mut job = Job {
            worker: Some(WorkerRef::from(worker)),
            fence: self.next_incarnation().0,
            attempt: before.attempt + 1,
            progress: 0.0,
            message: String::new(),
            ..before
        };
        job.set_state(JobState::Running);
        save(&worker.pool, &job.key, &job, &mut self.effects);
        self.jobs.waiting.note(&worker.pool, &job.key, &job);
        let jobs = self.jobs.all.entry(worker.pool.clone()).or_default();
        jobs.insert(job.key.clone(), job.clone());
        self.begin_hold(worker);
        job
    }

    /// Workers of a pool that take jobs, the one to take the next first: with how many each does.
    pub(super) fn takers(&self, name: &PoolName) -> Vec<(Burden, WorkerId)> {
        let busy = self.jobs.busy(name);
        let Some(pool) = self.pools.get(name) else {
            return Vec::new();
        };
        let ready = pool.places.iter().filter_map(|(slot, place)| {
            let live = place.live.as_ref()?;
            if !(place.serves && place.is_ready()) {
                return None;
            }
            let worker = WorkerId {
                pool: name.clone(),
                slot,
                incarnation: live.incarnation,
            };
            let jobs = busy.get(&(slot, live.incarnation)).copied();
            // One that is about to be replaced is kept by a job, and takes one only where there is no other.
            let burden = (self.is_stale(pool, place), jobs.unwrap_or(0));
            Some((burden, worker))
        });
        ready.collect()
    }

    fn least_busy(&self, name: &PoolName) -> Option<WorkerId> {
        let takers = self.takers(name).into_iter();
        takers.min().map(|(_, worker)| worker)
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
            JobState::Lost | JobState::Waiting => {}
            JobState::Orphaned => self.may_be_taken(&job, now)?,
            JobState::Running
            | JobState::Done
            | JobState::Failed
            | JobState::Cancelled
            | JobState::Unspecified => return Ok((job, false)),
        }
        let adopted = self.attempt(&name, job.clone())?;
        if let Some(zombie) = worker_of(&job) {
            self.end_hold(&zombie, now);
        }
        if !adopted.cancelled_by.is_empty() {
            self.arm_cancel(&name, &adopted, now);
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
