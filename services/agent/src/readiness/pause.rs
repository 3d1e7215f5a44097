//! Pauses between two questions to a worker that is not ready yet. Each is a part of the time waited so far:
//! a worker that takes a millisecond is not found out two later, and one that takes seconds is not asked for
//! ever and ever.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use crate::polled;

/// The first pause, and the longest.
const FIRST: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_millis(100);

/// The runtime's timers count in whole milliseconds, and round up: shorter pauses are the kernel's.
const COARSE: Duration = Duration::from_millis(5);

/// The pauses of one wait.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    fine: Option<AsyncFd<OwnedFd>>,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            next: FIRST,
            fine: None,
        }
    }

    /// Makes the next one.
    pub(super) async fn rest(&mut self) {
        let pause = self.next;
        self.next = longer(pause);
        if pause >= COARSE {
            self.fine = None;
            sleep(pause).await;
        } else if self.rest_finely(pause).await.is_err() {
            // No descriptor is left for it.
            sleep(pause).await;
        }
    }

    async fn rest_finely(&mut self, pause: Duration) -> io::Result<()> {
        let timer = match self.fine.take() {
            Some(timer) => timer,
            None => {
                let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
                polled::readable(timer)?
            }
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(pause).map_err(io::Error::other)?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        let ended = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut [0; 8])?);
        timer.async_io(Interest::READABLE, ended).await?;
        self.fine = Some(timer);
        Ok(())
    }
}

/// The pause after this one: a quarter of all pauses before it, and the first one.
fn longer(pause: Duration) -> Duration {
    (pause * 5 / 4).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_longer_than_a_quarter_of_the_wait_before_it_and_the_first_one() {
        let (mut pause, mut waited) = (FIRST, Duration::ZERO);
        for _ in 0..60 {
            assert!(
                pause <= waited / 4 + FIRST && pause <= LONGEST,
                "{pause:?} after {waited:?}"
            );
            waited += pause;
            pause = longer(pause);
        }
        assert_eq!(pause, LONGEST);
    }

    #[tokio::test]
    async fn a_short_pause_is_over_before_a_millisecond_is() {
        // Of many the shortest: others run on this machine as well.
        let mut shortest = Duration::MAX;
        for _ in 0..50 {
            let begun = std::time::Instant::now();
            let mut pauses = Pauses::new();
            pauses.rest().await;
            pauses.rest().await;
            shortest = shortest.min(begun.elapsed());
        }

        assert!(shortest >= FIRST + longer(FIRST), "{shortest:?}");
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    }
}
