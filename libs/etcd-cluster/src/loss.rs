//! Ways in which a member is away for a while.

use rustix::process::Signal;

use crate::Cluster;

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It was killed: connections to it are refused.
    Killed,
    /// It was stopped: connections to it are taken by the kernel, and nobody answers.
    Stopped,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Killed, Self::Stopped];
}

impl Cluster {
    /// Takes a member away.
    ///
    /// # Panics
    /// When it does not run.
    pub fn lose(&mut self, index: usize, loss: Loss) {
        match loss {
            Loss::Killed => self.member(index).kill(),
            Loss::Stopped => self.member(index).signal(Signal::STOP),
        }
    }

    /// Brings it back, and waits until it is one of them again.
    ///
    /// # Panics
    /// When it is not within a minute.
    pub async fn bring_back(&mut self, index: usize, loss: Loss) {
        match loss {
            Loss::Killed => self.member(index).start(),
            Loss::Stopped => self.member(index).signal(Signal::CONT),
        }
        self.formed().await;
    }
}
