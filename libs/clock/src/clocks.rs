//! The rule on the clocks of this machine.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{Clock, GrantorTime, HolderTime, Tick, sandwich};

/// The clock of a holder on this machine: [`HolderTime`]. Clones show one time; two clocks made apart do
/// not, and their ticks are not to be mixed, nor with those of [`BootClock`](crate::BootClock).
#[derive(Debug, Clone)]
pub struct HolderClock(Arc<Mutex<HolderTime>>);

impl HolderClock {
    /// A clock that begins at the tick of `BOOTTIME`.
    pub fn start() -> Self {
        Self(Arc::new(Mutex::new(HolderTime::new(sandwich::read()))))
    }

    /// The tick of `BOOTTIME` for a deadline of this clock, as [`HolderTime::on_boot`].
    pub fn on_boot(&self, deadline: Tick) -> Tick {
        self.with(|time| {
            time.on_reading(sandwich::read());
            time.on_boot(deadline)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut HolderTime) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clock for HolderClock {
    fn now(&self) -> Tick {
        self.with(|time| time.on_reading(sandwich::read()))
    }
}

/// The clock of a grantor on this machine: [`GrantorTime`]. Clones show one time.
#[derive(Debug, Clone)]
pub struct GrantorClock(Arc<Mutex<GrantorTime>>);

impl GrantorClock {
    /// A clock that begins at the tick of `BOOTTIME` and is looked at more often than every `attention`.
    pub fn start(attention: Duration) -> Self {
        let time = GrantorTime::new(sandwich::read(), attention);
        Self(Arc::new(Mutex::new(time)))
    }
}

impl Clock for GrantorClock {
    fn now(&self) -> Tick {
        let mut time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        time.on_reading(sandwich::read())
    }
}

#[cfg(test)]
mod tests {
    use std::println;

    use super::*;
    use crate::BootClock;

    /// Between two readings lies what the clocks of one moment were read apart, and that adds up: it has
    /// to stay far below the 5,000 ns in a millisecond that a lease allows clocks to be wrong.
    #[test]
    fn reading_a_thousand_times_a_second_adds_no_drift_worth_speaking_of() {
        const READINGS: u32 = 20_000;
        let first = sandwich::read();
        let mut last = first;
        let mut holder = HolderTime::new(first);
        let mut grantor = GrantorTime::new(first, Duration::MAX);

        for _ in 0..READINGS {
            last = sandwich::read();
            holder.on_reading(last);
            grantor.on_reading(last);
        }

        let boot = Tick(last.boot).since(Tick(first.boot));
        let counted = |now: Tick| now.since(Tick(first.boot));
        let over = counted(holder.on_reading(last)).saturating_sub(boot) / READINGS;
        let under = boot.saturating_sub(counted(grantor.on_reading(last))) / READINGS;
        println!("holder {over:?} over, grantor {under:?} under, each reading");
        let negligible = Duration::from_nanos(500);
        assert!(
            over < negligible && under < negligible,
            "{over:?} {under:?}"
        );
    }

    #[test]
    fn a_deadline_becomes_a_tick_of_the_kernels_own_clock() {
        let clock = HolderClock::start();
        let minute = Duration::from_secs(60);

        let before = BootClock.now();
        let deadline = clock.now() + minute;
        let on_boot = clock.on_boot(deadline);

        assert!(on_boot <= BootClock.now() + minute);
        assert!(on_boot + Duration::from_secs(1) > before + minute);
        assert_eq!(clock.on_boot(Tick::NEVER), Tick::NEVER);
    }

    #[test]
    fn clones_show_one_time_which_never_goes_back() {
        let clock = HolderClock::start();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let clock = clock.clone();
                scope.spawn(move || {
                    let mut last = clock.now();
                    for _ in 0..10_000 {
                        let now = clock.now();
                        assert!(now >= last);
                        last = now;
                    }
                });
            }
        });
    }
}
