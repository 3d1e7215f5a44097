//! Mistakes with names. Each is wired into the simulated world around the real cores, never into them.

/// One mistake that somebody could make, or has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Neither side allows for clocks that are off, nor for the time a kill takes.
    NoMargin,
    /// The holder counts from when an answer arrived.
    ReceiptAnchor,
    /// A new leader takes leases whose renewals it does not know for free.
    NewLeaderDoesNotWait,
    /// What a worker writes is taken whatever its epoch.
    NoFence,
    /// A leader believes the store's word that its lease lives, which a member cut off from the others gives too.
    KeepAliveAsLeadership,
    /// A beat extends also when nothing shows that answers arrive.
    NoAckSeen,
    /// A contested slot is granted to whoever asks first, heard or not.
    GrantWithoutAccept,
    /// The deadline is looked at between two calls of the agent, by no timer.
    DeadlineInRpcLoop,
    /// Holder and timer know of `MONOTONIC` only.
    MonotonicOnly,
    /// An agent that starts takes the leases it finds for just renewed.
    AgentRestartResetsClock,
    /// The highest epoch seen is kept in memory only.
    FenceNotPersisted,
    /// A gateway that lost its watch goes on with what happens from then on.
    WatchFromNow,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: &'static [Self] = &[
        Self::NoMargin,
        Self::ReceiptAnchor,
        Self::NewLeaderDoesNotWait,
        Self::NoFence,
        Self::KeepAliveAsLeadership,
        Self::NoAckSeen,
        Self::GrantWithoutAccept,
        Self::DeadlineInRpcLoop,
        Self::MonotonicOnly,
        Self::AgentRestartResetsClock,
        Self::FenceNotPersisted,
        Self::WatchFromNow,
    ];

    /// Its name, as it is typed and printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoMargin => "no-margin",
            Self::ReceiptAnchor => "receipt-anchor",
            Self::NewLeaderDoesNotWait => "new-leader-does-not-wait",
            Self::NoFence => "no-fence",
            Self::KeepAliveAsLeadership => "keepalive-as-leadership",
            Self::NoAckSeen => "no-ack-seen",
            Self::GrantWithoutAccept => "grant-without-accept",
            Self::DeadlineInRpcLoop => "deadline-in-rpc-loop",
            Self::MonotonicOnly => "monotonic-only",
            Self::AgentRestartResetsClock => "agent-restart-resets-clock",
            Self::FenceNotPersisted => "fence-not-persisted",
            Self::WatchFromNow => "watch-from-now",
        }
    }

    /// The mutant of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|mutant| mutant.name() == name)
    }
}
