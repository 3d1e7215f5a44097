//! How long each worker may go on, as of the last word from the arbiter.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_proto::node;
use tether_shim_protocol::{Identity, NO_DEADLINE, OnLinkLoss, OnOwnerExit};
use tether_types::{Epoch, OwnerName, PoolName, ProcessIdentity};

/// What the workers of one pool depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolPermission {
    pub(crate) owner: OwnerName,
    pub(crate) epoch: Epoch,
    /// End of what the policy grants after the owner's last beat.
    pub(crate) deadline: Tick,
    /// The owner's process, where this node can observe it.
    pub(crate) process: Option<Identity>,
    /// What the end of that process means.
    pub(crate) on_owner_exit: OnOwnerExit,
    /// What the loss of this agent means.
    pub(crate) on_link_loss: OnLinkLoss,
}

/// What the workers of this node depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Permissions {
    /// End of the node's lease.
    pub(crate) node: Tick,
    pub(crate) pools: BTreeMap<PoolName, PoolPermission>,
}

/// Where this agent sees processes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Viewpoint {
    pub(crate) boot_id: String,
    pub(crate) pid_namespace: u64,
}

impl Viewpoint {
    /// Whether `process` is one this agent can observe: same machine, same PID namespace.
    pub(crate) fn sees(&self, process: &ProcessIdentity) -> bool {
        self.boot_id == process.boot_id && self.pid_namespace == process.pid_namespace
    }
}

impl Permissions {
    /// Takes over what the arbiter said of an owner, counted from `sent`: the beat that the arbiter
    /// had last received when it said so (counting from receipt would invent time).
    ///
    /// An end that moved by less than `least` is left where it was: what was granted then is granted still,
    /// and each worker would have to be told.
    pub(crate) fn update(
        &mut self,
        told: &node::OwnerPermission,
        sent: Tick,
        view: &Viewpoint,
        least: Duration,
    ) {
        let Ok(owner) = OwnerName::new(&told.owner) else {
            tracing::error!(owner = %told.owner, "Arbiter named an owner that is none");
            return;
        };
        let process = told
            .process
            .as_ref()
            .map(ProcessIdentity::from)
            .filter(|process| view.sees(process))
            .map(|process| Identity {
                pid: process.pid,
                start_ticks: process.start_ticks,
            });
        for pool in &told.pools {
            let Ok(name) = PoolName::new(&pool.pool) else {
                continue;
            };
            let deadline = match pool.remaining_ms {
                Some(ms) => sent + Duration::from_millis(ms),
                None => Tick::from_nanos(NO_DEADLINE),
            };
            let before = self.pools.get(&name);
            let deadline = match before.filter(|before| before.epoch == Epoch(told.epoch)) {
                Some(before) => moved(before.deadline, deadline, least),
                None => deadline,
            };
            let permission = PoolPermission {
                owner: owner.clone(),
                epoch: Epoch(told.epoch),
                deadline,
                process,
                on_owner_exit: on_owner_exit(pool.kill_on_owner_exit),
                on_link_loss: on_link_loss(pool.kill_on_agent_loss),
            };
            self.pools.insert(name, permission);
        }
    }

    /// Takes over the end of the node's lease, under the same rule as [`Self::update`].
    pub(crate) fn renew(&mut self, lease_end: Tick, least: Duration) {
        self.node = moved(self.node, lease_end, least);
    }

    /// What was said of a pool; none when nothing was said of it yet.
    pub(crate) fn pool(&self, pool: &PoolName) -> Option<&PoolPermission> {
        self.pools.get(pool)
    }
}

/// Where an end is from now on that was there `before` and was said to be `now`.
fn moved(before: Tick, now: Tick, least: Duration) -> Tick {
    if now.since(before) < least && before.since(now) < least {
        before
    } else {
        now
    }
}

/// What the end of the owner's process means for a worker.
pub(crate) fn on_owner_exit(kill: bool) -> OnOwnerExit {
    if kill {
        OnOwnerExit::Kill
    } else {
        OnOwnerExit::Ignore
    }
}

/// What the loss of the agent means for a worker.
pub(crate) fn on_link_loss(kill: bool) -> OnLinkLoss {
    if kill {
        OnLinkLoss::Kill
    } else {
        OnLinkLoss::Hold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(permissions: &Permissions, pool: &PoolName) -> Option<Tick> {
        permissions.pool(pool).map(|pool| pool.deadline)
    }

    fn told(remaining_ms: Option<u64>, boot_id: &str) -> node::OwnerPermission {
        node::OwnerPermission {
            owner: "beam@a".into(),
            epoch: 3,
            process: Some(tether_proto::common::ProcessIdentity {
                pid: 7,
                start_ticks: 9,
                boot_id: boot_id.into(),
                pid_namespace: 1,
            }),
            pools: vec![node::PoolPermission {
                pool: "digits".into(),
                remaining_ms,
                ..node::PoolPermission::default()
            }],
        }
    }

    #[test]
    fn time_is_counted_from_the_beat_and_a_process_of_elsewhere_is_not_watched() {
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let pool = PoolName::new("digits").unwrap();
        let sent = Tick::ZERO + Duration::from_secs(100);
        let mut permissions = Permissions::default();

        permissions.update(&told(Some(2_000), "here"), sent, &view, Duration::ZERO);
        assert_eq!(
            deadline(&permissions, &pool),
            Some(sent + Duration::from_secs(2))
        );
        assert_eq!(
            permissions.pool(&pool).and_then(|pool| pool.process),
            Some(Identity {
                pid: 7,
                start_ticks: 9
            })
        );

        permissions.update(&told(None, "elsewhere"), sent, &view, Duration::ZERO);
        assert_eq!(deadline(&permissions, &pool), Some(Tick::NEVER));
        assert_eq!(permissions.pool(&pool).and_then(|pool| pool.process), None);
    }

    #[test]
    fn a_pool_nobody_spoke_of_has_no_permission() {
        let pool = PoolName::new("other").unwrap();
        assert_eq!(deadline(&Permissions::default(), &pool), None);
    }

    #[test]
    fn workers_hear_of_a_new_end_in_steps_and_of_an_earlier_one_or_a_new_session_at_once() {
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let step = Duration::from_millis(100);
        let pool = PoolName::new("digits").unwrap();
        let first = Tick::ZERO + Duration::from_secs(10);
        let mut permissions = Permissions::default();
        let mut after = |millis, remaining_ms, epoch| {
            let sent = first + Duration::from_millis(millis);
            let told = node::OwnerPermission {
                epoch,
                ..told(Some(remaining_ms), "here")
            };
            permissions.update(&told, sent, &view, step);
            permissions.renew(sent + Duration::from_secs(20), step);
            let pool = deadline(&permissions, &pool).unwrap();
            (pool.since(first), permissions.node.since(first))
        };
        let ends = |owner, node| (Duration::from_millis(owner), Duration::from_millis(node));

        assert_eq!(after(0, 2_000, 3), ends(2_000, 20_000));
        assert_eq!(after(60, 2_000, 3), ends(2_000, 20_000));
        assert_eq!(after(100, 2_000, 3), ends(2_100, 20_100));
        assert_eq!(after(110, 1_000, 3), ends(1_110, 20_100));
        assert_eq!(after(120, 1_000, 4), ends(1_120, 20_100));
    }
}
