//! Decides which worker gets a call: the set of endpoints as discovery tells it, and the picking.
//!
//! Discovery tells a snapshot and then changes. Every slot of a pool keeps its living incarnation,
//! if it has one, with the calls under way on it and its circuit breaker, and remembers how its
//! last incarnation died, so that a failed call can be explained. All of that ends with the pool.
//!
//! ```text
//!   snapshot, changes --> pool -> slot -> { living: address, draining, in flight, breaker
//!                                         { last death
//!   pick(pool, target) --> Pick { ticket, address } --> on_outcome, release(ticket)
//! ```
//!
//! # Invariants
//!
//! - **E1** A draining, removed or refused (breaker) endpoint is never picked.
//! - **E2** Without affinity, a pick has the fewest calls under way for its weight, less while it starts slowly, of all that could be picked and
//!   have the best standing among these.
//! - **E3** An incarnation that died or was replaced never comes back within its pool's life, where it is an agent that
//!   runs it; of all others what was told last counts.
//! - **E4** Calls under way are counted exactly: every release returns what its pick took, and a
//!   release for an incarnation that is gone touches nobody else's count.
//! - **E5** The pick for an affinity key does not change when other slots come, go or restart.
//! - **E6** Changes lead to the same set as a snapshot of their result. Of a pool that a snapshot does not know yet
//!   what was known before stands, until a change says who serves it.
//! - **E7** A call that was sent counts once for its incarnation, when it is over; the count of one that
//!   lives never goes down within its pool's life, and ends with it.
//! - **E8** Of a worker that serves so many calls at once, no more are under way; where how many is being found, no more
//!   whose answer has not begun.
//! - **E9** Once `next` has nothing more to say, no call waits that a worker could take.
//! - **E10** Of a pool with several workers, calls that fail take no more than a share away at a time, and always one.
//! - **E11** Whoever an order drains or ejects is not picked, whatever discovery tells; an order for an incarnation is one
//!   for no other.
//! - **E12** What `explain` says of a call is what `pick` and `wait` would do with it, and nothing has changed after it.
//! - **E13** What an agent says of an incarnation touches no other one, and none on another node. One that it says is
//!   dead or about to end is not picked, whatever discovery says later.
//! - **E14** A worker that gives no sign of life is picked only where no other one of its pool will take the call.
//! - **E15** One whose permission is over is not picked, unless its agent is away and discovery says it is served.
//! - **E16** A strict call of a key is given to the incarnation that was given the key's last call, or to nobody, for as
//!   long as that is remembered; a hint that is given to another is told that it has moved. A call that was not sent, or
//!   that its worker would not have, was given to nobody; one that two have was given to the one that won.
//! - **E17** While a pool's breaker is open none of its workers is picked. It opens only by calls that were given to
//!   workers with closed breakers and ended while those were there, since last one of those was opened or ended: leaving
//!   single workers alone comes first.
//! - **E18** For E2 a worker has one call more than it has, whose answers took ten times as long to begin as is usual in its
//!   pool, and 20 ms: five more of them than did not. Until one is in time, and each ten seconds once, to see.
//!
//! No clock is read and no random number is drawn here; both come in as arguments.

mod adaptive;
mod affinity;
mod ages;
mod bindings;
mod explain;
mod fate;
mod limiter;
mod orders;
mod pace;
mod peek;
mod pick;
mod pool;
mod pool_breaker;
mod waiting;
mod warmth;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use tether_breaker::{Codes, Outcome, Retries, Terms};
use tether_clock::Tick;
use tether_types::{Address, Death, Incarnation, NodeName, PoolName, Slot, WorkerId};

pub use adaptive::Adaptive;
pub use ages::Ages;
pub use bindings::{Keeping, Session};
pub use explain::{Explained, Verdict, Would};
pub use fate::{Fates, Word};
pub use orders::{Order, QueueLimits, Scope};
pub use peek::{FAR, Peek, Peeked};
pub use pick::{Affinity, Claim, Pick, Refusal, Target, Ticket, Why};
pub use waiting::{Ask, Overload, Party, Priority};

use ages::Heard;
use fate::Feed;
use orders::Orders;
use pool::Pool;
use pool_breaker::OfCall;

/// Where one worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Which worker.
    pub worker: WorkerId,
    /// Where it listens.
    pub address: Address,
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// Whose agent runs it, if any does.
    pub node: Option<NodeName>,
    /// Whether it takes no new calls.
    pub draining: bool,
    /// Whether somebody wants to know how many calls it has served.
    pub counted: bool,
    /// Whether no agent runs it: its incarnation tells one from another, and not which of two is the later one.
    pub unordered: bool,
    /// How many calls it serves at once; `None` where that is not known, and it is given as many as come.
    pub capacity: Option<NonZeroU32>,
    /// Its share of calls beside the others of its pool; 0 counts as 1.
    pub weight: u32,
    /// Whether others are to be preferred to it.
    pub standing: Standing,
}

/// How gladly a worker is given a call: the best of those that have a credit are chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Standing {
    /// It serves, as far as anyone knows, and is in the zone of the gateway, or nobody knows where.
    #[default]
    Near,
    /// It serves, in another zone.
    Far,
    /// It may not serve: it was not asked yet, did not answer, or is named no more by its source.
    Doubtful,
}

/// A worker that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Which worker.
    pub worker: WorkerId,
    /// Why it died; `None` when it left alive.
    pub death: Option<Death>,
}

/// What discovery tells: with `apply_snapshot` the whole truth, with `apply_change` a difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Endpoints that are new or changed; in a snapshot, all of them.
    pub upserts: Vec<Endpoint>,
    /// Endpoints that are gone.
    pub removals: Vec<Removal>,
    /// Pools that exist, with or without endpoints.
    pub pools: Vec<PoolName>,
    /// Pools that exist no more.
    pub removed_pools: Vec<PoolName>,
    /// Pools of which discovery does not know yet who serves them: in a snapshot, what is known of them stands.
    pub unheard: Vec<PoolName>,
    /// Pools of which it knows for the first time: their endpoints are those of this update, and no others.
    pub heard: Vec<PoolName>,
}

/// An endpoint that an update took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Which worker.
    pub worker: WorkerId,
    /// Whether it is known to be dead, so that calls under way on it cannot end well.
    pub died: bool,
}

/// One endpoint as plain data, for status pages and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Where it is and whether it drains.
    pub endpoint: Endpoint,
    /// Calls under way on it.
    pub in_flight: u32,
    /// How many calls it serves at once, by order or as discovery tells.
    pub capacity: Option<NonZeroU32>,
    /// Whether discovery, its agent or an order gives it no new calls.
    pub draining: bool,
    /// Until when an order leaves it alone.
    pub ejected: Option<Tick>,
    /// Whether it gives no sign of life, as its agent says.
    pub doubted: bool,
    /// Whether it answers much later than the others, and gives way to them.
    pub is_slow: bool,
    /// Why no call would be given to it, whatever it asks for.
    pub refusal: Option<Why>,
    /// Its circuit breaker.
    pub breaker: tether_breaker::Snapshot,
    /// How many calls whose answer has not begun it may have, where that is being found.
    pub limit: Option<NonZeroU32>,
}

/// How workers are judged by their calls.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// Of the breaker that each incarnation gets.
    pub terms: Terms,
    /// Codes that speak against a worker.
    pub codes: Codes,
    /// Calls whose answer takes this long to begin are slow; `None` for never.
    pub slow_after: Option<Duration>,
    /// How many of a hundred workers of a pool may be left alone at a time because of their calls; one always may (E10).
    pub most_ejected_percent: u32,
    /// How long a worker's share of calls grows after it has become ready; zero gives it all of it at once.
    pub slow_start: Duration,
    /// Of the breaker that each pool gets beside those of its workers; `None` for none (E17).
    pub pool_terms: Option<Terms>,
    /// Of which keys it is remembered who served them (E16).
    pub keeping: Keeping,
}

impl Default for Outlook {
    fn default() -> Self {
        Self {
            terms: Terms::default(),
            codes: Codes::default(),
            slow_after: None,
            most_ejected_percent: 50,
            slow_start: Duration::ZERO,
            pool_terms: None,
            keeping: Keeping::default(),
        }
    }
}

/// gRPC's code of a call whose deadline passed.
const DEADLINE_EXCEEDED: u32 = 4;

impl Outlook {
    fn is_slow(&self, ticket: &Ticket, now: Tick) -> bool {
        let answered = ticket.answered.unwrap_or(now);
        let sent = ticket.sent_at;
        self.slow_after
            .zip(sent)
            .is_some_and(|(slow, sent)| answered.since(sent) >= slow)
    }
}

/// Every endpoint known.
#[derive(Debug)]
pub struct Endpoints {
    outlook: Outlook,
    pools: BTreeMap<PoolName, Pool>,
    appearances: u64,
    /// The number of the call that was the last to wait.
    asked: u64,
    /// How many calls of one pool may wait.
    most_waiting: usize,
    adaptive: Adaptive,
    orders: Orders,
    heard: Option<Heard>,
    /// Whether discovery has not gone away since.
    vouches: bool,
    /// What agents say themselves.
    feeds: BTreeMap<NodeName, Feed>,
}

impl Endpoints {
    /// An empty set, that has heard nothing. Of each pool `most_waiting` calls may wait.
    pub fn new(outlook: Outlook, most_waiting: usize) -> Self {
        Self {
            outlook,
            pools: BTreeMap::new(),
            appearances: 0,
            asked: 0,
            most_waiting,
            adaptive: Adaptive::default(),
            orders: Orders::default(),
            heard: None,
            vouches: false,
            feeds: BTreeMap::new(),
        }
    }

    /// Finds how many calls workers can take in these pools, where nobody knows.
    #[must_use]
    pub fn with(mut self, adaptive: Adaptive) -> Self {
        self.adaptive = adaptive;
        self
    }

    /// Discovery told the whole truth. Endpoints that stay keep their calls and their breaker.
    /// Answers which endpoints are gone.
    pub fn apply_snapshot(&mut self, update: Update) -> Vec<Gone> {
        let mut gone = Vec::new();
        let listed = |name: &PoolName| {
            update.pools.contains(name)
                || update.unheard.contains(name)
                || update.upserts.iter().any(|up| up.worker.pool == *name)
        };
        self.pools.retain(|name, pool| {
            let stays = listed(name);
            if !stays {
                gone.extend(pool.living(name).map(|worker| Gone {
                    worker,
                    died: false,
                }));
            }
            stays
        });
        for (name, pool) in &mut self.pools {
            if !update.unheard.contains(name) {
                gone.extend(drop_unlisted(name, pool, &update));
            }
        }
        gone.extend(self.apply_change(update));
        gone
    }

    /// Discovery told a difference. Answers which endpoints are gone.
    pub fn apply_change(&mut self, update: Update) -> Vec<Gone> {
        let mut gone = Vec::new();
        for name in &update.removed_pools {
            if let Some(pool) = self.pools.remove(name) {
                gone.extend(pool.living(name).map(|worker| Gone {
                    worker,
                    died: false,
                }));
            }
        }
        for name in &update.pools {
            self.pool_mut(name);
        }
        for name in &update.heard {
            if let Some(pool) = self.pools.get_mut(name) {
                gone.extend(drop_unlisted(name, pool, &update));
            }
        }
        for removal in update.removals {
            if removal.death.is_some() {
                self.forget_orders_of(&removal.worker);
            }
            // The death of a worker whose pool is gone explains nothing any more.
            if let Some(pool) = self.pools.get_mut(&removal.worker.pool) {
                gone.extend(pool.remove(removal.worker, removal.death));
            }
        }
        for endpoint in update.upserts {
            let worker = endpoint.worker.clone();
            self.appearances += 1;
            let (terms, appearance) = (self.outlook.terms, self.appearances);
            let now = self.heard.as_ref().map_or(Tick::ZERO, |heard| heard.at);
            let node = endpoint.node.clone();
            let lives = self.living(&worker.pool, worker.slot) == Some(&worker);
            let replaces = !lives && !endpoint.unordered;
            let pool = self.pool_mut(&worker.pool);
            gone.extend(pool.upsert(endpoint, terms, appearance, now));
            if replaces {
                self.forget_orders_before(&worker);
            }
            self.bind(&worker);
            gone.extend(node.and_then(|node| self.settle(&node, &worker)));
        }
        self.vouch();
        gone
    }

    /// Discovery spoke at `now`, with knowledge that was so old.
    pub fn on_heard(&mut self, ages: Ages, now: Tick) {
        self.heard = Some(Heard { at: now, ages });
        self.vouches = true;
        self.vouch();
    }

    /// Discovery is away: what it said stands, but vouches for nobody.
    pub fn on_silence(&mut self) {
        self.vouches = false;
        self.vouch();
    }

    fn vouch(&mut self) {
        let heard = self.heard.as_ref().filter(|_| self.vouches);
        for (name, pool) in &mut self.pools {
            pool.vouched = heard.map_or(Tick::ZERO, |heard| heard.vouches_for(name));
        }
    }

    /// How old what is known of a pool is, where it may be out of date: discovery, its store or a source of the pool
    /// is away.
    pub fn age_of(&self, pool: &PoolName, now: Tick) -> Option<Duration> {
        self.heard.as_ref()?.age_of(pool, now)
    }

    /// Chooses a worker for a call and counts the call as under way on it, unless others wait for the same: those go
    /// first. `tried` lists workers this call has already been refused by; `random` decides between equals.
    ///
    /// # Errors
    /// Says why nobody can take the call.
    pub fn pick(
        &mut self,
        pool: &PoolName,
        target: &Target,
        tried: &[WorkerId],
        random: u64,
        now: Tick,
    ) -> Result<Pick, Refusal> {
        let known = self.pools.get_mut(pool).ok_or(Refusal::NoPool)?;
        known.check(now);
        let slot = known.decide(target, tried, random, now, |_, _| {});
        slot.and_then(|slot| known.give(pool, target, slot, now))
            .map_err(Refusal::NoWorker)
    }

    /// Lets a call wait that `pick` refused because all are busy, and answers its number. It comes back
    /// through `next`, or is taken back with `forget`.
    ///
    /// # Errors
    /// Says why it may not wait.
    pub fn wait(&mut self, pool: &PoolName, ask: Ask, now: Tick) -> Result<u64, Refusal> {
        let most = self.most_waiting(pool);
        let known = self.pools.get_mut(pool).ok_or(Refusal::NoPool)?;
        let place = known.may_wait(&ask, most, now)?;
        self.asked += 1;
        known.waiting.push(self.asked, ask, place);
        Ok(self.asked)
    }

    /// Whether somebody lives in a pool who does not drain.
    pub fn has_staying(&self, pool: &PoolName) -> bool {
        let mut lives = self
            .pools
            .get(pool)
            .into_iter()
            .flat_map(|pool| pool.lives());
        lives.any(|live| !live.endpoint.draining)
    }

    /// A worker of this pool is on the way: until then calls that any may take wait for it, although nobody is there.
    pub fn expect(&mut self, pool: &PoolName, until: Tick) {
        if let Some(known) = self.pools.get_mut(pool) {
            known.expect(until);
        }
    }

    /// A call waits no more: its caller is gone, or has waited for long enough.
    pub fn forget(&mut self, pool: &PoolName, number: u64) {
        if let Some(known) = self.pools.get_mut(pool) {
            known.waiting.forget(number);
        }
    }

    /// The next waiting call of which there is something to say: a worker for it, or why there will be none.
    /// To be asked until it has none, after a call ended or discovery has spoken (E9).
    pub fn next(
        &mut self,
        pool: &PoolName,
        random: u64,
        now: Tick,
    ) -> Option<(u64, Result<Pick, Refusal>)> {
        let known = self.pools.get_mut(pool)?;
        known.next_waiting(pool, random, now)
    }

    /// When a worker of a pool that is left alone because of its calls is tried again: `next` may have something to say
    /// then, though nothing else has happened.
    pub fn next_trial(&self, pool: &PoolName, now: Tick) -> Option<Tick> {
        self.pools.get(pool)?.next_trial(now)
    }

    /// The breaker of a pool as a whole, where it has one.
    pub fn pool_breaker(&self, pool: &PoolName) -> Option<tether_breaker::Snapshot> {
        self.pools.get(pool)?.breaker.snapshot()
    }

    /// Whether a pool is known.
    pub fn knows(&self, pool: &PoolName) -> bool {
        self.pools.contains_key(pool)
    }

    /// How many calls of a pool wait.
    pub fn waiting(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).map_or(0, |known| known.waiting.len())
    }

    /// The answer of this ticket's call has begun; `counts` says whether it took as long as the worker's work does.
    pub fn on_answered(&mut self, ticket: &mut Ticket, counts: bool, now: Tick) {
        ticket.on_answered(now);
        if std::mem::take(&mut ticket.is_limited)
            && let (Some(sent), Some(live)) = (ticket.sent_at, self.live(ticket))
            && let Some(limiter) = &mut live.limiter
        {
            limiter.on_answer(sent, counts, now);
        }
    }

    /// How many calls of a pool were made again of late.
    pub fn retries(&mut self, pool: &PoolName) -> Option<&mut Retries> {
        Some(&mut self.pools.get_mut(pool)?.retries)
    }

    /// The call of this ticket got an answer with this gRPC code. Only the first word counts.
    pub fn on_code(&mut self, ticket: &mut Ticket, code: u32, now: Tick) {
        // Others may be quick by having done nothing.
        if code == 0
            && ticket.permit.is_some()
            && let Some(pool) = self.pools.get_mut(&ticket.worker.pool)
        {
            pool.on_served(ticket, now);
        }
        match (code, self.outlook.codes.outcome(code)) {
            (DEADLINE_EXCEEDED, Outcome::Silent) => self.on_late(ticket, now),
            (_, outcome) => self.on_outcome(ticket, outcome, now),
        }
    }

    /// Nobody waits any more for the answer to the call of this ticket: that may have been too soon, or it is slow.
    pub fn on_late(&mut self, ticket: &mut Ticket, now: Tick) {
        self.on_given_up(ticket, now);
        let outcome = match self.outlook.is_slow(ticket, now) {
            true => Outcome::Slow,
            false => Outcome::Silent,
        };
        self.on_outcome(ticket, outcome, now);
    }

    /// The same, for how the worker compares with others.
    fn on_given_up(&mut self, ticket: &Ticket, now: Tick) {
        if ticket.permit.is_some()
            && let Some(pool) = self.pools.get_mut(&ticket.worker.pool)
        {
            pool.on_given_up(ticket, now);
        }
    }

    /// It is known what the call of this ticket says about its worker. Only the first word counts.
    pub fn on_outcome(&mut self, ticket: &mut Ticket, outcome: Outcome, now: Tick) {
        let Some(permit) = ticket.permit.take() else {
            return;
        };
        let outcome = match outcome {
            Outcome::Success if self.outlook.is_slow(ticket, now) => Outcome::Slow,
            outcome => outcome,
        };
        let of_pool = ticket.pool_permit.take();
        let most_ejected = self.outlook.most_ejected_percent;
        if let Some(pool) = self.pools.get_mut(&ticket.worker.pool) {
            let mut of_call = OfCall {
                is_probe: permit.is_probe(),
                is_answered: ticket.answered.is_some(),
                lives: false,
            };
            let may_trip = match outcome {
                Outcome::Failure | Outcome::Slow => pool.may_eject(most_ejected),
                Outcome::Success | Outcome::Silent => true,
            };
            if let Some(live) = pool.live_mut(ticket) {
                of_call.lives = true;
                let was_open = live.breaker.is_open();
                live.breaker.on_outcome(permit, outcome, may_trip, now);
                if live.breaker.is_open() && !was_open {
                    pool.breaker.on_one_less();
                }
            }
            pool.breaker.on_outcome(of_pool, of_call, outcome, now);
        }
    }

    /// The worker has not begun with the call of this ticket and will not: no fault of it, and it has no state of its key.
    pub fn on_refused(&mut self, ticket: &mut Ticket, now: Tick) {
        self.on_outcome(ticket, Outcome::Silent, now);
        if let Some(pool) = self.pools.get_mut(&ticket.worker.pool) {
            pool.untie(ticket);
        }
    }

    /// Of two workers that had a call, this one's answer counts.
    pub fn on_won(&mut self, claim: &Claim, now: Tick) {
        if let Some(pool) = self.pools.get_mut(&claim.worker.pool) {
            pool.claim(claim, now);
        }
    }

    /// The call of this ticket is over. Where nothing was said about the worker, nothing is known.
    /// Answers whether it was one that somebody wants to know of.
    pub fn release(&mut self, mut ticket: Ticket, now: Tick) -> bool {
        self.on_given_up(&ticket, now);
        self.on_outcome(&mut ticket, Outcome::Silent, now);
        if let Some(live) = self.live(&ticket) {
            live.in_flight -= 1;
            if let Some(limiter) = live.limiter.as_mut().filter(|_| ticket.is_limited) {
                limiter.on_end(ticket.sent_at, now);
            }
        } else if let Some(pool) = self.pools.get_mut(&ticket.worker.pool) {
            pool.departed_over(&ticket);
        }
        let Some(pool) = self.pools.get_mut(&ticket.worker.pool) else {
            return false;
        };
        if ticket.sent_at.is_none() {
            pool.untie(&mut ticket);
            return false;
        }
        pool.served(&ticket.worker)
    }

    /// Calls that each living incarnation has served, of those that somebody wants to know of and that
    /// have served any, in order of pool and slot.
    pub fn counted(&self) -> impl Iterator<Item = (WorkerId, u64)> {
        self.pools.iter().flat_map(Pool::counted)
    }

    /// Every pool known, in order.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        self.pools.keys()
    }

    /// Whether this very incarnation is alive as far as discovery knows.
    pub fn is_alive(&self, worker: &WorkerId) -> bool {
        self.pools
            .get(&worker.pool)
            .is_some_and(|pool| pool.is_alive(worker))
    }

    /// Whether this very incarnation is alive and takes no new calls.
    pub fn is_draining(&self, worker: &WorkerId) -> bool {
        self.pools
            .get(&worker.pool)
            .is_some_and(|pool| pool.is_draining(worker))
    }

    /// How this very incarnation died, while its slot has seen no later death.
    pub fn death_of(&self, worker: &WorkerId) -> Option<&Death> {
        let (incarnation, death) = self.last_death(&worker.pool, worker.slot)?;
        (incarnation == worker.incarnation).then_some(death)
    }

    /// The last death in a slot.
    pub fn last_death(&self, pool: &PoolName, slot: Slot) -> Option<(Incarnation, &Death)> {
        self.pools.get(pool)?.death_in(slot)
    }

    /// The death told last in a pool, whatever the slot.
    pub fn latest_death(&self, pool: &PoolName) -> Option<(WorkerId, &Death)> {
        let known = self.pools.get(pool)?;
        let slot = known.latest_death?;
        let (incarnation, death) = known.death_in(slot)?;
        let worker = WorkerId {
            pool: pool.clone(),
            slot,
            incarnation,
        };
        Some((worker, death))
    }

    /// Plain data about every endpoint, in order of pool and slot, as it stands at `now`.
    pub fn snapshot(&self, now: Tick) -> Vec<View> {
        let pools = self.pools.values();
        pools.flat_map(|pool| pool.views(now)).collect()
    }

    /// The same of one pool.
    pub fn snapshot_of(&self, pool: &PoolName, now: Tick) -> Vec<View> {
        let pool = self.pools.get(pool);
        pool.map_or_else(Vec::new, |pool| pool.views(now).collect())
    }

    /// A pool that is known from then on.
    fn pool_mut(&mut self, name: &PoolName) -> &mut Pool {
        let (outlook, adaptive, orders) = (&self.outlook, &self.adaptive, &self.orders);
        let pools = self.pools.entry(name.clone());
        pools.or_insert_with(|| {
            let mut pool = Pool::new(outlook, adaptive.is_on(name));
            pool.pins = orders.pins(name);
            pool
        })
    }

    fn live(&mut self, ticket: &Ticket) -> Option<&mut pool::Live> {
        self.pools.get_mut(&ticket.worker.pool)?.live_mut(ticket)
    }
}

/// Takes away all of a pool that an update does not list, and does not tell the end of: it left alive.
fn drop_unlisted(name: &PoolName, pool: &mut Pool, update: &Update) -> Vec<Gone> {
    let upserts = update.upserts.iter().map(|up| &up.worker);
    let upserts: BTreeSet<Slot> = upserts
        .filter(|worker| worker.pool == *name)
        .map(|worker| worker.slot)
        .collect();
    let told = update.removals.iter().map(|gone| &gone.worker);
    let told: BTreeSet<&WorkerId> = told.filter(|worker| worker.pool == *name).collect();
    let unlisted: Vec<WorkerId> = pool
        .living(name)
        .filter(|worker| !upserts.contains(&worker.slot) && !told.contains(worker))
        .collect();
    let gone = unlisted.into_iter();
    gone.filter_map(|worker| pool.remove(worker, None))
        .collect()
}
