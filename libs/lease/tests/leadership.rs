//! Candidates with clocks of their own on one store that answers late, not at all, or after the fact;
//! one property per invariant.

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*};
use tether_clock::Tick;
use tether_lease::{Candidate, LeaderTerms, Move, Seen};

const MS: u64 = 1_000_000;

/// How often a candidate that got no answer asks again, and how long it waits for one.
const RETRY_MS: u64 = 200;

/// How long the world is watched.
const END_MS: u64 = 40_000;

fn terms() -> LeaderTerms {
    let ms = Duration::from_millis;
    LeaderTerms::new(ms(5_000), ms(1_000), ms(500)).unwrap()
}

/// What becomes of one commit or look.
#[derive(Debug, Clone, Copy)]
struct Fate {
    out_ms: u64,
    back_ms: u64,
    /// Whether it reaches the store, and whether its answer comes back.
    arrives: bool,
    answered: bool,
}

/// What happens to candidates from outside.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// Stopped for this long; its clock goes on.
    Pause(u64),
    /// Another process takes its place.
    Restart,
    Resign,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Turn(usize),
    Arrives {
        by: Asked,
        ask: Ask,
        back: Option<u64>,
    },
    Answer {
        by: Asked,
        ask: Ask,
        said: Said,
    },
    Unanswered(Asked),
    Blow {
        who: usize,
        blow: Blow,
    },
}

/// Who asked, in which life, and which of all asks it was.
#[derive(Debug, Clone, Copy)]
struct Asked {
    who: usize,
    life: u64,
    number: usize,
}

#[derive(Debug, Clone, Copy)]
enum Ask {
    Look,
    Campaign { attempt: u64, over: Seen },
    Renew { reign: u64, sent: Tick },
    Vacate { reign: u64 },
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Keys {
        reign: u64,
        renewal: u64,
        writer: (usize, u64, u64),
    },
    Done(u64),
    Conflict,
}

struct Member {
    candidate: Candidate,
    /// Which process it is.
    life: u64,
    rate_ppm: u64,
    offset_ms: u64,
    paused_until_ms: u64,
    /// The ask whose answer it waits for.
    waiting: Option<usize>,
    /// Highest reign it led.
    led: u64,
}

impl Member {
    fn clock(&self, truth: u64) -> Tick {
        Tick::from_nanos(self.offset_ms * MS + truth * MS / 1_000_000 * self.rate_ppm)
    }
}

#[derive(Default)]
struct Keys {
    revision: u64,
    reign: u64,
    renewal: u64,
    writer: (usize, u64, u64),
}

struct World {
    members: Vec<Member>,
    keys: Keys,
    agenda: BTreeMap<(u64, u64), Event>,
    added: u64,
    fates: Vec<Fate>,
    used: usize,
    reigns: u64,
}

impl World {
    fn new(clocks: &[(u64, u64)], fates: Vec<Fate>, blows: &[(usize, u64, Blow)]) -> Self {
        let member = |&(rate_ppm, offset_ms): &(u64, u64)| Member {
            candidate: Candidate::new(terms()),
            life: 1,
            rate_ppm,
            offset_ms,
            paused_until_ms: 0,
            waiting: None,
            led: 0,
        };
        let mut world = Self {
            members: clocks.iter().map(member).collect(),
            keys: Keys::default(),
            agenda: BTreeMap::new(),
            added: 0,
            fates,
            used: 0,
            reigns: 0,
        };
        for who in 0..clocks.len() {
            world.add(who as u64, Event::Turn(who));
        }
        for &(who, at_ms, blow) in blows {
            let who = who % clocks.len();
            world.add(at_ms, Event::Blow { who, blow });
        }
        world
    }

    fn add(&mut self, at_ms: u64, event: Event) {
        self.added += 1;
        self.agenda.insert((at_ms, self.added), event);
    }

    fn run(&mut self) {
        while let Some(((truth, _), event)) = self.agenda.pop_first() {
            if truth > END_MS {
                return;
            }
            self.happen(truth, event);
            self.check(truth);
        }
    }

    /// K1, K5
    fn check(&mut self, truth: u64) {
        let mut leaders = Vec::new();
        for (who, member) in self.members.iter_mut().enumerate() {
            if let Some(reign) = member.candidate.leads(member.clock(truth)) {
                assert!(
                    reign.number >= member.led,
                    "K5: {who} leads {reign:?} again"
                );
                member.led = reign.number;
                leaders.push(who);
            }
        }
        assert!(leaders.len() <= 1, "K1: {leaders:?} lead at {truth} ms");
    }

    fn happen(&mut self, truth: u64, event: Event) {
        match event {
            Event::Blow { who, blow } => self.blow(truth, who, blow),
            Event::Turn(who) => self.turn(truth, who),
            Event::Arrives { by, ask, back } => {
                let said = self.store(by, ask);
                if let Some(back) = back {
                    self.add(truth + back, Event::Answer { by, ask, said });
                }
            }
            Event::Answer { by, ask, said } => self.hear(truth, by, ask, said),
            Event::Unanswered(by) => {
                if self.members[by.who].waiting == Some(by.number) {
                    self.members[by.who].waiting = None;
                    self.add(truth, Event::Turn(by.who));
                }
            }
        }
    }

    fn blow(&mut self, truth: u64, who: usize, blow: Blow) {
        let member = &mut self.members[who];
        match blow {
            Blow::Pause(ms) => member.paused_until_ms = truth + ms,
            Blow::Restart => {
                member.candidate = Candidate::new(terms());
                member.life += 1;
                member.waiting = None;
                member.led = 0;
                self.add(truth + 1, Event::Turn(who));
            }
            Blow::Resign => {
                if let Some(reign) = member.candidate.resign() {
                    self.ask(truth, who, Ask::Vacate { reign });
                }
            }
        }
    }

    fn turn(&mut self, truth: u64, who: usize) {
        let member = &mut self.members[who];
        if member.paused_until_ms > truth {
            let later = member.paused_until_ms;
            return self.add(later, Event::Turn(who));
        }
        if member.waiting.is_some() {
            return;
        }
        let now = member.clock(truth);
        match member.candidate.next(now) {
            Move::Look => self.ask(truth, who, Ask::Look),
            Move::Campaign { attempt, over } => {
                self.ask(truth, who, Ask::Campaign { attempt, over })
            }
            Move::Renew { reign } => {
                self.ask(truth, who, Ask::Renew { reign, sent: now });
                self.add(truth + 1, Event::Turn(who));
            }
            Move::Wait(until) => {
                // As the service does: it watches, here by looking now and then.
                let pause = until.since(now).as_millis().min(u128::from(RETRY_MS));
                let leads = member.candidate.leads(now).is_some();
                let pause = u64::try_from(pause).unwrap() + 1;
                if !leads {
                    self.ask(truth, who, Ask::Look);
                } else {
                    self.add(truth + pause, Event::Turn(who));
                }
            }
        }
    }

    fn ask(&mut self, truth: u64, who: usize, ask: Ask) {
        let fate = self.fates[self.used % self.fates.len()];
        self.used += 1;
        let life = self.members[who].life;
        let number = self.used;
        let by = Asked { who, life, number };
        // Renewals are not waited for.
        let waits = matches!(ask, Ask::Look | Ask::Campaign { .. });
        if waits {
            self.members[who].waiting = Some(number);
            self.add(truth + RETRY_MS, Event::Unanswered(by));
        }
        if fate.arrives {
            let back = fate.answered.then_some(fate.back_ms);
            self.add(truth + fate.out_ms, Event::Arrives { by, ask, back });
        }
    }

    /// The store: linearizable, all or nothing.
    fn store(&mut self, by: Asked, ask: Ask) -> Said {
        let keys = &mut self.keys;
        match ask {
            Ask::Look => Said::Keys {
                reign: keys.reign,
                renewal: keys.renewal,
                writer: keys.writer,
            },
            Ask::Campaign { attempt, over }
                if (over.reign, over.renewal) == (keys.reign, keys.renewal) =>
            {
                keys.revision += 1;
                (keys.reign, keys.renewal) = (keys.revision, keys.revision);
                keys.writer = (by.who, by.life, attempt);
                self.reigns += 1;
                Said::Done(keys.revision)
            }
            Ask::Renew { reign, .. } if reign == keys.reign => {
                keys.revision += 1;
                keys.renewal = keys.revision;
                Said::Done(keys.revision)
            }
            Ask::Vacate { reign } if reign == keys.reign => {
                keys.revision += 1;
                (keys.reign, keys.renewal) = (0, 0);
                Said::Done(keys.revision)
            }
            Ask::Campaign { .. } | Ask::Renew { .. } | Ask::Vacate { .. } => Said::Conflict,
        }
    }

    fn hear(&mut self, truth: u64, by: Asked, ask: Ask, said: Said) {
        let Asked { who, life, number } = by;
        let member = &mut self.members[who];
        if member.life != life {
            return;
        }
        if member.paused_until_ms > truth {
            let later = member.paused_until_ms;
            return self.add(later, Event::Answer { by, ask, said });
        }
        let now = member.clock(truth);
        match (ask, said) {
            (
                Ask::Look,
                Said::Keys {
                    reign,
                    renewal,
                    writer,
                },
            ) => {
                let own = (reign > 0 && (writer.0, writer.1) == (who, life)).then_some(writer.2);
                member.candidate.on_seen(
                    Seen {
                        reign,
                        renewal,
                        own,
                    },
                    now,
                );
            }
            (Ask::Campaign { attempt, .. }, Said::Done(reign)) => {
                member.candidate.on_won(attempt, reign, now)
            }
            (Ask::Campaign { attempt, .. }, Said::Conflict) => member.candidate.on_lost(attempt),
            (Ask::Renew { reign, sent }, Said::Done(_)) => {
                member.candidate.on_renewed(reign, sent, now)
            }
            (Ask::Renew { reign, .. }, Said::Conflict) => member.candidate.on_deposed(reign),
            (Ask::Vacate { .. }, _) | (_, Said::Keys { .. }) | (Ask::Look, _) => {}
        }
        if member.waiting == Some(number) {
            member.waiting = None;
            // Somebody who looks all the time looks now and then.
            let pause = if matches!(ask, Ask::Look) { 20 } else { 0 };
            self.add(truth + pause, Event::Turn(who));
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    let delay = prop_oneof![8 => 0..20_u64, 2 => 0..2_000_u64, 1 => 0..9_000_u64];
    let often = || prop::bool::weighted(0.9);
    (delay.clone(), delay, often(), often()).prop_map(|(out_ms, back_ms, arrives, answered)| Fate {
        out_ms,
        back_ms,
        arrives,
        answered,
    })
}

fn blow() -> impl Strategy<Value = (usize, u64, Blow)> {
    let blow = prop_oneof![
        3 => (100..12_000_u64).prop_map(Blow::Pause),
        1 => Just(Blow::Restart),
        1 => Just(Blow::Resign),
    ];
    (0..3_usize, 0..30_000_u64, blow)
}

fn clocks() -> impl Strategy<Value = Vec<(u64, u64)>> {
    vec((995_000..=1_005_000_u64, 1..100_000_u64), 2..=3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// K1, K4, K5
    #[test]
    fn no_two_lead_at_the_same_time_whatever_the_store_answers_and_when(
        clocks in clocks(),
        fates in vec(fate(), 1..200),
        blows in vec(blow(), 0..8),
    ) {
        World::new(&clocks, fates, &blows).run();
    }

    /// K3
    #[test]
    fn a_leader_that_renews_in_time_is_never_taken_over_from(
        clocks in clocks(),
        fates in vec((0..200_u64, 0..200_u64), 1..50),
    ) {
        let fate = |&(out_ms, back_ms): &(u64, u64)| Fate {
            // Within the time that a candidate waits for an answer.
            out_ms: out_ms / 3,
            back_ms: back_ms / 3,
            arrives: true,
            answered: true,
        };
        let mut world = World::new(&clocks, fates.iter().map(fate).collect(), &[]);

        world.run();

        prop_assert_eq!(world.reigns, 1);
    }

    /// Somebody leads again, soon after the leader was stopped for good.
    #[test]
    fn a_leader_that_stops_is_followed_within_a_padded_term(
        clocks in clocks(), at_ms in 3_000..20_000_u64, resigns in any::<bool>(),
    ) {
        let prompt = Fate { out_ms: 2, back_ms: 2, arrives: true, answered: true };
        let mut world = World::new(&clocks, vec![prompt], &[]);
        let mut stopped = None;
        let mut led_again = None;
        while let Some(((truth, _), event)) = world.agenda.pop_first() {
            if truth > END_MS { break; }
            world.happen(truth, event);
            world.check(truth);
            let leader = world.members.iter().position(|member| {
                member.candidate.leads(member.clock(truth)).is_some()
            });
            match (stopped, leader) {
                (None, Some(who)) if truth >= at_ms => {
                    if resigns { world.blow(truth, who, Blow::Resign); }
                    world.blow(truth, who, Blow::Pause(END_MS));
                    stopped = Some((who, truth));
                }
                (Some((old, _)), Some(who)) if who != old && led_again.is_none() => led_again = Some(truth),
                _ => {}
            }
        }

        let took = led_again.expect("somebody leads") - stopped.unwrap().1;
        let bound = if resigns { 200 } else { 5_700 };
        prop_assert!(took <= bound, "{} ms", took);
    }
}
