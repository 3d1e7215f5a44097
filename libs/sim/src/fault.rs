//! What goes wrong, for how long, and what it does to whom.

use crate::{
    agenda::Event,
    chance::Chance,
    machine::{EXACT, Power},
    world::{LENGTH, SECOND, World},
};

/// Most faults of one schedule.
pub(crate) const FAULTS_MAX: u64 = 6;

/// How long after the last fault of an arbiter another leads at the latest, where there is another.
const FAILOVER: u64 = 18 * SECOND;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Messages between a node and arbiters are lost: to them, from them.
    Cut { node: u8, up: bool, down: bool },
    /// The same, with one arbiter.
    CutPair {
        node: u8,
        arbiter: u8,
        up: bool,
        down: bool,
    },
    /// Messages are lost, come twice, and come late, everywhere.
    Rough,
    /// A node's machine is paused, and none of its clocks shows it.
    Pause { node: u8 },
    /// A node's machine sleeps.
    Sleep { node: u8 },
    /// A node's agent is stopped.
    Hang { node: u8 },
    /// A node's agent ends, and another begins at the end.
    Restart { node: u8 },
    /// An arbiter ends, and another begins at the end.
    Crash { arbiter: u8 },
    /// An arbiter is stopped; its clocks go on.
    Stall { arbiter: u8 },
    /// An arbiter's machine is paused, or sleeps.
    Down { arbiter: u8, power: Power },
    /// An arbiter cannot reach the store.
    CutStore { arbiter: u8 },
    /// A gateway hears nothing of the store.
    CutGateway { gateway: u8 },
    /// A node's agent hears nothing and decides nothing, and what sends its beats goes on, as a stream does whose
    /// other half was dropped.
    Babble { node: u8 },
    /// NTP slews a machine's clocks.
    Slew { machine: u8, rate: u64 },
}

/// One fault of a schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) at: u64,
    pub(crate) until: u64,
    /// Whether it took hold: a machine that is down already is not stopped once more.
    held: bool,
}

impl Fault {
    pub(crate) fn draw(chance: &mut Chance, nodes: u64, arbiters: u64, in_process: bool) -> Self {
        let at = SECOND * 5 + chance.span(LENGTH - 60 * SECOND);
        // From a fraction of a second to two minutes, short ones as often as long ones.
        let scale = chance.pick(&[1, 8, 40, 120]) * SECOND;
        let until = at + SECOND / 5 + chance.span(scale);
        let node = small(chance.below(nodes));
        let arbiter = small(chance.below(arbiters));
        let (up, down) = chance.pick(&[(true, true), (true, false), (false, true)]);
        let kind = match chance.below(20) {
            0..=3 => Kind::Cut { node, up, down },
            4 => Kind::CutPair {
                node,
                arbiter,
                up,
                down,
            },
            5 => Kind::Rough,
            6 | 7 => Kind::Pause { node },
            8 | 9 => Kind::Sleep { node },
            10 if !in_process => Kind::Hang { node },
            10..=12 if !in_process => Kind::Restart { node },
            10..=13 => Kind::Crash { arbiter },
            14 => Kind::Stall { arbiter },
            15 => Kind::Down {
                arbiter,
                power: chance.pick(&[Power::Paused, Power::Asleep]),
            },
            16 => Kind::CutStore { arbiter },
            17 => Kind::CutGateway { gateway: node % 2 },
            18 => Kind::Babble { node },
            _ => {
                let rate = slewed(chance, in_process);
                Kind::Slew {
                    machine: small(chance.below(nodes + arbiters)),
                    rate,
                }
            }
        };
        Self {
            kind,
            at,
            until,
            held: false,
        }
    }

    /// Nodes whose beats it may keep from extending.
    fn troubles(&self, node: u8) -> bool {
        match self.kind {
            Kind::Cut { node: at, .. }
            | Kind::CutPair { node: at, .. }
            | Kind::Pause { node: at }
            | Kind::Sleep { node: at }
            | Kind::Hang { node: at }
            | Kind::Restart { node: at }
            | Kind::Babble { node: at } => at == node,
            Kind::Rough
            | Kind::Crash { .. }
            | Kind::Stall { .. }
            | Kind::Down { .. }
            | Kind::CutStore { .. } => true,
            Kind::CutGateway { .. } | Kind::Slew { .. } => false,
        }
    }

    fn arbiter(&self) -> Option<usize> {
        match self.kind {
            Kind::Crash { arbiter }
            | Kind::Stall { arbiter }
            | Kind::Down { arbiter, .. }
            | Kind::CutStore { arbiter } => Some(usize::from(arbiter)),
            _ => None,
        }
    }
}

fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A rate of `MONOTONIC`: within what a lease allows where the kernel's own timer counts by it, and as far
/// as NTP goes where holder and grantor ask more than one clock.
pub(crate) fn slewed(chance: &mut Chance, far: bool) -> u64 {
    let most = if far { 80_000 } else { 5_000 };
    match chance.below(4) {
        0 => EXACT - most,
        1 => EXACT + most,
        _ => EXACT - most + chance.below(2 * most + 1),
    }
}

impl World {
    pub(crate) fn on_fault(&mut self, index: u8) {
        let mut fault = self.faults[usize::from(index)];
        fault.held = self.begin(&fault);
        self.faults[usize::from(index)] = fault;
        self.note(|| {
            format!(
                "fault: {:?} until {:.3} s",
                fault.kind,
                fault.until as f64 / 1e9
            )
        });
        if !fault.held {
            return;
        }
        self.agenda.add(fault.until, Event::Heals(index));
        for node in &mut self.nodes {
            if fault.troubles(node.id) {
                node.begin_trouble(self.now, self.setup.enough());
            }
        }
        // Where another can lead, it soon does; else the same one does again.
        let settled = match fault.arbiter() {
            Some(at) if self.arbiters.len() > 1 => {
                self.arbiter_trouble[at] += 1;
                let other_leads = self.arbiter_trouble[1 - at] == 0;
                if other_leads {
                    self.now + FAILOVER
                } else {
                    fault.until + FAILOVER
                }
            }
            Some(_) => fault.until + SECOND,
            None => fault.until,
        };
        self.agenda.add(settled, Event::Settled(index));
    }

    pub(crate) fn on_settled(&mut self, index: u8) {
        let fault = self.faults[usize::from(index)];
        for node in &mut self.nodes {
            if fault.troubles(node.id) {
                node.trouble -= 1;
                node.calm_since = self.now;
            }
        }
    }

    /// Whether it took hold.
    fn begin(&mut self, fault: &Fault) -> bool {
        let (now, until) = (self.now, fault.until);
        match fault.kind {
            Kind::Cut { node, up, down } => {
                for arbiter in 0..self.arbiters.len() {
                    self.cut(usize::from(node), arbiter, up, down);
                }
                self.note_deaf(usize::from(node));
            }
            Kind::CutPair {
                node,
                arbiter,
                up,
                down,
            } => {
                self.cut(usize::from(node), usize::from(arbiter), up, down);
                self.note_deaf(usize::from(node));
            }
            Kind::Rough => self.rough += 1,
            Kind::Pause { node } => return self.stop_node(node, Power::Paused, until),
            Kind::Sleep { node } => return self.stop_node(node, Power::Asleep, until),
            Kind::Hang { node } => {
                let node = &mut self.nodes[usize::from(node)];
                node.away_until = node.away_until.max(until);
            }
            Kind::Restart { node } => {
                let node = &mut self.nodes[usize::from(node)];
                let until = node.away_until.max(until);
                node.restart_agent(until, self.mutant, now);
                let (node, at_life) = (node.id, node.life);
                self.agenda.add(until, Event::Beat { node, at_life });
            }
            Kind::Crash { arbiter } => {
                let arbiter = &mut self.arbiters[usize::from(arbiter)];
                if arbiter.crashed {
                    return false;
                }
                arbiter.crashed = true;
            }
            Kind::Stall { arbiter } => {
                let arbiter = &mut self.arbiters[usize::from(arbiter)];
                arbiter.away_until = arbiter.away_until.max(until);
            }
            Kind::Down { arbiter, power } => {
                let machine = &mut self.arbiters[usize::from(arbiter)].machine;
                if !machine.is_up() {
                    return false;
                }
                machine.stop(power, now, until);
            }
            Kind::CutStore { arbiter } => self.arbiters[usize::from(arbiter)].cut += 1,
            Kind::CutGateway { gateway } => self.cut_gateway(usize::from(gateway)),
            Kind::Babble { node } => {
                self.nodes[usize::from(node)].babbles += 1;
                self.note_deaf(usize::from(node));
            }
            Kind::Slew { machine, rate } => {
                let machine = usize::from(machine);
                match machine.checked_sub(self.nodes.len()) {
                    Some(arbiter) => self.arbiters[arbiter].machine.slew(rate, now),
                    None => self.nodes[machine].machine.slew(rate, now),
                }
            }
        }
        true
    }

    pub(crate) fn on_heal(&mut self, index: u8) {
        let (now, fault) = (self.now, self.faults[usize::from(index)]);
        if let Some(at) = fault.arbiter()
            && self.arbiters.len() > 1
        {
            self.arbiter_trouble[at] -= 1;
        }
        match fault.kind {
            Kind::Cut { node, up, down } => {
                for arbiter in 0..self.arbiters.len() {
                    self.mend(usize::from(node), arbiter, up, down);
                }
                self.note_deaf(usize::from(node));
            }
            Kind::CutPair {
                node,
                arbiter,
                up,
                down,
            } => {
                self.mend(usize::from(node), usize::from(arbiter), up, down);
                self.note_deaf(usize::from(node));
            }
            Kind::Rough => self.rough -= 1,
            Kind::Pause { node } | Kind::Sleep { node } => {
                self.nodes[usize::from(node)].machine.resume(now);
                self.on_resume(usize::from(node), matches!(fault.kind, Kind::Pause { .. }));
            }
            Kind::Crash { arbiter } => {
                let terms = self.setup.leading;
                self.arbiters[usize::from(arbiter)].restart(terms, now);
                self.start_arbiter(usize::from(arbiter));
            }
            Kind::Down { arbiter, .. } => {
                self.arbiters[usize::from(arbiter)].machine.resume(now);
                self.wait_over();
            }
            Kind::Stall { .. } => self.wait_over(),
            Kind::Babble { node } => {
                self.nodes[usize::from(node)].babbles -= 1;
                self.note_deaf(usize::from(node));
            }
            Kind::CutStore { arbiter } => self.arbiters[usize::from(arbiter)].cut -= 1,
            Kind::CutGateway { gateway } => self.rejoin_gateway(usize::from(gateway)),
            Kind::Hang { .. } | Kind::Restart { .. } | Kind::Slew { .. } => {}
        }
    }

    /// What was said to an arbiter while it did not run is heard only then, deaf as its sender may be since.
    fn wait_over(&mut self) {
        for node in &mut self.nodes {
            node.anew = self.now;
        }
    }

    fn stop_node(&mut self, node: u8, power: Power, until: u64) -> bool {
        let machine = &mut self.nodes[usize::from(node)].machine;
        let is_up = machine.is_up();
        if is_up {
            machine.stop(power, self.now, until);
        }
        is_up
    }
}
