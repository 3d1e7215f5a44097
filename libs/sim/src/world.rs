//! One schedule: nodes that want a slot, one or two arbiters, a store, gateways, and what happens to them in ten
//! minutes. Every node, arbiter and fence runs the real core; clocks, network and faults are drawn from the seed.

use std::time::Duration;

use tether_lease::{LeaderTerms, Margins, Terms};

use crate::{
    Mutant, Violation,
    agenda::{Agenda, Down, Event, Store, Up},
    arbiter::Arbiter,
    chance::Chance,
    fault::{FAULTS_MAX, Fault, slewed},
    gate::{Gateway, Resource},
    machine::{EXACT, Machine},
    node::Node,
    oracle::DELAY_MAX,
};

pub(crate) const SECOND: u64 = 1_000_000_000;

/// How long a schedule is.
pub(crate) const LENGTH: u64 = 600 * SECOND;

/// What a message takes at most where nothing is wrong: in one room, or between cities.
const DELAYS: &[u64] = &[1_000_000, 60_000_000];

/// Clocks are off by no more than this part in a million, unless NTP slews them.
const RHO_PPM: u64 = 5_000;

const NODES_MAX: usize = 4;

/// What holds for a whole schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) terms: Terms,
    pub(crate) leading: LeaderTerms,
    pub(crate) ttl: u64,
    pub(crate) beat: u64,
    delay: u64,
    /// What workers write to crashes before many a write.
    pub(crate) crashing_resources: bool,
}

impl Setup {
    /// After so long without trouble a beat has got through: one to the arbiter that does not lead, one that does
    /// not prove that answers arrive, and one that does.
    pub(crate) fn enough(&self) -> u64 {
        self.beat * 3 + self.beat / 4 + 2 * SECOND
    }
}

/// How a schedule went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was broken first, if anything was.
    pub violation: Option<Violation>,
    /// How many events it had.
    pub events: u64,
    /// How often a slot was granted.
    pub grants: u64,
}

/// The world of one schedule.
#[derive(Debug)]
pub struct World {
    pub(crate) now: u64,
    pub(crate) chance: Chance,
    pub(crate) agenda: Agenda,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<Node>,
    pub(crate) arbiters: Vec<Arbiter>,
    pub(crate) store: Store,
    pub(crate) resources: [Resource; 2],
    pub(crate) gateways: [Gateway; 2],
    pub(crate) faults: Vec<Fault>,
    pub(crate) arbiter_trouble: [u32; 2],
    pub(crate) rough: u32,
    /// How many faults cut each node from each arbiter: up, down.
    cuts: [[[u32; 2]; 2]; NODES_MAX],
    pub(crate) violation: Option<Violation>,
    pub(crate) grants: u64,
    trace: Option<Vec<String>>,
}

impl World {
    /// The world of this seed.
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut chance = Chance::new(seed);
        let setup = setup(&mut chance, mutant);
        let mut world = Self {
            now: 0,
            chance,
            agenda: Agenda::default(),
            mutant,
            setup,
            nodes: Vec::with_capacity(NODES_MAX),
            arbiters: Vec::with_capacity(2),
            store: Store::default(),
            resources: Default::default(),
            gateways: Default::default(),
            faults: Vec::with_capacity(8),
            arbiter_trouble: [0; 2],
            rough: 0,
            cuts: Default::default(),
            violation: None,
            grants: 0,
            trace: None,
        };
        world.people();
        world
    }

    fn people(&mut self) {
        let chance = &mut self.chance;
        // Two for one slot, three for one, or two for each of two.
        let slots: &[usize] = chance.pick(&[&[0, 0][..], &[0, 0, 0], &[0, 0, 1, 1]]);
        let in_process = chance.one_in(3);
        let far = in_process;
        for (id, &slot) in (0..).zip(slots) {
            let machine = machine(chance, far);
            self.nodes
                .push(Node::new(id, slot, in_process, machine, self.mutant));
            self.agenda.add(
                chance.span(2 * SECOND),
                Event::Beat {
                    node: id,
                    at_life: 0,
                },
            );
        }
        let arbiters = 1 + chance.below(2);
        for id in 0..arbiters {
            let machine = machine(chance, far);
            let id = u8::try_from(id).unwrap_or(0);
            self.arbiters
                .push(Arbiter::new(id, machine, self.setup.leading));
        }
        let faults = 1 + self.chance.below(FAULTS_MAX);
        for index in 0..faults {
            let fault = Fault::draw(&mut self.chance, slots.len() as u64, arbiters, in_process);
            self.agenda
                .add(fault.at, Event::Fault(u8::try_from(index).unwrap_or(0)));
            self.faults.push(fault);
        }
        for at in 0..self.arbiters.len() {
            self.start_arbiter(at);
        }
    }

    pub(crate) fn start_arbiter(&mut self, at: usize) {
        let at_life = self.arbiters[at].life;
        let arbiter = u8::try_from(at).unwrap_or(0);
        let first = self.now + self.chance.span(SECOND / 2);
        self.agenda.add(first, Event::Lead { arbiter, at_life });
    }

    /// Writes down what happens, for [`World::trace`].
    pub fn traced(mut self) -> Self {
        self.trace = Some(vec![format!("{:?}", self.setup)]);
        self
    }

    /// What happened.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let at = self.now as f64 / 1e9;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{at:8.3} {}", text()));
        }
    }

    /// Plays the schedule to its end, or to the first promise that is broken.
    pub fn play(&mut self) -> Outcome {
        let mut events = 0;
        while let Some((at, event)) = self.agenda.next() {
            if at > LENGTH || self.violation.is_some() {
                break;
            }
            self.now = at;
            events += 1;
            self.happens(event);
        }
        self.now = self.now.min(LENGTH);
        for index in 0..self.nodes.len() {
            self.check_end(index, false);
        }
        Outcome {
            violation: self.violation.clone(),
            events,
            grants: self.grants,
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Beat { node, at_life } => self.on_beat_due(usize::from(node), at_life),
            Event::Timer { node } => self.on_timer(usize::from(node)),
            Event::Gone { node, epoch } => self.on_gone(usize::from(node), epoch),
            Event::Arrives {
                node,
                arbiter,
                said,
            } => self.on_message(usize::from(arbiter), node, said),
            Event::Answers {
                node,
                at_life,
                said,
            } => self.on_answer(usize::from(node), at_life, said),
            Event::Lead { arbiter, at_life } => self.on_lead(usize::from(arbiter), at_life),
            Event::Renewal {
                arbiter,
                at_life,
                reign,
                sent,
            } => self.on_renewal(usize::from(arbiter), at_life, reign, sent),
            Event::Renewed {
                arbiter,
                at_life,
                reign,
                sent,
                committed,
            } => {
                self.on_renewed(usize::from(arbiter), at_life, (reign, sent, committed));
            }
            Event::Write { node, epoch } => self.write(usize::from(node), epoch),
            Event::Awake { node } => self.check_live(self.nodes[usize::from(node)].slot),
            Event::Fault(index) => self.on_fault(index),
            Event::Heals(index) => self.on_heal(index),
            Event::Settled(index) => self.on_settled(index),
        }
    }

    pub(crate) fn cut(&mut self, node: usize, arbiter: usize, up: bool, down: bool) {
        let [to, from] = &mut self.cuts[node][arbiter];
        *to += u32::from(up);
        *from += u32::from(down);
    }

    pub(crate) fn mend(&mut self, node: usize, arbiter: usize, up: bool, down: bool) {
        let [to, from] = &mut self.cuts[node][arbiter];
        *to -= u32::from(up);
        *from -= u32::from(down);
    }

    /// Whether a node hears no arbiter any more, or hears one again.
    pub(crate) fn note_deaf(&mut self, node: usize) {
        let is_deaf = self.cuts[node][..self.arbiters.len()]
            .iter()
            .all(|[_, from]| *from > 0);
        let is_deaf = is_deaf || self.nodes[node].babbles > 0;
        let deaf_since = &mut self.nodes[node].deaf_since;
        *deaf_since = is_deaf.then(|| deaf_since.unwrap_or(self.now));
    }

    pub(crate) fn send_up(&mut self, node: usize, arbiter: usize, said: Up) {
        if self.cuts[node][arbiter][0] > 0 {
            return;
        }
        let id = self.nodes[node].id;
        let arbiter = u8::try_from(arbiter).unwrap_or(0);
        self.carry(Event::Arrives {
            node: id,
            arbiter,
            said,
        });
    }

    pub(crate) fn send_down(&mut self, arbiter: usize, node: usize, said: Down) {
        if self.cuts[node][arbiter][1] > 0 || self.nodes[node].babbles > 0 {
            return;
        }
        let to = &self.nodes[node];
        let event = Event::Answers {
            node: to.id,
            at_life: to.life,
            said,
        };
        self.carry(event);
    }

    /// The network: late, lost and twice only where something is wrong.
    fn carry(&mut self, event: Event) {
        if self.rough == 0 {
            let at = self.now + self.chance.span(self.setup.delay);
            return self.agenda.add(at, event);
        }
        if self.chance.one_in(3) {
            return;
        }
        let copies = if self.chance.one_in(4) { 2 } else { 1 };
        for _ in 0..copies {
            let most = self
                .chance
                .pick(&[self.setup.delay, self.setup.delay, SECOND, DELAY_MAX]);
            let at = self.now + self.chance.span(most);
            self.agenda.add(at, event);
        }
    }
}

impl Node {
    /// Something may keep its beats from extending; until now it was quiet for long enough, or not.
    pub(crate) fn begin_trouble(&mut self, now: u64, enough: u64) {
        if self.trouble == 0 && now - self.calm_since >= enough {
            self.good = now - enough;
        }
        self.trouble += 1;
    }
}

/// Terms of the schedule; a mutant leaves every margin out.
fn setup(chance: &mut Chance, mutant: Option<Mutant>) -> Setup {
    let (ttl, beat) = chance.pick(&[(20, 5), (20, 5), (60, 10), (40, 8)]);
    let span = Duration::from_secs(ttl);
    let usual = Margins::usual(span);
    let margins = match mutant {
        Some(Mutant::NoMargin) => Margins {
            rho_ppm: 0,
            slack: Duration::from_nanos(1),
            ..usual
        },
        _ => usual,
    };
    let terms = Terms::new(span, margins).expect("the usual terms are valid");
    let leading = LeaderTerms::new(
        Duration::from_secs(10),
        Duration::from_secs(2),
        Duration::from_millis(500),
    );
    Setup {
        terms,
        leading: leading.expect("ten seconds are enough for five renewals"),
        ttl: ttl * SECOND,
        beat: beat * SECOND,
        delay: chance.pick(DELAYS),
        crashing_resources: chance.one_in(3),
    }
}

/// Clocks at the edges of what is allowed more often than not, and all wrong in the same way as often as in different ones.
fn machine(chance: &mut Chance, far: bool) -> Machine {
    let age = SECOND * (100 + chance.below(1_000));
    match chance.below(4) {
        0 => Machine::new(EXACT - RHO_PPM, EXACT - RHO_PPM, age),
        1 => Machine::new(EXACT + RHO_PPM, EXACT + RHO_PPM, age),
        _ => Machine::new(slewed(chance, false), slewed(chance, far), age),
    }
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
