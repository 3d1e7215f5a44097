//! The lease pages: where this agent stores, and shims read, how long each worker may go on.
//!
//! Each zygote has one page for all of its shims, and gives it to whoever speaks to one of them. So an agent has
//! that of its own zygote, and those of the zygotes of earlier agents for as long as shims of theirs live. On each
//! page a pool has one slot for all of its workers there, and a worker that has a job one of its own: it lives on when
//! the others of its pool may not, and is to see its own end. Its shim is told of that in messages.
//!
//! # Invariants
//!
//! - **A1** Nothing is stored before the arbiter has spoken: a new agent neither gives nor takes.
//! - **A2** What has ended is not revived. Once a time on the page is over, whoever had it has lost its seat: the
//!   next term is stored for others, and a shim that comes late to its own end finds that end.
//! - **A3** A slot is nobody's again once the last of its workers is dead, a page once nobody has a seat on it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tether_clock::Tick;
use tether_shim_protocol as protocol;
use tether_sys::{Page, SLOTS, Until};
use tether_types::{DeathCause, PoolName, WorkerId};

use crate::permission::Permissions;

/// Slots from here on are for workers with a job too; those before it are kept for pools, of which each needs but one.
const OWN_FROM: u32 = SLOTS / 2;

/// All pages that anybody reads.
#[derive(Debug, Default)]
pub(crate) struct Pages(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    /// What was stored last; nothing where nothing was.
    granted: Permissions,
    sheets: BTreeMap<u64, Sheet>,
    /// The page that was met last: the next shim comes with it, so it is kept.
    last: u64,
}

/// One page.
#[derive(Debug)]
struct Sheet {
    page: Page,
    /// By their generation.
    slots: BTreeMap<u64, Slot>,
}

/// What is known of a slot.
#[derive(Debug)]
struct Slot {
    number: u32,
    whose: Whose,
    workers: usize,
    /// Whose end it was, where its time is over.
    over: Option<DeathCause>,
}

/// Whose a slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    /// All workers of a pool read it.
    Pool(PoolName),
    /// One worker does.
    Worker(WorkerId),
}

/// Where one worker reads.
#[derive(Debug)]
pub(crate) struct Seat {
    pages: Arc<Pages>,
    page: u64,
    place: protocol::Seat,
}

/// A page as a shim shows it: its number, and the page itself where the system had a descriptor to spare.
pub(crate) type Shown = (u64, Option<OwnedFd>);

impl Pages {
    /// A seat for another worker of this pool; none where nothing was granted to it, where its page cannot be had
    /// or all slots of that are taken: then it is told of its permission in messages.
    pub(crate) fn take(self: &Arc<Self>, page: Shown, pool: &PoolName, now: Tick) -> Option<Seat> {
        let mut all = self.lock();
        let granted = all.granted.pool(pool)?;
        let (until, epoch) = (granted.until(all.granted.node), granted.epoch.0);
        let (id, sheet) = all.sheet(page, now)?;
        let generation = sheet.seat(pool, until, epoch)?;
        self.seat(id, sheet, generation)
    }

    /// The seat of a worker that was found: one of its own, else the one at which its shim reads, if it does.
    pub(crate) fn find(
        self: &Arc<Self>,
        page: Shown,
        shims: Option<protocol::Seat>,
        worker: &WorkerId,
        now: Tick,
    ) -> Option<Seat> {
        let mut all = self.lock();
        let (id, sheet) = all.sheet(page, now)?;
        let (place, whose) = match sheet.page.find(own_generation(worker)) {
            Some(own) => (own, Whose::Worker(worker.clone())),
            None => (on_page(shims?), Whose::Pool(worker.pool.clone())),
        };
        let is_open = sheet.page.read(place).is_some();
        sheet.slots.entry(place.generation).or_insert_with(|| Slot {
            number: place.slot,
            whose,
            workers: 0,
            // An earlier agent has seen its end.
            over: (!is_open).then_some(DeathCause::LeaseExpired),
        });
        let seat = self.seat(id, sheet, place.generation);
        all.store_on(id, now);
        seat
    }

    /// Stores what is granted as of `now`; tells whether an end was moved nearer, which nobody sees by itself.
    pub(crate) fn store(&self, granted: &Permissions, now: Tick) -> bool {
        let mut all = self.lock();
        all.granted = granted.clone();
        let sheets = all.sheets.values_mut();
        sheets.fold(false, |nearer, sheet| sheet.store(granted, now) | nearer)
    }

    fn seat(self: &Arc<Self>, page: u64, sheet: &mut Sheet, generation: u64) -> Option<Seat> {
        let slot = sheet.slots.get_mut(&generation)?;
        slot.workers += 1;
        Some(Seat {
            pages: Arc::clone(self),
            page,
            place: protocol::Seat {
                slot: slot.number,
                generation,
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        // Nothing in here is left half done that the next store would not do again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    /// The page that was shown, known from now on.
    fn sheet(&mut self, (id, page): Shown, now: Tick) -> Option<(u64, &mut Sheet)> {
        if let Entry::Vacant(place) = self.sheets.entry(id) {
            let page = Page::of(page?).ok().filter(|page| page.id() == id)?;
            let slots = BTreeMap::new();
            place.insert(Sheet { page, slots });
            self.store_on(id, now);
            let before = std::mem::replace(&mut self.last, id);
            self.let_go(before);
        }
        Some((id, self.sheets.get_mut(&id)?))
    }

    /// What was granted already, where anything was. Each worker that was found is told to look once.
    fn store_on(&mut self, id: u64, now: Tick) {
        if let Some(sheet) = self.sheets.get_mut(&id) {
            sheet.store(&self.granted, now);
        }
    }

    fn let_go(&mut self, id: u64) {
        let is_empty = |sheet: &Sheet| sheet.slots.is_empty();
        if id != self.last && self.sheets.get(&id).is_some_and(is_empty) {
            self.sheets.remove(&id);
        }
    }

    fn leave(&mut self, page: u64, generation: u64) {
        let Some(sheet) = self.sheets.get_mut(&page) else {
            return;
        };
        if let Some(slot) = sheet.slots.get_mut(&generation) {
            slot.workers -= 1;
            if slot.workers == 0 {
                if slot.over.is_none() {
                    sheet.page.close(slot.number);
                }
                sheet.slots.remove(&generation);
            }
        }
        self.let_go(page);
    }
}

impl Sheet {
    /// The generation of this pool's slot, opened where there is none.
    fn seat(&mut self, pool: &PoolName, until: Until, epoch: u64) -> Option<u64> {
        let whose = Whose::Pool(pool.clone());
        let is_its = |(_, slot): &(&u64, &Slot)| slot.whose == whose && slot.over.is_none();
        if let Some((&generation, _)) = self.slots.iter().find(is_its) {
            return Some(generation);
        }
        let place = tether_sys::Seat {
            slot: self.free(0)?,
            generation: self.page.next_generation(),
        };
        self.page.open(place, until, epoch);
        Some(self.remember(place, whose))
    }

    /// The generation of a slot that is this worker's alone, opened where there is none.
    fn own_seat(&mut self, worker: &WorkerId, until: Until, epoch: u64) -> Option<u64> {
        let generation = own_generation(worker);
        // Where there is one an earlier agent went before it told anybody.
        let place = match self.page.find(generation) {
            Some(open) => open,
            None => {
                let slot = self.free(OWN_FROM)?;
                let place = tether_sys::Seat { slot, generation };
                self.page.open_own(place, until, epoch);
                place
            }
        };
        Some(self.remember(place, Whose::Worker(worker.clone())))
    }

    /// A slot from this one on that is nobody's, also of none of whom this agent knows nothing yet.
    fn free(&self, from: u32) -> Option<u32> {
        (from..SLOTS).find(|&number| !self.page.is_open(number))
    }

    fn remember(&mut self, place: tether_sys::Seat, whose: Whose) -> u64 {
        let slot = Slot {
            number: place.slot,
            whose,
            workers: 0,
            over: None,
        };
        self.slots.entry(place.generation).or_insert(slot);
        place.generation
    }

    fn store(&mut self, granted: &Permissions, now: Tick) -> bool {
        let Some(node) = granted.node_until() else {
            return false;
        };
        let before = self.page.node();
        if is_over(before.alive, node.alive, now) {
            // Closed first: none of them is to see the time of the next term.
            self.end_all();
        }
        let mut nearer = node.alive < before.alive;
        self.page.set_node(node);
        for (&generation, slot) in &mut self.slots {
            let place = tether_sys::Seat {
                slot: slot.number,
                generation,
            };
            let said = slot.whose.granted(granted);
            let Some(((until, epoch), before)) = said.zip(self.page.read(place)) else {
                continue;
            };
            let before = before.owner;
            if let Some(cause) = over(before, until, now) {
                self.page.close(slot.number);
                slot.over = Some(cause);
            } else {
                let is_nearer = until.alive < before.alive || until.enabled < before.enabled;
                // The shim of one that sits alone does not look here.
                nearer |= is_nearer && !place.is_own();
                self.page.set(slot.number, until, epoch);
            }
        }
        nearer
    }

    /// Takes everybody's seat, also of whom this agent knows nothing yet.
    fn end_all(&mut self) {
        self.page.close_all();
        for slot in self.slots.values_mut() {
            slot.over.get_or_insert(DeathCause::LeaseExpired);
        }
    }
}

impl Whose {
    /// What of this is theirs, and in which session of their owner.
    fn granted(&self, granted: &Permissions) -> Option<(Until, u64)> {
        match self {
            Self::Pool(pool) => {
                let pool = granted.pool(pool)?;
                Some((pool.until(granted.node), pool.epoch.0))
            }
            Self::Worker(worker) => {
                let epoch = granted.pool(&worker.pool)?.epoch.0;
                Some((granted.until(worker)?, epoch))
            }
        }
    }
}

impl Seat {
    /// Moves its worker to a slot of its own: it has a job, and lives on when the others of its pool may not. Stays
    /// where it is when the worker's time is over, or all slots are taken: then it sees the end of its pool.
    pub(crate) fn move_apart(&mut self, worker: &WorkerId) {
        if self.is_own() {
            return;
        }
        let mut all = self.pages.lock();
        let Some((until, epoch)) = Whose::Worker(worker.clone()).granted(&all.granted) else {
            return;
        };
        let Some(sheet) = all.sheets.get_mut(&self.page) else {
            return;
        };
        let before = self.place.generation;
        let slot = sheet.slots.get(&before);
        if slot.is_none_or(|slot| slot.over.is_some()) {
            return;
        }
        let Some(generation) = sheet.own_seat(worker, until, epoch) else {
            return;
        };
        if let Some(slot) = sheet.slots.get_mut(&generation) {
            slot.workers += 1;
            self.place = protocol::Seat {
                slot: slot.number,
                generation,
            };
        }
        all.leave(self.page, before);
    }

    /// Whether it is this worker's alone: its shim then reads no page.
    pub(crate) fn is_own(&self) -> bool {
        on_page(self.place).is_own()
    }

    /// What its shim is told of it.
    pub(crate) fn place(&self) -> protocol::Seat {
        self.place
    }

    /// What of its permission is over.
    pub(crate) fn over(&self, now: Tick) -> Option<DeathCause> {
        let all = self.pages.lock();
        let sheet = all.sheets.get(&self.page)?;
        let slot = sheet.slots.get(&self.place.generation)?;
        let Some(said) = sheet.page.read(on_page(self.place)) else {
            return slot.over;
        };
        if now.as_nanos() >= said.node.alive.min(said.owner.alive) {
            Some(DeathCause::LeaseExpired)
        } else if now.as_nanos() >= said.owner.enabled {
            Some(DeathCause::OwnerGone)
        } else {
            None
        }
    }

    /// Its worker is dead. One that is let go of without a word lives on, and the next agent finds it.
    pub(crate) fn leave(self) {
        self.pages.lock().leave(self.page, self.place.generation);
    }
}

/// Whether what was granted before has ended, and the next is another term.
fn is_over(before: u64, next: u64, now: Tick) -> bool {
    before <= now.as_nanos() && next > before
}

/// The same for a slot: whose end it was.
fn over(before: Until, next: Until, now: Tick) -> Option<DeathCause> {
    if is_over(before.alive, next.alive, now) {
        Some(DeathCause::LeaseExpired)
    } else if is_over(before.enabled, next.enabled, now) {
        Some(DeathCause::OwnerGone)
    } else {
        None
    }
}

fn own_generation(worker: &WorkerId) -> u64 {
    tether_sys::Seat::own_generation(worker.incarnation.0)
}

fn on_page(place: protocol::Seat) -> tether_sys::Seat {
    tether_sys::Seat {
        slot: place.slot,
        generation: place.generation,
    }
}

#[cfg(test)]
mod tests;
