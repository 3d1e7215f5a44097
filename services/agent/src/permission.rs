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
use tether_sys::Until;
use tether_types::{Epoch, Incarnation, OwnerName, PoolName, ProcessIdentity, WorkerId};
use tokio::sync::watch;

/// What the workers of one pool depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPermission {
    /// Whose they are.
    pub owner: OwnerName,
    /// In which of its sessions.
    pub epoch: Epoch,
    /// End of what the policy grants after the owner's last beat.
    pub deadline: Tick,
    /// The owner's process, where this node can observe it.
    pub process: Option<Identity>,
    /// What the end of that process means.
    pub on_owner_exit: OnOwnerExit,
    /// What the loss of this agent means.
    pub on_link_loss: OnLinkLoss,
    /// How long its workers live on disabled.
    pub grace: Duration,
    /// The same for those that have a job.
    pub job_grace: Duration,
    /// Who has a job.
    pub jobs: BTreeSet<Incarnation>,
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
pub struct Permissions {
    /// End of the node's lease: until then its workers are enabled.
    pub node: Tick,
    /// What depends on owners.
    pub pools: BTreeMap<PoolName, PoolPermission>,
    /// How often an end on a lease page was moved nearer, of which shims are to be told.
    pub nearer: u64,
}

/// What one worker's task hears of what was granted.
#[derive(Debug, Clone)]
pub struct Grants {
    /// Told when there is more to it than a later end, which the lease page tells.
    pub news: watch::Receiver<Permissions>,
    /// For whoever reads no page: in steps, and told with each.
    pub steps: watch::Receiver<Permissions>,
}

impl Grants {
    /// Of these the one for a shim that has a seat on a lease page, or has none.
    pub(crate) fn of(&mut self, has_seat: bool) -> &mut watch::Receiver<Permissions> {
        if has_seat {
            &mut self.news
        } else {
            &mut self.steps
        }
    }
}

/// How far an end moves at least, if it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) later: Duration,
    pub(crate) nearer: Duration,
}

/// What the arbiter said with one answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) owners: &'a [node::OwnerPermission],
    /// When the beat was sent that it answers.
    pub(crate) sent: Tick,
    /// End of the node's lease as of this answer.
    pub(crate) lease_end: Tick,
}

impl PoolPermission {
    /// **What the lease page says of the workers of this pool**, a policy in one place: until when their owner
    /// has them do anything, and until when they may be there as far as their node goes, whose lease ends at
    /// `node`. One that has a job may be there longer: its shim is told so in messages, and it has a slot of its own
    /// there ([`Permissions::until`]).
    pub(crate) fn until(&self, node: Tick) -> Until {
        Until {
            enabled: self.deadline.as_nanos(),
            alive: self.alive(node).as_nanos(),
        }
    }

    /// Until when its workers may be there as far as their node goes, whose lease ends at `node`.
    pub(crate) fn alive(&self, node: Tick) -> Tick {
        node + shorter(self.grace)
    }

    /// What of it is not told by the time on the page.
    fn ties(
        &self,
    ) -> (
        Option<Identity>,
        OnOwnerExit,
        OnLinkLoss,
        &BTreeSet<Incarnation>,
    ) {
        let Self { process, jobs, .. } = self;
        (*process, self.on_owner_exit, self.on_link_loss, jobs)
    }
}

/// A time to live that any lease may have.
const USUAL: Duration = Duration::from_secs(20);

/// Where this agent sees processes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewpoint {
    /// Which life of which machine.
    pub boot_id: String,
    /// Its inode.
    pub pid_namespace: u64,
}

impl Viewpoint {
    /// Whether `process` is one this agent can observe: same machine, same PID namespace.
    pub(crate) fn sees(&self, process: &ProcessIdentity) -> bool {
        self.boot_id == process.boot_id && self.pid_namespace == process.pid_namespace
    }
}

impl Permissions {
    /// **What the lease page says of all workers of the node**; nothing while there is no lease: who was granted
    /// nothing has nothing to give, and must not take.
    pub(crate) fn node_until(&self) -> Option<Until> {
        let graces = self.pools.values().map(PoolPermission::longest_grace);
        let longest = graces.max().unwrap_or_default();
        (self.node != Tick::ZERO).then(|| Until {
            enabled: self.node.as_nanos(),
            alive: (self.node + shorter(longest)).as_nanos(),
        })
    }

    /// Whether this worker has a job, for which it may live on for longer than the page says.
    pub(crate) fn has_job(&self, worker: &WorkerId) -> bool {
        let pool = self.pool(&worker.pool);
        pool.is_some_and(|pool| pool.jobs.contains(&worker.incarnation))
    }

    /// What the lease page says of a worker that has a slot of its own there; nothing where nothing was said of it.
    pub(crate) fn until(&self, worker: &WorkerId) -> Option<Until> {
        let pool = self.pool(&worker.pool)?;
        Some(Until {
            enabled: pool.deadline.as_nanos(),
            alive: self.alive_until(worker).as_nanos(),
        })
    }

    /// Takes over all of an answer, in these steps, and lets go of pools that nobody `keeps` or spoke of.
    pub(crate) fn hear(
        &mut self,
        told: &Told<'_>,
        view: &Viewpoint,
        steps: Steps,
        keeps: impl Fn(&PoolName) -> bool,
    ) {
        self.renew(told.lease_end, steps);
        for owner in told.owners {
            self.update(owner, told.sent, view, steps);
        }
        let spoken = told.owners.iter().flat_map(|owner| &owner.pools);
        let is_spoken_of = |pool: &PoolName| spoken.clone().any(|told| told.pool == pool.as_str());
        self.pools
            .retain(|pool, _| keeps(pool) || is_spoken_of(pool));
    }

    /// Whether there is more to say to a shim that reads the lease page than there was `before`.
    pub(crate) fn is_news_since(&self, before: &Self) -> bool {
        let is_as_before = |(name, pool): (&PoolName, &PoolPermission)| {
            let before = before.pools.get(name);
            before.is_some_and(|before| before.ties() == pool.ties())
        };
        self.nearer != before.nearer
            || self.pools.len() != before.pools.len()
            || !self.pools.iter().all(is_as_before)
    }

    /// Takes over what the arbiter said of an owner, counted from `sent`: the beat that the arbiter
    /// had last received when it said so (counting from receipt would invent time).
    ///
    /// An end that moved by less than a step is left where it was: what was granted then is granted still,
    /// and each worker would have to be told.
    fn update(&mut self, told: &node::OwnerPermission, sent: Tick, view: &Viewpoint, steps: Steps) {
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
                Some(before) => moved(before.deadline, deadline, steps),
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
    fn renew(&mut self, lease_end: Tick, steps: Steps) {
        self.node = moved(self.node, lease_end, steps);
    }

    /// Whether workers may take calls and be started at `now`.
    pub fn enabled(&self, now: Tick) -> bool {
        now < self.node
    }

    /// Until when a worker may live as far as its node goes: longer than it is enabled by what its pool
    /// allows, or its job. [`Tick::ZERO`] where the node never had a lease or its pool was never spoken of.
    pub fn alive_until(&self, worker: &WorkerId) -> Tick {
        let Some(pool) = self.pool(&worker.pool).filter(|_| self.node > Tick::ZERO) else {
            return Tick::ZERO;
        };
        let beyond = match self.has_job(worker) {
            true => pool.job_grace.max(pool.grace),
            false => pool.grace,
        };
        self.node + shorter(beyond)
    }

    /// What was said of a pool; none when nothing was said of it yet.
    pub fn pool(&self, pool: &PoolName) -> Option<&PoolPermission> {
        self.pools.get(pool)
    }
}

/// Where an end is from now on that was there `before` and was said to be `now`.
fn moved(before: Tick, now: Tick, steps: Steps) -> Tick {
    let is_step = if now >= before {
        now.since(before) >= steps.later
    } else {
        before.since(now) >= steps.nearer
    };
    if is_step { now } else { before }
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
pub(crate) fn shorter(span: Duration) -> Duration {
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

        let any = Steps {
            later: Duration::ZERO,
            nearer: Duration::ZERO,
        };
        permissions.update(&told(Some(2_000), "here"), sent, &view, any);
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

        permissions.update(&told(None, "elsewhere"), sent, &view, any);
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
        let steps = Steps {
            later: Duration::ZERO,
            nearer: Duration::ZERO,
        };
        permissions.update(&told, Tick::ZERO, &view, steps);
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
    fn whoever_reads_no_page_hears_of_an_end_in_steps_and_of_one_in_a_new_session_at_once() {
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let step = Duration::from_millis(100);
        let steps = Steps {
            later: step,
            nearer: step,
        };
        let pool = PoolName::new("digits").unwrap();
        let first = Tick::ZERO + Duration::from_secs(10);
        let mut permissions = Permissions::default();
        let mut after = |millis, remaining_ms, epoch| {
            let sent = first + Duration::from_millis(millis);
            let told = node::OwnerPermission {
                epoch,
                ..told(Some(remaining_ms), "here")
            };
            permissions.update(&told, sent, &view, steps);
            permissions.renew(sent + Duration::from_secs(20), steps);
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

    #[test]
    fn the_page_says_any_later_end_and_no_earlier_one_that_is_only_the_networks_mood() {
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let steps = Steps {
            later: Duration::ZERO,
            nearer: Duration::from_millis(100),
        };
        let pool = PoolName::new("digits").unwrap();
        let first = Tick::ZERO + Duration::from_secs(10);
        let mut permissions = Permissions::default();
        let mut said = |millis, remaining_ms| {
            let owners = [told(Some(remaining_ms), "here")];
            let told = Told {
                owners: &owners,
                sent: first + Duration::from_millis(millis),
                lease_end: Tick::ZERO,
            };
            permissions.hear(&told, &view, steps, |_| true);
            let pool = permissions.pool(&pool);
            pool.map(|pool| pool.until(Tick::ZERO).enabled)
        };
        let ends = |millis| Some((first + Duration::from_millis(millis)).as_nanos());

        assert_eq!(said(0, 2_000), ends(2_000));
        assert_eq!(said(60, 1_941), ends(2_001));
        assert_eq!(said(120, 1_879), ends(2_001));
        assert_eq!(said(180, 1_720), ends(1_900));
        assert_eq!(permissions.node_until(), None, "no lease, and so no end");
    }

    #[test]
    fn only_what_the_page_does_not_tell_is_news_to_whoever_reads_it() {
        let mut before = Permissions::default();
        let view = Viewpoint {
            boot_id: "here".into(),
            pid_namespace: 1,
        };
        let any = Steps {
            later: Duration::ZERO,
            nearer: Duration::ZERO,
        };
        before.update(&told(Some(2_000), "here"), Tick::ZERO, &view, any);
        let mut later = before.clone();
        later.renew(Tick::NEVER, any);
        later.update(&told(Some(9_000), "here"), Tick::ZERO, &view, any);
        assert!(!later.is_news_since(&before));

        let mut elsewhere = before.clone();
        elsewhere.update(&told(Some(2_000), "elsewhere"), Tick::ZERO, &view, any);
        assert!(elsewhere.is_news_since(&before));
        let nearer = Permissions {
            nearer: 1,
            ..before.clone()
        };
        assert!(nearer.is_news_since(&before));
    }
}
