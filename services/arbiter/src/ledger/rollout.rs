//! Workers that are replaced although they run: their template has changed, or their node is to be emptied.
//!
//! The planner names the next step from a picture of the pool, and each step is one that is ordered anyway: a place
//! more, a worker that drains and ends as one that is recycled does, a place less. What is written is up to which
//! incarnation workers are of an earlier template, and which places there are beyond the size. All else follows
//! from what lives where, so that another arbiter goes on where this one stood.

use std::collections::BTreeMap;

use tether_clock::Tick;
use tether_placement::{NoNode, Place as Seen, Standing, Step, next_step};
use tether_proto::worker::EventKind;
use tether_supervise::{Phase, RestartPolicy};
use tether_types::{Incarnation, NodeName, PoolName, Slot, WorkerId};

use super::{
    Ledger, Pool,
    jobs::Busy,
    slots::{Place, Shown},
};

/// So many reasons why a node is not empty are told.
const REASONS: usize = 8;

/// How far a pool is with replacing its workers.
#[derive(Debug, Default)]
pub(super) struct Rollout {
    /// Incarnations up to this one are of an earlier template.
    pub(super) fresh_after: Incarnation,
    /// Places beyond the size, and whether the worker in each drains, to go and leave none.
    extra: BTreeMap<Slot, bool>,
    /// Whether any worker may have to be replaced.
    goes_on: bool,
    /// How many have to be, and what stands in the way.
    pub(super) stale: u32,
    pub(super) waits_for: String,
}

impl Rollout {
    /// As an earlier arbiter wrote it down.
    pub(super) fn restored(fresh_after: Incarnation, extra: &[Slot]) -> Self {
        Self {
            fresh_after,
            extra: extra.iter().map(|&slot| (slot, false)).collect(),
            goes_on: true,
            ..Self::default()
        }
    }

    /// Whether the worker in a place beyond the size stands in for others.
    pub(super) fn stands_in(&self, slot: Slot) -> bool {
        self.extra.get(&slot) == Some(&false)
    }

    /// Whether the worker in a place drains, to go and leave none.
    pub(super) fn retires(&self, slot: Slot) -> bool {
        self.extra.get(&slot) == Some(&true)
    }

    /// The places beyond the size.
    pub(super) fn places(&self) -> impl Iterator<Item = Slot> {
        self.extra.keys().copied()
    }

    /// The pool has so many places, or workers that are another kind: a place that stood in may be one of them.
    pub(super) fn on_size(&mut self, size: Slot) {
        self.extra.retain(|&slot, _| slot >= size && size > 0);
        self.goes_on = true;
    }

    /// The pool ends.
    pub(super) fn end(&mut self) {
        *self = Self {
            fresh_after: self.fresh_after,
            ..Self::default()
        };
    }
}

/// Why a worker is to be replaced, and what keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stale {
    /// It runs what the pool asks for, where it may.
    No,
    /// It is replaced when the budget allows.
    Yes,
    /// It does a job, and stays until that is over.
    HasJob,
    /// It runs once, and is not started again.
    RunsOnce,
    /// There is no other node for its successor.
    NoNode,
}

impl Ledger {
    /// Goes on with the replacement of a pool's workers, as far as it may now.
    pub(super) fn roll(&mut self, name: &PoolName, now: Tick) {
        while let Some(step) = self.step_of(name) {
            self.take_step(name, step, now);
        }
    }

    /// Something changed that concerns the workers of a node.
    pub(super) fn roll_on(&mut self, node: &NodeName, now: Tick) {
        let pools = self.nodes.get(node).map(|node| node.workers.pools());
        let pools: Vec<_> = pools.into_iter().flatten().cloned().collect();
        for pool in pools {
            self.may_be_stale(&pool);
            self.roll(&pool, now);
        }
    }

    /// There is room that was not there before, for whatever waited for it.
    pub(super) fn roll_all(&mut self, now: Tick) {
        let rolling = self.pools.iter().filter(|(_, pool)| pool.rollout.goes_on);
        let rolling: Vec<_> = rolling.map(|(name, _)| name.clone()).collect();
        for name in rolling {
            self.roll(&name, now);
        }
    }

    /// A worker of a pool may have to be replaced.
    pub(super) fn may_be_stale(&mut self, name: &PoolName) {
        if let Some(pool) = self.pools.get_mut(name) {
            pool.rollout.goes_on = true;
        }
    }

    /// The next step, once nothing stands in its way. What stands there is noted for whoever asks.
    fn step_of(&mut self, name: &PoolName) -> Option<Step> {
        let pool = self.pools.get(name)?;
        // Before all was heard it is not known what there is.
        if !pool.rollout.goes_on || pool.is_ending() || self.awaits_any_of(name) {
            return None;
        }
        let no_node = self.choose_node(name).err();
        let nowhere = self.nowhere(pool, no_node.as_ref());
        let busy = self.jobs.busy(name);
        let mut seen = Vec::new();
        let (mut stale, mut kept) = (0, Vec::new());
        for slot in (0..pool.size()).chain(pool.rollout.places()) {
            let Some(place) = pool.places.get(slot) else {
                seen.push(Seen {
                    slot,
                    standing: Standing::Coming,
                    stale: false,
                    kept: false,
                });
                continue;
            };
            let has_job = has_job(&busy, slot, place);
            let why = self.staleness(pool, place, has_job, nowhere);
            stale += u32::from(why != Stale::No);
            if !matches!(why, Stale::No | Stale::Yes) {
                kept.push((slot, why));
            } else if has_job && slot >= pool.size() {
                kept.push((slot, Stale::HasJob));
            }
            seen.push(Seen {
                slot,
                standing: standing(pool, slot, place),
                stale: why == Stale::Yes && can_be_told(place),
                kept: has_job,
            });
        }
        let step = match self.missing_dependency(name) {
            Some(_) => None,
            None => next_step(pool.size(), pool.resolved.budget, &seen),
        };
        // A place for which there is no node would only wait.
        let no_room = step == Some(Step::Add) && no_node.is_some();
        let step = step.filter(|_| !no_room);
        let waits_for = match (&no_node, step, kept.first()) {
            (Some(why), None, _) if no_room => format!(
                "{why}: one more worker has to fit in, or `rollout.max_unavailable` to allow one less"
            ),
            (_, None, Some(&(slot, why))) => reason(name, slot, why, no_node.as_ref()),
            _ => String::new(),
        };
        let pool = self.pools.get_mut(name)?;
        let rollout = &mut pool.rollout;
        rollout.goes_on = stale > 0 || !rollout.extra.is_empty();
        (rollout.stale, rollout.waits_for) = (stale, waits_for);
        step
    }

    /// Why a worker that leaves its node would leave nobody: no node takes another one of its pool, and none
    /// stands in for it. One that stands in does so for one worker; where it has the last room there is, it would
    /// otherwise go as one that nobody needs, and come again for as long as there is a node to be emptied.
    fn nowhere<'a>(&self, pool: &Pool, no_node: Option<&'a NoNode>) -> Option<&'a NoNode> {
        let no_node = no_node?;
        let stays = |slot: &Slot| {
            let place = pool.places.get(*slot);
            place.is_some_and(|place| {
                let seated = place.live.as_ref().is_some_and(|live| live.node.is_some());
                pool.rollout.stands_in(*slot) && seated && !self.is_stale(pool, place)
            })
        };
        let missing = |slot: &Slot| {
            let place = pool.places.get(*slot);
            place.is_none_or(|place| standing(pool, *slot, place) != Standing::Ready)
        };
        let stand_in = pool.rollout.places().filter(stays).count();
        let needed = (0..pool.size()).filter(missing).take(stand_in).count();
        (stand_in <= needed).then_some(no_node)
    }

    /// Whether the worker in a place is to be replaced, and what keeps it.
    fn staleness(
        &self,
        pool: &Pool,
        place: &Place,
        has_job: bool,
        nowhere: Option<&NoNode>,
    ) -> Stale {
        if !self.is_stale(pool, place) {
            return Stale::No;
        }
        let node = place.live.as_ref().and_then(|live| live.node.as_ref());
        let drained = node.is_some_and(|node| self.is_drained(node));
        if pool.resolved.plan.restart == RestartPolicy::Never {
            Stale::RunsOnce
        } else if has_job {
            Stale::HasJob
        } else if drained && nowhere.is_some() {
            Stale::NoNode
        } else {
            Stale::Yes
        }
    }

    /// Whether the worker in a place runs an earlier template, or is where none should be. One that waits for a
    /// node gets what is asked for now.
    pub(super) fn is_stale(&self, pool: &Pool, place: &Place) -> bool {
        let live = place.live.as_ref().filter(|live| !live.disabled);
        live.is_some_and(|live| {
            let node = live.node.as_ref();
            let outdated = live.incarnation <= pool.rollout.fresh_after;
            node.is_some_and(|node| outdated || self.is_drained(node))
        })
    }

    fn take_step(&mut self, name: &PoolName, step: Step, now: Tick) {
        match step {
            Step::Add => {
                let Some(pool) = self.pools.get_mut(name) else {
                    return;
                };
                let free = |slot: &Slot| {
                    !pool.places.contains(*slot) && !pool.rollout.extra.contains_key(slot)
                };
                let Some(slot) = (pool.size()..).find(free) else {
                    return;
                };
                pool.rollout.extra.insert(slot, false);
                pool.write(&mut self.effects);
                self.settle_place(name, slot, now);
            }
            Step::Replace(slot) => self.replace(name, slot, now),
            Step::Remove(slot) => {
                let Some(pool) = self.pools.get_mut(name) else {
                    return;
                };
                let serves = pool.places.get(slot).is_some_and(|place| place.is_ready());
                if serves {
                    // It goes when its worker has drained.
                    pool.rollout.extra.insert(slot, true);
                    self.replace(name, slot, now);
                } else {
                    pool.rollout.extra.remove(&slot);
                    pool.write(&mut self.effects);
                    self.settle_place(name, slot, now);
                }
            }
        }
    }

    /// Has the worker in a place drained and ended, or ended at once where it serves nobody yet.
    fn replace(&mut self, name: &PoolName, slot: Slot, now: Tick) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let owner = pool.owner().clone();
        let retires = pool.rollout.retires(slot);
        let fresh_after = pool.rollout.fresh_after;
        let Some(place) = pool.places.get_mut(slot) else {
            return;
        };
        let Some(live) = &place.live else { return };
        let id = WorkerId {
            pool: name.clone(),
            slot,
            incarnation: live.incarnation,
        };
        let node = live.node.clone();
        let early = match place.machine.phase() {
            Phase::Ready { .. } => {
                place.machine.recycle(now);
                None
            }
            _ => place.machine.abandon(),
        };
        let text = if retires {
            "takes no new calls: the workers it stood in for were replaced"
        } else if id.incarnation <= fresh_after {
            "takes no new calls, as the template of its pool has changed: another one takes its place"
        } else {
            "takes no new calls, as its node is to be emptied: another one takes its place"
        };
        self.effects.worker_event(
            EventKind::WorkerEnding,
            &id,
            node.as_ref(),
            &owner,
            text.to_owned(),
            None,
        );
        if let Some(action) = early {
            self.act(name, slot, action, None, now);
        }
        self.publish(name, slot);
        self.schedule(name, slot);
    }

    /// The place of a worker that stood in for others goes with it.
    pub(super) fn drop_retired(&mut self, name: &PoolName, slot: Slot) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let vacant = pool
            .places
            .get(slot)
            .is_none_or(|place| place.live.is_none());
        if vacant && pool.rollout.retires(slot) {
            pool.rollout.extra.remove(&slot);
            pool.write(&mut self.effects);
        }
    }

    /// What keeps workers on a node that is to be emptied.
    pub(super) fn held_up_by(&self, name: &NodeName) -> Vec<String> {
        if !self.is_drained(name) {
            return Vec::new();
        }
        let Some(node) = self.nodes.get(name) else {
            return Vec::new();
        };
        let mut told = Vec::new();
        for (pool, workers) in node.workers.by_pool() {
            let Some(entry) = self.pools.get(pool) else {
                continue;
            };
            let no_node = self.choose_node(pool).err();
            let nowhere = self.nowhere(entry, no_node.as_ref());
            let busy = self.jobs.busy(pool);
            let kept = workers.filter_map(|id| {
                let place = entry.places.get(id.slot)?;
                let has_job = has_job(&busy, id.slot, place);
                let why = self.staleness(entry, place, has_job, nowhere);
                let kept = !matches!(why, Stale::No | Stale::Yes);
                kept.then(|| reason(pool, id.slot, why, no_node.as_ref()))
            });
            told.extend(kept.take(REASONS));
            if let Some(missing) = self.missing_dependency(pool) {
                told.push(format!(
                    "pool `{pool}` waits for pool `{missing}`, which has no ready worker"
                ));
            }
        }
        told.truncate(REASONS);
        told
    }
}

/// Whether the worker in a place does a job, as far as is known: its node may be lost.
fn has_job(busy: &Busy, slot: Slot, place: &Place) -> bool {
    let live = place.live.as_ref();
    live.is_some_and(|live| busy.contains_key(&(slot, live.incarnation)))
}

fn reason(pool: &PoolName, slot: Slot, why: Stale, no_node: Option<&NoNode>) -> String {
    match why {
        Stale::HasJob => format!("worker {pool}/{slot} does a job, and stays until that is over"),
        Stale::RunsOnce => {
            format!(
                "worker {pool}/{slot} runs once (`restart.mode = never`), and stays until its end"
            )
        }
        Stale::NoNode | Stale::Yes | Stale::No => {
            let why = no_node.map(ToString::to_string).unwrap_or_default();
            format!("worker {pool}/{slot} has nowhere else to go: {why}")
        }
    }
}

/// Whether there is a process that can be told to end, and was not, and how it stands is known.
///
/// A worker that an agent or an arbiter of before left serving is found as one that starts, and is heard to be
/// ready a moment later: until then it is no idle one that costs nothing.
fn can_be_told(place: &Place) -> bool {
    match place.machine.phase() {
        Phase::Ready { .. } => place.is_ready(),
        Phase::Starting { .. } => place.shown != Shown::Served,
        _ => false,
    }
}

/// How things stand at a place, as the planner is told.
fn standing(pool: &Pool, slot: Slot, place: &Place) -> Standing {
    let told_to_stop = || {
        place
            .live
            .as_ref()
            .is_some_and(|live| live.stop().is_some())
    };
    match place.machine.phase() {
        _ if pool.rollout.retires(slot) || place.leaving => Standing::Going,
        Phase::Draining { .. } | Phase::Stopping { .. } => Standing::Going,
        Phase::Ready { .. } if place.is_ready() => match told_to_stop() {
            true => Standing::Going,
            false => Standing::Ready,
        },
        // It is as it is going to stay.
        Phase::Stopped if place.live.is_none() => Standing::Ready,
        Phase::Ready { .. }
        | Phase::Stopped
        | Phase::Backoff { .. }
        | Phase::Spawning
        | Phase::Starting { .. }
        | Phase::CrashLoop { .. } => Standing::Coming,
    }
}
