//! Jobs: how far each is, where it was saved, and its result until somebody acknowledges it.
//!
//! Each attempt has a fence, from the count that numbers incarnations: never given out twice, and greater than
//! that of every attempt before. Whoever reports with another is told who does the job (A9).

use std::collections::BTreeMap;

use prost::Message as _;
use tether_clock::Tick;
use tether_proto::{
    Failure,
    common::{Death, WorkerRef},
    job::{Checkpoint, Job, JobState, PutCheckpointRequest, ReportJobRequest},
    worker::EventKind,
};
use tether_types::{Incarnation, OwnerName, PoolName, Reason, Slot, WorkerId};

use super::{
    Ledger,
    restarts::{Waiting, lose},
    unknown_pool,
};
use crate::effects::{Effects, keys};

/// Longest result, in bytes.
const RESULT_MAX: usize = 64 << 10;

/// Results of one pool that are kept at once, in bytes; nothing is dropped for a new one.
const RESULTS_MAX: usize = 64 << 20;

/// Longest word on why a job cannot be done, in bytes.
const ERROR_MAX: usize = 4 << 10;

/// How much of what is said of its progress is kept, in bytes: it is written with each checkpoint.
const MESSAGE_MAX: usize = 4 << 10;

/// Longest address of a checkpoint, in bytes.
const URI_MAX: usize = 2 << 10;

/// A SHA-256, in bytes.
const SHA256: usize = 32;

/// How many jobs each worker of one pool does that does any.
pub(super) type Busy = BTreeMap<(Slot, Incarnation), usize>;

/// Every job, by pool and key.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    pub(super) all: BTreeMap<PoolName, BTreeMap<String, Job>>,
    pub(super) waiting: Waiting,
}

impl Jobs {
    pub(super) fn restore(&mut self, rest: &str, value: &[u8]) {
        if let Some((pool, key)) = rest.split_once('/')
            && let (Ok(pool), Ok(job)) = (PoolName::new(pool), Job::decode(value))
        {
            self.waiting.note(&pool, key, &job);
            let jobs = self.all.entry(pool).or_default();
            jobs.insert(key.to_owned(), job);
        }
    }

    /// What a job was started with, which is kept beside it. Read after the jobs.
    pub(super) fn restore_spec(&mut self, rest: &str, value: &[u8], effects: &mut Effects) {
        let parts = rest.split_once('/');
        let names = parts.and_then(|(pool, key)| Some((PoolName::new(pool).ok()?, key)));
        let job = names.and_then(|(pool, key)| self.all.get_mut(&pool)?.get_mut(key));
        match job {
            Some(job) => job.spec = value.to_vec(),
            None => effects.delete(format!("{}{rest}", keys::JOB_SPECS)),
        }
    }

    pub(super) fn forget_pool(&mut self, pool: &PoolName, effects: &mut Effects) {
        self.waiting.forget(pool);
        for key in self.all.remove(pool).unwrap_or_default().into_keys() {
            erase(pool, &key, effects);
        }
    }

    /// The jobs a dead worker did wait for another one, or are lost.
    pub(super) fn on_death(&mut self, id: &WorkerId, death: &Death, effects: &mut Effects) {
        self.change_of(id, is_open, effects, |job| lose(job, Some(death)));
    }

    /// The node of a worker is lost: what it does may go on, and nobody hears of it.
    pub(super) fn orphan(&mut self, id: &WorkerId, effects: &mut Effects) {
        let running = |job: &Job| job.state() == JobState::Running;
        self.change_of(id, running, effects, |job| {
            job.set_state(JobState::Orphaned);
        });
    }

    /// The worker is heard of again, and goes on.
    pub(super) fn resume(&mut self, id: &WorkerId, effects: &mut Effects) {
        let orphaned = |job: &Job| job.state() == JobState::Orphaned;
        self.change_of(id, orphaned, effects, |job| {
            job.set_state(JobState::Running);
        });
    }

    fn change_of(
        &mut self,
        id: &WorkerId,
        which: impl Fn(&Job) -> bool,
        effects: &mut Effects,
        change: impl Fn(&mut Job),
    ) {
        // Most pools have none, and a million workers may be asked about at once.
        let Some(jobs) = self.all.get_mut(&id.pool) else {
            return;
        };
        let worker = Some(WorkerRef::from(id));
        for (key, job) in jobs {
            if job.worker == worker && which(job) {
                change(job);
                save(&id.pool, key, job, effects);
                self.waiting.note(&id.pool, key, job);
            }
        }
    }

    /// Whether a worker does a job, as far as is known.
    pub(super) fn has_open(&self, id: &WorkerId) -> bool {
        let worker = Some(WorkerRef::from(id));
        let mut jobs = self
            .all
            .get(&id.pool)
            .into_iter()
            .flat_map(BTreeMap::values);
        jobs.any(|job| job.worker == worker && is_open(job))
    }

    /// Workers of a pool that do jobs, or may, and how many each: one look at all of its jobs.
    pub(super) fn busy(&self, pool: &PoolName) -> Busy {
        let jobs = self.all.get(pool).into_iter().flat_map(BTreeMap::values);
        let mut busy = Busy::new();
        for worker in jobs
            .filter(|job| is_open(job))
            .filter_map(|job| job.worker.as_ref())
        {
            *busy
                .entry((worker.slot, Incarnation(worker.incarnation)))
                .or_default() += 1;
        }
        busy
    }

    /// Nobody is in this place, so that whatever was done there is lost.
    pub(super) fn on_vacant(&mut self, pool: &PoolName, slot: Slot, effects: &mut Effects) {
        let at = |job: &Job| {
            let worker = job.worker.as_ref();
            worker.is_some_and(|worker| worker.slot == slot)
        };
        for (key, job) in self.all.get_mut(pool).into_iter().flatten() {
            if at(job) && is_open(job) {
                lose(job, None);
                save(pool, key, job, effects);
                self.waiting.note(pool, key, job);
            }
        }
    }

    /// Forgets the jobs of pools that are not there.
    pub(super) fn retain_pools(
        &mut self,
        there: impl Fn(&PoolName) -> bool,
        effects: &mut Effects,
    ) {
        let gone: Vec<_> = self
            .all
            .keys()
            .filter(|pool| !there(pool))
            .cloned()
            .collect();
        for pool in gone {
            self.forget_pool(&pool, effects);
        }
    }

    pub(super) fn get(&self, pool: &PoolName, key: &str) -> Result<&Job, Failure> {
        let found = self.all.get(pool).and_then(|jobs| jobs.get(key));
        found.ok_or_else(|| {
            let text = format!(
                "pool `{pool}` has no job with key `{}`: start it first",
                key.escape_default()
            );
            Failure::new(Reason::UnknownJob, text)
        })
    }

    pub(super) fn get_mut(&mut self, pool: &PoolName, key: &str) -> Result<&mut Job, Failure> {
        self.get(pool, key)?;
        let found = self.all.get_mut(pool).and_then(|jobs| jobs.get_mut(key));
        found.ok_or_else(|| Failure::new(Reason::UnknownJob, "the job is gone"))
    }

    /// Keys of results nobody has acknowledged.
    fn unacknowledged(&self, pool: &PoolName) -> Vec<&str> {
        let jobs = self.all.get(pool).into_iter().flatten();
        let done = jobs.filter(|(_, job)| matches!(job.state(), JobState::Done | JobState::Failed));
        done.map(|(key, _)| key.as_str()).collect()
    }

    /// Bytes of what jobs of a pool were started with.
    pub(super) fn spec_bytes(&self, pool: &PoolName) -> usize {
        let jobs = self.all.get(pool).into_iter().flat_map(BTreeMap::values);
        jobs.map(|job| job.spec.len()).sum()
    }

    /// Bytes of results that a pool keeps.
    fn result_bytes(&self, pool: &PoolName) -> usize {
        let jobs = self.all.get(pool).into_iter().flat_map(BTreeMap::values);
        jobs.map(|job| job.result.len()).sum()
    }
}

/// Whether somebody does it, or may.
pub(super) fn is_open(job: &Job) -> bool {
    matches!(job.state(), JobState::Running | JobState::Orphaned)
}

/// What is written of a job, and who is told of it. What it was started with has a key of its own, as it never
/// changes.
pub(super) fn save(pool: &PoolName, key: &str, job: &Job, effects: &mut Effects) {
    effects.put(keys::job(pool, key), told(job));
    effects.touch_job(pool, job);
}

/// Nothing is left of a job.
fn erase(pool: &PoolName, key: &str, effects: &mut Effects) {
    effects.delete(keys::job(pool, key));
    effects.delete(keys::job_spec(pool, key));
    effects.touch_key(pool, key);
}

/// A job without what it was started with.
fn told(job: &Job) -> Job {
    Job {
        spec: Vec::new(),
        ..job.clone()
    }
}

/// A job as one of thousands: without what can be large.
fn listed(job: &Job) -> Job {
    let mut job = Job {
        spec: Vec::new(),
        result: Vec::new(),
        ..job.clone()
    };
    if let Some(death) = &mut job.death {
        death.stderr_tail.clear();
    }
    job
}

/// Who does it.
pub(super) fn worker_of(job: &Job) -> Option<WorkerId> {
    WorkerRef::required(job.worker.as_ref()).ok()
}

/// Refuses whoever is not the attempt that counts.
fn fenced(job: &Job, who: &str, fence: u64) -> Failure {
    let holder = worker_of(job).map_or_else(|| "nobody".to_owned(), |id| format!("worker `{id}`"));
    let (state, now) = match job.state() {
        JobState::Done => ("was done by", job.fence),
        JobState::Lost | JobState::Waiting => ("is lost with", job.fence),
        JobState::Cancelled => ("was cancelled with", job.fence),
        JobState::Failed => ("was given up by", job.fence),
        JobState::Running | JobState::Orphaned | JobState::Unspecified => ("is done by", job.fence),
    };
    let text = format!(
        "{who} is fenced off from the job `{}`, which {state} {holder} (attempt {}, fence {now}): stop working on it, and write nothing more",
        job.key, job.attempt
    );
    Failure::new(Reason::LeaseFenced, text)
        .fact(
            "holder",
            holder.trim_start_matches("worker ").trim_matches('`'),
        )
        .fact("fence", now)
        .fact("offered", fence)
}

impl Ledger {
    pub(crate) fn get_job(&self, pool: &str, key: &str) -> Result<Job, Failure> {
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        self.jobs.get(&name, key).cloned()
    }

    pub(crate) fn list_jobs(&self, pool: &str) -> Vec<Job> {
        let pools = self
            .jobs
            .all
            .iter()
            .filter(|(name, _)| pool.is_empty() || name.as_str() == pool);
        pools
            .flat_map(|(_, jobs)| jobs.values().map(listed))
            .collect()
    }

    /// The jobs that a worker does.
    pub(crate) fn jobs_of(&self, id: &WorkerId) -> Vec<Job> {
        let worker = Some(WorkerRef::from(id));
        let jobs = self.jobs.all.get(&id.pool).into_iter();
        let its = jobs.flat_map(BTreeMap::values);
        let its = its.filter(|job| job.worker == worker && is_open(job));
        its.map(told).collect()
    }

    /// The job with this key, if there is one.
    pub(crate) fn find_job(&self, pool: &PoolName, key: &str) -> Option<Job> {
        self.jobs.get(pool, key).ok().map(told)
    }

    /// Records what a worker says of its job. Progress is kept in memory; only the end is written.
    ///
    /// # Errors
    /// When another attempt does the job, it is unknown, or the result is too large or one too many.
    pub(crate) fn report_job(
        &mut self,
        worker: &WorkerId,
        report: ReportJobRequest,
        now: Tick,
    ) -> Result<(), Failure> {
        let kept = self.jobs.result_bytes(&worker.pool);
        let job = self.jobs.get_mut(&worker.pool, &report.key)?;
        let same = job.worker.as_ref() == Some(&WorkerRef::from(worker))
            && [0, job.fence].contains(&report.fence);
        if !same || !is_open(job) {
            // Said again, as the answer may have been lost.
            return match same && is_repeated(job, &report) {
                true => Ok(()),
                false => Err(fenced(job, &format!("worker `{worker}`"), report.fence)),
            };
        }
        check_end(job, &report)?;
        if let Some(result) = &report.result {
            check_result(&worker.pool, result.len(), kept)?;
        }
        job.progress = job.progress.max(report.progress.clamp(0.0, 1.0));
        job.message = report.message;
        let end = job.message.floor_char_boundary(MESSAGE_MAX);
        job.message.truncate(end);
        let ended = if let Some(result) = report.result {
            job.result = result;
            job.progress = 1.0;
            JobState::Done
        } else if let Some(error) = report.error {
            job.message = error;
            JobState::Failed
        } else if report.cancelled {
            JobState::Cancelled
        } else {
            self.effects.touch_key(&worker.pool, &report.key);
            return Ok(());
        };
        job.set_state(ended);
        save(&worker.pool, &report.key, job, &mut self.effects);
        self.end_hold(worker, now);
        Ok(())
    }

    /// Records where a job was saved, for the attempt that may follow.
    ///
    /// # Errors
    /// When another attempt does the job, or a later checkpoint is known.
    pub(crate) fn put_checkpoint(&mut self, request: PutCheckpointRequest) -> Result<(), Failure> {
        check_checkpoint(&request)?;
        let name =
            PoolName::new(&request.pool).map_err(|_| unknown_pool(&request.pool, &self.pools))?;
        let job = self.jobs.get_mut(&name, &request.key)?;
        if job.fence != request.fence || !is_open(job) {
            return Err(fenced(
                job,
                &format!("fence {}", request.fence),
                request.fence,
            ));
        }
        let checkpoint = Checkpoint {
            seq: request.seq,
            uri: request.uri,
            sha256: request.sha256,
            bytes: request.bytes,
            fence: request.fence,
        };
        if let Some(last) = &job.checkpoint {
            if *last == checkpoint {
                return Ok(());
            }
            if checkpoint.seq <= last.seq {
                let text = format!(
                    "checkpoint {} of job `{}` is not after the last one, {}, saved under fence {}: number it {} or later",
                    checkpoint.seq,
                    request.key,
                    last.seq,
                    last.fence,
                    last.seq.saturating_add(1)
                );
                return Err(Failure::new(Reason::ConfigInvalid, text).fact("seq", last.seq));
            }
        }
        job.checkpoint = Some(checkpoint);
        save(&name, &request.key, job, &mut self.effects);
        Ok(())
    }

    /// Forgets a job that is over.
    ///
    /// # Errors
    /// When it is unknown or still being done.
    pub(crate) fn acknowledge_job(&mut self, pool: &str, key: &str) -> Result<(), Failure> {
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        let job = self.jobs.get(&name, key)?;
        if is_open(job) || job.state() == JobState::Waiting {
            let text = format!(
                "job `{key}` of pool `{pool}` is still being done: its result cannot be let go yet"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        }
        let name = PoolName::new(pool).map_err(|_| unknown_pool(pool, &self.pools))?;
        if let Some(jobs) = self.jobs.all.get_mut(&name) {
            jobs.remove(key);
        }
        erase(&name, key, &mut self.effects);
        Ok(())
    }

    /// It may be known only now that nobody is in a place, and its next worker need not be due yet.
    pub(super) fn lose_jobs_of_nobody(&mut self, pool: &PoolName) {
        for (slot, _) in self.jobs.busy(pool).into_keys() {
            let place = self.place(pool, slot);
            let empty = place.is_none_or(|place| place.live.is_none());
            if empty && !self.is_blocked(pool, slot) {
                self.jobs.on_vacant(pool, slot, &mut self.effects);
            }
        }
    }

    /// A pool is gone, and its jobs with it. Results that go unread are told of.
    pub(super) fn forget_jobs(&mut self, pool: &PoolName, owner: &OwnerName) {
        let unread = self.jobs.unacknowledged(pool);
        if let Some(first) = unread.first() {
            let text = format!(
                "with pool `{pool}` went {} results of jobs that nobody had acknowledged, the first of `{first}`",
                unread.len()
            );
            self.effects
                .owner_event(EventKind::PoolChanged, owner, text);
        }
        self.jobs.forget_pool(pool, &mut self.effects);
    }
}

/// Whether this was reported already, and is so.
fn is_repeated(job: &Job, report: &ReportJobRequest) -> bool {
    match job.state() {
        JobState::Done => report.result.as_ref() == Some(&job.result),
        JobState::Failed => report.error.as_ref() == Some(&job.message),
        JobState::Cancelled => report.cancelled,
        JobState::Unspecified
        | JobState::Running
        | JobState::Lost
        | JobState::Orphaned
        | JobState::Waiting => false,
    }
}

/// Whether a job can end as is said.
fn check_end(job: &Job, report: &ReportJobRequest) -> Result<(), Failure> {
    let ends = [
        report.result.is_some(),
        report.error.is_some(),
        report.cancelled,
    ];
    let error = report.error.as_ref().map_or(0, String::len);
    let why = if ends.into_iter().filter(|&end| end).count() > 1 {
        "it has more than one end: give a `result`, an `error` or `cancelled`".to_owned()
    } else if error > ERROR_MAX {
        format!("its `error` has {error} bytes, use up to {ERROR_MAX}")
    } else if report.cancelled && job.cancelled_by.is_empty() {
        "nobody has asked for its cancelling".to_owned()
    } else {
        return Ok(());
    };
    let text = format!("a report of job `{}` is refused: {why}", job.key);
    Err(Failure::new(Reason::ConfigInvalid, text))
}

fn check_result(pool: &PoolName, bytes: usize, kept: usize) -> Result<(), Failure> {
    if bytes > RESULT_MAX {
        let text = format!(
            "a job's result has at most {RESULT_MAX} bytes: keep it elsewhere and report where"
        );
        return Err(Failure::new(Reason::MessageTooLarge, text));
    }
    if kept + bytes > RESULTS_MAX {
        let text = format!(
            "pool `{pool}` keeps {kept} bytes of results that nobody has acknowledged, at most {RESULTS_MAX} are kept: acknowledge some, and report again; the job stays as it is meanwhile"
        );
        return Err(Failure::new(Reason::MessageTooLarge, text)
            .retry_after(std::time::Duration::from_secs(1)));
    }
    Ok(())
}

fn check_checkpoint(request: &PutCheckpointRequest) -> Result<(), Failure> {
    let why = if request.fence == 0 {
        "`fence` is 0: give that of the job, as `StartJob` and `GetJob` tell it".to_owned()
    } else if request.uri.is_empty() || request.uri.len() > URI_MAX {
        format!("`uri` has {} bytes, use 1 to {URI_MAX}", request.uri.len())
    } else if ![0, SHA256].contains(&request.sha256.len()) {
        format!(
            "`sha256` has {} bytes, use {SHA256} or none",
            request.sha256.len()
        )
    } else {
        return Ok(());
    };
    let text = format!(
        "a checkpoint of job `{}` is refused: {why}",
        request.key.escape_default()
    );
    Err(Failure::new(Reason::ConfigInvalid, text))
}
