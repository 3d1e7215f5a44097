//! Notices that somebody has set the time of day. Nothing hangs on that time here, so it is for people alone.
//!
//! `REALTIME` and `BOOTTIME` are slewed alike and both go on while the machine sleeps: the distance between them
//! changes only when the time of day is set, by an operator, by an NTP client that steps, or by a leap second.

use core::{fmt, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use crate::{BootClock, Clock as _, Tick, source};

/// By how much the time of day moves at least for it to be told.
const STEP: Duration = Duration::from_secs(1);

/// Both clocks were read in one moment where no more than this has passed between; otherwise whoever read them was
/// not running meanwhile.
const MOMENT: Duration = Duration::from_millis(10);

/// Looks are repeated so often until both clocks were read in one moment.
const TRIES: u32 = 3;

/// The time of day was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// By how much.
    pub by: Duration,
    /// Whether to a later time.
    pub is_forward: bool,
}

impl Step {
    /// Milliseconds, less than zero for back.
    pub fn millis(self) -> i64 {
        let millis = i64::try_from(self.by.as_millis()).unwrap_or(i64::MAX);
        if self.is_forward { millis } else { -millis }
    }

    /// What [`Step::millis`] was told of.
    pub const fn of_millis(millis: i64) -> Self {
        Self {
            by: Duration::from_millis(millis.unsigned_abs()),
            is_forward: millis > 0,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = if self.is_forward { "forward" } else { "back" };
        write!(f, "set {to} by {:.1?}", self.by)
    }
}

/// Compares the time of day with a clock that nobody sets, from one look to the next.
#[derive(Debug, Default)]
pub struct WallWatch {
    /// By how much the time of day was ahead of the time since boot.
    ahead: Option<i128>,
}

impl WallWatch {
    /// Whether the time of day was set since the last look; each time is told once.
    pub fn look(&mut self) -> Option<Step> {
        (0..TRIES)
            .find_map(|_| {
                let before = BootClock.now();
                let wall = source::shown_wall().unwrap_or_else(wall)?;
                let is_moment = BootClock.now().since(before) <= MOMENT;
                is_moment.then_some((wall, before))
            })
            .and_then(|(wall, boot)| self.on_reading(wall, boot))
    }

    /// Both clocks: nanoseconds since 1970, and since boot.
    fn on_reading(&mut self, wall: u64, boot: Tick) -> Option<Step> {
        let ahead = i128::from(wall) - i128::from(boot.as_nanos());
        let before = self.ahead.replace(ahead)?;
        let by = u64::try_from((ahead - before).unsigned_abs()).unwrap_or(u64::MAX);
        let by = Duration::from_nanos(by);
        (by > STEP).then_some(Step {
            by,
            is_forward: ahead > before,
        })
    }
}

fn wall() -> Option<u64> {
    let time = clock_gettime(ClockId::Realtime);
    let secs = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec).ok()?;
    Some(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use std::{boxed::Box, cell::Cell, rc::Rc};

    use super::*;
    use crate::Reading;

    const SECOND: u64 = 1_000_000_000;

    /// A machine whose clocks show what is set here: the time of day, and the time since boot.
    fn machine() -> Rc<Cell<(u64, u64)>> {
        let shown = Rc::new(Cell::new((1_000_000 * SECOND, 500 * SECOND)));
        let (boot, wall) = (Rc::clone(&shown), Rc::clone(&shown));
        source::install(Some(Box::new(move || {
            let (_, boot) = boot.get();
            Some(Reading::new(boot, boot, boot))
        })));
        source::install_wall(Some(Box::new(move || Some(wall.get().0))));
        shown
    }

    #[test]
    fn a_step_of_the_time_of_day_is_told_once_and_time_that_passes_or_is_slept_is_none() {
        let clocks = machine();
        let mut watch = WallWatch::default();
        let mut after = |wall: i64, boot: u64| {
            let (was, since) = clocks.get();
            clocks.set((was.saturating_add_signed(wall), since + boot));
            watch.look().map(Step::millis)
        };
        let seconds = |secs: i64| secs * i64::try_from(SECOND).unwrap();

        assert_eq!(after(0, 0), None, "there is nothing to compare it with");
        assert_eq!(after(seconds(5), 5 * SECOND), None);
        assert_eq!(after(seconds(86_400), 86_400 * SECOND), None, "it slept");
        assert_eq!(after(seconds(6), 5 * SECOND), None, "no more than a second");
        assert_eq!(after(seconds(3_605), 5 * SECOND), Some(3_600_000));
        assert_eq!(after(seconds(5), 5 * SECOND), None, "that was told");
        assert_eq!(after(seconds(-7_195), 5 * SECOND), Some(-7_200_000));
    }

    #[test]
    fn the_clocks_of_a_machine_that_nobody_sets_show_no_step_and_those_of_a_simulation_none_at_all()
    {
        let mut watch = WallWatch::default();
        assert_eq!((watch.look(), watch.look()), (None, None));
        assert!(watch.ahead.is_some());

        source::install(Some(Box::new(|| Some(Reading::new(1, 1, 1)))));
        let mut simulated = WallWatch::default();
        assert_eq!(simulated.look(), None);
        assert_eq!(simulated.ahead, None, "it has no time of day");
    }

    #[test]
    fn a_step_is_told_in_words_and_in_milliseconds() {
        let step = Step::of_millis(-1_500);
        assert_eq!(std::format!("{step}"), "set back by 1.5s");
        assert_eq!(Step::of_millis(step.millis()), step);
    }
}
