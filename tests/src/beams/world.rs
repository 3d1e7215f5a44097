//! What all rows need, and what they tell.

use std::{io::Write as _, time::Duration};

use crate::lab::Lab;

/// How it is played.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) lab: Lab,
    /// How often each row is played, where somebody says so.
    pub(crate) repeat: Option<usize>,
    /// Whether this machine does other work, so that times are judged loosely.
    pub(crate) busy: bool,
}

/// What a row expected and saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) expected: String,
    pub(crate) seen: String,
    pub(crate) holds: bool,
}

impl World {
    /// How often a row is played, which is played so often where nobody says.
    pub(crate) fn repeat(&self, usual: usize) -> usize {
        self.repeat.unwrap_or(usual).min(usual).max(1)
    }

    /// How long something may take that takes this long on a machine which does nothing else.
    pub(crate) fn leeway(&self, usual: Duration) -> Duration {
        match self.busy {
            true => usual * 4,
            false => usual,
        }
    }

    /// Tells every now and then how far a row is.
    pub(crate) fn progress(&self, done: usize, wanted: usize, so_far: &str) {
        if done == wanted || done.is_multiple_of(10) || done.is_multiple_of(9) && done < 20 {
            let _ = writeln!(std::io::stdout(), "     {done} of {wanted}: {so_far}");
        }
    }
}

impl Seen {
    pub(crate) fn new(expected: impl Into<String>, seen: impl Into<String>, holds: bool) -> Self {
        Self {
            expected: expected.into(),
            seen: seen.into(),
            holds,
        }
    }
}
