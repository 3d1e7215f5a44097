//! Whose clocks are read: the machine's, unless a simulation shows this thread others.

use std::{boxed::Box, cell::RefCell};

use crate::rule::Reading;

/// Shows what clocks say in this moment; none for whoever has none but the machine's.
pub type Source = Box<dyn Fn() -> Option<Reading>>;

/// Shows the time of day in this moment, in nanoseconds since 1970.
pub type WallSource = Box<dyn Fn() -> Option<u64>>;

std::thread_local! {
    static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
    static WALL: RefCell<Option<WallSource>> = const { RefCell::new(None) };
}

/// From here on every clock that this thread looks at shows what `source` says; the machine's own where it
/// says nothing. A simulation runs many machines on one thread, so its source is asked at each look which
/// of them is running.
pub fn install(source: Option<Source>) {
    SOURCE.with_borrow_mut(|installed| *installed = source);
}

/// The same for the time of day, which nothing is decided by.
pub fn install_wall(source: Option<WallSource>) {
    WALL.with_borrow_mut(|installed| *installed = source);
}

/// The time of day as it is shown to this thread, or none where its other clocks are shown and it is not; none of
/// both where the machine's own counts.
pub(crate) fn shown_wall() -> Option<Option<u64>> {
    let wall = WALL.try_with(|source| source.borrow().as_ref().map(|show| show()));
    wall.ok().flatten().or_else(|| shown().map(|_| None))
}

pub(crate) fn shown() -> Option<Reading> {
    // A thread on its way out has no source any more, and may still look at a clock.
    let shown = SOURCE.try_with(|source| source.borrow().as_ref().and_then(|show| show()));
    shown.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootClock, Clock as _, GrantorClock, HolderClock, Tick};

    #[test]
    fn every_clock_of_a_thread_shows_what_its_source_says_and_the_machine_after_that() {
        let day = 86_400_000_000_000_000;
        install(Some(Box::new(move || Some(Reading::new(day, day, day)))));
        let shown = Tick::from_nanos(day);

        assert_eq!(BootClock.now(), shown);
        assert_eq!(HolderClock::start().now(), shown);
        assert_eq!(GrantorClock::start(core::time::Duration::MAX).now(), shown);

        install(None);
        assert!(BootClock.now() < shown);
    }
}
