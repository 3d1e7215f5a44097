//! Mistakes with names, made around the services and never in them.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Workers' ends are counted from when an answer arrived.
    ReceiptAnchor,
    /// Workers' ends are looked at when the agent hears from the arbiter, by no timer.
    DeadlineInRpcLoop,
    /// An agent that starts takes what it finds for just renewed.
    AgentRestartResetsClock,
    /// Clocks of holders are slower than leases allow for.
    NoMargin,
    /// An arbiter that starts, or leads anew, does not wait for what it cannot know: its clock has that term behind it.
    NewLeaderDoesNotWait,
    /// Of a commit the guard is lost, so that one that leads no more still writes.
    NoGuard,
}

impl Mutant {
    /// Every mutant.
    pub(crate) const ALL: &'static [Self] = &[
        Self::ReceiptAnchor,
        Self::DeadlineInRpcLoop,
        Self::AgentRestartResetsClock,
        Self::NoMargin,
        Self::NewLeaderDoesNotWait,
        Self::NoGuard,
    ];

    /// Its name, as it is typed and printed.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ReceiptAnchor => "receipt-anchor",
            Self::DeadlineInRpcLoop => "deadline-in-rpc-loop",
            Self::AgentRestartResetsClock => "agent-restart-resets-clock",
            Self::NoMargin => "no-margin",
            Self::NewLeaderDoesNotWait => "new-leader-does-not-wait",
            Self::NoGuard => "no-guard",
        }
    }

    /// The mutant of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|mutant| mutant.name() == name)
    }
}
