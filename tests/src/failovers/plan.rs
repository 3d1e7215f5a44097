//! Every failover: what is done, for how long, and what the leases say must follow.

use std::time::Duration;

/// Renewals go on this soon, whatever became of a leader.
pub(crate) const RESUMED: Duration = Duration::from_secs(9);

/// Between two heartbeats of a node, and what one may be late on a busy machine. Silence up to this is none.
pub(crate) const ORDINARY: Duration = Duration::from_millis(5_000 + 1_500);

/// How long after a heartbeat a fault begins: another time in each row and each repetition.
pub(crate) fn phase(row: usize) -> Duration {
    /// Goes through all tenths of a second between two heartbeats.
    const STEP: usize = 1_700;
    let millis = row.wrapping_mul(STEP) % 5_000;
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// How the store of a world is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Three members of etcd and two arbiters.
    Elected,
    /// A file, and an arbiter alone.
    File,
}

impl Shape {
    pub(crate) const fn arbiters(self) -> usize {
        match self {
            Self::Elected => 2,
            Self::File => 1,
        }
    }

    pub(crate) const fn disks(self) -> usize {
        match self {
            Self::Elected => 3,
            Self::File => 1,
        }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ArbiterKilled,
    ArbiterStopped,
    ArbiterFrozen,
    ArbiterLeaves,
    FileStalled,
    EtcdKilled,
    EtcdStopped,
    EtcdStalled,
    EtcdMute,
    EtcdDeaf,
    QuorumLost,
}

/// What is to be seen of renewals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewals {
    /// They go on as if nothing were.
    GoOn,
    /// They are answered again this soon after the fault.
    ResumeAfterFault,
    /// They cease, and are answered again this soon after its end.
    ResumeAfterEnd,
}

impl Fault {
    pub(crate) const ALL: &'static [Self] = &[
        Self::ArbiterKilled,
        Self::ArbiterStopped,
        Self::ArbiterFrozen,
        Self::ArbiterLeaves,
        Self::EtcdKilled,
        Self::EtcdStopped,
        Self::EtcdStalled,
        Self::EtcdMute,
        Self::EtcdDeaf,
        Self::QuorumLost,
        Self::FileStalled,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ArbiterKilled => "arbiter leader killed",
            Self::ArbiterStopped => "arbiter leader stopped (SIGSTOP) 8 s",
            Self::ArbiterFrozen => "arbiter leader frozen (cgroup) 8 s",
            Self::ArbiterLeaves => "arbiter leader leaves in good order",
            Self::FileStalled => "arbiter's file, disk stalled 8 s",
            Self::EtcdKilled => "etcd leader killed",
            Self::EtcdStopped => "etcd leader stopped (SIGSTOP) 8 s",
            Self::EtcdStalled => "etcd leader, disk stalled 8 s",
            Self::EtcdMute => "etcd leader not heard by the others 8 s",
            Self::EtcdDeaf => "etcd leader hears none of the others 8 s",
            Self::QuorumLost => "etcd quorum lost 30 s",
        }
    }

    pub(crate) const fn shape(self) -> Shape {
        match self {
            Self::FileStalled => Shape::File,
            _ => Shape::Elected,
        }
    }

    /// How long it is held.
    pub(crate) const fn lasts(self) -> Duration {
        Duration::from_secs(match self {
            Self::ArbiterKilled | Self::ArbiterLeaves | Self::EtcdKilled => 3,
            Self::QuorumLost => 30,
            _ => 8,
        })
    }

    pub(crate) const fn renewals(self) -> Renewals {
        match self {
            Self::FileStalled => Renewals::GoOn,
            Self::QuorumLost => Renewals::ResumeAfterEnd,
            _ => Renewals::ResumeAfterFault,
        }
    }

    /// Whether it is an arbiter's lead that has to go to the other one, which shows that the fault was one.
    pub(crate) const fn deposes_arbiter(self) -> bool {
        matches!(
            self,
            Self::ArbiterKilled | Self::ArbiterStopped | Self::ArbiterFrozen | Self::ArbiterLeaves
        )
    }

    /// The same of a member of etcd.
    pub(crate) const fn deposes_member(self) -> bool {
        matches!(
            self,
            Self::EtcdKilled
                | Self::EtcdStopped
                | Self::EtcdStalled
                | Self::EtcdMute
                | Self::EtcdDeaf
        )
    }

    pub(crate) const fn needs_disks(self) -> bool {
        matches!(self, Self::FileStalled | Self::EtcdStalled)
    }

    pub(crate) const fn needs_cgroups(self) -> bool {
        matches!(self, Self::ArbiterFrozen)
    }
}
