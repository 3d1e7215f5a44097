//! The operations of control services that the BEAM can ask for: one line each.

/// One of them.
#[derive(Debug)]
pub(crate) struct Op {
    /// As the BEAM calls it.
    pub(crate) name: &'static str,
    /// `package.Service` and method.
    pub(crate) service: &'static str,
    pub(crate) method: &'static str,
    /// What of the answer is told.
    pub(crate) told: Told,
    /// What the BEAM calls otherwise than the message's field.
    pub(crate) renamed: &'static [(&'static str, &'static str)],
}

/// What of an answer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// All of it.
    Whole,
    /// One field.
    Field(&'static str),
    /// Each message of a stream.
    Items,
    /// Each message of a stream that says how something is, where it says something else than the last one. Asked for
    /// again where it breaks or is silent.
    State,
    /// One field of each message of a stream, which is followed on after a break: the revision in it says from where.
    Followed(&'static str),
}

const POOLS: &str = "tether.pool.v1.PoolService";
const WORKERS: &str = "tether.worker.v1.WorkerService";
const SESSIONS: &str = "tether.session.v1.SessionService";
const JOBS: &str = "tether.job.v1.JobService";

const fn op(name: &'static str, (service, method): (&'static str, &'static str), told: Told) -> Op {
    Op {
        name,
        service,
        method,
        told,
        renamed: &[],
    }
}

impl Op {
    const fn renaming(mut self, renamed: &'static [(&'static str, &'static str)]) -> Self {
        self.renamed = renamed;
        self
    }

    /// The one of this name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|op| op.name == name)
    }
}

/// Every one, in the order of the reference.
pub(crate) const ALL: &[Op] = &[
    op("pool_apply", (POOLS, "ApplyPool"), Told::Field("pool")),
    op("pool_get", (POOLS, "GetPool"), Told::Field("pool")),
    op("pool_list", (POOLS, "ListPools"), Told::Field("pools")),
    op("pool_scale", (POOLS, "ScalePool"), Told::Field("pool")),
    op("pool_drain", (POOLS, "DrainPool"), Told::Field("pool")),
    op("pool_delete", (POOLS, "DeletePool"), Told::Whole),
    op(
        "worker_list",
        (WORKERS, "ListWorkers"),
        Told::Field("workers"),
    ),
    op("worker_get", (WORKERS, "GetWorker"), Told::Field("worker")),
    op("worker_stop", (WORKERS, "StopWorker"), Told::Whole).renaming(&[("grace", "grace_ms")]),
    op("worker_signal", (WORKERS, "SignalWorker"), Told::Whole),
    op("node_list", (WORKERS, "ListNodes"), Told::Field("nodes")),
    op(
        "session_list",
        (SESSIONS, "ListSessions"),
        Told::Field("sessions"),
    ),
    op("job_start", (JOBS, "StartJob"), Told::Whole),
    op("job_get", (JOBS, "GetJob"), Told::Field("job")),
    op("job_list", (JOBS, "ListJobs"), Told::Field("jobs")),
    op("job_adopt", (JOBS, "AdoptJob"), Told::Whole),
    op("job_cancel", (JOBS, "CancelJob"), Told::Field("job")).renaming(&[("grace", "grace_ms")]),
    op("job_watch", (JOBS, "WatchJobs"), Told::State),
    op("job_acknowledge", (JOBS, "AcknowledgeJob"), Told::Whole),
    op("logs", (WORKERS, "ReadLogs"), Told::Items),
    op("events", (WORKERS, "WatchEvents"), Told::Followed("event"))
        .renaming(&[("after", "after_revision")]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_operations_are_those_that_there_are() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/port.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, page) = page.split_once("## Operations").unwrap();

        for op in ALL {
            assert!(page.contains(&format!("`{}`", op.name)), "{}", op.name);
        }
    }
}
