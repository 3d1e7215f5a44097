//! The pools of a node: each depends on something else.

use std::time::Duration;

use tether_proto::{
    common::ProcessIdentity,
    node::{OwnerPermission, PoolPermission},
};

use crate::puppet::Grant;

/// How long the last beat of an agent lets those live that have a lease: long enough that a busy machine does
/// not end them before their agent is killed.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// A pool, by what its workers depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Nothing that ever ends.
    Free,
    /// A lease.
    Leased,
    /// Their agent.
    Tied,
    /// A lease and a process of their owner, where one is named.
    Coupled,
}

impl Pool {
    const ALL: &'static [Self] = &[Self::Free, Self::Leased, Self::Tied, Self::Coupled];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Free => "faults",
            Self::Leased => "leased",
            Self::Tied => "tied",
            Self::Coupled => "coupled",
        }
    }

    /// One that may end at once, and one whose end has somebody with it.
    pub(crate) fn owner(self) -> &'static str {
        match self {
            Self::Free | Self::Leased | Self::Tied => "owner",
            Self::Coupled => "beam",
        }
    }

    pub(crate) fn ends_with_owner(self) -> bool {
        self == Self::Coupled
    }

    pub(crate) fn ends_with_agent(self) -> bool {
        self == Self::Tied
    }

    /// How long a worker has between being asked and being killed. With a lease the asking shall be seen, and a
    /// shim whose every call is listened to has as much time as can be had before its guard goes off.
    pub(crate) fn grace(self) -> Duration {
        match self {
            Self::Free | Self::Tied => Duration::ZERO,
            Self::Leased | Self::Coupled => Duration::from_secs(1),
        }
    }

    fn permission(self) -> PoolPermission {
        let lease = match self {
            Self::Free | Self::Tied => None,
            Self::Leased | Self::Coupled => u64::try_from(LEASE.as_millis()).ok(),
        };
        PoolPermission {
            pool: self.name().to_owned(),
            remaining_ms: lease,
            kill_on_owner_exit: self.ends_with_owner(),
            kill_on_agent_loss: self.ends_with_agent(),
            ..PoolPermission::default()
        }
    }
}

/// Lets all of them live; coupled ones with this process.
pub(super) fn grant(process: Option<ProcessIdentity>) -> Grant {
    let mut grant = grant_without_coupled();
    grant
        .owners
        .push(permission(Pool::Coupled.owner(), process));
    grant
}

/// Says no more of the coupled ones, whose lease goes on from where it was.
pub(super) fn grant_without_coupled() -> Grant {
    Grant {
        ttl: Duration::from_secs(120),
        beat: Duration::from_millis(500),
        owners: vec![permission(Pool::Free.owner(), None)],
    }
}

fn permission(owner: &str, process: Option<ProcessIdentity>) -> OwnerPermission {
    let pools = Pool::ALL.iter().filter(|pool| pool.owner() == owner);
    OwnerPermission {
        owner: owner.to_owned(),
        epoch: 1,
        process,
        pools: pools.map(|pool| pool.permission()).collect(),
    }
}
