//! What became of the last calls.

use std::collections::VecDeque;

/// What is remembered of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Good,
    Slow,
    Failed,
}

/// The marks of the last calls, and how many of each kind there are.
#[derive(Debug, Default)]
pub(crate) struct Window {
    marks: VecDeque<Mark>,
    failed: u32,
    slow: u32,
}

impl Window {
    /// Remembers one more call, and of all no more than the last `most`.
    pub(crate) fn push(&mut self, mark: Mark, most: u32) {
        if most == 0 {
            return;
        }
        self.marks.push_back(mark);
        self.count(mark, true);
        while self.marks.len() > most as usize {
            if let Some(oldest) = self.marks.pop_front() {
                self.count(oldest, false);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Calls remembered.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.marks.len()).unwrap_or(u32::MAX)
    }

    /// Whether at least this many of a hundred failed; 0 are never enough.
    pub(crate) fn fails(&self, percent: u32) -> bool {
        reaches(self.failed, self.len(), percent)
    }

    /// Whether at least this many of a hundred were slow; 0 are never enough.
    pub(crate) fn lags(&self, percent: u32) -> bool {
        reaches(self.slow, self.len(), percent)
    }

    fn count(&mut self, mark: Mark, more: bool) {
        let count = match mark {
            Mark::Good => return,
            Mark::Failed => &mut self.failed,
            Mark::Slow => &mut self.slow,
        };
        match more {
            true => *count += 1,
            false => *count -= 1,
        }
    }
}

fn reaches(some: u32, all: u32, percent: u32) -> bool {
    percent > 0 && all > 0 && u64::from(some) * 100 >= u64::from(percent) * u64::from(all)
}
