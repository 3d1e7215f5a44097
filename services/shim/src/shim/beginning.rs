//! A worker's beginning: its walls, its first process, or why there is none.

use alloc::format;
use alloc::vec::Vec;
use core::mem;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use tether_clock::{BootClock, Clock};
use tether_shim_protocol::{
    Cause, LEASE_VARIABLE, Message, STDERR_FILE, STDERR_TAIL_BYTES, STDOUT_FILE, SpawnFailure,
    Stage,
};

use super::{ArgvAndEnv, RESTLESS, Shim};
use crate::cgroup::{Cgroup, Limiting};
use crate::launch;
use crate::launch::{Place, failed_at};
use crate::namespace::Namespace;
use crate::output::{Capture, Log};
use crate::owner::Owner;
use crate::plan::Step;
use crate::stdio::Ours;

/// The number that the first descriptor has which is passed on: the one after the standard streams.
const FIRST_PASSED: usize = 3;

impl Shim {
    /// Starts the worker, or has it wait for its first caller, unless its permission has ended before it
    /// began.
    pub(crate) fn start(&mut self, argv_and_env: ArgvAndEnv) {
        let now = BootClock.now();
        self.look(now);
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

    pub(super) fn begin(&mut self, (argv, mut env): ArgvAndEnv) {
        let now = BootClock.now();
        if let Some(seat) = self.seated.seat {
            let number = FIRST_PASSED + self.sockets.len();
            let told = format!("{number}:{}:{}", seat.slot, seat.generation);
            env.push((LEASE_VARIABLE.into(), told.into()));
        }
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
            }
            Err(failure) => self.refuse(failure),
        }
    }

    /// Forks the worker itself.
    pub(super) fn fork(&mut self) -> Result<Ours, SpawnFailure> {
        // Whether there is a child is for the kernel to say, also where a start fails on the way.
        self.childless = false;
        self.open_namespace()?;
        let passed = self.passed();
        let started = launch::start(&self.launch, &self.place(&passed))?;
        let pid = started.worker.pid;
        self.worker = Some(started.worker);
        match started.failure {
            None => self.on_started(pid),
            Some(failure) => self.refuse(failure),
        }
        Ok(started.streams)
    }

    /// The worker runs.
    pub(super) fn on_started(&mut self, pid: Pid) {
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        self.say(&Message::Started { pid });
        self.rest_at = BootClock.now() + RESTLESS;
    }

    /// The worker cannot be started.
    pub(crate) fn refuse(&mut self, failure: SpawnFailure) {
        self.failure = Some(failure);
        self.reap();
        self.plan.on_loss(Cause::SpawnFailed, BootClock.now());
        self.say(&Message::SpawnFailed(failure));
    }

    pub(super) fn open_cgroup(&mut self) -> Result<(), SpawnFailure> {
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

    pub(super) fn open_namespace(&mut self) -> Result<(), SpawnFailure> {
        if self.launch.walls.namespace {
            let opened = Namespace::open(self.launch.walls.user_namespace, &self.own);
            self.namespace = Some(opened.map_err(failed_at(Stage::Namespace))?);
        }
        Ok(())
    }

    /// What the worker is given: sockets, what was kept for it, and the lease page. That is last, as the others
    /// have their numbers by an agreement of their own.
    pub(super) fn passed(&self) -> Vec<BorrowedFd<'_>> {
        let all = self.sockets.iter().chain(self.seated.passed());
        all.map(AsFd::as_fd).collect()
    }

    fn place<'a>(&'a self, passed: &'a [BorrowedFd<'a>]) -> Place<'a> {
        Place {
            cgroup: self.cgroup.as_ref(),
            limiting: &self.limiting,
            shim: &self.own,
            passed,
        }
    }
}
