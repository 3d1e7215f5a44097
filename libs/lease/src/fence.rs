//! The gate that keeps out whoever acts on a permission that was given away since.

use tether_types::Epoch;

/// A lower epoch than one already seen tried to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "epoch `{offered}` is fenced off, because epoch `{seen}` has taken over; stop, and open a new session to act again"
)]
pub struct Fenced {
    /// The epoch that tried.
    pub offered: Epoch,
    /// The highest epoch seen.
    pub seen: Epoch,
}

/// Remembers the highest epoch seen. To hold across restarts, its owner stores [`Fence::seen`]
/// before it acts on an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fence {
    seen: Epoch,
}

impl Fence {
    /// A fence that has already seen `seen`.
    pub const fn at(seen: Epoch) -> Self {
        Self { seen }
    }

    /// Lets `epoch` act unless a higher one has acted before (L4).
    ///
    /// # Errors
    /// Names the epoch that took over.
    pub fn admit(&mut self, epoch: Epoch) -> Result<(), Fenced> {
        if epoch < self.seen {
            return Err(Fenced {
                offered: epoch,
                seen: self.seen,
            });
        }
        self.seen = epoch;
        Ok(())
    }

    /// The highest epoch seen.
    pub const fn seen(&self) -> Epoch {
        self.seen
    }
}
