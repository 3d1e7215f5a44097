//! Replacing the workers of a pool one after the other, without taking the pool away.

use tether_types::Slot;

/// How much a replacement may cost at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Places beyond the pool's size while it goes on.
    surge: u32,
    /// Workers that may be missing from its size while it goes on.
    unavailable: u32,
}

/// A budget with which nothing could ever be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "`surge` and `max_unavailable` are both 0, so that no worker could be replaced: allow one more worker, or one less, while a change is rolled out"
)]
pub struct NoProgress;

impl Budget {
    /// A budget of so many places more, and so many workers less.
    ///
    /// # Errors
    /// When it allows neither.
    pub const fn new(surge: u32, unavailable: u32) -> Result<Self, NoProgress> {
        if surge == 0 && unavailable == 0 {
            return Err(NoProgress);
        }
        Ok(Self { surge, unavailable })
    }

    /// Places beyond the pool's size while a replacement goes on.
    pub const fn surge(&self) -> u32 {
        self.surge
    }
}

impl Default for Budget {
    /// One worker more at a time, and none less.
    fn default() -> Self {
        Self {
            surge: 1,
            unavailable: 0,
        }
    }
}

/// How things stand at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its worker serves, or could.
    Ready,
    /// Its worker is on its way there: waiting for a node, starting, between two starts.
    Coming,
    /// Its worker is on its way out; another one follows in its place, or none.
    Going,
}

/// A place of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub slot: Slot,
    /// How things stand there.
    pub standing: Standing,
    /// Whether its worker is to be replaced: it runs an earlier template, or its node is to be emptied.
    pub stale: bool,
    /// Whether its worker does what must not be cut short: it stays, stale or not, until that is over.
    pub kept: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Have another place beyond the pool's size: its worker will be a fresh one.
    Add,
    /// Drain and end the worker of this place; a fresh one follows there.
    Replace(Slot),
    /// Drain and end the worker of this place, which is one beyond the size, and the place with it.
    Remove(Slot),
}

/// The next step towards a pool of `size` fresh workers; none while one has to be waited for, or when it is
/// done. No step ends a worker that is kept.
///
/// Places from `size` on are those of the surge. Stale workers that serve nobody go first, as they cost
/// nothing; of those that are ready the lowest slot goes first.
pub fn next_step(size: u32, budget: Budget, places: &[Place]) -> Option<Step> {
    let stale = || places.iter().filter(|place| place.stale && !place.kept);
    let idle = stale().find(|place| place.standing == Standing::Coming);
    if let Some(idle) = idle {
        return Some(end(idle.slot, size));
    }
    let Some(oldest) = stale()
        .filter(|place| place.standing == Standing::Ready)
        .min_by_key(|place| place.slot)
    else {
        return give_back(size, places);
    };
    let count = |standing| places.iter().filter(|p| p.standing == standing).count();
    let ready = u32::try_from(count(Standing::Ready)).unwrap_or(u32::MAX);
    if ready > size.saturating_sub(budget.unavailable) {
        return Some(end(oldest.slot, size));
    }
    let most = usize::try_from(size.saturating_add(budget.surge)).unwrap_or(usize::MAX);
    (places.len() < most).then_some(Step::Add)
}

/// Nothing is stale: the places beyond the size go, as soon as those within it can do without, save those whose
/// workers are kept.
fn give_back(size: u32, places: &[Place]) -> Option<Step> {
    let within = places.iter().filter(|place| place.slot < size);
    let ready = within.filter(|place| place.standing == Standing::Ready);
    let all = ready.count() >= usize::try_from(size).unwrap_or(usize::MAX);
    let stays =
        |place: &&Place| place.slot >= size && place.standing != Standing::Going && !place.kept;
    let beyond = places.iter().filter(stays).max_by_key(|place| place.slot);
    beyond.filter(|_| all).map(|place| Step::Remove(place.slot))
}

fn end(slot: Slot, size: u32) -> Step {
    if slot < size {
        Step::Replace(slot)
    } else {
        Step::Remove(slot)
    }
}
