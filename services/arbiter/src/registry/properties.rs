//! **R1** to **R6** through the ledger, whatever registrants do: holders that count by their own side of the lease, die,
//! come back with the same life or another, send late and repeated beats, over restarts of the arbiter. A store beside
//! it is written as the effects say, so that what is served and what is kept is compared with what is held.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use tether_clock::Tick;
use tether_lease::{Holder, Standing, Terms};
use tether_lifecycle::Surroundings;
use tether_proto::{common::Endpoint, registry as wire};
use tether_store::{Entry, Listing, keys::ServeKey};
use tether_types::{Epoch, Incarnation, Reason, Slot};

use super::{Key, Registrant, Registry, crew::LINGER};
use crate::{Config, ledger::Ledger};

const POOLS: [&str; 2] = ["digits", "train"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const TTL: Duration = Duration::from_secs(6);

/// What one may do who registers.
#[derive(Debug, Clone)]
enum Action {
    /// Begins as another life, whatever became of the one before: at one of few addresses.
    Begin(usize, u16),
    /// Opens a stream and beats on it.
    Come(usize),
    Beat(usize),
    /// The answer to the last beat gets lost.
    BeatUnheard(usize),
    /// Beats, and then an earlier message of the same number arrives that says something else.
    Repeat(usize),
    /// A beat that was sent under an epoch of long ago.
    Late(usize, u64),
    Drain(usize),
    Leave(usize),
    RestartArbiter,
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let who = 0..POOLS.len() * NAMES.len();
    prop_oneof![
        3 => (who.clone(), 1..4_u16).prop_map(|(who, port)| Action::Begin(who, port)),
        6 => who.clone().prop_map(Action::Come),
        6 => who.clone().prop_map(Action::Beat),
        2 => who.clone().prop_map(Action::BeatUnheard),
        1 => who.clone().prop_map(Action::Repeat),
        1 => (who.clone(), 1..40_u64).prop_map(|(who, epoch)| Action::Late(who, epoch)),
        2 => who.clone().prop_map(Action::Drain),
        1 => who.prop_map(Action::Leave),
        1 => Just(Action::RestartArbiter),
        5 => (1..4_000_u64).prop_map(Action::Pass),
    ]
}

/// One who registers, and what it believes.
#[derive(Debug, Default)]
struct Holding {
    life: u64,
    port: u16,
    seq: u64,
    ack_seen: u64,
    condition: wire::Condition,
    held: Option<(Epoch, Slot, Holder)>,
}

struct World {
    ledger: Ledger,
    now: Tick,
    store: BTreeMap<String, Bytes>,
    lives: u64,
    who: Vec<Holding>,
    /// Incarnations that were given out, and to which life of whom.
    given: BTreeMap<Incarnation, (usize, u64, Slot)>,
    died: BTreeSet<Incarnation>,
}

fn fresh() -> Ledger {
    let terms = Config::default().terms().unwrap();
    Ledger::new(terms, BTreeMap::new(), Surroundings::default())
}

fn key(who: usize) -> Key {
    (
        POOLS[who % POOLS.len()].parse().unwrap(),
        NAMES[who / POOLS.len()].parse().unwrap(),
    )
}

impl World {
    fn new() -> Self {
        let who = (0..POOLS.len() * NAMES.len()).map(|_| Holding::default());
        Self {
            ledger: fresh(),
            now: Tick::ZERO + Duration::from_secs(1_000),
            store: BTreeMap::new(),
            lives: 0,
            who: who.collect(),
            given: BTreeMap::new(),
            died: BTreeSet::new(),
        }
    }

    fn ask(&self, who: usize) -> Registrant {
        let holding = &self.who[who];
        Registrant {
            key: key(who),
            life: holding.life.to_string(),
            address: format!("10.0.0.1:{}", holding.port.max(1)).parse().unwrap(),
            protocol: "grpc".to_owned(),
            ttl: TTL,
            epoch: holding.held.as_ref().map_or(Epoch(0), |held| held.0),
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Begin(who, port) => {
                self.lives += 1;
                self.who[who] = Holding {
                    life: self.lives,
                    port,
                    ..Holding::default()
                };
            }
            Action::Come(who) => self.come(who),
            Action::Beat(who) => self.beat(who, true),
            Action::BeatUnheard(who) => self.beat(who, false),
            Action::Repeat(who) => self.repeat(who),
            Action::Late(who, epoch) => self.late(who, Epoch(epoch)),
            Action::Drain(who) => {
                let condition = &mut self.who[who].condition;
                condition.draining = !condition.draining;
                self.beat(who, true);
            }
            Action::Leave(who) => self.leave(who),
            Action::RestartArbiter => {
                let entry = |(key, value): (&String, &Bytes)| Entry {
                    key: key.clone(),
                    value: value.clone(),
                    mod_revision: 1,
                };
                let entries = self.store.iter().map(entry).collect();
                let left = Listing {
                    entries,
                    revision: 1,
                };
                self.ledger = fresh();
                self.ledger.restore(&left, self.now).unwrap();
            }
            Action::Pass(millis) => self.pass(Duration::from_millis(millis)),
        }
        self.settle();
    }

    /// Opens a stream: what is acknowledged is written.
    fn come(&mut self, who: usize) {
        if self.who[who].life == 0 {
            return;
        }
        let (ask, now) = (self.ask(who), self.now);
        let condition = self.who[who].condition.clone();
        let known = self.ledger.resume_registration(&ask, now);
        let seat = match known {
            Ok(Some(seat)) => Ok(seat),
            Ok(None) => self.ledger.register(&ask, condition, now),
            Err(refused) => Err(refused),
        };
        self.settle();
        match seat {
            Ok(seat) => {
                self.ledger.on_registered(&ask.key, seat.incarnation, now);
                let life = (who, self.who[who].life, seat.slot);
                let before = self.given.insert(seat.incarnation, life);
                assert!(before.is_none_or(|before| before == life), "R3");
                let terms = Terms::usual(TTL).unwrap();
                let held = &mut self.who[who].held;
                if held.is_none() {
                    *held = Some((
                        Epoch(seat.incarnation.0),
                        seat.slot,
                        Holder::granted(terms, now),
                    ));
                }
                self.beat(who, true);
            }
            Err(refused) => {
                let reasons = [
                    Reason::RegistrationTaken,
                    Reason::UnknownRegistration,
                    Reason::LeaseFenced,
                    Reason::ConfigInvalid,
                ];
                assert!(reasons.contains(&refused.reason()), "{refused}");
                // Of one that holds it by its own clock, nothing has been let go (R2, R3).
                assert!(!self.holds(who), "R2: {refused}");
            }
        }
    }

    fn holds(&mut self, who: usize) -> bool {
        let now = self.now;
        let held = self.who[who].held.as_mut();
        held.is_some_and(|(.., holder)| holder.check(now) != Standing::Expired)
    }

    fn beat(&mut self, who: usize, is_heard: bool) {
        if !self.holds(who) {
            return;
        }
        let now = self.now;
        let holding = &mut self.who[who];
        let Some((epoch, _, holder)) = &mut holding.held else {
            return;
        };
        holding.seq += 1;
        let numbers = (holding.seq, holding.ack_seen);
        let condition = Some(holding.condition.clone());
        let ack = self
            .ledger
            .beat_registration(&key(who), *epoch, numbers, condition, now);
        let ack = ack.unwrap_or_else(|refused| panic!("R2: {refused}"));
        if is_heard {
            holding.ack_seen = holding.seq;
            holder.on_ack(now, Duration::from_millis(ack.ttl_ms), now);
        }
    }

    fn late(&mut self, who: usize, epoch: Epoch) {
        let held = self.ledger.list_registrations("", self.now);
        let before = format!("{held:?}");
        if held
            .iter()
            .any(|held| held.registrant.as_ref().unwrap().epoch == epoch.0)
        {
            return;
        }
        let drains = wire::Condition {
            draining: true,
            ..wire::Condition::default()
        };
        let beat = self.ledger.beat_registration(
            &key(who),
            epoch,
            (u64::MAX, u64::MAX - 1),
            Some(drains),
            self.now,
        );
        assert!(beat.is_err());
        self.ledger
            .deregister(&key(who), epoch, self.now)
            .unwrap_err();
        let after = format!("{:?}", self.ledger.list_registrations("", self.now));
        assert_eq!(before, after, "R6");
    }

    fn repeat(&mut self, who: usize) {
        self.beat(who, true);
        let now = self.now;
        let Some((epoch, ..)) = self.who[who].held.clone().filter(|_| self.holds(who)) else {
            return;
        };
        let before = format!("{:?}", self.ledger.list_registrations("", now));
        let other = wire::Condition {
            zone: "elsewhere".to_owned(),
            ..wire::Condition::default()
        };
        let numbers = (self.who[who].seq, self.who[who].ack_seen);
        let repeated = self
            .ledger
            .beat_registration(&key(who), epoch, numbers, Some(other), now);
        assert_eq!(repeated.unwrap().ttl_ms, 0, "R6");
        let after = format!("{:?}", self.ledger.list_registrations("", now));
        assert_eq!(before, after, "R6");
    }

    fn leave(&mut self, who: usize) {
        if self.holds(who) {
            let (epoch, ..) = self.who[who].held.take().unwrap();
            self.ledger.deregister(&key(who), epoch, self.now).unwrap();
            self.who[who] = Holding::default();
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.ledger.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.ledger.check(self.now);
            self.settle();
        }
        self.now = end;
        self.ledger.check(self.now);
    }

    /// Writes what is to be written, and looks at everything that must hold.
    fn settle(&mut self) {
        let effects = self.ledger.take_effects();
        for event in &effects.events {
            if event.death.is_some() {
                let incarnation = Incarnation(event.worker.as_ref().unwrap().incarnation);
                assert!(self.died.insert(incarnation), "one death of each");
                let (who, life, _) = self.given[&incarnation];
                let is_that_life = self.who[who].life == life;
                assert!(
                    !is_that_life || !self.holds(who),
                    "R2: {incarnation} died while it was held"
                );
            }
        }
        for (key, value) in effects.writes {
            match value {
                Some(value) => drop(self.store.insert(key, value)),
                None => drop(self.store.remove(&key)),
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let held = self.ledger.list_registrations("", self.now);
        let mut addresses = BTreeSet::new();
        let mut served = BTreeMap::new();
        for registration in &held {
            let registrant = registration.registrant.as_ref().unwrap();
            let worker = registration.worker.clone().unwrap();
            assert!(addresses.insert(registrant.address.clone()), "R1");
            let place = (worker.pool.clone(), worker.slot);
            let shown = (
                worker.incarnation,
                registrant.address.clone(),
                registration.condition.as_ref().unwrap().draining,
            );
            assert!(served.insert(place, shown).is_none(), "R4");
        }
        // What callers are told of is what is held, and the other way round.
        let told = self
            .store
            .iter()
            .filter_map(|(key, value)| match ServeKey::parse(key) {
                Some(ServeKey::Endpoint(pool, slot)) => {
                    let endpoint = Endpoint::decode(&**value).unwrap();
                    let shown = (
                        endpoint.worker.unwrap().incarnation,
                        endpoint.address,
                        endpoint.draining,
                    );
                    Some(((pool.to_string(), slot), shown))
                }
                _ => None,
            });
        assert_eq!(told.collect::<BTreeMap<_, _>>(), served);
        let pools: BTreeSet<_> = held
            .iter()
            .map(|held| format!("serve/pools/{}", held.registrant.as_ref().unwrap().pool))
            .collect();
        assert!(pools.iter().all(|pool| self.store.contains_key(pool)));
        for who in 0..self.who.len() {
            if self.holds(who) {
                let (epoch, slot, _) = self.who[who].held.clone().unwrap();
                let (pool, _) = key(who);
                let is_told = served
                    .get(&(pool.to_string(), slot))
                    .is_some_and(|shown| shown.0 == epoch.0);
                assert!(is_told, "R2: {epoch} is held and not served");
            }
        }
    }

    fn end(&mut self) {
        self.pass(TTL * 2 + LINGER * 3);
        self.settle();
        let left: Vec<_> = self
            .store
            .keys()
            .filter(|key| !key.starts_with("arbiter/incarnation"))
            .collect();
        assert!(left.is_empty(), "R5: {left:?}");
        let nothing = format!("registry: {:?}", Registry::default());
        assert!(format!("{:?}", self.ledger).contains(&nothing), "R5");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn names_and_addresses_are_ones_own_until_the_lease_is_over_and_nothing_stays_behind(
        actions in vec(action(), 1..120)
    ) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        world.end();
    }
}

#[test]
fn a_place_is_free_after_the_grantors_time_and_not_before_also_after_a_restart() {
    let mut world = World::new();
    for action in [
        Action::Begin(0, 1),
        Action::Come(0),
        Action::Pass(1_000),
        Action::RestartArbiter,
    ] {
        world.act(&action);
    }
    // Of another name at the address of the first, from which nothing is heard any more.
    world.act(&Action::Begin(1, 1));
    let mut freed_after = None;
    for tenth in 0..100_u32 {
        world.act(&Action::Come(1));
        if world.who[1].held.is_some() {
            freed_after = Some(tenth);
            break;
        }
        world.act(&Action::Pass(100));
    }
    // 6 s * 1.005 / 0.995 + 0.5 s, from the restart on.
    assert_eq!(freed_after, Some(66));
}

#[test]
fn places_are_given_out_again_from_the_lowest_on_and_numbers_never() {
    let mut world = World::new();
    let come = |world: &mut World, who: usize, port| {
        world.act(&Action::Begin(who, port));
        world.act(&Action::Come(who));
        world.who[who]
            .held
            .as_ref()
            .map(|held| (held.1, held.0.0))
            .unwrap()
    };
    let taken: Vec<_> = [0, 2, 4]
        .map(|who| come(&mut world, who, who as u16 + 1))
        .to_vec();
    assert_eq!(taken, [(0, 1), (1, 2), (2, 3)]);

    world.act(&Action::Leave(2));
    world.act(&Action::RestartArbiter);
    let (slot, number) = come(&mut world, 2, 9);
    assert_eq!(slot, 1);
    assert!(number > 3);
}
