//! One worker's health, from its start to its end: when it is ready, what it says of itself, and when it
//! no longer works. What follows from it is for the worker's task to carry out.

mod hearing;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tether_proto::{
    common::{DeathCause, WorkerPhase},
    node::WorkerReport,
    pool::{ReadinessKind, Template},
};
use tether_shim_protocol::{Cause, Orderer};
use tether_types::{Address, WorkerId};
use tokio_util::sync::CancellationToken;

use crate::{
    journal, launch,
    liveness::{Liveness, Next, Terms},
    notify::{Family, FdStore, Socket},
    readiness::{self, Question, Waiting, span},
};
use stage::{Happened, Stage, Status, Watch, until};

/// More than the kernel keeps of what a worker said and nobody heard yet.
const QUEUE_MAX: u32 = 1024;

/// Made before a worker starts: what it makes itself is younger.
const BORN_FILE: &str = "born";

/// Which worker, and where.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) id: &'a WorkerId,
    /// Its runtime directory.
    pub(crate) dir: &'a Path,
    /// The part of it that is the worker's own.
    pub(crate) own_dir: &'a Path,
    /// Its own cgroup, where it has one.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) address: &'a Address,
    pub(crate) template: &'a Template,
    pub(crate) node: &'a str,
}

/// What is to be done about a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HealthEvent {
    /// Its phase or its status is another: report both.
    Phase(WorkerPhase),
    /// It does not work: end it, with [`Cause::Unhealthy`] and its grace.
    Unhealthy { grace_ms: u64 },
    /// What it was to be forked from hangs: end it, with [`Cause::SpawnFailed`].
    Unforked,
    /// Whether it answered when it was asked: it is another answer than the one before.
    Well(bool),
    /// The process with this number shares a lock that it holds, see [`Health::take_hold`].
    Holds(u32),
}

/// One worker's health.
pub(crate) struct Health {
    id: WorkerId,
    dir: PathBuf,
    own_dir: PathBuf,
    address: Address,
    template: Template,
    /// What its readiness asks for, placeholders filled in.
    what: String,
    adopted: bool,
    /// None where it could not be made: then what the worker says is not heard.
    socket: Option<Socket>,
    family: Family,
    store: FdStore,
    stage: Stage,
    status: Status,
    /// Why it was never forked, never ready, or is ended as unhealthy.
    detail: String,
    /// Whether it answered when it was asked last.
    well: bool,
    /// Memory with a lock that it shared, until it is taken.
    hold: Option<OwnedFd>,
}

impl Health {
    /// Prepares for a worker that is about to start: its socket is there before it is.
    pub(crate) fn of_new(place: Place<'_>) -> Self {
        if readiness::kind(place.template) == ReadinessKind::File
            && let Err(error) = fs::write(place.dir.join(BORN_FILE), "")
        {
            tracing::warn!(worker = %place.id, %error, "Cannot mark the worker as ready for an agent that comes later");
        }
        Self::new(place, false)
    }

    /// Takes over a worker that an earlier agent started.
    pub(crate) fn of_adopted(place: Place<'_>) -> Self {
        Self::new(place, true)
    }

    fn new(place: Place<'_>, adopted: bool) -> Self {
        let socket = match Socket::bind(place.dir) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(worker = %place.id, %error, "Cannot make the worker's NOTIFY_SOCKET: what it says is not heard");
                None
            }
        };
        let readiness = place.template.readiness.as_ref();
        let what = readiness.map_or_else(String::new, |readiness| {
            launch::fill(
                &readiness.what,
                place.id,
                place.address,
                place.own_dir,
                place.node,
            )
        });
        Self {
            id: place.id.clone(),
            dir: place.dir.to_owned(),
            own_dir: place.own_dir.to_owned(),
            address: place.address.clone(),
            template: place.template.clone(),
            what,
            adopted,
            socket,
            family: Family::new(place.dir, place.cgroup),
            store: FdStore::of(place.dir.parent().unwrap_or(place.dir)),
            stage: Stage::Unborn(None),
            status: Status::default(),
            detail: String::new(),
            well: true,
            hold: None,
        }
    }

    /// It is to be forked from a process; `hangs` tells that this one does not answer.
    pub(crate) fn will_be_forked(&mut self, hangs: CancellationToken) {
        self.stage = Stage::Unborn(Some(hangs));
    }

    /// Its program runs, as this process.
    pub(crate) fn on_running(&mut self, pid: u32) {
        self.find_family(pid);
        let waiting = Waiting::new(
            &self.template,
            &self.what,
            &self.address,
            &self.dir,
            &self.own_dir,
            &self.dir.join(BORN_FILE),
        );
        self.stage = Stage::Starting(waiting);
    }

    /// An earlier agent saw its program run as this process, and saw that it was ready.
    pub(crate) fn on_resumed(&mut self, pid: u32) {
        self.find_family(pid);
        self.stage = Stage::Ready(self.watch(Instant::now()));
    }

    fn find_family(&mut self, pid: u32) {
        // The parent of a forked one is parent to others.
        if self.template.forked_from.is_none() {
            self.family.on_running(pid);
        }
    }

    /// It is being ended, for whatever cause.
    pub(crate) fn on_ending(&mut self, cause: Cause) {
        if let Stage::Starting(waiting) = &self.stage {
            self.detail = waiting.explain(&self.status.said);
        }
        self.stage = Stage::Over;
        if let Cause::Ordered(Orderer::Scale | Orderer::Owner) = cause {
            // Nobody comes after it: what it gave away to have back is closed.
            self.store.take(&self.id.pool, self.id.slot);
        }
    }

    /// The memory with a lock that it shared last.
    pub(crate) fn take_hold(&mut self) -> Option<OwnedFd> {
        self.hold.take()
    }

    /// What it said of itself last.
    pub(crate) fn status(&self) -> &str {
        &self.status.said
    }

    fn phase(&self) -> WorkerPhase {
        match self.stage {
            Stage::Unborn(_) | Stage::Starting(_) => WorkerPhase::Starting,
            Stage::Ready(_) => WorkerPhase::Ready,
            Stage::Leaving(_) | Stage::Over => WorkerPhase::Stopping,
        }
    }

    /// Completes the report of a death that its health was the cause of.
    pub(crate) fn explain(&self, report: &mut WorkerReport) {
        if let Some(death) = &mut report.death
            && death.detail.is_empty()
            && matches!(
                death.cause(),
                DeathCause::NeverReady | DeathCause::Unhealthy | DeathCause::SpawnFailed
            )
        {
            death.detail.clone_from(&self.detail);
        }
    }

    /// The next thing to be done about it. Cancel-safe.
    pub(crate) async fn next(&mut self) -> HealthEvent {
        loop {
            let Self {
                socket,
                stage,
                status,
                ..
            } = self;
            let listens = !matches!(stage, Stage::Unborn(_));
            let heard = async {
                match socket {
                    // Until its program runs, nobody is known to be of its family; the kernel waits.
                    Some(socket) if listens => socket.next().await,
                    _ => std::future::pending().await,
                }
            };
            let happened = tokio::select! {
                biased;
                datagram = heard => Happened::Heard(datagram),
                happened = stage.next() => happened,
                () = until(status.due()) => Happened::StatusDue,
            };
            if let Some(event) = self.on(happened) {
                return event;
            }
        }
    }

    fn on(&mut self, happened: Happened) -> Option<HealthEvent> {
        let now = Instant::now();
        match happened {
            Happened::Heard(datagram) => self.on_datagram(datagram, now),
            Happened::Unforked => {
                "it cannot be started: the process that it is to be forked from does not answer, and another one is started in its place".clone_into(&mut self.detail);
                self.stage = Stage::Over;
                Some(HealthEvent::Unforked)
            }
            Happened::Ready => Some(self.on_ready(now)),
            Happened::Answered(answer) => {
                let Stage::Ready(Some(watch)) = &mut self.stage else {
                    return None;
                };
                watch.asking = None;
                let well = answer.is_ok();
                let next = watch.liveness.on_answer(answer, now);
                let was_well = std::mem::replace(&mut self.well, well);
                let event = self.carry_out(next);
                event.or_else(|| (well != was_well).then_some(HealthEvent::Well(well)))
            }
            Happened::Due => self.on_due(),
            Happened::StatusDue => {
                self.status.told.clone_from(&self.status.said);
                self.status.told_at = Some(now);
                Some(HealthEvent::Phase(self.phase()))
            }
        }
    }

    fn on_ready(&mut self, now: Instant) -> HealthEvent {
        // Without the mark a later agent takes it out of service, and waits for what may not come again.
        if readiness::kind(&self.template) != ReadinessKind::Started
            && let Err(error) = journal::mark(&self.dir, true)
        {
            tracing::warn!(worker = %self.id, %error, "Cannot mark the worker as ready for an agent that comes later");
        }
        self.stage = Stage::Ready(self.watch(now));
        HealthEvent::Phase(WorkerPhase::Ready)
    }

    /// How a ready worker is watched, where its template asks for that.
    fn watch(&self, now: Instant) -> Option<Box<Watch>> {
        let terms = Terms::of(&self.template)?;
        let question = self.question();
        let asks = question.is_some();
        Some(Box::new(Watch {
            liveness: Liveness::new(terms, asks, spread(&self.id), self.adopted, now),
            question,
            asking: None,
        }))
    }

    /// It said that it is about to end: an agent that comes later shall not take it for ready.
    fn on_leaving(&mut self, now: Instant) -> HealthEvent {
        let _ = journal::mark(&self.dir, false);
        self.stage = Stage::Leaving(now + self.grace());
        HealthEvent::Phase(WorkerPhase::Stopping)
    }

    /// What a ready worker is asked; none where only its reports count.
    fn question(&self) -> Option<Question> {
        let readiness = readiness::kind(&self.template);
        let kind = match self.template.liveness.as_ref()?.kind() {
            ReadinessKind::Unspecified => readiness,
            kind => kind,
        };
        let path = match readiness {
            ReadinessKind::Http => &self.what,
            _ => "/",
        };
        readiness::is_asked(kind).then(|| readiness::question(kind, path, &self.address))
    }

    fn on_due(&mut self) -> Option<HealthEvent> {
        // What has come is heard before its absence is judged: the agent itself may have been late.
        for _ in 0..QUEUE_MAX {
            let Some(datagram) = self.socket.as_ref().and_then(Socket::try_next) else {
                break;
            };
            if let Some(event) = self.on_datagram(datagram, Instant::now()) {
                return Some(event);
            }
        }
        let now = Instant::now();
        let next = match &mut self.stage {
            Stage::Ready(Some(watch)) => watch.liveness.check(now),
            Stage::Leaving(until) if now >= *until => Next::End(format!(
                "it said STOPPING=1 and was still there {} later",
                span(self.grace())
            )),
            Stage::Unborn(_)
            | Stage::Starting(_)
            | Stage::Ready(None)
            | Stage::Leaving(_)
            | Stage::Over => Next::Wait,
        };
        self.carry_out(next)
    }

    fn carry_out(&mut self, next: Next) -> Option<HealthEvent> {
        match next {
            Next::Wait => None,
            Next::Ask => {
                if let Stage::Ready(Some(watch)) = &mut self.stage
                    && let Some(question) = watch.question.clone()
                {
                    let timeout = watch.liveness.timeout();
                    watch.asking = Some(Box::pin(async move { question.ask(timeout).await }));
                }
                None
            }
            Next::End(why) => Some(self.end(why)),
        }
    }

    fn end(&mut self, why: String) -> HealthEvent {
        tracing::warn!(worker = %self.id, why, "Worker is unhealthy and is ended");
        self.detail = why;
        self.stage = Stage::Over;
        HealthEvent::Unhealthy {
            grace_ms: launch::grace_ms(&self.template),
        }
    }

    /// Time it is given to end.
    fn grace(&self) -> Duration {
        Duration::from_millis(launch::grace_ms(&self.template))
    }
}

/// Whether an earlier agent saw that the worker in this directory was ready.
pub(crate) fn was_ready(dir: &Path, template: &Template) -> bool {
    readiness::kind(template) == ReadinessKind::Started || journal::is_marked(dir)
}

/// Where in an interval this worker's moment is: its own, and the same every time.
fn spread(id: &WorkerId) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.to_string().hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
