//! Jobs of the model: every attempt there ever was goes on trying to be heard.

use std::collections::BTreeMap;

use tether_proto::job::{
    CancelJobRequest, Job, JobState, PutCheckpointRequest, ReportJobRequest, StartJobRequest,
};
use tether_types::WorkerId;

use super::{owner::POOLS, world::World};

/// How many keys each pool has.
const KEYS: usize = 2;

/// What is known of one key, outside of the ledger.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Fence and worker of each, as they were told.
    all: Vec<(u64, WorkerId)>,
    /// The last checkpoint that was acknowledged.
    saved: u64,
}

/// By pool and key.
pub(super) type Jobs = BTreeMap<(usize, usize), Attempts>;

/// A job that is not done again by itself.
pub(super) fn plain(pool: &str, key: &str) -> StartJobRequest {
    StartJobRequest {
        pool: pool.to_owned(),
        key: key.to_owned(),
        restarts: Some(0),
        ..StartJobRequest::default()
    }
}

impl World {
    fn key(nth: usize) -> (usize, String) {
        (nth % KEYS, format!("job-{}", nth % KEYS))
    }

    /// An owner starts a job, or finds it.
    pub(super) fn start_job(&mut self, pool: usize, nth: usize) {
        let (index, key) = Self::key(nth);
        let request = StartJobRequest {
            restarts: Some(if nth < 2 * KEYS { 0 } else { 2 }),
            spec: b"spec".to_vec(),
            ..plain(POOLS[pool].0, &key)
        };
        if let Ok((job, found)) = self.ledger.start_job(request) {
            self.note_attempt((pool, index), &job, !found);
        }
        self.settle();
    }

    /// An owner takes a job over.
    pub(super) fn adopt_job(&mut self, pool: usize, nth: usize) {
        let (index, key) = Self::key(nth);
        if let Ok((job, adopted)) = self.ledger.adopt_job(POOLS[pool].0, &key, self.now) {
            self.note_attempt((pool, index), &job, adopted);
        }
        self.settle();
    }

    /// An owner has a job end.
    pub(super) fn cancel_job(&mut self, pool: usize, nth: usize) {
        let (_, key) = Self::key(nth);
        let request = CancelJobRequest {
            pool: POOLS[pool].0.to_owned(),
            key,
            grace_ms: Some(500),
            ..CancelJobRequest::default()
        };
        drop(self.ledger.cancel_job(&request, self.now));
        self.settle();
    }

    /// What the ledger has begun by itself, which needs the proof that nobody else is at it.
    pub(super) fn note_attempts(&mut self) {
        for job in self.ledger.list_jobs("") {
            let pool = POOLS.iter().position(|(name, ..)| *name == job.pool);
            let nth = job.key.strip_prefix("job-");
            let Some(at) = pool.zip(nth.and_then(|nth| nth.parse().ok())) else {
                continue;
            };
            let before = self.jobs.get(&at).and_then(|it| it.all.last().cloned());
            let Some((fence, worker)) = before.filter(|(fence, _)| *fence < job.fence) else {
                continue;
            };
            let mut workers = self.nodes.iter().flat_map(|node| &node.workers);
            let lives = workers.any(|(id, it)| *id == worker && it.alive);
            assert!(
                !lives,
                "A9: {worker} is at {} with fence {fence}, and it is done again",
                job.key
            );
            self.note_attempt(at, &job, true);
        }
    }

    fn note_attempt(&mut self, at: (usize, usize), job: &Job, new: bool) {
        let attempts = self.jobs.entry(at).or_default();
        let before = attempts.all.last().map_or(0, |(fence, _)| *fence);
        if new {
            assert!(job.fence > before, "A9: fence {} after {before}", job.fence);
            let worker = WorkerId::try_from(job.worker.as_ref().unwrap()).unwrap();
            attempts.all.push((job.fence, worker));
        } else {
            assert_eq!(job.fence, before, "A9: a job is found under its last fence");
        }
        // Of a job that is forgotten nothing is left to go on from.
        if job.attempt > 1 {
            let saved = job.checkpoint.as_ref().map_or(0, |saved| saved.seq);
            assert!(saved >= attempts.saved, "A9: a checkpoint is lost");
        } else if new {
            attempts.saved = 0;
        }
    }

    /// Every attempt there was saves and reports, the latest one last; their way to a gateway may be open while
    /// their nodes are cut off.
    pub(super) fn report_job(&mut self, pool: usize, nth: usize, done: bool) {
        let (index, key) = Self::key(nth);
        let at = (pool, index);
        let all = self.jobs.get(&at).map(|attempts| attempts.all.clone());
        let all = all.unwrap_or_default();
        let last = all.last().map_or(0, |(fence, _)| *fence);
        for (fence, worker) in all {
            let saved = self.jobs[&at].saved;
            let save = PutCheckpointRequest {
                pool: POOLS[pool].0.to_owned(),
                key: key.clone(),
                fence,
                seq: saved + 1,
                uri: "s3://there".to_owned(),
                ..PutCheckpointRequest::default()
            };
            let report = ReportJobRequest {
                key: key.clone(),
                fence,
                result: done.then(|| b"done".to_vec()),
                ..ReportJobRequest::default()
            };
            let is_saved = self.ledger.put_checkpoint(save).is_ok();
            let heard = self.ledger.report_job(&worker, report, self.now).is_ok();
            assert!(
                fence == last || !(is_saved || heard),
                "A9: an earlier attempt of {worker} is heard"
            );
            if is_saved && let Some(attempts) = self.jobs.get_mut(&at) {
                attempts.saved = saved + 1;
            }
        }
        self.settle();
    }

    /// Every job is done that a worker beyond its pool's size does, for which that worker stays.
    pub(super) fn end_jobs_of_stand_ins(&mut self) {
        for (pool, (name, ..)) in POOLS.iter().enumerate() {
            for nth in 0..KEYS {
                let (_, key) = Self::key(nth);
                let job = self.ledger.get_job(name, &key).ok();
                let slot = job.and_then(|job| Some(job.worker?.slot));
                let rolling = self.ledger.pools.get(&name.parse().unwrap());
                let is_beyond = |slot| rolling?.rollout.places().find(|place| *place == slot);
                if slot.and_then(is_beyond).is_some() {
                    self.report_job(pool, nth, true);
                }
            }
        }
    }

    /// An owner lets a result go.
    pub(super) fn acknowledge_job(&mut self, pool: usize, nth: usize) {
        let (_, key) = Self::key(nth);
        drop(self.ledger.acknowledge_job(POOLS[pool].0, &key));
        self.settle();
    }

    /// A9, as the ledger has it: who does a job lives there as far as is known, and no result is lost.
    pub(super) fn check_jobs(&self) {
        for job in self.ledger.list_jobs("") {
            let id = WorkerId::try_from(job.worker.as_ref().unwrap()).unwrap();
            let live = self.ledger.find_worker(&id).is_some();
            let awaited = self.ledger.is_blocked(&id.pool, id.slot);
            match job.state() {
                JobState::Running | JobState::Orphaned => assert!(
                    live || awaited,
                    "A9: {} is done by {id}, who is not there",
                    job.key
                ),
                JobState::Done => {
                    let job = self.ledger.get_job(&job.pool, &job.key).unwrap();
                    assert_eq!(job.result, b"done", "a result is lost");
                }
                JobState::Lost | JobState::Cancelled => {}
                JobState::Waiting => assert!(!live, "A9: {id} lives, and {} waits", job.key),
                JobState::Failed | JobState::Unspecified => panic!("{} is nothing", job.key),
            }
        }
        for node in self.ledger.nodes.values() {
            for id in node.jobs.keys() {
                let key = crate::effects::keys::hold(&id.pool, id.slot);
                assert!(
                    self.store.contains_key(&key),
                    "A1: {id} may outlive us unnoticed"
                );
            }
        }
    }
}
