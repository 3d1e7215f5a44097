//! A simulated machine: clocks that are off, and that pause and sleep with it.

use tether_clock::Reading;

/// Parts of a million that a clock goes on in a millionth of a second.
pub(crate) const EXACT: u64 = 1_000_000;

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// It runs.
    Up,
    /// Its hypervisor does not run it: no clock of its own shows it.
    Paused,
    /// It sleeps: `BOOTTIME` goes on.
    Asleep,
}

/// A machine, and its clocks as of the last change.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    raw_rate: u64,
    rate: u64,
    power: Power,
    changed: u64,
    raw: u64,
    monotonic: u64,
    asleep: u64,
    /// When it is up again, if it is not.
    pub(crate) up_at: u64,
    /// When it was last paused or asleep.
    pub(crate) paused: Option<u64>,
    pub(crate) resumed: u64,
}

impl Machine {
    /// A machine that was up for `age` when the schedule began.
    pub(crate) fn new(raw_rate: u64, rate: u64, age: u64) -> Self {
        Self {
            raw_rate,
            rate,
            power: Power::Up,
            changed: 0,
            raw: age,
            monotonic: age,
            asleep: age / 7,
            up_at: 0,
            paused: None,
            resumed: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.power == Power::Up
    }

    /// `MONOTONIC_RAW`, `MONOTONIC` and `BOOTTIME` at a true time.
    fn shown(&self, now: u64) -> (u64, u64, u64) {
        let passed = now - self.changed;
        let (raw, monotonic, slept) = match self.power {
            Power::Up => (
                passed * self.raw_rate / EXACT,
                passed * self.rate / EXACT,
                0,
            ),
            Power::Paused => (0, 0, 0),
            Power::Asleep => (0, 0, passed),
        };
        let monotonic = self.monotonic + monotonic;
        (self.raw + raw, monotonic, monotonic + self.asleep + slept)
    }

    /// What a reading shows at a true time.
    pub(crate) fn reading(&self, now: u64) -> Reading {
        let (raw, monotonic, boot) = self.shown(now);
        Reading::new(raw, monotonic, boot)
    }

    /// What one who knows of `MONOTONIC` only takes for a reading.
    pub(crate) fn monotonic_reading(&self, now: u64) -> Reading {
        let (_, monotonic, _) = self.shown(now);
        Reading::new(monotonic, monotonic, monotonic)
    }

    /// `BOOTTIME`, or `MONOTONIC` where a timer is set to that.
    pub(crate) fn timer_clock(&self, monotonic_only: bool, now: u64) -> u64 {
        let (_, monotonic, boot) = self.shown(now);
        if monotonic_only { monotonic } else { boot }
    }

    /// How long in true time until a clock that goes like `MONOTONIC` went on by `span`; never early by more
    /// than what changes until then.
    pub(crate) fn until(&self, span: u64) -> u64 {
        (span * EXACT).div_ceil(self.rate)
    }

    pub(crate) fn slew(&mut self, rate: u64, now: u64) {
        self.settle(now);
        self.rate = rate;
    }

    /// Stops running until `until`.
    pub(crate) fn stop(&mut self, power: Power, now: u64, until: u64) {
        self.settle(now);
        self.power = power;
        self.up_at = until;
    }

    pub(crate) fn resume(&mut self, now: u64) {
        self.settle(now);
        if self.power == Power::Paused {
            self.paused = Some(now);
        }
        self.power = Power::Up;
        self.resumed = now;
    }

    fn settle(&mut self, now: u64) {
        let (raw, monotonic, boot) = self.shown(now);
        self.asleep = boot - monotonic;
        self.raw = raw;
        self.monotonic = monotonic;
        self.changed = now;
    }
}
