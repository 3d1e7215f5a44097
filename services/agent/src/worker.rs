//! One worker: the task that holds the link to its shim from start, or adoption, to death.

mod begin;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{self as wire, WorkerPhase},
    node::{StartWorker, WorkerReport},
    pool::Template,
};
use tether_shim_protocol::{
    Cause, Dead, Hello, Identity, Launch, Message, OnLinkLoss, OnOwnerExit, PROTOCOL, Phase,
    SOCKET_FILE, SpawnFailure,
};
use tether_sys::Exit;
use tether_types::{Address, DeathCause, Orderer, WorkerId};
use tokio::{
    net::UnixStream,
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::{Instant, timeout},
};

use begin::{give_back, prepare, shim_for};

use crate::{
    config::Ground,
    forkserver::{self, ForkServers},
    health::{Health, HealthEvent, Place},
    journal::{self, Entry},
    launch,
    link::{self, FromShim, ToShim},
    memory,
    metrics::{FailedAt, How},
    notify::Named,
    permission::{self, Permissions},
    remains, report, sockets,
};

/// Longest time a shim takes from its start until it listens, on a machine under load.
const SHIM_START: Duration = Duration::from_secs(3);

/// Longest time from a shim's end until it is reaped.
const SHIM_REAPED: Duration = Duration::from_millis(500);

/// Within this time all dies that can be killed, as for a shim.
const SAY_UNKILLABLE: Duration = Duration::from_secs(10);

/// How long a worker may take until it is ready, where its template says nothing.
const READY_MS: u64 = 30_000;

/// What a worker's task is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// End it.
    Stop { cause: Cause, grace_ms: u64 },
    /// Signal its main process.
    Signal(i32),
    /// Its death is recorded.
    Forget,
}

/// What a worker's task is given.
#[derive(Debug)]
pub(crate) struct Ties {
    pub(crate) ground: Arc<Ground>,
    pub(crate) permissions: watch::Receiver<Permissions>,
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
        Ok((prepared, health)) => match shim_for(&ties.ground.zygote, &prepared).await {
            Ok(link) => Ok((prepared, health, link)),
            Err(error) => {
                give_back(&ties, &id, prepared.stored);
                Err((FailedAt::Zygote, error))
            }
        },
        Err(error) => Err((FailedAt::Preparation, error)),
    };
    match begun {
        Ok((prepared, health, (hello, from, to))) => {
            let mut task = Task::new(id, order, prepared.address, ties);
            task.shim = shim_of(&hello);
            task.told = Some(Terms::of(&prepared.launch));
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

/// Takes over what an earlier agent left in `dir`: a running worker, or the record of its death.
pub(crate) async fn adopt(id: WorkerId, dir: PathBuf, ties: Ties) {
    let entry = Entry::read(&dir).unwrap_or_default();
    let order = entry.order;
    if let Some(server) = entry.server {
        ties.forkservers.hold(&id, server);
    }
    let address = entry
        .address
        .unwrap_or_else(|| Address::Unix(dir.join("worker.sock")));
    match connect(&dir).await {
        Some(stream) => {
            let (from, to) = link::split(stream);
            let template = order.template.clone().unwrap_or_default();
            let health = Box::new(Health::of_adopted(Place {
                id: &id,
                dir: &dir,
                own_dir: &launch::known_own_directory(&dir),
                cgroup: entry.cgroup,
                address: &address,
                template: &template,
                node: ties.ground.node.as_str(),
            }));
            let mut task = Task::new(id, order, address, ties);
            task.adopted = true;
            tokio::spawn(task.drive(from, to, health));
        }
        None => {
            // Nobody answers for it: what is left of it ends before it counts as dead.
            let mut task = Task::new(id, order, address, ties);
            task.end_remains().await;
            let recorded = task.recorded_death();
            task.bury(recorded, None).await;
        }
    }
}

/// The link to a shim that was started by an earlier agent. One that was started a moment before that
/// agent died may not listen yet.
async fn connect(dir: &Path) -> Option<UnixStream> {
    let socket = dir.join(SOCKET_FILE);
    let deadline = BootClock.now() + SHIM_START;
    loop {
        match UnixStream::connect(&socket).await {
            Ok(stream) => return Some(stream),
            Err(_) if dir.join(tether_shim_protocol::DEATH_FILE).exists() => return None,
            // A socket nobody listens at belonged to a shim that is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
            Err(_) if BootClock.now() >= deadline => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
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
    /// What the shim was told last.
    told: Option<Terms>,
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
}

/// What a shim's timers and its watch on the owner are set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    node: Tick,
    owner: Tick,
    process: Option<Identity>,
    on_owner_exit: OnOwnerExit,
    on_link_loss: OnLinkLoss,
}

impl Terms {
    /// What a shim is told with its launch.
    fn of(launch: &Launch) -> Self {
        Self {
            node: Tick::from_nanos(launch.node_deadline_ns),
            owner: Tick::from_nanos(launch.owner_deadline_ns),
            process: launch.owner,
            on_owner_exit: launch.on_owner_exit,
            on_link_loss: launch.on_link_loss,
        }
    }

    /// What of it is about others than the node.
    fn ties(&self) -> (Option<Identity>, OnOwnerExit, OnLinkLoss) {
        (self.process, self.on_owner_exit, self.on_link_loss)
    }
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
            told: None,
            signalled: None,
            shim: None,
            status: String::new(),
            failure: None,
            stored: Vec::new(),
            on_demand: false,
            ready_by: None,
            measure_at: None,
            memory_bytes: 0,
        })
    }

    /// It waits for its first caller. Whoever is told of a process is told of its shim until then.
    fn on_idle(&mut self, shim: u32) {
        self.on_demand = true;
        self.pid = shim;
        self.started = BootClock.now();
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
                        let mut report = self.death(&dead);
                        health.explain(&mut report);
                        return Box::pin(self.bury(report, Some(to))).await;
                    }
                    Ok(Some(message)) => {
                        self.take_sockets(&mut from);
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
                                self.ready_by = None;
                                self.measure_at = self.wants_measuring().then(Instant::now);
                            }
                            self.report(phase);
                        }
                        HealthEvent::Unhealthy { grace_ms } => {
                            self.stop(&mut to, Cause::Unhealthy, grace_ms).await;
                        }
                    }
                }
                () = until(self.measure_at) => Box::pin(self.measure()).await,
                () = until(self.ready_by) => {
                    self.ready_by = None;
                    health.on_ending(Cause::NeverReady);
                    self.stop(&mut to, Cause::NeverReady, self.grace_ms()).await;
                }
                changed = self.ties.permissions.changed() => {
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
                    Some(Order::Signal(signo)) => {
                        self.signalled = Some(signo);
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
            Message::Hello(hello) if hello.protocol != PROTOCOL => {
                tracing::error!(worker = %self.id, shim = hello.protocol, agent = PROTOCOL,
                    "Shim speaks another protocol: its worker runs on under its lease, but cannot be steered");
            }
            Message::Hello(hello) if hello.phase == Phase::Running => {
                self.shim = shim_of(&hello);
                self.on_running(hello.worker_pid, Tick::from_nanos(hello.started_ns), health);
            }
            // Of a shim that was found: nothing runs yet, and that is as it should be.
            Message::Hello(hello)
                if self.adopted && hello.phase == Phase::Starting && self.waits_for_callers() =>
            {
                self.shim = shim_of(&hello);
                self.on_idle(hello.shim_pid);
            }
            Message::Started { pid } => {
                self.ties.ground.metrics.starts.inc();
                self.on_running(pid, BootClock.now(), health);
            }
            Message::SpawnFailed(failure) => self.failure = Some(failure),
            Message::Ending { cause } => {
                health.on_ending(cause);
                self.measure_at = None;
                self.report(WorkerPhase::Stopping);
            }
            _ => {}
        }
    }

    fn on_running(&mut self, pid: u32, started: Tick, health: &mut Health) {
        self.pid = pid;
        self.started = started;
        self.stored.clear();
        if self.on_demand {
            let within = self.order.template.as_ref().map(ready_within);
            self.ready_by = Some(Instant::now() + within.unwrap_or_default());
        }
        self.report(WorkerPhase::Starting);
        health.on_running(pid);
    }

    /// Passes an order to stop on to the shim.
    async fn stop(&self, to: &mut ToShim, cause: Cause, grace_ms: u64) {
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
        to.send(&Message::Stop { cause, grace_ms }).await;
    }

    /// Tells the shim what changed of its permission.
    async fn renew(&mut self, to: &mut ToShim) {
        let terms = {
            let permissions = self.ties.permissions.borrow_and_update();
            // A new agent that was told nothing yet has nothing to give, and must not take.
            let Some(pool) = permissions.pool(&self.id.pool) else {
                return;
            };
            Terms {
                node: permissions.node,
                owner: pool.deadline,
                process: pool.process,
                on_owner_exit: pool.on_owner_exit,
                on_link_loss: pool.on_link_loss,
            }
        };
        if self.told == Some(terms) {
            return;
        }
        if self.told.is_none_or(|told| told.ties() != terms.ties()) {
            let (owner, on_owner_exit, on_link_loss) = terms.ties();
            to.send(&Message::Ties {
                owner,
                on_owner_exit,
                on_link_loss,
            })
            .await;
        }
        to.send(&Message::Renew {
            node_deadline_ns: terms.node.as_nanos(),
            owner_deadline_ns: terms.owner.as_nanos(),
        })
        .await;
        self.told = Some(terms);
    }

    /// Whether its template has it started by its first caller.
    fn waits_for_callers(&self) -> bool {
        let template = self.order.template.as_ref();
        template.is_some_and(|template| template.sockets.iter().any(|socket| socket.on_demand))
    }

    /// Takes the sockets that a shim had kept for this agent.
    fn take_sockets(&self, from: &mut FromShim) {
        let descriptors = from.take_descriptors();
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

    fn death(&self, dead: &Dead) -> WorkerReport {
        let template = self.order.template.clone().unwrap_or_default();
        report::dead(&self.id, dead, &template, self.signalled)
    }

    fn recorded_death(&self) -> WorkerReport {
        let record = fs::read(self.dir.join(tether_shim_protocol::DEATH_FILE)).ok();
        match record.and_then(|frame| tether_shim_protocol::decode(&frame).ok()) {
            Some(Message::Dead(dead)) => self.death(&dead),
            _ => report::lost(
                &self.id,
                DeathCause::Unknown,
                "its shim is gone and left no record: it was killed together with the agent, or the machine was restarted",
            ),
        }
    }

    /// The link broke without a word of death: the shim was killed, and its worker with it; or it had not
    /// even come so far as to have one.
    async fn shim_lost(&mut self) -> WorkerReport {
        if self.dir.join(tether_shim_protocol::DEATH_FILE).exists() {
            return self.recorded_death();
        }
        // Its main process went with the shim; what it daemonised may not have.
        self.end_remains().await;
        if let Some(failure) = &self.failure {
            self.on_spawn_failure(failure);
            let template = self.order.template.clone().unwrap_or_default();
            let (text, permanent) = if template.forked_from.is_some() {
                launch::explain_unforked(*failure, b"")
            } else {
                launch::explain(failure.stage, failure.errno, &template)
            };
            return WorkerReport {
                permanent,
                ..report::lost(&self.id, DeathCause::SpawnFailed, text)
            };
        }
        let exit = self.shim_exit().await;
        if exit == Some(Exit::Signal(Signal::KILL.as_raw()))
            && let Some(cause) = self.expired()
        {
            let text =
                "its shim could not act on the end of its permission, and the kernel ended both";
            return report::lost(&self.id, cause, text);
        }
        match exit {
            Some(Exit::Signal(signal)) => report::lost(
                &self.id,
                DeathCause::Signaled(signal),
                format!(
                    "its shim was killed by signal {signal} from outside, and the worker with it"
                ),
            ),
            Some(Exit::Code(_)) | None => report::lost(
                &self.id,
                DeathCause::Unknown,
                "its shim went away without a record",
            ),
        }
    }

    /// What of its permission has ended.
    fn expired(&self) -> Option<DeathCause> {
        let (told, now) = (self.told?, BootClock.now());
        if now >= told.node {
            Some(DeathCause::LeaseExpired)
        } else if now >= told.owner {
            Some(DeathCause::OwnerGone)
        } else {
            None
        }
    }

    fn on_ready(&mut self) {
        if let Some(ordered) = self.ordered.take() {
            let seconds = BootClock.now().since(ordered).as_secs_f64();
            self.ties.ground.metrics.start_seconds.observe(seconds);
        }
    }

    fn on_spawn_failure(&self, failure: &SpawnFailure) {
        let stage = FailedAt::Shim(failure.stage);
        self.ties.ground.metrics.spawn_failures.of(stage).inc();
    }

    /// Ends what no shim answers for any more. Where that takes long, whoever waits for its place is told why.
    async fn end_remains(&mut self) {
        let dir = self.dir.clone();
        let mut ending = pin!(remains::end(&dir));
        let ended = match timeout(SAY_UNKILLABLE, &mut ending).await {
            Ok(ended) => ended,
            Err(_) => {
                self.status = report::unkillable(remains::count(&dir));
                self.report(WorkerPhase::Stopping);
                ending.await
            }
        };
        let orphans = &self.ties.ground.metrics.orphans;
        orphans.of(How::Cgroup).inc_by(ended.in_cgroup);
        orphans.of(How::Search).inc_by(ended.found);
    }

    /// How the shim ended, once its zygote, or whoever came after that, has reaped it.
    async fn shim_exit(&self) -> Option<Exit> {
        let shim = self.shim.as_ref()?;
        let deadline = BootClock.now() + SHIM_REAPED;
        loop {
            match tether_sys::exit_of(shim) {
                Some(exit) => return Some(exit),
                None if BootClock.now() >= deadline => return None,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Reports the death until somebody has recorded it, then lets the shim go and marks the
    /// directory as history.
    async fn bury(mut self: Box<Self>, report: WorkerReport, to: Option<ToShim>) {
        let template = self.order.template.as_ref();
        if let Some(template) = template.filter(|it| !it.sockets.is_empty()) {
            let cause = report.death.as_ref().map(|death| death.cause());
            // Nobody comes after one that its pool or its owner has no more use for.
            let linger = match cause {
                Some(wire::DeathCause::OrderedByScale | wire::DeathCause::OrderedByOwner) => None,
                _ => Some(sockets::linger(template)),
            };
            let sockets = &self.ties.ground.sockets;
            sockets.on_death(&self.id.pool, self.id.slot, linger);
        }
        if template.is_some_and(|template| template.forked_from.is_some()) {
            self.ties.forkservers.done(&self.id, &report);
        }
        let _ = self.ties.reports.send(report);
        while let Some(order) = self.ties.orders.recv().await {
            if matches!(order, Order::Forget) {
                journal::close(&self.dir);
                if let Some(mut to) = to {
                    to.send(&Message::Acknowledge).await;
                }
                return;
            }
        }
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
