//! The clocks of simulated machines, each off in a way of its own.

use std::{cell::RefCell, time::Duration};

use tether_clock::{Reading, Tick, source};
use tokio::runtime::{Handle, Id};

/// A machine, by its place in the list of all.
pub(crate) type Host = usize;

/// One machine's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dials {
    /// How fast `MONOTONIC_RAW` is, in millionths more or less than true time.
    pub(crate) raw_ppm: i64,
    /// The same for the clocks that NTP slews.
    pub(crate) slewed_ppm: i64,
    /// When it was booted before the simulation began.
    pub(crate) booted: Duration,
    /// Time it has slept.
    pub(crate) slept: Duration,
    /// From this moment on its processes are stopped: what they see next comes after that.
    pub(crate) stopped: Option<Duration>,
    /// How far an impatient arbiter's clocks have been put forward.
    pub(crate) ahead: Duration,
}

impl Dials {
    fn at(&self, truth: Duration) -> Reading {
        let gone = |ppm: i64| {
            let lived = i128::try_from((self.booted + truth + self.ahead).as_nanos()).unwrap_or(0);
            u64::try_from(lived + lived * i128::from(ppm) / 1_000_000).unwrap_or(0)
        };
        let slept = u64::try_from(self.slept.as_nanos()).unwrap_or(0);
        let slewed = gone(self.slewed_ppm);
        Reading::new(gone(self.raw_ppm), slewed, slewed + slept)
    }

    /// What its kernel's timers go by, whether or not its processes run.
    pub(crate) fn boot(&self, truth: Duration) -> Tick {
        let lived = i128::try_from((self.booted + truth + self.ahead).as_nanos()).unwrap_or(0);
        let slewed = lived + lived * i128::from(self.slewed_ppm) / 1_000_000;
        let slept = i128::try_from(self.slept.as_nanos()).unwrap_or(0);
        Tick::from_nanos(u64::try_from(slewed + slept).unwrap_or(0))
    }
}

#[derive(Debug, Default)]
struct Clocks {
    machines: Vec<Dials>,
    /// Whose runtime is which: a host that was restarted has another. Few, and looked at with each reading.
    runtimes: Vec<(Id, Host)>,
    /// True time as of the last step.
    truth: Duration,
}

thread_local! {
    static CLOCKS: RefCell<Clocks> = RefCell::default();
}

/// From here on this thread's clocks are those of the host that runs.
pub(crate) fn install(machines: Vec<Dials>) {
    CLOCKS.with_borrow_mut(|clocks| {
        *clocks = Clocks {
            machines,
            ..Clocks::default()
        };
    });
    source::install(Some(Box::new(|| Some(CLOCKS.with_borrow(Clocks::shown)))));
}

impl Clocks {
    fn shown(&self) -> Reading {
        let id = Handle::try_current().ok().map(|handle| handle.id());
        let runs = |(runtime, _): &&(Id, Host)| Some(*runtime) == id;
        let host = self.runtimes.iter().rev().find(runs);
        let dials = host.and_then(|&(_, host)| self.machines.get(host)).copied();
        let dials = dials.unwrap_or_default();
        dials.at(dials.stopped.unwrap_or_else(|| self.now()))
    }

    fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or(self.truth)
    }
}

/// The runtime that runs this is that of `host`.
pub(crate) fn arrive(host: Host) {
    if let Ok(handle) = Handle::try_current() {
        CLOCKS.with_borrow_mut(|clocks| clocks.runtimes.push((handle.id(), host)));
    }
}

/// True time goes on.
pub(crate) fn step(truth: Duration) {
    CLOCKS.with_borrow_mut(|clocks| clocks.truth = truth);
}

/// True time.
pub(crate) fn truth() -> Duration {
    CLOCKS.with_borrow(Clocks::now)
}

/// What the kernel's timers of `host` go by.
pub(crate) fn boot(host: Host) -> Tick {
    CLOCKS.with_borrow(|clocks| clocks.machines[host].boot(clocks.now()))
}

/// Turns a dial of `host`.
pub(crate) fn turn(host: Host, turn: impl FnOnce(&mut Dials)) {
    CLOCKS.with_borrow_mut(|clocks| turn(&mut clocks.machines[host]));
}

/// Whether the processes of `host` are stopped.
pub(crate) fn is_stopped(host: Host) -> bool {
    CLOCKS.with_borrow(|clocks| clocks.machines[host].stopped.is_some())
}
