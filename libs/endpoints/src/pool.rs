//! One pool: its slots, who lives in them, and how the last one died.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use tether_breaker::{Breaker, Retries, State, Terms};
use tether_clock::Tick;
use tether_types::{Address, Death, Incarnation, PoolName, Slot, WorkerId};

use crate::{
    Claim, Endpoint, Gone, Keeping, Outlook, Overload, Pick, Refusal, Target, Ticket, Verdict,
    View, Why,
    bindings::{Bindings, Mark, Seat},
    fate::Fate,
    limiter::Limiter,
    orders::Bound,
    pace::{self, Lag, Pace},
    pool_breaker::PoolBreaker,
    waiting::{Number, Waiting},
};

#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) slots: BTreeMap<Slot, Place>,
    /// The slot whose death was told last.
    pub(crate) latest_death: Option<Slot>,
    pub(crate) waiting: Waiting,
    /// Until when discovery's word stands for workers whose agents are away.
    pub(crate) vouched: Tick,
    /// Keys that an order ties to a worker.
    pub(crate) pins: BTreeMap<Vec<u8>, WorkerId>,
    /// Whether workers came, went or changed, or keys, since waiting calls were last given their slots.
    pub(crate) moved: bool,
    pub(crate) bindings: Bindings,
    pub(crate) keeping: Keeping,
    pub(crate) breaker: PoolBreaker,
    pub(crate) slow_start: Duration,
    pace: Pace,
    is_adaptive: bool,
    /// Until when calls wait although nobody is there: somebody is on the way.
    expected_until: Option<Tick>,
    pub(crate) retries: Retries,
    /// By their appearance, those that left alive while calls were under way on them, until those are over.
    pub(crate) departed: BTreeMap<u64, Departed>,
}

/// One that lives here no more, and has calls under way that may end well.
#[derive(Debug)]
pub(crate) struct Departed {
    pub(crate) endpoint: Endpoint,
    pub(crate) in_flight: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The lowest incarnation that may still live here (E3).
    pub(crate) floor: Incarnation,
    pub(crate) live: Option<Live>,
    /// Calls over that were sent to the incarnation that lives here, or left alive and may come back.
    calls: u64,
    death: Option<(Incarnation, Death)>,
}

/// A living incarnation.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) endpoint: Endpoint,
    /// The endpoint's, for those that are given it with each call.
    pub(crate) address: Arc<Address>,
    /// Differs each time an endpoint appears: one that left alive and came back has the same
    /// incarnation, but owes nothing to the calls from before.
    pub(crate) appearance: u64,
    /// When it began to take calls, as far as was heard.
    pub(crate) since: Tick,
    pub(crate) in_flight: u32,
    pub(crate) breaker: Breaker,
    /// Finds how many calls it can take, where its pool is one in which that is done.
    pub(crate) limiter: Option<Limiter>,
    pub(crate) fate: Fate,
    /// What orders say of it.
    pub(crate) bound: Bound,
    pub(crate) lag: Lag,
}

impl Live {
    /// How many calls whose answer has not begun it may have, where that is being found.
    fn limit(&self) -> Option<NonZeroU32> {
        let limiter = self.limiter.as_ref();
        let limiter = limiter.filter(|_| self.capacity().is_none());
        NonZeroU32::new(limiter?.limit())
    }

    /// Whether it serves as many calls as it can (E8).
    pub(crate) fn is_full(&self) -> bool {
        match (self.capacity(), &self.limiter) {
            (Some(capacity), _) => self.in_flight >= capacity.get(),
            (None, Some(limiter)) => limiter.is_full(),
            (None, None) => false,
        }
    }

    /// As `pool` has it, which is its own.
    pub(crate) fn view(&self, pool: &Pool, now: Tick) -> View {
        View {
            doubted: self.fate.doubted,
            is_slow: self.lag.is_late(),
            refusal: match pool.verdict(self, &[], now) {
                Verdict::Refused(why) => Some(why),
                Verdict::Eligible | Verdict::Tried | Verdict::NotMeant => None,
            },
            endpoint: self.endpoint.clone(),
            in_flight: self.in_flight,
            capacity: self.capacity(),
            draining: self.drains(),
            ejected: self.bound.ejected,
            breaker: self.breaker.snapshot(),
            limit: self.limit(),
        }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.endpoint.worker.incarnation
    }
}

impl Pool {
    pub(crate) fn new(outlook: &Outlook, is_adaptive: bool) -> Self {
        Self {
            is_adaptive,
            keeping: outlook.keeping,
            breaker: PoolBreaker::new(outlook.pool_terms),
            slow_start: outlook.slow_start,
            ..Self::default()
        }
    }

    /// A worker is on the way, and is waited for.
    pub(crate) fn expect(&mut self, until: Tick) {
        self.expected_until = self.expected_until.max(Some(until));
    }

    /// Why a call has to wait or may not, for this reason of those who are there.
    pub(crate) fn or_expected(&self, why: Why, target: &Target, now: Tick) -> Why {
        let names_one = matches!(target, Target::Worker { .. });
        let is_expected = self.expected_until.is_some_and(|until| now < until);
        match why {
            Why::NoneReady if is_expected && !names_one => Why::Busy,
            why => why,
        }
    }

    /// The call of this ticket was served: how long it took until that began is compared with the others.
    pub(crate) fn on_served(&mut self, ticket: &Ticket, now: Tick) {
        let (Some(sent), Some(answered)) = (ticket.sent_at, ticket.answered) else {
            return;
        };
        if !pace::is_fresh(answered, now) {
            return;
        }
        let late = self.late(now);
        if let Some(live) = self.live_mut(ticket) {
            live.lag.on_answer(answered.since(sent), late, now);
        }
    }

    /// Nobody waits any more for the answer to the call of this ticket: that may have been late by now, or not yet.
    pub(crate) fn on_given_up(&mut self, ticket: &Ticket, now: Tick) {
        let (Some(sent), Some(late)) = (ticket.sent_at, self.late(now)) else {
            return;
        };
        if ticket.answered.unwrap_or(now).since(sent) >= late
            && let Some(live) = self.live_mut(ticket)
        {
            live.lag.on_late(now);
        }
    }

    /// How long an answer takes that is late in this pool.
    fn late(&mut self, now: Tick) -> Option<Duration> {
        if self.pace.is_due(now) {
            let lives = self.slots.values().filter_map(|place| place.live.as_ref());
            self.pace.review(lives.map(|live| &live.lag), now);
        }
        self.pace.late()
    }

    /// Only time passed.
    pub(crate) fn check(&mut self, now: Tick) {
        let is_waited_for = |mark| self.waiting.has(mark);
        self.moved |= self.bindings.expire(self.keeping, now, is_waited_for);
    }

    /// The call of this ticket was never sent, or refused: its worker has no state of it.
    pub(crate) fn untie(&mut self, ticket: &mut Ticket) {
        let seat = Seat::of(&ticket.worker);
        if let Some(tie) = ticket.tie.take().filter(|tie| tie.before != Some(seat)) {
            self.bindings.restore(tie.mark, seat, tie.before);
            self.moved |= self.waiting.has(tie.mark);
        }
    }

    /// This worker has the state of a key, whoever else was given the same call.
    pub(crate) fn claim(&mut self, claim: &Claim, now: Tick) {
        self.bind(claim.mark, Seat::of(&claim.worker), now);
        self.moved |= self.waiting.has(claim.mark);
    }

    /// A key belongs to this worker from now on; answers to whom it did before.
    pub(crate) fn bind(&mut self, mark: Mark, to: Seat, now: Tick) -> Option<Seat> {
        let before = self.bindings.bind(mark, to, self.keeping, now);
        self.check(now);
        before
    }

    /// A new or changed endpoint; answers whom it replaced.
    pub(crate) fn upsert(
        &mut self,
        endpoint: Endpoint,
        terms: Terms,
        appearance: u64,
        now: Tick,
    ) -> Option<Gone> {
        let worker = endpoint.worker.clone();
        let place = self.slots.entry(worker.slot).or_default();
        if worker.incarnation < place.floor && !endpoint.unordered {
            return None; // E3
        }
        self.moved = true;
        let limiter = self.is_adaptive.then(|| Limiter::new(appearance));
        place.raise(worker.incarnation);
        if let Some(live) = &mut place.live
            && live.incarnation() == worker.incarnation
        {
            if live.endpoint.draining && !endpoint.draining {
                live.since = now;
            }
            live.address = Arc::new(endpoint.address.clone());
            live.endpoint = endpoint;
            return None;
        }
        let replaced = place.live.replace(Live {
            address: Arc::new(endpoint.address.clone()),
            endpoint,
            appearance,
            since: now,
            in_flight: 0,
            breaker: Breaker::new(terms),
            limiter,
            fate: Fate::default(),
            bound: Bound::default(),
            lag: Lag::default(),
        });
        // Whoever is gone again has to be asked for again.
        self.expected_until = None;
        let replaced = replaced?;
        self.breaker.on_one_less();
        let worker = replaced.endpoint.worker.clone();
        self.depart(replaced);
        Some(Gone {
            died: false,
            worker,
        })
    }

    /// One has left alive: its calls go on.
    fn depart(&mut self, live: Live) {
        if live.in_flight > 0 {
            let departed = Departed {
                endpoint: live.endpoint,
                in_flight: live.in_flight,
            };
            self.departed.insert(live.appearance, departed);
        }
    }

    /// The call of this ticket is over, whose worker has left alive, if it has.
    pub(crate) fn departed_over(&mut self, ticket: &Ticket) {
        if let Entry::Occupied(mut of) = self.departed.entry(ticket.appearance) {
            of.get_mut().in_flight -= 1;
            if of.get().in_flight == 0 {
                of.remove();
            }
        }
    }

    /// An endpoint left, dead or alive; answers whether that took anyone away.
    pub(crate) fn remove(&mut self, worker: WorkerId, death: Option<Death>) -> Option<Gone> {
        let died = death.is_some();
        if !died && !self.slots.contains_key(&worker.slot) {
            return None;
        }
        let place = self.slots.entry(worker.slot).or_default();
        if let Some(death) = death {
            // The dead do not come back, while one that left alive may (E3).
            place.raise(Incarnation(worker.incarnation.0.saturating_add(1)));
            if place
                .death
                .as_ref()
                .is_none_or(|(of, _)| *of <= worker.incarnation)
            {
                place.death = Some((worker.incarnation, death));
                self.latest_death = Some(worker.slot);
            }
        }
        let live = place.live.as_ref()?;
        let incarnation = live.incarnation();
        let (unordered, is_counted) = (live.endpoint.unordered, live.endpoint.counted);
        let is_another = incarnation != worker.incarnation;
        if incarnation > worker.incarnation || (unordered && is_another) {
            return None;
        }
        let left = place.live.take();
        self.breaker.on_one_less();
        self.moved = true;
        // Nothing of it has to be known when it comes back, and of those that no agent runs each may have a slot that
        // nobody else ever has.
        if unordered && !is_counted && place.death.is_none() {
            self.slots.remove(&worker.slot);
        }
        let died = died && !is_another;
        if let Some(left) = left.filter(|_| !died) {
            self.depart(left);
        }
        Some(Gone {
            died,
            worker: WorkerId {
                incarnation,
                ..worker
            },
        })
    }

    /// Whether calls wait that one with this target may not overtake.
    pub(crate) fn others_wait(&self, target: &Target, now: Tick) -> bool {
        !self.waiting.is_empty() && self.waiting.any_at(self.home(target, now))
    }

    pub(crate) fn next_waiting(
        &mut self,
        name: &PoolName,
        random: u64,
        now: Tick,
    ) -> Option<(Number, Result<Pick, Refusal>)> {
        if self.waiting.is_empty() {
            return None;
        }
        self.check(now);
        if let Some(shed) = self.waiting.shed() {
            return Some((shed, Err(Refusal::Overloaded(Overload::Shed))));
        }
        if std::mem::take(&mut self.moved) {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.rebind(|target| self.home(target, now));
            self.waiting = waiting;
        }
        for head in self.waiting.heads() {
            let said = match self.pick(name, &head.target, &head.tried, random, now) {
                Ok(pick) => Ok(pick),
                Err(Why::Busy) => continue,
                // As whoever comes now is told.
                Err(why) => Err(Refusal::NoWorker(why)),
            };
            self.waiting.take(head.number, now);
            return Some((head.number, said));
        }
        None
    }

    pub(crate) fn living(&self, name: &PoolName) -> impl Iterator<Item = WorkerId> {
        self.slots.iter().filter_map(move |(&slot, place)| {
            Some(WorkerId {
                pool: name.clone(),
                slot,
                incarnation: place.live.as_ref()?.incarnation(),
            })
        })
    }

    /// Whether one more of its workers may be left alone because of its calls (E10).
    pub(crate) fn may_eject(&self, most_percent: u32) -> bool {
        let living = self.slots.values().filter_map(|place| place.live.as_ref());
        let (mut all, mut ejected) = (0, 0);
        for live in living {
            all += 1;
            let is_closed = matches!(live.breaker.snapshot().state, State::Closed { .. });
            ejected += u64::from(!is_closed);
        }
        ejected == 0 || (ejected + 1) * 100 <= all * u64::from(most_percent)
    }

    /// When the first is tried again of those that are left alone because of their calls, and for nothing else. Those whose
    /// time has come can be picked already.
    pub(crate) fn next_trial(&self, now: Tick) -> Option<Tick> {
        let willing = self.lives().filter(|live| {
            let lapsed = live.fate.is_over(self.vouched, now);
            !live.drains() && live.bound.ejected.is_none() && !lapsed
        });
        let trials = willing.filter_map(|live| live.breaker.next_deadline());
        trials.filter(|at| now < *at).min()
    }

    pub(crate) fn is_alive(&self, worker: &WorkerId) -> bool {
        self.incarnate(worker).is_some()
    }

    pub(crate) fn is_draining(&self, worker: &WorkerId) -> bool {
        self.incarnate(worker).is_some_and(Live::drains)
    }

    pub(crate) fn lives(&self) -> impl Iterator<Item = &Live> {
        self.slots.values().filter_map(|place| place.live.as_ref())
    }

    pub(crate) fn lives_mut(&mut self) -> impl Iterator<Item = &mut Live> {
        self.slots
            .values_mut()
            .filter_map(|place| place.live.as_mut())
    }

    pub(crate) fn incarnate_mut(&mut self, worker: &WorkerId) -> Option<&mut Live> {
        let live = self.slots.get_mut(&worker.slot)?.live.as_mut()?;
        (live.incarnation() == worker.incarnation).then_some(live)
    }

    fn incarnate(&self, worker: &WorkerId) -> Option<&Live> {
        let live = self.slots.get(&worker.slot)?.live.as_ref()?;
        (live.incarnation() == worker.incarnation).then_some(live)
    }

    pub(crate) fn live_mut(&mut self, ticket: &Ticket) -> Option<&mut Live> {
        self.slots
            .get_mut(&ticket.worker.slot)?
            .live
            .as_mut()
            .filter(|live| live.appearance == ticket.appearance)
    }

    /// A call that was sent to an incarnation is over; answers whether somebody wants to know.
    pub(crate) fn served(&mut self, worker: &WorkerId) -> bool {
        let place = self.slots.get_mut(&worker.slot);
        let Some(place) = place.filter(|place| place.floor == worker.incarnation) else {
            return false;
        };
        place.calls += 1;
        place
            .live
            .as_ref()
            .is_some_and(|live| live.endpoint.counted)
    }

    pub(crate) fn counted(
        (name, pool): (&PoolName, &Self),
    ) -> impl Iterator<Item = (WorkerId, u64)> {
        pool.slots.iter().filter_map(move |(&slot, place)| {
            let live = place.live.as_ref().filter(|live| live.endpoint.counted)?;
            let worker = WorkerId {
                pool: name.clone(),
                slot,
                incarnation: live.incarnation(),
            };
            (place.calls > 0).then_some((worker, place.calls))
        })
    }

    pub(crate) fn death_in(&self, slot: Slot) -> Option<(Incarnation, &Death)> {
        let (incarnation, death) = self.slots.get(&slot)?.death.as_ref()?;
        Some((*incarnation, death))
    }

    pub(crate) fn views(&self, now: Tick) -> impl Iterator<Item = View> {
        self.lives().map(move |live| live.view(self, now))
    }
}

impl Place {
    /// Who lives here is this incarnation or a later one: calls of an earlier one count no more (E7).
    fn raise(&mut self, incarnation: Incarnation) {
        if incarnation > self.floor {
            self.floor = incarnation;
            self.calls = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_types::Address;

    use super::*;
    use crate::{Affinity, Ask, Endpoints, Party, Priority, Standing, Update};

    #[test]
    fn of_those_that_no_agent_runs_nothing_is_kept_when_they_have_left() {
        let mut pool = Pool::default();
        for slot in 0..1_000 {
            let worker = WorkerId {
                pool: PoolName::new("p").expect("it is a name"),
                slot,
                incarnation: Incarnation(7),
            };
            let endpoint = Endpoint {
                worker: worker.clone(),
                address: Address::Unix("/w".into()),
                tls: false,
                node: None,
                draining: false,
                counted: false,
                unordered: true,
                capacity: None,
                weight: 0,
                standing: Standing::Near,
            };
            assert_eq!(pool.upsert(endpoint, Terms::default(), 1, Tick::ZERO), None);
            assert!(pool.remove(worker.clone(), None).is_some());
            assert_eq!(pool.remove(worker, None), None, "it is told twice");
        }
        assert!(pool.slots.is_empty(), "{}", pool.slots.len());
    }

    #[test]
    fn only_those_who_wait_for_a_key_are_sorted_anew_where_it_is_bound() {
        let name = PoolName::new("p").expect("it is a name");
        let mut set = Endpoints::new(Outlook::default(), 10);
        set.apply_change(Update {
            upserts: vec![Endpoint {
                worker: "p/0.1".parse().expect("it is a worker"),
                address: Address::Unix("/w".into()),
                tls: false,
                node: None,
                draining: false,
                counted: false,
                unordered: false,
                capacity: NonZeroU32::new(2),
                weight: 0,
                standing: Standing::Near,
            }],
            ..Update::default()
        });
        let to = |key: &[u8], affinity| Target::Affinity {
            key: key.to_vec(),
            session: None,
            affinity,
        };
        let ask = Ask {
            target: to(b"a", Affinity::StrictQueue),
            tried: Vec::new(),
            party: Party::Connection(1),
            priority: Priority::Normal,
            deadline: None,
        };
        set.wait(&name, ask, Tick::ZERO).expect("it may");
        for (key, is_waited_for) in [(b"b", false), (b"a", true)] {
            let pool = set.pools.get_mut(&name).expect("it is there");
            pool.moved = false;
            let hint = to(key, Affinity::Hint);
            let _pick = pool.give(&name, &hint, 0, Tick::ZERO).expect("it is free");
            assert_eq!(pool.moved, is_waited_for);
        }
    }
}
