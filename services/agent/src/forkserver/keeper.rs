//! Who starts fork servers, watches them, and ends them when nobody is left to be forked.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::WorkerPhase,
    node::{StartWorker, WorkerReport},
    pool::Template,
};
use tether_shim_protocol::{Cause, Orderer};
use tether_types::{Address, DeathCause, Incarnation, Orderer as Who, PoolName, WorkerId};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot, watch,
    },
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    ForkServers, NotServed, POOL, Request, SCRIPT, SCRIPT_FILE, Served, permission_of, pulse,
    setback::Setbacks, template_of,
};
use crate::{
    adopt::History,
    config::Ground,
    permission::{Grants, Permissions},
    sockets,
    worker::{self, Found, Order, Ties},
};

/// Between two looks whether a server that has ended is known to be dead.
const BURIED: Duration = Duration::from_millis(20);

/// All fork servers of a node.
#[derive(Debug)]
pub(crate) struct Keeper {
    ground: Arc<Ground>,
    pool: PoolName,
    permissions: watch::Receiver<Permissions>,
    own: ForkServers,
    requests: UnboundedReceiver<Request>,
    reports: UnboundedSender<WorkerReport>,
    reported: UnboundedReceiver<WorkerReport>,
    servers: Vec<Server>,
    setbacks: Setbacks,
    history: History,
    /// The number of the next one: its directory is nobody else's.
    next: u32,
}

/// One fork server.
#[derive(Debug)]
struct Server {
    id: WorkerId,
    template: Template,
    orders: UnboundedSender<Order>,
    permissions: watch::Sender<Permissions>,
    stage: Stage,
    users: BTreeSet<WorkerId>,
    waiting: Vec<oneshot::Sender<Result<Served, NotServed>>>,
    /// When it is ended unless it has become ready.
    ready_by: Option<Instant>,
    /// When it is ended unless somebody comes.
    end_at: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    Starting,
    Ready {
        served: Served,
        since: Tick,
        /// Readable once it has ended, which is before its death is known to be all.
        process: OwnedFd,
        /// Asks it over and over whether it still serves.
        _pulse: AbortOnDropHandle<()>,
    },
    /// It hangs, and is there only for those that were forked before.
    Aside,
    Ending,
}

impl Stage {
    /// Whether nobody is forked from it any more.
    fn is_past(&self) -> bool {
        match self {
            Self::Starting | Self::Ready { .. } => false,
            Self::Aside | Self::Ending => true,
        }
    }
}

impl Keeper {
    /// Takes over the servers that an earlier agent left.
    pub(crate) fn new(
        ground: Arc<Ground>,
        permissions: watch::Receiver<Permissions>,
        (own, requests): (ForkServers, UnboundedReceiver<Request>),
        found: Vec<Found>,
    ) -> io::Result<Self> {
        let (reports, reported) = unbounded_channel();
        let mut keeper = Self {
            next: unused(&ground.workers)?,
            pool: PoolName::new(POOL).map_err(io::Error::other)?,
            ground,
            permissions,
            own,
            requests,
            reports,
            reported,
            servers: Vec::new(),
            setbacks: Setbacks::default(),
            history: History::default(),
        };
        for found in found {
            tracing::info!(server = %found.id, "Found a fork server of an earlier agent");
            let template = found.entry.order.template.clone().unwrap_or_default();
            // Its workers are found as well, and say so long before that.
            let end_at = Instant::now() + sockets::linger(&template);
            let (server, ties) = keeper.server(found.id.clone(), template);
            let end_at = Some(end_at);
            keeper.servers.push(Server { end_at, ..server });
            found.hold(ties).watch();
        }
        Ok(keeper)
    }

    /// Serves for as long as the agent lives.
    pub(crate) async fn run(mut self) {
        loop {
            let moments = |server: &Server| [server.end_at, server.ready_by];
            let next = self.servers.iter().flat_map(moments).flatten().min();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(request) = self.requests.recv() => self.on_request(request),
                Some(report) = self.reported.recv() => self.on_report(&report),
                changed = self.permissions.changed() => match changed {
                    Ok(()) => self.permit(),
                    Err(_) => return,
                },
                () = due => self.end_due(),
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Use {
                worker,
                template,
                answer,
            } => self.on_use(worker, template, answer),
            Request::Hold { worker, server } => {
                if let Some(server) = self.servers.iter_mut().find(|it| it.id == server) {
                    server.users.insert(worker);
                    server.end_at = None;
                }
                self.permit();
            }
            Request::Hangs { server, why } => self.on_hang(&server, &why),
            Request::Done { worker, cause } => {
                for server in &mut self.servers {
                    if server.users.remove(&worker) && server.users.is_empty() {
                        let lingers = lingers(cause) && !server.stage.is_past();
                        let linger = lingers.then(|| sockets::linger(&server.template));
                        server.end_at = Some(Instant::now() + linger.unwrap_or_default());
                    }
                }
            }
        }
    }

    fn on_use(
        &mut self,
        worker: WorkerId,
        template: Box<Template>,
        answer: oneshot::Sender<Result<Served, NotServed>>,
    ) {
        // Nobody waits any more: its worker was ordered to end.
        if answer.is_closed() {
            return;
        }
        let script = self.ground.workers.with_file_name(SCRIPT_FILE);
        let wanted = template_of(&template, &script);
        let of_it = |server: &Server| server.template == wanted && !server.stage.is_past();
        let at = self.servers.iter().position(of_it);
        let wait = match at.and_then(|at| self.servers.get(at)) {
            Some(server) if server.has_ended() => BURIED,
            Some(_) => Duration::ZERO,
            None => self.setbacks.wait(&wanted, BootClock.now()),
        };
        if !wait.is_zero() {
            let again = Request::Use {
                worker,
                template,
                answer,
            };
            return self.ask_again(again, wait);
        }
        let at = match at {
            Some(at) => at,
            None => match put(&script) {
                Ok(()) => self.start(wanted, &worker),
                Err(error) => {
                    let text = format!("cannot write `{}`: {error}", script.display());
                    let why = NotServed {
                        text,
                        ..NotServed::default()
                    };
                    return drop(answer.send(Err(why)));
                }
            },
        };
        if let Some(server) = self.servers.get_mut(at) {
            server.users.insert(worker);
            server.end_at = None;
            match &server.stage {
                Stage::Ready { served, .. } => drop(answer.send(Ok(served.clone()))),
                Stage::Starting | Stage::Aside | Stage::Ending => server.waiting.push(answer),
            }
        }
        self.permit();
    }

    fn ask_again(&self, request: Request, wait: Duration) {
        let own = self.own.clone();
        tokio::spawn(async move {
            sleep(wait).await;
            own.ask(request);
        });
    }

    /// Starts one for a first worker; its place among the servers.
    fn start(&mut self, template: Template, first: &WorkerId) -> usize {
        let id = WorkerId {
            pool: self.pool.clone(),
            slot: self.next,
            incarnation: Incarnation(0),
        };
        self.next += 1;
        tracing::info!(server = %id, worker = %first, "Starting a fork server");
        let order = StartWorker {
            worker: Some((&id).into()),
            template: Some(template.clone()),
            ..StartWorker::default()
        };
        let (mut server, ties) = self.server(id.clone(), template);
        server.ready_by = Some(Instant::now() + worker::ready_within(&server.template));
        server.users.insert(first.clone());
        server.permit(&self.permissions.borrow());
        self.servers.push(server);
        tokio::spawn(worker::start(id, order, ties));
        self.servers.len() - 1
    }

    fn server(&self, id: WorkerId, template: Template) -> (Server, Ties) {
        let (orders, received) = unbounded_channel();
        let permissions = watch::Sender::new(Permissions::default());
        let ties = Ties {
            ground: Arc::clone(&self.ground),
            grants: Grants {
                news: permissions.subscribe(),
                steps: permissions.subscribe(),
            },
            orders: received,
            reports: self.reports.clone(),
            forkservers: self.own.clone(),
        };
        let server = Server {
            id,
            template,
            orders,
            permissions,
            stage: Stage::Starting,
            users: BTreeSet::new(),
            waiting: Vec::new(),
            ready_by: None,
            end_at: None,
        };
        (server, ties)
    }

    /// Passes on what changed of the workers' permissions.
    fn permit(&self) {
        let all = self.permissions.borrow();
        for server in &self.servers {
            server.permit(&all);
        }
    }

    fn on_report(&mut self, report: &WorkerReport) {
        let id = report.worker.as_ref().map(WorkerId::try_from);
        let Some(Ok(id)) = id else { return };
        let Some(at) = self.servers.iter().position(|server| server.id == id) else {
            return;
        };
        match report.phase() {
            WorkerPhase::Ready => {
                if let (Some(server), Ok(Address::Unix(socket)), Some(process)) = (
                    self.servers.get_mut(at),
                    report.address.parse(),
                    pin(report.pid),
                ) {
                    server.on_ready(socket, process, &self.own);
                }
            }
            WorkerPhase::Dead => {
                let server = self.servers.remove(at);
                self.on_death(server, report);
            }
            WorkerPhase::Unspecified
            | WorkerPhase::Waiting
            | WorkerPhase::Starting
            | WorkerPhase::Stopping
            | WorkerPhase::CrashLoop => {}
        }
    }

    fn on_death(&mut self, server: Server, report: &WorkerReport) {
        let now = BootClock.now();
        let steady = match server.stage {
            Stage::Ready { since, .. } => Some(now.since(since)),
            Stage::Starting | Stage::Aside | Stage::Ending => None,
        };
        if !server.stage.is_past() {
            self.setbacks
                .on_death(&server.template, steady.unwrap_or_default(), now);
            let why = NotServed::of(report, steady.is_some());
            tracing::warn!(server = %server.id, why = why.text, "Fork server ended, and all that came of it");
            for answer in server.waiting {
                let _ = answer.send(Err(why.clone()));
            }
        }
        let _ = server.orders.send(Order::Forget);
        self.history
            .keep(worker::directory(&self.ground.workers, &server.id));
    }

    /// One that was ready does not answer. Its death would be that of all it forked, who do well without it:
    /// it is left to them and ended after the last of them, and others are forked from another one.
    fn on_hang(&mut self, id: &WorkerId, why: &str) {
        let Some(server) = self.servers.iter_mut().find(|server| server.id == *id) else {
            return;
        };
        let Stage::Ready { served, since, .. } = &server.stage else {
            return;
        };
        let workers = server.users.len();
        tracing::warn!(server = %id, workers, why, "Fork server hangs: another one is started for the next worker, and this one stays for those it has forked");
        // Those that wait for it are ended by their own tasks.
        served.hangs.cancel();
        let now = BootClock.now();
        self.setbacks
            .on_death(&server.template, now.since(*since), now);
        server.stage = Stage::Aside;
        if server.users.is_empty() {
            server.end_at = Some(Instant::now());
        }
    }

    fn end_due(&mut self) {
        let now = Instant::now();
        for server in &mut self.servers {
            if server.ready_by.is_some_and(|at| at <= now) {
                server.ready_by = None;
                let _ = server.orders.send(Order::Stop {
                    cause: Cause::NeverReady,
                    grace_ms: 0,
                });
            }
            if server.end_at.is_some_and(|at| at <= now) {
                tracing::info!(server = %server.id, "Ending a fork server that nobody uses");
                server.end_at = None;
                server.stage = Stage::Ending;
                let _ = server.orders.send(Order::Stop {
                    cause: Cause::Ordered(Orderer::Scale),
                    grace_ms: 0,
                });
            }
        }
    }
}

impl Server {
    /// Its permission, as that of its workers is.
    fn permit(&self, all: &Permissions) {
        let pools = self.users.iter().map(|worker| &worker.pool);
        self.permissions.send_if_modified(|permissions| {
            let next = permission_of(pools, all, permissions, &self.id.pool);
            let is_news = next != *permissions;
            *permissions = next;
            is_news
        });
    }

    /// Whether it was ready and has ended, of which there is no word yet.
    fn has_ended(&self) -> bool {
        match &self.stage {
            Stage::Ready { process, .. } => tether_sys::has_ended(process.as_raw_fd()),
            Stage::Starting | Stage::Aside | Stage::Ending => false,
        }
    }

    fn on_ready(&mut self, socket: PathBuf, process: OwnedFd, keeper: &ForkServers) {
        let Stage::Starting = self.stage else { return };
        let served = Served {
            id: self.id.clone(),
            socket,
            hangs: CancellationToken::new(),
        };
        let (server, socket, keeper) = (self.id.clone(), served.socket.clone(), keeper.clone());
        let pulse = tokio::spawn(async move {
            let why = pulse::lost(&socket).await;
            keeper.ask(Request::Hangs { server, why });
        });
        for answer in self.waiting.drain(..) {
            let _ = answer.send(Ok(served.clone()));
        }
        self.ready_by = None;
        let since = BootClock.now();
        self.stage = Stage::Ready {
            served,
            since,
            process,
            _pulse: AbortOnDropHandle::new(pulse),
        };
    }
}

fn pin(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether a worker may come soon for one that died of this.
fn lingers(cause: DeathCause) -> bool {
    match cause {
        DeathCause::OwnerGone
        | DeathCause::AgentGone
        | DeathCause::LeaseExpired
        | DeathCause::Ordered(Who::Scale | Who::Owner | Who::Agent) => false,
        DeathCause::Exited(_)
        | DeathCause::Signaled(_)
        | DeathCause::OutOfMemory
        | DeathCause::Ordered(Who::Operator)
        | DeathCause::NeverReady
        | DeathCause::Unhealthy
        | DeathCause::Recycled
        | DeathCause::SpawnFailed
        | DeathCause::Unknown => true,
    }
}

/// Writes the program, unless it is there, whole or not at all.
fn put(script: &Path) -> io::Result<()> {
    if fs::read(script).is_ok_and(|there| there == SCRIPT.as_bytes()) {
        return Ok(());
    }
    let unfinished = script.with_extension("new");
    fs::write(&unfinished, SCRIPT)?;
    fs::rename(&unfinished, script)
}

/// A number that no directory of a fork server has.
fn unused(workers: &Path) -> io::Result<u32> {
    let mut next = 0;
    for entry in fs::read_dir(workers)? {
        let id = entry?.file_name().to_str().and_then(worker::named);
        if let Some(id) = id.filter(super::is_one) {
            next = next.max(id.slot.saturating_add(1));
        }
    }
    Ok(next)
}
