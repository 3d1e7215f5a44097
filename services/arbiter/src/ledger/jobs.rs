//! Jobs: who does which, how far it is, and its result until somebody acknowledges it.

use std::collections::BTreeMap;

use prost::Message as _;
use tether_proto::{
    Failure,
    common::{Death, WorkerRef},
    job::{Job, JobState, ReportJobRequest},
};
use tether_types::{PoolName, Reason, Slot, WorkerId};

use super::{Ledger, slots::Told, unknown_pool};
use crate::effects::{Effects, keys};

/// Jobs of one pool that are kept at once, done ones included (P5).
const JOBS_MAX: usize = 10_000;

/// Longest key, in bytes.
const KEY_MAX: usize = 256;

/// Longest result, in bytes.
const RESULT_MAX: usize = 64 << 10;

/// Every job, by pool and key.
#[derive(Debug, Default)]
pub(crate) struct Jobs(BTreeMap<PoolName, BTreeMap<String, Job>>);

impl Jobs {
    pub(super) fn restore(&mut self, rest: &str, value: &[u8]) {
        if let Some((pool, key)) = rest.split_once('/')
            && let (Ok(pool), Ok(job)) = (PoolName::new(pool), Job::decode(value))
        {
            self.0.entry(pool).or_default().insert(key.to_owned(), job);
        }
    }

    pub(super) fn forget_pool(&mut self, pool: &PoolName, effects: &mut Effects) {
        for key in self.0.remove(pool).unwrap_or_default().into_keys() {
            effects.delete(keys::job(pool, &key));
        }
    }

    /// The jobs a dead worker did are lost.
    pub(super) fn on_death(&mut self, id: &WorkerId, death: &Death, effects: &mut Effects) {
        let worker = Some(WorkerRef::from(id));
        for (key, job) in self.0.get_mut(&id.pool).into_iter().flatten() {
            if job.worker == worker && job.state() == JobState::Running {
                job.set_state(JobState::Lost);
                job.death = Some(death.clone());
                effects.put(keys::job(&id.pool, key), job.clone());
            }
        }
    }

    /// Nobody is in this place, so that whatever was done there is lost.
    pub(super) fn on_vacant(&mut self, pool: &PoolName, slot: Slot, effects: &mut Effects) {
        let at = |job: &Job| {
            job.worker
                .as_ref()
                .is_some_and(|worker| worker.slot == slot)
        };
        for (key, job) in self.0.get_mut(pool).into_iter().flatten() {
            if at(job) && job.state() == JobState::Running {
                job.set_state(JobState::Lost);
                effects.put(keys::job(pool, key), job.clone());
            }
        }
    }

    /// Forgets the jobs of pools that are not there.
    pub(super) fn retain_pools(
        &mut self,
        there: impl Fn(&PoolName) -> bool,
        effects: &mut Effects,
    ) {
        let gone: Vec<_> = self.0.keys().filter(|pool| !there(pool)).cloned().collect();
        for pool in gone {
            self.forget_pool(&pool, effects);
        }
    }

    fn get(&self, pool: &PoolName, key: &str) -> Result<&Job, Failure> {
        let found = self.0.get(pool).and_then(|jobs| jobs.get(key));
        found.ok_or_else(|| {
            let text = format!(
                "pool `{pool}` has no job with key `{}`: start it first",
                key.escape_default()
            );
            Failure::new(Reason::UnknownJob, text)
        })
    }
}

impl Ledger {
    /// Starts a job on the ready worker with the fewest, or finds the one with this key. A lost job
    /// is started again.
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
        let entry = self
            .pools
            .get(&name)
            .ok_or_else(|| unknown_pool(pool, &self.pools))?;
        let jobs = self.jobs.0.entry(name.clone()).or_default();
        if let Some(job) = jobs.get(key)
            && job.state() != JobState::Lost
        {
            return Ok((job.clone(), true));
        }
        if jobs.len() >= JOBS_MAX {
            let text = format!(
                "pool `{name}` already keeps {JOBS_MAX} jobs: acknowledge the results of those that are done"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let load = |worker: &WorkerRef| {
            jobs.values()
                .filter(|job| {
                    job.state() == JobState::Running && job.worker.as_ref() == Some(worker)
                })
                .count()
        };
        let ready = entry
            .places
            .iter()
            .filter(|(_, place)| place.serves)
            .filter_map(|(&slot, place)| place.endpoint(&name, slot, Told::default())?.worker);
        let Some(worker) = ready.min_by_key(|worker| load(worker)) else {
            let text = format!(
                "no worker of pool `{name}` is ready to take the job `{key}`; `tether ps` shows why"
            );
            return Err(Failure::new(Reason::NoWorkerReady, text)
                .retry_after(std::time::Duration::from_secs(1)));
        };
        let mut job = Job {
            key: key.to_owned(),
            pool: pool.to_owned(),
            worker: Some(worker),
            ..Job::default()
        };
        job.set_state(JobState::Running);
        jobs.insert(key.to_owned(), job.clone());
        self.effects.put(keys::job(&name, key), job.clone());
        Ok((job, false))
    }

    pub(crate) fn get_job(&self, pool: &str, key: &str) -> Result<Job, Failure> {
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        self.jobs.get(&name, key).cloned()
    }

    pub(crate) fn list_jobs(&self, pool: &str) -> Vec<Job> {
        let pools = self
            .jobs
            .0
            .iter()
            .filter(|(name, _)| pool.is_empty() || name.as_str() == pool);
        pools.flat_map(|(_, jobs)| jobs.values().cloned()).collect()
    }

    /// Records what a worker says of its job. Progress is kept in memory; only the end is written.
    ///
    /// # Errors
    /// When the job is another worker's, or unknown, or the result is too large.
    pub(crate) fn report_job(
        &mut self,
        worker: &WorkerId,
        report: ReportJobRequest,
    ) -> Result<(), Failure> {
        self.jobs.get(&worker.pool, &report.key)?;
        let Some(job) = self
            .jobs
            .0
            .get_mut(&worker.pool)
            .and_then(|jobs| jobs.get_mut(&report.key))
        else {
            return Ok(());
        };
        if job.worker.as_ref() != Some(&WorkerRef::from(worker)) || job.state() != JobState::Running
        {
            let text = format!(
                "worker `{worker}` does not do the job `{}` (any more): stop working on it",
                report.key
            );
            return Err(Failure::new(Reason::LeaseFenced, text));
        }
        if report
            .result
            .as_ref()
            .is_some_and(|result| result.len() > RESULT_MAX)
        {
            let text = format!(
                "a job's result has at most {RESULT_MAX} bytes: keep it elsewhere and report where"
            );
            return Err(Failure::new(Reason::MessageTooLarge, text));
        }
        job.progress = job.progress.max(report.progress.clamp(0.0, 1.0));
        job.message = report.message;
        if let Some(result) = report.result {
            job.result = result;
            job.progress = 1.0;
            job.set_state(JobState::Done);
            let job = job.clone();
            self.effects.put(keys::job(&worker.pool, &report.key), job);
        }
        Ok(())
    }

    /// Forgets a job that is done or lost.
    ///
    /// # Errors
    /// When it is unknown or still being done.
    pub(crate) fn acknowledge_job(&mut self, pool: &str, key: &str) -> Result<(), Failure> {
        if self.get_job(pool, key)?.state() == JobState::Running {
            let text = format!(
                "job `{key}` of pool `{pool}` is still being done: its result cannot be let go yet"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        if let Some(jobs) = self.jobs.0.get_mut(&name) {
            jobs.remove(key);
        }
        self.effects.delete(keys::job(&name, key));
        Ok(())
    }
}
