//! Jobs that are to end before they are done.
//!
//! The worker is told, and has its grace to stop by itself. After that nothing it says is heard any more, and it is
//! ended: other jobs that it does go on elsewhere, from their checkpoints.

use std::time::Duration;

use tether_clock::Tick;
use tether_proto::{
    Failure,
    job::{CancelJobRequest, Job, JobState},
    worker::EventKind,
};
use tether_types::{PoolName, Reason};

use super::{
    Ledger, Timed,
    jobs::{is_open, save, worker_of},
    unknown_pool,
};

/// How long a worker has to stop, where nobody says.
const GRACE_MS: u64 = 10_000;

/// The longest grace.
const GRACE_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// Who asks for it, where no owner does.
const OPERATOR: &str = "an operator";

/// The end of the grace of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cancel {
    pool: PoolName,
    key: String,
    /// Of the attempt: a later job may have its key.
    fence: u64,
    due: Tick,
}

impl Ledger {
    /// Has a job end. One that is over is told as it is.
    ///
    /// # Errors
    /// When there is no such job.
    pub(crate) fn cancel_job(
        &mut self,
        request: &CancelJobRequest,
        now: Tick,
    ) -> Result<Job, Failure> {
        let (pool, key) = (&request.pool, &request.key);
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        let grace_ms = request.grace_ms.unwrap_or(GRACE_MS);
        if grace_ms > GRACE_MAX_MS {
            let text = format!("`grace_ms` is {grace_ms}, use up to {GRACE_MAX_MS}");
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let by = match request.owner.as_str() {
            "" => OPERATOR.to_owned(),
            owner => format!("owner `{owner}`"),
        };
        let job = self.jobs.get_mut(&name, key)?;
        // Asked again: the first who asked is recorded, and a shorter grace counts.
        let again = !job.cancelled_by.is_empty();
        if is_open(job) && !(again && job.cancel_grace_ms <= grace_ms) {
            job.cancel_grace_ms = grace_ms;
            if !again {
                job.cancelled_by = by;
            }
            save(&name, key, job, &mut self.effects);
            let job = job.clone();
            self.arm_cancel(&name, &job, now);
            return Ok(job);
        }
        if matches!(job.state(), JobState::Waiting | JobState::Lost) {
            job.cancelled_by = by;
            job.set_state(JobState::Cancelled);
            save(&name, key, job, &mut self.effects);
            let job = job.clone();
            self.jobs.waiting.note(&name, key, &job);
            return Ok(job);
        }
        Ok(job.clone())
    }

    pub(super) fn arm_cancel(&mut self, pool: &PoolName, job: &Job, now: Tick) {
        let due = now + Duration::from_millis(job.cancel_grace_ms);
        let cancel = Cancel {
            pool: pool.clone(),
            key: job.key.clone(),
            fence: job.fence,
            due,
        };
        self.wheel.arm(Timed::Cancel(cancel), due);
    }

    /// What an earlier arbiter was asked to end has all of its grace again.
    pub(super) fn restore_cancels(&mut self, now: Tick) {
        let mut open = Vec::new();
        for (pool, jobs) in &self.jobs.all {
            for job in jobs.values() {
                if is_open(job) && !job.cancelled_by.is_empty() {
                    open.push((pool.clone(), job.clone()));
                }
            }
        }
        for (pool, job) in open {
            self.arm_cancel(&pool, &job, now);
        }
    }

    /// The grace of a job that was cancelled may be over.
    pub(super) fn check_cancel(&mut self, cancel: Cancel, now: Tick) {
        let Cancel {
            pool,
            key,
            fence,
            due,
        } = &cancel;
        let Ok(job) = self.jobs.get_mut(pool, key) else {
            return;
        };
        // It may be over, and a later one have its key.
        if !is_open(job) || job.fence != *fence || job.cancelled_by.is_empty() {
            return;
        }
        if *due > now {
            let due = *due;
            self.wheel.arm(Timed::Cancel(cancel), due);
            return;
        }
        job.set_state(JobState::Cancelled);
        let job = job.clone();
        save(pool, key, &job, &mut self.effects);
        let Some(worker) = worker_of(&job) else {
            return;
        };
        self.end_hold(&worker, now);
        let node = self.find_worker(&worker).map(|(_, node)| node);
        if let Some(owner) = self.pools.get(pool).map(|pool| pool.owner().clone()) {
            let text = format!(
                "is ended, as it has not stopped job `{key}` within {} ms after {} had it cancelled",
                job.cancel_grace_ms, job.cancelled_by
            );
            self.effects.worker_event(
                EventKind::WorkerEnding,
                &worker,
                node.as_ref(),
                &owner,
                text,
                None,
            );
        }
        self.stop_worker(&worker, None);
    }
}
