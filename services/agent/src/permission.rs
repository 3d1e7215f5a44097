//! How long each worker may go on, as of the last word from the arbiter.
//!
//! ```text
//!  sent           end of the node's lease               alive until
//!   |--- enabled ---|--- disabled: no calls, no starts ---|  (or the end of what the owner's loss allows)
//! ```
//!
//! Where the arbiter is back in time a worker is enabled again as if nothing had been.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_lease::Terms;
use tether_proto::node;
use tether_shim_protocol::{Identity, NO_DEADLINE, OnLinkLoss, OnOwnerExit};
use tether_types::{Epoch, Incarnation, OwnerName, PoolName, ProcessIdentity, WorkerId};
use tokio::sync::watch;

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
    /// How long its workers live on disabled, and how long those do that have a job.
    pub(crate) grace: Duration,
    pub(crate) job_grace: Duration,
    /// Who has a job.
    pub(crate) jobs: BTreeSet<Incarnation>,
}

impl PoolPermission {
    /// How long any of its workers may live on disabled.
    pub(crate) fn longest_grace(&self) -> Duration {
        match self.jobs.is_empty() {
            true => self.grace,
            false => self.job_grace.max(self.grace),
        }
    }
}

/// What the workers of this node depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Permissions {
    /// End of the node's lease: until then its workers are enabled.
    pub(crate) node: Tick,
    pub(crate) pools: BTreeMap<PoolName, PoolPermission>,
}

/// A time to live that any lease may have.
const USUAL: Duration = Duration::from_secs(20);

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
                grace: Duration::from_millis(pool.partition_grace_ms),
                job_grace: Duration::from_millis(pool.job_grace_ms),
                jobs: pool.jobs.iter().copied().map(Incarnation).collect(),
            };
            self.pools.insert(name, permission);
        }
    }

    /// Takes over the end of the node's lease, under the same rule as [`Self::update`].
    pub(crate) fn renew(&mut self, lease_end: Tick, least: Duration) {
        self.node = moved(self.node, lease_end, least);
    }

    /// Whether workers may take calls and be started at `now`.
    pub(crate) fn enabled(&self, now: Tick) -> bool {
        now < self.node
    }

    /// Until when a worker may live as far as its node goes: longer than it is enabled by what its pool
    /// allows, or its job. [`Tick::ZERO`] where the node never had a lease or its pool was never spoken of.
    pub(crate) fn alive_until(&self, worker: &WorkerId) -> Tick {
        let Some(pool) = self.pool(&worker.pool).filter(|_| self.node > Tick::ZERO) else {
            return Tick::ZERO;
        };
        let beyond = match pool.jobs.contains(&worker.incarnation) {
            true => pool.job_grace.max(pool.grace),
            false => pool.grace,
        };
        self.node + shorter(beyond)
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

/// Tells people when the workers of this node are disabled, and when they are enabled again. Nothing is
/// decided here, so that it may be late.
pub(crate) async fn tell(mut permissions: watch::Receiver<Permissions>) {
    let mut was = false;
    loop {
        let (end, workers) = {
            let permissions = permissions.borrow_and_update();
            (permissions.node, permissions.pools.len())
        };
        let now = BootClock.now();
        let enabled = now < end;
        if enabled != was && end > Tick::ZERO {
            match enabled {
                true => tracing::info!("The node has its lease: its workers take calls"),
                false => tracing::warn!(
                    pools = workers,
                    "The node's lease is over: its workers take no calls, and end when their grace is over as well"
                ),
            }
            was = enabled;
        }
        let over = tokio::time::sleep(end.since(now));
        tokio::select! {
            () = over, if enabled => {}
            changed = permissions.changed() => if changed.is_err() { return },
        }
    }
}

/// What of a span is left to a holder, whose clock may be slow.
fn shorter(span: Duration) -> Duration {
    // The margin for clocks is the same for every lease.
    Terms::usual(USUAL).map_or(Duration::ZERO, |terms| terms.holder_beyond(span))
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

    fn held(node: Tick, grace_ms: u64, jobs: &[u64]) -> Permissions {
        let mut told = told(None, "here");
        told.pools[0].partition_grace_ms = grace_ms;
        told.pools[0].job_grace_ms = 3_600_000;
        told.pools[0].jobs = jobs.to_vec();
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let mut permissions = Permissions {
            node,
            ..Permissions::default()
        };
        permissions.update(&told, Tick::ZERO, &view, Duration::ZERO);
        permissions
    }

    #[test]
    fn a_worker_outlives_the_lease_of_its_node_by_its_grace_or_its_job_and_slow_clocks_count() {
        let lease = Tick::ZERO + Duration::from_secs(100);
        let permissions = held(lease, 40_000, &[7]);
        let alive = |worker: &str| permissions.alive_until(&worker.parse().unwrap());

        assert!(permissions.enabled(lease.saturating_sub(Duration::from_nanos(1))));
        assert!(!permissions.enabled(lease));
        // Half a per cent less than 40 s, and than an hour.
        assert_eq!(alive("digits/0.5"), lease + Duration::from_millis(39_800));
        assert_eq!(
            alive("digits/1.7"),
            lease + Duration::from_millis(3_582_000)
        );
        assert_eq!(alive("other/0.5"), Tick::ZERO);
    }

    #[test]
    fn no_grace_ends_workers_with_the_lease_and_without_a_lease_there_is_none() {
        let lease = Tick::ZERO + Duration::from_secs(100);
        let worker: WorkerId = "digits/0.5".parse().unwrap();

        assert_eq!(held(lease, 0, &[]).alive_until(&worker), lease);
        assert_eq!(
            held(Tick::ZERO, 40_000, &[]).alive_until(&worker),
            Tick::ZERO
        );
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
