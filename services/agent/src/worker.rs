//! One worker: the task that holds the link to its shim from start, or adoption, to death.

mod begin;
mod death;
mod fate;
mod found;
mod terms;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::WorkerPhase,
    fate::Fate,
    node::{StartWorker, WorkerReport},
    pool::Template,
};
use tether_shim_protocol::{
    BY_MESSAGE_ONLY, Cause, Hello, Message, OnOwnerExit, PROTOCOL, Phase, SpawnFailure,
};
use tether_types::{Address, DeathCause, Orderer, WorkerId};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::Instant,
};

use begin::{give_back, prepare, shim_for};
use fate::Doubt;
use terms::Terms;

use crate::{
    config::Ground,
    forkserver::{self, ForkServers},
    health::{self, Health, HealthEvent},
    journal::Entry,
    keeper, launch,
    life::Life,
    link::{FromShim, ToShim},
    memory,
    metrics::FailedAt,
    notify::Named,
    pages::Seat,
    permission::{self, Grants},
    report, service, sockets,
};

use found::Running;
pub(crate) use found::{Found, Held, hold};

/// Longest time a shim takes from its start until it listens, on a machine under load.
const SHIM_START: Duration = Duration::from_secs(3);

/// A shim that hears says so at once. One whose worker does not come to its program, as where that lies on a file
/// system that does not answer, hears nothing until it does.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// How long a worker may take until it is ready, where its template says nothing.
const READY_MS: u64 = 30_000;

/// What a worker's task is asked to do.
#[derive(Debug)]
pub enum Order {
    /// End it.
    Stop {
        /// Why.
        cause: Cause,
        /// Time it is given.
        grace_ms: u64,
    },
    /// Signal its main process.
    Signal(i32),
    /// Its death is recorded.
    Forget,
}

/// What a worker's task is given.
#[derive(Debug)]
pub(crate) struct Ties {
    pub(crate) ground: Arc<Ground>,
    pub(crate) grants: Grants,
    pub(crate) orders: UnboundedReceiver<Order>,
    pub(crate) reports: UnboundedSender<WorkerReport>,
    pub(crate) forkservers: ForkServers,
}

/// The runtime directory of one incarnation.
pub(crate) fn directory(workers: &Path, id: &WorkerId) -> PathBuf {
    workers.join(format!("{}.{}.{}", id.pool, id.slot, id.incarnation))
}

/// Reads [`directory`] back.
pub(crate) fn named(directory: &str) -> Option<WorkerId> {
    let (rest, incarnation) = directory.rsplit_once('.')?;
    let (pool, slot) = rest.rsplit_once('.')?;
    format!("{pool}/{slot}.{incarnation}").parse().ok()
}

/// Starts one incarnation and stays with it until its death is recorded.
pub(crate) async fn start(id: WorkerId, order: StartWorker, mut ties: Ties) {
    let ordered = BootClock.now();
    let server = match forkserver::of(&id, &order, &mut ties).await {
        Ok(server) => server,
        Err(report) => return Task::unstarted(id, order, ties).bury(*report, None).await,
    };
    let begun = match prepare(&id, &order, &ties, server).await {
        Ok((prepared, health)) => match shim_for(&ties.ground, &id, &order, &prepared).await {
            Ok(begun) => Ok((prepared, health, begun)),
            Err(error) => {
                give_back(&ties, &id, prepared.stored);
                Err((FailedAt::Zygote, error))
            }
        },
        Err(error) => Err((FailedAt::Preparation, error)),
    };
    match begun {
        Ok((prepared, health, (hello, seat, from, to))) => {
            let mut task = Task::new(id, order, prepared.address, ties);
            task.shim = shim_of(&hello);
            task.seat = seat;
            task.told = Some(Terms::of(&prepared.launch, prepared.nearer));
            task.launched = task.told;
            task.stored = prepared.stored;
            drop(prepared.sockets);
            if prepared.launch.wait_for.is_empty() {
                task.ordered = Some(ordered);
            } else {
                task.on_idle(hello.shim_pid);
            }
            // A task of its own: what the start needed is not kept for as long as the worker lives.
            tokio::spawn(task.drive(from, to, health));
        }
        Err((stage, error)) => {
            ties.ground.metrics.spawn_failures.of(stage).inc();
            let text = format!("it cannot be started: {error}");
            let mut failed = report::lost(&id, DeathCause::SpawnFailed, text);
            failed.permanent = error.kind() == io::ErrorKind::PermissionDenied;
            Task::unstarted(id, order, ties).bury(failed, None).await;
        }
    }
}

/// Pins a shim that has just spoken.
fn shim_of(hello: &Hello) -> Option<OwnedFd> {
    let pid = i32::try_from(hello.shim_pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

struct Task {
    id: WorkerId,
    dir: PathBuf,
    order: StartWorker,
    address: Address,
    ties: Ties,
    adopted: bool,
    /// When it was ordered, until it is ready; none where it was found, or waits for its first caller.
    ordered: Option<Tick>,
    /// When the program was started.
    started: Tick,
    pid: u32,
    /// Where later ends of its permission are read; none where its shim alone is told of them.
    seat: Option<Seat>,
    /// Whether it was told of its permission in a message all the same, and looks there no more.
    off_page: bool,
    /// What the shim was told last.
    told: Option<Terms>,
    /// The same with its launch: all that one has heard which never came to say that it started.
    launched: Option<Terms>,
    /// Why it is to end, while its shim has not said that it has heard of it; and when that takes too long.
    unheard: Option<(Cause, Instant)>,
    /// Why it was to end, where its shim was killed for not hearing of it.
    deaf: Option<Cause>,
    /// The last signal somebody had sent to it.
    signalled: Option<i32>,
    /// Its shim, as long as that is known to be the one that spoke.
    shim: Option<OwnedFd>,
    /// What it said of itself last.
    status: String,
    /// Why its shim cannot start it.
    failure: Option<SpawnFailure>,
    /// What it was given of earlier incarnations, until it runs.
    stored: Vec<Named>,
    /// Whether it is started by its first caller: it counts as ready, as callers wait.
    on_demand: bool,
    /// When such a one that was started must have shown that it is ready.
    ready_by: Option<Instant>,
    /// When its memory is measured next, where its template wants that known.
    measure_at: Option<Instant>,
    /// What that was last.
    memory_bytes: u64,
    /// Its main process.
    life: Life,
    doubt: Doubt,
    /// Why it is ended, once it is.
    ending: Option<Cause>,
    /// How its unit ended, where it was in one of its own that no shim answered for any more.
    unit_end: Option<(tether_systemd::Ending, String)>,
}

impl Task {
    /// Of one that nothing runs of.
    fn unstarted(id: WorkerId, order: StartWorker, ties: Ties) -> Box<Self> {
        Self::new(id, order, Address::Unix(PathBuf::new()), ties)
    }

    /// On the heap, as it is handed on: a future keeps room for each place its arguments were in.
    fn new(id: WorkerId, order: StartWorker, address: Address, ties: Ties) -> Box<Self> {
        let dir = directory(&ties.ground.workers, &id);
        Box::new(Self {
            id,
            dir,
            order,
            address,
            ties,
            adopted: false,
            ordered: None,
            started: Tick::ZERO,
            pid: 0,
            seat: None,
            off_page: false,
            told: None,
            launched: None,
            unheard: None,
            deaf: None,
            signalled: None,
            shim: None,
            status: String::new(),
            failure: None,
            stored: Vec::new(),
            on_demand: false,
            ready_by: None,
            measure_at: None,
            memory_bytes: 0,
            life: Life::default(),
            doubt: Doubt::default(),
            ending: None,
            unit_end: None,
        })
    }

    /// It waits for its first caller. Whoever is told of a process is told of its shim until then.
    fn on_idle(&mut self, shim: u32) {
        self.on_demand = true;
        self.pid = shim;
        self.started = BootClock.now();
        self.doubt(Doubt::default());
        self.report(WorkerPhase::Ready);
    }

    async fn drive(
        mut self: Box<Self>,
        mut from: FromShim,
        mut to: ToShim,
        mut health: Box<Health>,
    ) {
        self.renew(&mut to).await;
        loop {
            let reads_page = self.reads_page();
            tokio::select! {
                message = from.next() => match message {
                    Ok(Some(Message::Dead(dead))) => {
                        if let Some(failure) = &dead.spawn_failure {
                            self.on_spawn_failure(failure);
                            give_back(&self.ties, &self.id, std::mem::take(&mut self.stored));
                        }
                        if dead.survivors > 0 {
                            // What the shim could not kill keeps the place for as long as it lives.
                            self.status = report::unkillable(dead.survivors);
                            self.report(WorkerPhase::Stopping);
                            Box::pin(self.end_remains()).await;
                        }
                        if self.may_be_served(dead.exit_code) {
                            Box::pin(self.end_service()).await;
                        }
                        let mut report = self.death(&dead);
                        health.explain(&mut report);
                        return Box::pin(self.bury(report, Some(to))).await;
                    }
                    Ok(Some(message)) => {
                        self.take_descriptors(&message, from.take_descriptors());
                        self.on_message(message, &mut health);
                    }
                    Ok(None) | Err(_) => {
                        let report = Box::pin(self.shim_lost()).await;
                        return Box::pin(self.bury(report, None)).await;
                    }
                },
                event = health.next() => {
                    self.status = health.status().to_owned();
                    match event {
                        HealthEvent::Phase(phase) => {
                            if phase == WorkerPhase::Ready {
                                self.on_ready();
                            } else {
                                self.report(phase);
                            }
                        }
                        HealthEvent::Unhealthy { grace_ms } => {
                            self.stop(&mut to, Cause::Unhealthy, grace_ms).await;
                        }
                        HealthEvent::Unforked => {
                            self.stop(&mut to, Cause::SpawnFailed, 0).await;
                        }
                        HealthEvent::Well(well) => self.doubt(Doubt { unwell: !well, ..self.doubt }),
                        // Of another one it would tell another one's end.
                        HealthEvent::Holds(by) => if let Some(memory) = health.take_hold()
                            && by == self.pid
                        {
                            self.on_hold(memory);
                        }
                    }
                }
                sign = self.life.next() => self.on_sign(sign),
                () = until(self.measure_at) => Box::pin(self.measure()).await,
                () = until(self.unheard.map(|(_, at)| at)) => self.end_deaf_shim(),
                () = until(self.ready_by) => {
                    self.ready_by = None;
                    health.on_ending(Cause::NeverReady);
                    self.stop(&mut to, Cause::NeverReady, self.grace_ms()).await;
                }
                changed = self.ties.grants.of(reads_page).changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.renew(&mut to).await;
                }
                order = self.ties.orders.recv() => match order {
                    Some(Order::Stop { cause, grace_ms }) => {
                        health.on_ending(cause);
                        self.stop(&mut to, cause, grace_ms).await;
                    }
                    Some(Order::Signal(signo)) if self.is_service() => {
                        tracing::warn!(worker = %self.id, signal = signo, "Worker is a service: signal it by its supervisor");
                    }
                    Some(Order::Signal(signo)) => {
                        self.signalled = Some(signo);
                        if fate::is_deadly(signo) {
                            self.announce_end().await;
                        }
                        to.send(&Message::Signal { signo }).await;
                    }
                    // Only the dead are forgotten; and without a master the link is let go, which
                    // the shim answers as the policy says.
                    Some(Order::Forget) => {}
                    None => return,
                },
            }
        }
    }

    /// What the shim says before the end.
    fn on_message(&mut self, message: Message, health: &mut Health) {
        match message {
            Message::Hello(hello) => {
                if let Some(running) = self.on_hello(&hello) {
                    running.tell(health);
                }
            }
            Message::Started { pid } => {
                self.ties.ground.metrics.starts.inc();
                self.on_running(pid, BootClock.now());
                health.on_running(pid);
            }
            Message::SpawnFailed(failure) => self.failure = Some(failure),
            Message::Halted { halted } => self.doubt(Doubt {
                halted,
                ..self.doubt
            }),
            Message::Ending { cause } => {
                self.unheard = None;
                self.ending = Some(cause);
                health.on_ending(cause);
                self.measure_at = None;
                self.report(WorkerPhase::Stopping);
            }
            _ => {}
        }
    }

    /// What a shim that was found says first of all.
    fn on_hello(&mut self, hello: &Hello) -> Option<Running> {
        match hello.phase {
            _ if !(BY_MESSAGE_ONLY..=PROTOCOL).contains(&hello.protocol) => {
                tracing::error!(worker = %self.id, shim = hello.protocol, agent = PROTOCOL,
                    "Shim speaks another protocol: its worker runs on under its lease, but cannot be steered");
                None
            }
            Phase::Running => {
                self.shim = shim_of(hello);
                self.on_running(hello.worker_pid, Tick::from_nanos(hello.started_ns));
                let template = self.order.template.as_ref();
                let was_ready = template.is_some_and(|it| health::was_ready(&self.dir, it));
                if was_ready {
                    // Both at once, as it goes on serving: between the two it would get no calls.
                    self.on_ready();
                }
                Some(Running {
                    pid: hello.worker_pid,
                    was_ready,
                })
            }
            // Nothing runs yet, and that is as it should be.
            Phase::Starting if self.adopted && self.waits_for_callers() => {
                self.shim = shim_of(hello);
                self.on_idle(hello.shim_pid);
                None
            }
            Phase::Waiting | Phase::Starting | Phase::Ending | Phase::Dead => None,
        }
    }

    fn on_running(&mut self, pid: u32, started: Tick) {
        self.pid = pid;
        self.life = Life::of(pid);
        self.started = started;
        self.stored.clear();
        if self.on_demand {
            let within = self.order.template.as_ref().map(ready_within);
            self.ready_by = Some(Instant::now() + within.unwrap_or_default());
        }
        self.report(WorkerPhase::Starting);
    }

    /// Passes an order to stop on to the shim.
    async fn stop(&mut self, to: &mut ToShim, cause: Cause, grace_ms: u64) {
        self.announce_end().await;
        self.ending.get_or_insert(cause);
        if cause == Cause::Ordered(tether_shim_protocol::Orderer::Owner) {
            // An owner that said goodbye may be gone a moment later, and that is no news any more: its
            // workers keep the grace they were given.
            let on_link_loss = self.told.map_or_else(
                || permission::on_link_loss(self.order.kill_on_agent_loss),
                |told| told.on_link_loss,
            );
            to.send(&Message::Ties {
                owner: None,
                on_owner_exit: OnOwnerExit::Ignore,
                on_link_loss,
            })
            .await;
        }
        if self.is_service() {
            keeper::be_patient(&self.dir, grace_ms);
        }
        to.send(&Message::Stop { cause, grace_ms }).await;
        let until = Instant::now() + Duration::from_millis(grace_ms) + HEARD_WITHIN;
        self.unheard.get_or_insert((cause, until));
    }

    /// Whether it is a service that a supervisor has.
    fn is_service(&self) -> bool {
        service::is_one(self.order.template.as_ref())
    }

    /// Whether its service may still run, although its keeper ended like this.
    fn may_be_served(&self, exit_code: Option<i32>) -> bool {
        self.is_service() && service::may_run(&self.dir, exit_code)
    }

    /// Whether its template has it started by its first caller.
    fn waits_for_callers(&self) -> bool {
        let template = self.order.template.as_ref();
        template.is_some_and(|template| template.sockets.iter().any(|socket| socket.on_demand))
    }

    /// Takes what a shim sent beside what it said: its lease page first, if it has one.
    fn take_descriptors(&mut self, message: &Message, mut descriptors: Vec<OwnedFd>) {
        if let Message::Hello(hello) = message
            && hello.page != 0
        {
            let page = (!descriptors.is_empty()).then(|| descriptors.remove(0));
            let pages = &self.ties.ground.pages;
            let now = BootClock.now();
            self.seat = pages.find((hello.page, page), hello.seat, &self.id, now);
            self.off_page |= self.seat.as_ref().is_some_and(Seat::is_own);
        }
        self.take_sockets(descriptors);
    }

    /// Takes the sockets that a shim had kept for this agent.
    fn take_sockets(&self, descriptors: Vec<OwnedFd>) {
        if let Some(template) = self
            .order
            .template
            .as_ref()
            .filter(|_| !descriptors.is_empty())
        {
            let own_dir = launch::known_own_directory(&self.dir);
            let ground = &self.ties.ground;
            let wanted = sockets::wanted(&self.id, template, &own_dir, ground.node.as_str());
            // What its template says was good enough to start it.
            ground
                .sockets
                .adopt(&self.id, &wanted.unwrap_or_default(), descriptors);
        }
    }

    /// Time it is given to end.
    fn grace_ms(&self) -> u64 {
        self.order.template.as_ref().map_or(0, launch::grace_ms)
    }

    fn report(&self, phase: WorkerPhase) {
        let phase = match phase {
            WorkerPhase::Starting if self.on_demand => WorkerPhase::Ready,
            phase => phase,
        };
        if phase == WorkerPhase::Stopping {
            self.ties.ground.fates.tell(&self.id, Fate::Ending, None);
        }
        let uptime = BootClock.now().since(self.started);
        let report = WorkerReport {
            pid: self.pid,
            address: self.address.to_string(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            adopted: self.adopted,
            status: self.status.clone(),
            memory_bytes: self.memory_bytes,
            ..report::phase(&self.id, phase)
        };
        let _ = self.ties.reports.send(report);
    }

    /// Whether its template has it replaced for its memory.
    fn wants_measuring(&self) -> bool {
        let template = self.order.template.as_ref();
        let recycle = template.and_then(|template| template.recycle.as_ref());
        recycle.is_some_and(|recycle| recycle.max_memory_bytes > 0)
    }

    /// Measures the memory of its tree, and tells it.
    async fn measure(&mut self) {
        let tree = memory::Tree {
            cgroup: Entry::read(&self.dir).and_then(|entry| entry.cgroup),
            pid: self.pid,
        };
        let measured = tokio::task::spawn_blocking(move || memory::pss_bytes(&tree)).await;
        self.memory_bytes = measured.unwrap_or_default();
        self.measure_at = Some(Instant::now() + memory::INTERVAL);
        self.report(WorkerPhase::Ready);
    }

    fn on_ready(&mut self) {
        if let Some(ordered) = self.ordered.take() {
            let seconds = BootClock.now().since(ordered).as_secs_f64();
            self.ties.ground.metrics.start_seconds.observe(seconds);
        }
        self.ready_by = None;
        self.doubt(Doubt {
            unwell: false,
            ..self.doubt
        });
        self.measure_at = self.wants_measuring().then(Instant::now);
        self.report(WorkerPhase::Ready);
    }

    fn on_spawn_failure(&self, failure: &SpawnFailure) {
        let stage = FailedAt::Shim(failure.stage);
        self.ties.ground.metrics.spawn_failures.of(stage).inc();
    }
}

/// How long a worker of this template may take until it is ready.
pub(crate) fn ready_within(template: &Template) -> Duration {
    let readiness = template.readiness.as_ref();
    let within = readiness.map_or(0, |readiness| readiness.timeout_ms);
    Duration::from_millis(if within == 0 { READY_MS } else { within })
}

/// Comes back at this time, or never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The order that ends a worker when the agent itself is asked to stop.
pub(crate) fn stop_with_agent(grace_ms: u64) -> Order {
    Order::Stop {
        cause: report::ordered(DeathCause::Ordered(Orderer::Agent).into()),
        grace_ms,
    }
}
