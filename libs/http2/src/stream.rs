//! One stream: which of its sides are open, and what may be sent over it.

use crate::settings::{LARGEST_WINDOW, Theirs};

/// What is known of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    /// What was given for it beyond what all streams begin with, less what was sent: a word on what they begin with
    /// changes nothing here, however many there are.
    pub(crate) given: i64,
    /// What the other side may send.
    pub(crate) receive_window: i32,
    /// What was taken of it, and not told yet.
    pub(crate) taken: u32,
    /// How much of the announced length is still to come.
    pub(crate) to_come: Option<u64>,
    /// Whether we may still send.
    pub(crate) is_ours_open: bool,
    /// Whether the other side may.
    pub(crate) is_theirs_open: bool,
    /// Whether the head of what they send was there.
    pub(crate) has_head: bool,
    /// Whether what comes has no body, whatever it announces.
    pub(crate) is_bodiless: bool,
    pub(crate) is_accepted: bool,
    /// Whether they gave it up before it was accepted.
    pub(crate) is_abandoned: bool,
}

impl Stream {
    pub(crate) fn new(id: u32, receive_window: u32) -> Self {
        Self {
            id,
            given: 0,
            receive_window: signed(receive_window),
            taken: 0,
            to_come: None,
            is_ours_open: true,
            is_theirs_open: true,
            has_head: false,
            is_bodiless: false,
            is_accepted: false,
            is_abandoned: false,
        }
    }

    /// What may be sent over it; less than nothing where the other side took back what it had given.
    pub(crate) fn window(&self, theirs: &Theirs) -> i64 {
        i64::from(theirs.window) + self.given
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_ours_open || self.is_theirs_open
    }

    /// Counts what came against the announced length. Fails where that is more, or less when it is over.
    pub(crate) fn count(&mut self, length: usize, is_over: bool) -> Result<(), ()> {
        let Some(to_come) = self.to_come.as_mut() else {
            return Ok(());
        };
        *to_come = to_come.checked_sub(length as u64).ok_or(())?;
        match is_over && *to_come > 0 {
            true => Err(()),
            false => Ok(()),
        }
    }
}

/// A window as a number that can be taken from; none is larger than fits.
pub(crate) fn signed(window: u32) -> i32 {
    i32::try_from(window.min(LARGEST_WINDOW)).unwrap_or(i32::MAX)
}

/// A window made wider; `None` where it would be wider than one may be.
pub(crate) fn widened(window: i32, by: u32) -> Option<i32> {
    window.checked_add(i32::try_from(by).ok()?)
}
