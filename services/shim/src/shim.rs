//! One worker's keeper: what each event does to the worker, its record and its agent.

mod forked;

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::cell::Cell;
use core::mem;
use core::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, pidfd_send_signal, wait};
use rustix::time::{ClockId, TimerfdClockId, TimerfdFlags, clock_gettime, timerfd_create};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::{
    Cause, Dead, Hello, Identity, Launch, Message, OnLinkLoss, OnOwnerExit, Orderer, PROTOCOL,
    Phase, Proof, STDERR_FILE, STDERR_TAIL_BYTES, STDOUT_FILE, SpawnFailure, Stage,
};
use tether_sys::Guard;

use crate::cgroup::{Cgroup, Limiting};
use crate::launch::{self, Place, Worker, failed_at};
use crate::link::Link;
use crate::namespace::{self, Namespace};
use crate::output::{Capture, Log};
use crate::owner::Owner;
use crate::plan::{Plan, Step};
use crate::stdio::Ours;
use crate::{death, death::Ending, files, tree};

pub(crate) use forked::Forked;

/// A worker that lives this long is likely to stay, and its shim to have nothing to do.
const RESTLESS: Duration = Duration::from_secs(1);

/// An agent that is there acknowledges a death within this time, and then no file is needed. Only an exit
/// with 0 waits for that: should everything be killed meanwhile, there is no cause that could be lost.
const RECORD_AFTER: Duration = Duration::from_millis(100);

/// How long a death waits for its acknowledgement before it is left to the file.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(5);

/// The program's arguments and environment, let go of once it is started.
pub(crate) type ArgvAndEnv = (Vec<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>);

/// Everything the shim knows and holds.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) launch: Launch,
    pub(crate) plan: Plan,
    pub(crate) link: Option<Link>,
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) signals: OwnedFd,
    pub(crate) timer: OwnedFd,
    pub(crate) guard: Guard,
    pub(crate) owner: Owner,
    pub(crate) stdout: Option<Capture>,
    pub(crate) stderr: Option<Capture>,
    pub(crate) worker: Option<Worker>,
    /// How a worker is held that is no child.
    pub(crate) forked: Option<Forked>,
    /// When a death that nobody acknowledged yet is written to the file, and when the wait ends; set with
    /// the death.
    pub(crate) record_at: Tick,
    pub(crate) leave_at: Tick,
    /// When to let go of the memory that only the start needed.
    pub(crate) rest_at: Tick,
    /// What timer and guard are set to, once they are.
    pub(crate) timer_at: Cell<Option<Tick>>,
    pub(crate) guard_at: Cell<Option<Tick>>,
    pub(crate) acknowledged: bool,
    cgroup: Option<Cgroup>,
    limiting: Vec<Limiting>,
    namespace: Option<Namespace>,
    /// For children to see this process end.
    own: OwnedFd,
    /// Descriptors for the worker; once it is started, its listening sockets alone.
    sockets: Vec<OwnedFd>,
    /// What is started once somebody connects.
    waiting: Option<ArgvAndEnv>,
    /// Holds off the end of the worker's standard input.
    held_input: Option<OwnedFd>,
    started: Tick,
    announced: bool,
    status: Option<Ending>,
    failure: Option<SpawnFailure>,
    /// The kernel said that there is no child left.
    childless: bool,
    reaped: u32,
    /// Orphans that had been reaped inside the namespace when the end began.
    reaped_before: Option<u32>,
    /// Whether those that end with the namespace are in `reaped`.
    counted: bool,
    dead: Option<Dead>,
}

impl Shim {
    /// A shim with nothing started, its timers ready to be set. Where that fails `link` stays.
    pub(crate) fn new(
        launch: Launch,
        link: &mut Option<Link>,
        listener: Option<OwnedFd>,
        signals: OwnedFd,
        sockets: Vec<OwnedFd>,
    ) -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            plan: Plan::new(
                Tick::from_nanos(launch.node_deadline_ns),
                Tick::from_nanos(launch.owner_deadline_ns),
                Duration::from_millis(launch.kill_grace_ms),
            ),
            listener,
            signals,
            timer: timerfd_create(TimerfdClockId::Boottime, flags)?,
            guard: Guard::new()?,
            owner: Owner::watch(launch.owner, launch.on_owner_exit),
            launch,
            stdout: None,
            stderr: None,
            worker: None,
            forked: None,
            record_at: Tick::NEVER,
            leave_at: Tick::NEVER,
            rest_at: Tick::NEVER,
            timer_at: Cell::new(None),
            guard_at: Cell::new(None),
            acknowledged: false,
            cgroup: None,
            limiting: Vec::new(),
            namespace: None,
            own: namespace::own_pidfd()?,
            // Not before all else is there: who gets none of it has still to say so.
            link: link.take(),
            sockets,
            waiting: None,
            held_input: None,
            started: Tick::ZERO,
            announced: false,
            status: None,
            failure: None,
            childless: true,
            reaped: 0,
            reaped_before: None,
            counted: false,
            dead: None,
        })
    }

    /// Whether the agent that asked for it is still there.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_whole)
    }

    /// Starts the worker, or has it wait for its first caller, unless its permission has ended before it
    /// began.
    pub(crate) fn start(&mut self, argv_and_env: ArgvAndEnv) {
        let now = BootClock.now();
        // Opened even where nothing will be started, so that it is removed in the end.
        let opened = self.open_cgroup();
        if matches!(self.owner, Owner::Gone) {
            self.plan.on_loss(Cause::OwnerGone, now);
        }
        if self.plan.cause().is_some() || self.plan.check(now) != Step::Wait {
            return;
        }
        match opened {
            Ok(()) if self.launch.wait_for.is_empty() => self.begin(argv_and_env),
            Ok(()) => self.waiting = Some(argv_and_env),
            Err(failure) => self.refuse(failure),
        }
    }

    /// The sockets of a worker that is started only once one of them has a caller.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = &OwnedFd> {
        let numbers = self.waiting.as_ref().map(|_| &self.launch.wait_for);
        numbers
            .into_iter()
            .flatten()
            .filter_map(|&number| self.sockets.get(number as usize))
    }

    /// Somebody connected to a worker that is not there yet.
    pub(crate) fn on_caller(&mut self) {
        // Where its end has begun meanwhile, nothing waits any more.
        if let Some(argv_and_env) = self.waiting.take() {
            self.begin(argv_and_env);
        }
    }

    fn begin(&mut self, (argv, env): ArgvAndEnv) {
        let now = BootClock.now();
        self.launch.argv = argv;
        self.launch.env = env;
        self.set_timers();
        if self.guard_at.get().is_none() {
            // Without its lease as a timer of the kernel nothing is started.
            return self.refuse(launch::failed(Stage::Fork, Errno::AGAIN));
        }
        let started = match self.launch.walls.forked_from.take() {
            Some(server) => self.fork_from(&server),
            None => self.fork(),
        };
        self.launch.argv = Vec::new();
        self.launch.env = Vec::new();
        self.launch.input.data = Vec::new();
        // What was given away to be had back is the worker's alone from here on.
        self.sockets.truncate(self.launch.sockets as usize);
        match started {
            Ok(streams) => {
                let log = |file: &str| Log::new(file.as_bytes(), self.launch.logs);
                // A terminal has one stream, and then its end is the best evidence there is.
                let tail = if streams.error.is_some() {
                    0
                } else {
                    STDERR_TAIL_BYTES
                };
                self.stdout = Some(Capture::new(streams.output, log(STDOUT_FILE), tail));
                self.stderr = streams
                    .error
                    .map(|error| Capture::new(error, log(STDERR_FILE), STDERR_TAIL_BYTES));
                self.held_input = streams.input;
                self.started = now;
                self.childless = false;
            }
            Err(failure) => self.refuse(failure),
        }
    }

    /// Forks the worker itself.
    fn fork(&mut self) -> Result<Ours, SpawnFailure> {
        self.open_namespace()?;
        let started = launch::start(&self.launch, &self.place())?;
        let pid = started.worker.pid;
        self.worker = Some(started.worker);
        match started.failure {
            None => self.on_started(pid),
            Some(failure) => self.refuse(failure),
        }
        Ok(started.streams)
    }

    /// The worker runs.
    fn on_started(&mut self, pid: Pid) {
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        self.say(&Message::Started { pid });
        self.rest_at = BootClock.now() + RESTLESS;
    }

    /// The worker cannot be started.
    pub(crate) fn refuse(&mut self, failure: SpawnFailure) {
        self.failure = Some(failure);
        self.plan.on_loss(Cause::SpawnFailed, BootClock.now());
        self.say(&Message::SpawnFailed(failure));
    }

    fn open_cgroup(&mut self) -> Result<(), SpawnFailure> {
        let walls = &mut self.launch.walls;
        let limiting = mem::take(&mut walls.limiting);
        self.limiting = limiting.into_iter().map(Limiting::open).collect();
        if let Some(path) = walls.cgroup.take() {
            let cgroup = if walls.cgroup_is_made {
                Cgroup::open(path)
            } else {
                Cgroup::make(path)
            };
            self.cgroup = Some(cgroup.map_err(failed_at(Stage::Cgroup))?);
        }
        Ok(())
    }

    fn open_namespace(&mut self) -> Result<(), SpawnFailure> {
        if self.launch.walls.namespace {
            let opened = Namespace::open(self.launch.walls.user_namespace, &self.own);
            self.namespace = Some(opened.map_err(failed_at(Stage::Namespace))?);
            self.childless = false;
        }
        Ok(())
    }

    fn place(&self) -> Place<'_> {
        Place {
            cgroup: self.cgroup.as_ref(),
            limiting: &self.limiting,
            shim: &self.own,
            sockets: &self.sockets,
        }
    }

    /// Waits and acts until the worker is gone and its death is known, or left to the file.
    pub(crate) fn watch(&mut self) -> Result<(), Errno> {
        while !self.is_gone() {
            if let Err(error) = self.turn() {
                // Without a way to wait there is no way to keep the promise but this one.
                self.kill_round();
                return Err(error);
            }
        }
        self.bury();
        let waited = self.await_acknowledgement();
        let recorded = self.record_at == Tick::NEVER;
        match (self.acknowledged, recorded) {
            (false, false) => self.record(),
            (true, true) if self.listener.is_some() => death::forget(),
            _ => {}
        }
        waited
    }

    fn await_acknowledgement(&mut self) -> Result<(), Errno> {
        while self.link.is_some() && !self.acknowledged && BootClock.now() < self.leave_at {
            if BootClock.now() >= self.record_at {
                self.record();
            }
            self.turn()?;
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        self.plan.is_over() || (self.waiting.is_none() && self.childless && !self.is_leaf_held())
    }

    /// Removes the worker's cgroup once nobody is left below the shim; tells whether the kernel refuses, as
    /// somebody moved a process into it that is not.
    fn is_leaf_held(&self) -> bool {
        let held = || self.cgroup.as_ref().is_some_and(|cgroup| !cgroup.remove());
        let may_be = self.worker.is_some() || self.forked.is_some();
        may_be && self.childless && held()
    }

    /// Writes down how it ended and tells the agent.
    fn bury(&mut self) {
        self.plan.on_gone();
        for capture in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            capture.drain();
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let dead = self.describe();
        self.limiting.iter().for_each(Limiting::remove);
        let wait = if dead.cause == Cause::Exited && dead.exit_code == Some(0) {
            RECORD_AFTER
        } else {
            Duration::ZERO
        };
        self.say(&Message::Dead(Box::new(dead.clone())));
        self.dead = Some(dead);
        let now = BootClock.now();
        (self.record_at, self.leave_at) = (now + wait, now + ACKNOWLEDGE_WITHIN);
    }

    /// Leaves the death to the file.
    fn record(&mut self) {
        self.record_at = Tick::NEVER;
        // Without a listener the runtime directory was never entered, and `death` would lie in
        // whatever directory the agent happened to be in.
        if self.listener.is_some()
            && let Some(dead) = &self.dead
            // Twice, for a moment without memory must not cost the cause.
            && let Err(errno) = death::record(dead).or_else(|_| death::record(dead))
        {
            files::complain(&format!("cannot record the death in `death`: {errno}"));
        }
    }

    fn describe(&self) -> Dead {
        // A child that could not become the worker has no exit status of the worker's.
        let status = self.status.filter(|_| self.failure.is_none());
        let told = self.forked.as_ref().and_then(|forked| forked.told);
        let (max_rss_kib, cpu_ms) = told.map_or_else(tether_sys::children_usage, |told| {
            (told.max_rss_kib, told.cpu_ms)
        });
        let peaks = self.limiting.iter().map(Limiting::peak_memory);
        let peak = peaks.chain(self.cgroup.as_ref().map(Cgroup::peak_memory));
        let lost = |capture: &Option<Capture>| capture.as_ref().map_or(0, Capture::lost_bytes);
        Dead {
            cause: self.plan.cause().unwrap_or(Cause::Unknown),
            exit_code: status.and_then(|status| status.code),
            signal: status.and_then(|status| status.signal),
            core: status.is_some_and(|status| status.core),
            spawn_failure: self.failure,
            reaped: self.reaped + self.reaped_inside(),
            peak_memory_bytes: peak.max().unwrap_or(0),
            proof: match (&self.namespace, &self.cgroup) {
                (Some(_), _) => Proof::Namespace,
                (None, Some(_)) => Proof::Cgroup,
                (None, None) => Proof::Tree,
            },
            survivors: if self.childless {
                u32::from(self.is_leaf_held())
            } else {
                tree::count_living()
            },
            unix_ms: unix_ms(),
            max_rss_kib,
            cpu_ms,
            log_lost_bytes: lost(&self.stdout) + lost(&self.stderr),
            stderr_tail: self
                .stderr
                .as_ref()
                .or(self.stdout.as_ref())
                .map_or(Vec::new(), |stderr| stderr.tail().to_vec()),
        }
    }

    /// Does what the plan decided.
    pub(crate) fn carry_out(&mut self, step: Step) {
        if matches!(step, Step::Terminate | Step::Kill) {
            self.waiting = None;
        }
        match step {
            Step::Wait | Step::GiveUp => {}
            Step::Terminate => {
                self.announce();
                // A stopped process takes SIGTERM only once it goes on.
                for signal in [self.stop_signal(), Signal::CONT] {
                    if self.forked.is_some() {
                        self.signal_forked(signal);
                    } else {
                        tree::signal_all(signal);
                    }
                }
            }
            Step::Kill => {
                let inside = self.count_inside();
                self.count_from_here();
                // Of one that ended by itself and left nothing, the death is the first word.
                if self.status.is_none() || inside != Some(0) {
                    self.announce();
                }
                // Put off at once: the guard must not cut short what is being done here.
                self.set_guard();
                self.reaped += inside.unwrap_or(0);
                self.kill_round();
            }
        }
    }

    /// How many beside the worker live in its namespace, asked once: what the kernel ends with it, the
    /// kernel reaps too. Or in the cgroup of a forked one, who are somebody else's to reap.
    fn count_inside(&mut self) -> Option<u32> {
        let is_inside = self.namespace.is_some() || self.forked.is_some();
        if !is_inside || mem::replace(&mut self.counted, true) {
            return None;
        }
        let main = u32::from(self.worker.is_some() && self.status.is_none());
        let all = match &self.cgroup {
            Some(cgroup) => cgroup.members(),
            // With the first of the namespace among them.
            None => tree::count_living().saturating_sub(1),
        };
        Some(all.saturating_sub(main))
    }

    fn kill_round(&mut self) {
        match &self.namespace {
            Some(namespace) => namespace.kill(),
            None if self.forked.is_some() => self.kill_forked(),
            None => tree::kill_all(|| self.reap()),
        }
        // Beside those in the namespace there are only strangers, who are seen once those are gone.
        if let Some(cgroup) = &self.cgroup
            && (self.namespace.is_none() || self.childless)
            && cgroup.is_populated()
        {
            cgroup.kill();
        }
    }

    /// Lets go of what only the start needed, once the worker looks like staying.
    pub(crate) fn rest(&mut self) {
        if BootClock.now() >= self.rest_at {
            self.rest_at = Tick::NEVER;
            tether_sys::let_go();
        }
    }

    /// Has the guard go off when the plan says so.
    pub(crate) fn set_guard(&self) {
        let at = self.plan.guard();
        let set = self.guard.set((at != Tick::NEVER).then(|| at.as_nanos()));
        // What was not set is tried again at the next turn.
        self.guard_at.set(set.is_ok().then_some(at));
    }

    /// What asks the worker to stop.
    fn stop_signal(&self) -> Signal {
        Signal::from_named_raw(self.launch.stop_signal).unwrap_or(Signal::TERM)
    }

    /// Orphans reaped inside the namespace since the end began.
    fn reaped_inside(&self) -> u32 {
        let reaped = self.namespace.as_ref().map_or(0, Namespace::reaped);
        reaped - self.reaped_before.unwrap_or(reaped)
    }

    /// The end begins: who was reaped before is no part of it.
    fn count_from_here(&mut self) {
        let reaped = self.namespace.as_ref().map_or(0, Namespace::reaped);
        self.reaped_before.get_or_insert(reaped);
    }

    /// Says that the worker is about to be ended, once and before the first signal.
    fn announce(&mut self) {
        if let Some(cause) = self.plan.cause()
            && !mem::replace(&mut self.announced, true)
        {
            self.count_from_here();
            self.say(&Message::Ending { cause });
        }
    }

    /// Children ended.
    pub(crate) fn on_children(&mut self) {
        if self.forked.is_some() {
            return; // It has none, whatever somebody says.
        }
        let alive = self.status.is_none();
        self.reap();
        let now = BootClock.now();
        if let Some(status) = self.status.filter(|_| alive) {
            let cause = self.cause_of(status);
            let step = self.plan.on_exit(cause, now);
            if let Some(namespace) = &self.namespace
                && step == Step::Wait
            {
                // What it left has the rest of its grace.
                namespace.let_end();
            }
            if !self.is_gone() {
                self.carry_out(step);
            }
        }
        // Only what was moved into the cgroup from elsewhere is left, and SIGTERM does not reach it.
        if self.childless && !self.is_gone() {
            let step = self.plan.on_loss(Cause::Unknown, now);
            self.carry_out(step);
        }
    }

    /// Why a main process ended that was not ended from here.
    fn cause_of(&self, ending: Ending) -> Cause {
        let oom = || {
            self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory)
                || self.limiting.iter().any(Limiting::ran_out_of_memory)
        };
        match ending.code {
            Some(0) => Cause::Exited,
            _ if oom() => Cause::OutOfMemory,
            Some(_) => Cause::Exited,
            None => Cause::Signaled,
        }
    }

    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if self.worker.as_ref().is_some_and(|worker| worker.pid == pid) {
                        self.status = Some(status.into());
                    } else if self
                        .namespace
                        .as_ref()
                        .is_some_and(|namespace| namespace.is_init(pid))
                    {
                        // Not the worker's.
                    } else if self.status.is_some() || self.announced {
                        self.reaped += 1;
                    }
                }
                Ok(None) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// The shim itself was asked to stop, by somebody who knows its pid.
    pub(crate) fn on_terminate(&mut self) {
        let cause = Cause::Ordered(Orderer::Operator);
        let step = self.plan.on_stop(cause, self.plan.grace(), BootClock.now());
        self.carry_out(step);
    }

    fn look_at(&mut self, owner: Option<Identity>, on_exit: OnOwnerExit) {
        self.owner = Owner::watch(owner, on_exit);
        if matches!(self.owner, Owner::Gone) {
            self.on_owner_gone();
        }
    }

    pub(crate) fn on_owner_gone(&mut self) {
        self.owner = Owner::Unwatched;
        let step = self.plan.on_loss(Cause::OwnerGone, BootClock.now());
        self.carry_out(step);
    }

    pub(crate) fn on_link_lost(&mut self) {
        self.link = None;
        if self.launch.on_link_loss == OnLinkLoss::Kill {
            let step = self.plan.on_loss(Cause::AgentGone, BootClock.now());
            self.carry_out(step);
        }
    }

    /// Another agent connected: it replaces the one before and is told how things stand.
    pub(crate) fn on_connection(&mut self, mut link: Link) {
        link.send_with(&Message::Hello(self.hello()), &self.sockets);
        self.link = Some(link);
        if let Some(cause) = self.plan.cause().filter(|_| self.announced) {
            self.say(&Message::Ending { cause });
        }
        if let Some(dead) = self.dead.clone() {
            self.say(&Message::Dead(Box::new(dead)));
        }
    }

    fn hello(&self) -> Hello {
        let worker = self.worker.as_ref();
        let phase = match worker {
            _ if self.dead.is_some() => Phase::Dead,
            _ if self.plan.cause().is_some() => Phase::Ending,
            Some(_) => Phase::Running,
            None => Phase::Starting,
        };
        let alive = worker.filter(|_| self.status.is_none());
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            worker: self.launch.worker.clone(),
            shim_pid: getpid().as_raw_nonzero().get().unsigned_abs(),
            worker_pid: alive.map_or(0, |worker| worker.pid.as_raw_nonzero().get().unsigned_abs()),
            started_ns: self.started.as_nanos(),
            phase,
        }
    }

    /// The agent said something.
    pub(crate) fn on_message(&mut self, message: Message) {
        let now = BootClock.now();
        match message {
            Message::Renew {
                node_deadline_ns,
                owner_deadline_ns,
            } => {
                self.plan.on_renewal(
                    Tick::from_nanos(node_deadline_ns),
                    Tick::from_nanos(owner_deadline_ns),
                );
                // Each is a moment later than the one that had no descriptor to spare.
                if let Owner::Unseen(identity) = self.owner {
                    self.look_at(Some(identity), OnOwnerExit::Kill);
                }
            }
            Message::Ties {
                owner,
                on_owner_exit,
                on_link_loss,
            } => {
                self.launch.on_link_loss = on_link_loss;
                self.look_at(owner, on_owner_exit);
            }
            Message::Stop { cause, grace_ms } => {
                let step = self
                    .plan
                    .on_stop(cause, Duration::from_millis(grace_ms), now);
                self.carry_out(step);
            }
            Message::Signal { signo } => {
                let pidfd = self.worker.as_ref().map(|worker| &worker.pidfd);
                // An ended worker and a number that is no signal have nothing to be told.
                if let (Some(pidfd), Some(signal)) = (pidfd, Signal::from_named_raw(signo)) {
                    let _ = pidfd_send_signal(pidfd, signal);
                }
            }
            Message::Acknowledge => self.acknowledged = self.dead.is_some(),
            // A second launch is refused by silence: the first one is what this shim is for. The
            // others are the shim's own words.
            Message::Launch(_)
            | Message::Hello(_)
            | Message::Started { .. }
            | Message::SpawnFailed(_)
            | Message::Ending { .. }
            | Message::Dead(_) => {}
        }
    }

    fn say(&mut self, message: &Message) {
        if let Some(link) = &mut self.link {
            link.send(message);
        }
    }
}

/// The time of day, for whoever reads of the death.
fn unix_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let (secs, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    secs.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
