//! One worker's keeper: what each event does to the worker, its record and its agent.

mod beginning;
mod burial;
mod ending;
mod forked;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, pidfd_send_signal};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::{
    Cause, Dead, Hello, Identity, Launch, Message, OnLinkLoss, OnOwnerExit, Orderer, PROTOCOL,
    Phase, SpawnFailure,
};
use tether_sys::{Guard, Made};

use crate::cgroup::{Cgroup, Limiting};
use crate::death::Ending;
use crate::launch::Worker;
use crate::link::Link;
use crate::namespace::Namespace;
use crate::output::Capture;
use crate::owner::Owner;
use crate::plan::Plan;
use crate::seat::Seated;
use crate::{death, namespace};

pub(crate) use forked::Forked;

/// A worker that lives this long is likely to stay, and its shim to have nothing to do.
const RESTLESS: Duration = Duration::from_secs(1);

/// An agent that is there acknowledges a death within this time, and then no file is needed. Only an exit
/// with 0 waits for that: should everything be killed meanwhile, there is no cause that could be lost.
const RECORD_AFTER: Duration = Duration::from_millis(100);

/// How long a death waits for its acknowledgement before it is left to the file.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(5);

/// When an owner's process is looked at again that could not be.
const UNSEEN: Duration = Duration::from_millis(100);

/// The program's arguments and environment, let go of once it is started.
pub(crate) type ArgvAndEnv = (Vec<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>);

/// Everything the shim knows and holds.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) launch: Launch,
    pub(crate) plan: Plan,
    pub(crate) seated: Seated,
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
    /// Whether the worker's main process is stopped.
    halted: bool,
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
        page: Made,
    ) -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            plan: Plan::new(
                Tick::from_nanos(launch.node_deadline_ns),
                Tick::from_nanos(launch.owner_deadline_ns),
                Duration::from_millis(launch.kill_grace_ms),
            ),
            seated: Seated::new(page, launch.seat),
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
            halted: false,
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

    fn is_gone(&self) -> bool {
        self.plan.is_over() || (self.waiting.is_none() && self.childless && !self.is_leaf_held())
    }

    /// Removes the worker's cgroup once nobody is left below the shim; tells whether the kernel refuses, as
    /// somebody moved a process into it that is not.
    fn is_leaf_held(&self) -> bool {
        let held = || self.cgroup.as_ref().is_some_and(|cgroup| !cgroup.remove());
        self.childless && held()
    }

    /// Lets go of what only the start needed, once the worker looks like staying.
    pub(crate) fn rest(&mut self) {
        if BootClock.now() >= self.rest_at {
            self.rest_at = Tick::NEVER;
            tether_sys::let_go();
        }
    }

    /// Takes over what the lease page says by now.
    pub(crate) fn look(&mut self, now: Tick) {
        let said = self.seated.read();
        let is_other = said.is_some_and(|(node, owner)| self.plan.on_renewal(node, owner));
        if is_other || now >= self.seated.look_at {
            self.seated.look_at = self.plan.look(now);
            self.look_at_unseen();
        }
    }

    /// Has the guard go off when the plan says so.
    pub(crate) fn set_guard(&self) {
        let at = self.plan.guard();
        let set = self.guard.set((at != Tick::NEVER).then(|| at.as_nanos()));
        // What was not set is tried again at the next turn.
        self.guard_at.set(set.is_ok().then_some(at));
    }

    /// The shim itself was asked to stop, by somebody who knows its pid.
    pub(crate) fn on_terminate(&mut self) {
        let cause = Cause::Ordered(Orderer::Operator);
        let step = self.plan.on_stop(cause, self.plan.grace(), BootClock.now());
        self.carry_out(step);
    }

    /// Each look is a moment later than the one that had no descriptor to spare.
    fn look_at_unseen(&mut self) {
        if let Owner::Unseen(identity) = self.owner {
            self.look_at(Some(identity), OnOwnerExit::Kill);
        }
    }

    fn look_at(&mut self, owner: Option<Identity>, on_exit: OnOwnerExit) {
        self.owner = Owner::watch(owner, on_exit);
        match self.owner {
            Owner::Gone => self.on_owner_gone(),
            Owner::Unseen(_) => {
                let soon = BootClock.now() + UNSEEN;
                self.seated.look_at = self.seated.look_at.min(soon);
            }
            Owner::Unwatched | Owner::Watched(_) => {}
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
        let page = core::iter::once(&self.seated.writable);
        let all: Vec<_> = page.chain(&self.sockets).map(AsFd::as_fd).collect();
        link.send_with(&Message::Hello(self.hello()), &all);
        self.link = Some(link);
        if self.halted {
            self.say(&Message::Halted { halted: true });
        }
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
            version: env!("CARGO_PKG_VERSION").into(),
            worker: self.launch.worker.clone(),
            shim_pid: getpid().as_raw_nonzero().get().unsigned_abs(),
            worker_pid: alive.map_or(0, |worker| worker.pid.as_raw_nonzero().get().unsigned_abs()),
            started_ns: self.started.as_nanos(),
            phase,
            page: self.seated.page(),
            seat: self.seated.seat,
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
                self.seated.seat = None;
                self.plan.on_renewal(
                    Tick::from_nanos(node_deadline_ns),
                    Tick::from_nanos(owner_deadline_ns),
                );
                self.look_at_unseen();
            }
            Message::Look => {
                self.look(now);
                self.look_at_unseen();
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
            | Message::Halted { .. }
            | Message::Dead(_) => {}
        }
    }

    fn say(&mut self, message: &Message) {
        if let Some(link) = &mut self.link {
            link.send(message);
        }
    }
}
