//! Fork servers: Python processes that have imported what a template names, from which its workers are
//! forked. Each is run as a worker is, under a shim of its own, and is nobody's business but the agent's.
//!
//! ```text
//! a worker's task -- of() --> keeper: one server for each template --> starts it, waits until it is ready
//!                 <-- where it listens, or why there is none
//!                 -- done() -> ends it once nobody is left
//! ```
//!
//! A server may live for as long as any worker that came of it: its permission is the longest of theirs.

mod keeper;
mod pulse;
mod setback;

use std::path::{Path, PathBuf};

use tether_clock::Tick;
use tether_proto::{
    node::{StartWorker, WorkerReport},
    pool::{Readiness, ReadinessKind, Stop, Template},
};
use tether_shim_protocol::{OnLinkLoss, OnOwnerExit};
use tether_types::{Death, DeathCause, Incarnation, PoolName, WorkerId};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    permission::{Permissions, PoolPermission},
    report,
    worker::{Order, Ties},
};

pub(crate) use keeper::Keeper;

/// The pool that its directory and its environment name.
const POOL: &str = tether_settings::FORKSERVER_POOL;

/// Carried along, so that nothing has to be installed.
static SCRIPT: &str = include_str!("../../../clients/python/tether_forkserver.py");

/// Where it is put, in the runtime directory.
const SCRIPT_FILE: &str = "tether_forkserver.py";

/// A fork server that is ready.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) id: WorkerId,
    pub(crate) socket: PathBuf,
    /// Cancelled when it is found not to answer any more.
    pub(crate) hangs: CancellationToken,
}

/// Why there is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct NotServed {
    text: String,
    stderr_tail: String,
    /// Whether another try would end the same.
    permanent: bool,
}

/// What the keeper is asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// A worker is to be forked.
    Use {
        worker: WorkerId,
        template: Box<Template>,
        answer: oneshot::Sender<Result<Served, NotServed>>,
    },
    /// A worker that was found came of this one.
    Hold { worker: WorkerId, server: WorkerId },
    /// A server that was ready does not answer any more, for all that was tried.
    Hangs { server: WorkerId, why: String },
    /// A worker is dead, of this cause.
    Done { worker: WorkerId, cause: DeathCause },
}

/// The way to the keeper.
#[derive(Debug, Clone)]
pub(crate) struct ForkServers(UnboundedSender<Request>);

/// A way to a keeper, and what it is to be given.
pub(crate) fn channel() -> (ForkServers, UnboundedReceiver<Request>) {
    let (requests, asked) = unbounded_channel();
    (ForkServers(requests), asked)
}

impl ForkServers {
    fn ask(&self, request: Request) {
        // Without a keeper the agent itself is at its end.
        let _ = self.0.send(request);
    }

    /// A worker of an earlier agent came of this server.
    pub(crate) fn hold(&self, worker: &WorkerId, server: WorkerId) {
        let worker = worker.clone();
        self.ask(Request::Hold { worker, server });
    }

    /// A worker that may have come of one is dead.
    pub(crate) fn done(&self, worker: &WorkerId, death: &WorkerReport) {
        let death = death.death.as_ref().map(Death::from);
        self.ask(Request::Done {
            worker: worker.clone(),
            cause: death.map_or(DeathCause::Unknown, |death| death.cause),
        });
    }
}

/// Whether this names a fork server.
pub(crate) fn is_one(id: &WorkerId) -> bool {
    id.pool.as_str() == POOL && id.incarnation == Incarnation(0)
}

/// The fork server of a worker that is to be forked, once it is ready; none for any other worker.
///
/// # Errors
/// The worker's death: there is no server, or the worker was ordered to end before there was one.
pub(crate) async fn of(
    id: &WorkerId,
    order: &StartWorker,
    ties: &mut Ties,
) -> Result<Option<Served>, Box<WorkerReport>> {
    let Some(template) = order
        .template
        .as_ref()
        .filter(|it| it.forked_from.is_some())
    else {
        return Ok(None);
    };
    let (answer, mut answered) = oneshot::channel();
    if ties.ground.cgroup.is_none() {
        let _ = answer.send(Err(NotServed {
            text: "its template has `forked_from`, and without a cgroup v2 nobody could name what a forked worker \
                   leaves: mount cgroup2 and run the agent as root, or delegate its cgroup to it (Delegate=yes in a \
                   systemd unit), do not set `agent.no_cgroups`, or leave out `forked_from`"
                .to_owned(),
            permanent: true,
            ..NotServed::default()
        }));
    } else {
        ties.forkservers.ask(Request::Use {
            worker: id.clone(),
            template: Box::new(template.clone()),
            answer,
        });
    }
    loop {
        tokio::select! {
            answer = &mut answered => return match answer {
                Ok(Ok(served)) => Ok(Some(served)),
                Ok(Err(why)) => Err(why.report(id)),
                Err(_) => Err(NotServed::default().report(id)),
            },
            Some(asked) = ties.orders.recv() => if let Order::Stop { cause, .. } = asked {
                return Err(Box::new(report::lost(id, report::cause(cause, None, None), "")));
            },
        }
    }
}

impl NotServed {
    /// The death of the worker that was to come of it.
    fn report(self, id: &WorkerId) -> Box<WorkerReport> {
        let text = format!("it cannot be started: {}", self.text);
        let mut report = report::lost(id, DeathCause::SpawnFailed, text);
        if let Some(death) = &mut report.death {
            death.stderr_tail = self.stderr_tail;
        }
        report.permanent = self.permanent;
        Box::new(report)
    }

    /// What became of a server that is dead; `was_ready` is whether it had ever been.
    fn of(report: &WorkerReport, was_ready: bool) -> Self {
        let Some(death) = report.death.as_ref().map(Death::from) else {
            return Self::default();
        };
        let how = match death.cause {
            _ if !death.detail.is_empty() => death.detail.clone(),
            DeathCause::Exited(code) => format!("exit code {code}"),
            DeathCause::Signaled(signal) => format!("signal {signal}"),
            cause => format!("{cause:?}"),
        };
        let last = death
            .stderr_tail
            .trim_end()
            .lines()
            .last()
            .unwrap_or_default();
        let said = if last.is_empty() {
            String::new()
        } else {
            format!(": {last}")
        };
        let what = if was_ready {
            "went away"
        } else {
            "was never ready"
        };
        Self {
            text: format!("the process that it is to be forked from {what} ({how}){said}"),
            // What an import says by itself it will say again; what was killed may do better.
            permanent: report.permanent
                || (!was_ready && matches!(death.cause, DeathCause::Exited(_))),
            stderr_tail: death.stderr_tail,
        }
    }
}

/// What is run for workers of this template.
fn template_of(worker: &Template, script: &Path) -> Template {
    let fork = worker.forked_from.clone().unwrap_or_default();
    let imports = fork.imports.into_iter();
    // What differs from worker to worker is known to none of them yet.
    let is_for_all = |text: &str| !text.contains('{');
    let readiness = worker.readiness.as_ref();
    Template {
        command: worker.command.clone(),
        args: std::iter::once(script.display().to_string())
            .chain(imports.flat_map(|module| ["--import".to_owned(), module]))
            .collect(),
        env: worker
            .env
            .iter()
            .filter(|(_, value)| is_for_all(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        cwd: Some(worker.cwd.clone())
            .filter(|cwd| is_for_all(cwd))
            .unwrap_or_default(),
        readiness: Some(Readiness {
            kind: ReadinessKind::Notify.into(),
            timeout_ms: readiness.map_or(0, |readiness| readiness.timeout_ms),
            what: String::new(),
        }),
        // It has nothing to put in order.
        stop: Some(Stop {
            grace_ms: Some(0),
            signal: 0,
        }),
        log_limit_bytes: worker.log_limit_bytes,
        log_max_age_ms: worker.log_max_age_ms,
        log_files: worker.log_files,
        umask: worker.umask,
        nice: worker.nice,
        cpus: worker.cpus.clone(),
        private_proc: worker.private_proc,
        // How long it stays when its last worker has died, as one may come in its place.
        restart: worker.restart,
        ..Template::default()
    }
}

/// What a server of workers in these pools may do: all that any of them may. Where nothing is known of them
/// it stays as it was.
fn permission_of<'a>(
    pools: impl Iterator<Item = &'a PoolName>,
    all: &Permissions,
    before: &Permissions,
    own: &PoolName,
) -> Permissions {
    let known: Vec<&PoolPermission> = pools.filter_map(|pool| all.pool(pool)).collect();
    let mut permissions = Permissions {
        node: all.node,
        pools: before.pools.clone(),
        nearer: before.nearer,
    };
    if let Some(&first) = known.first() {
        let dies = known
            .iter()
            .all(|pool| pool.on_link_loss == OnLinkLoss::Kill);
        let last = known.iter().map(|pool| pool.deadline).max();
        let graces = known.iter().map(|pool| pool.longest_grace());
        let permission = PoolPermission {
            grace: graces.max().unwrap_or_default(),
            deadline: last.unwrap_or(Tick::ZERO),
            // Each worker's own shim sees to that.
            process: None,
            on_owner_exit: OnOwnerExit::Ignore,
            on_link_loss: if dies {
                OnLinkLoss::Kill
            } else {
                OnLinkLoss::Hold
            },
            ..first.clone()
        };
        permissions.pools.insert(own.clone(), permission);
    }
    permissions
}

#[cfg(test)]
mod tests;
