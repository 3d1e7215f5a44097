//! A node: a machine with an agent that asks for a slot and holds it.

use tether_clock::{HolderTime, Reading, Tick};
use tether_lease::{Holder, Standing};
use tether_types::Epoch;

use crate::{
    Mutant,
    agenda::{Down, Event, Up},
    machine::Machine,
    worker::Worker,
    world::World,
};

/// Beats whose answer may still come.
const PENDING: usize = 8;

/// When something was said: on the agent's clock, and in truth.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said {
    seq: u64,
    tick: Tick,
    truth: u64,
}

/// One candidate for a slot.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u8,
    pub(crate) slot: usize,
    /// Holder and worker are one process, as an owner's are, and no kernel's timer is in between.
    pub(crate) in_process: bool,
    pub(crate) machine: Machine,
    pub(crate) time: HolderTime,
    /// Until when its agent hangs or is not there.
    pub(crate) away_until: u64,
    /// How many faults have its beats sent by nobody.
    pub(crate) babbles: u32,
    /// Which agent it is.
    pub(crate) life: u32,
    /// When something last began anew for it, so that one beat extends without proof.
    pub(crate) anew: u64,
    /// Since when no answer reaches it.
    pub(crate) deaf_since: Option<u64>,
    /// How often its lease was extended since then, or since it began anew: for the oracle.
    pub(crate) on_trust: (u64, u32),
    /// Faults that touch it, since when there is none, and the last time there was none for long enough.
    pub(crate) trouble: u32,
    pub(crate) calm_since: u64,
    pub(crate) good: u64,
    target: usize,
    seq: u64,
    ack_seen: u64,
    said: [Said; PENDING],
    accepted: Option<(Epoch, Said)>,
    /// The epoch it holds or found, and whether it may beat for it.
    epoch: Epoch,
    pub(crate) holder: Option<Holder>,
    pub(crate) found: bool,
    pub(crate) worker: Option<Worker>,
}

impl Node {
    pub(crate) fn new(
        id: u8,
        slot: usize,
        in_process: bool,
        machine: Machine,
        mutant: Option<Mutant>,
    ) -> Self {
        let time = HolderTime::new(reading(&machine, mutant, 0));
        Self {
            id,
            slot,
            in_process,
            machine,
            time,
            away_until: 0,
            babbles: 0,
            life: 0,
            anew: 0,
            deaf_since: None,
            on_trust: (0, 0),
            trouble: 0,
            calm_since: 0,
            good: 0,
            target: 0,
            seq: 0,
            ack_seen: 0,
            said: [Said::default(); PENDING],
            accepted: None,
            epoch: Epoch(0),
            holder: None,
            found: false,
            worker: None,
        }
    }

    fn said(&mut self, seq: u64) -> Option<Said> {
        let said = self.said[seq as usize % PENDING];
        (seq > 0 && said.seq == seq).then_some(said)
    }

    /// A new agent: it knows what its journal says, and no time.
    pub(crate) fn restart_agent(&mut self, until: u64, mutant: Option<Mutant>, now: u64) {
        self.life += 1;
        self.time = HolderTime::new(reading(&self.machine, mutant, now));
        self.away_until = until;
        self.holder = None;
        self.accepted = None;
        (self.seq, self.ack_seen) = (0, 0);
        self.said = [Said::default(); PENDING];
        self.found = self.worker.is_some();
        self.anew = until;
    }
}

impl World {
    pub(crate) fn tick(&mut self, index: usize) -> Tick {
        let node = &mut self.nodes[index];
        node.time
            .on_reading(reading(&node.machine, self.mutant, self.now))
    }

    /// When what happens to an agent now happens: later, while it or its machine does not run.
    fn agent_runs_at(&self, index: usize) -> u64 {
        let node = &self.nodes[index];
        let up = if node.machine.is_up() {
            0
        } else {
            node.machine.up_at
        };
        up.max(node.away_until)
    }

    /// The agent's beat or question is due.
    pub(crate) fn on_beat_due(&mut self, index: usize, at_life: u32) {
        let (later, id) = (self.agent_runs_at(index), self.nodes[index].id);
        if self.nodes[index].life != at_life {
            return;
        }
        if later > self.now {
            return self.agenda.add(later, Event::Beat { node: id, at_life });
        }
        let tick = self.tick(index);
        let waits = if self.nodes[index].babbles > 0 {
            self.beat(index, tick);
            false
        } else {
            self.start_over(index, tick);
            self.look_between_calls(index, tick);
            self.speak(index, tick)
        };
        let pause = if waits {
            self.setup.beat * 2
        } else {
            self.setup.beat
        };
        let pause = pause - pause / 16 + self.chance.span(pause / 8);
        self.agenda
            .add(self.now + pause, Event::Beat { node: id, at_life });
    }

    /// A mutant's agent takes what it finds for just renewed.
    fn start_over(&mut self, index: usize, tick: Tick) {
        let node = &mut self.nodes[index];
        if node.found
            && node.holder.is_none()
            && node.seq == 0
            && self.mutant == Some(Mutant::AgentRestartResetsClock)
        {
            node.epoch = node.worker.map_or(Epoch(0), |worker| worker.epoch);
            node.holder = Some(Holder::granted(self.setup.terms, tick));
            self.extend_worker(index);
        }
    }

    /// A mutant's agent looks at the deadline when it is about to call, and a call takes as long as it takes.
    fn look_between_calls(&mut self, index: usize, tick: Tick) {
        let node = &mut self.nodes[index];
        if let Some(worker) = &mut node.worker
            && self.mutant == Some(Mutant::DeadlineInRpcLoop)
            && tick >= worker.deadline
            && !worker.dying
        {
            worker.dying = true;
            let (node, epoch) = (node.id, worker.epoch);
            self.agenda.add(self.now, Event::Gone { node, epoch });
        }
    }

    /// Says what there is to say; true when it only asks.
    fn speak(&mut self, index: usize, tick: Tick) -> bool {
        let truth = self.now;
        let node = &mut self.nodes[index];
        if node
            .holder
            .as_mut()
            .is_some_and(|holder| holder.check(tick) == Standing::Expired)
        {
            (node.holder, node.found) = (None, false);
        }
        if node.seq > node.ack_seen && self.arbiters.len() > 1 {
            node.target ^= 1;
        }
        if node.holder.is_none() && !node.found {
            // What still ends is ended first.
            if node.worker.is_none() {
                // Counts as unanswered, so that the other arbiter is asked next.
                node.seq += 1;
                if self.mutant == Some(Mutant::GrantWithoutAccept) {
                    node.accepted = Some((
                        Epoch(0),
                        Said {
                            seq: 0,
                            tick,
                            truth,
                        },
                    ));
                }
                self.say(index, Up::Ask);
            }
            return true;
        }
        if node.found && node.epoch == Epoch(0) {
            node.epoch = node.worker.map_or(Epoch(0), |worker| worker.epoch);
        }
        if node.found && node.holder.is_none() && node.ack_seen == 0 {
            node.seq += 1;
            let epoch = node.epoch;
            self.say(index, Up::Hello(epoch));
            return false;
        }
        self.beat(index, tick);
        false
    }

    fn beat(&mut self, index: usize, tick: Tick) {
        let truth = self.now;
        let node = &mut self.nodes[index];
        node.seq += 1;
        let (epoch, seq, ack_seen) = (node.epoch, node.seq, node.ack_seen);
        node.said[seq as usize % PENDING] = Said { seq, tick, truth };
        self.say(
            index,
            Up::Beat {
                epoch,
                seq,
                ack_seen,
            },
        );
    }

    fn say(&mut self, index: usize, said: Up) {
        let to = self.nodes[index].target;
        self.send_up(index, to, said);
    }

    /// An answer arrives at the machine.
    pub(crate) fn on_answer(&mut self, index: usize, at_life: u32, said: Down) {
        let (later, node) = (self.agent_runs_at(index), &self.nodes[index]);
        if node.life != at_life {
            return;
        }
        if later > self.now {
            let event = Event::Answers {
                node: node.id,
                at_life,
                said,
            };
            return self.agenda.add(later, event);
        }
        let tick = self.tick(index);
        match said {
            Down::Offer(epoch) => self.on_offer(index, epoch, tick),
            Down::Granted(epoch) => self.on_granted(index, epoch, tick),
            Down::Welcome(epoch) => self.on_welcome(index, epoch, tick),
            Down::Ack {
                epoch,
                seq,
                extended,
                excused,
            } => {
                if epoch == self.nodes[index].epoch {
                    self.on_ack(index, (seq, extended, excused), tick);
                }
            }
            Down::Lost(epoch) => {
                let node = &mut self.nodes[index];
                if epoch == node.epoch {
                    // Its worker is left to its timer.
                    (node.holder, node.found) = (None, false);
                }
            }
        }
    }

    fn on_offer(&mut self, index: usize, epoch: Epoch, tick: Tick) {
        let truth = self.now;
        let node = &mut self.nodes[index];
        if node.holder.is_some() || node.worker.is_some() {
            return;
        }
        // Of an offer that comes twice the first acceptance counts: the grantor may count from that one.
        if node.accepted.is_none_or(|(accepted, _)| accepted < epoch) {
            node.accepted = Some((
                epoch,
                Said {
                    seq: 0,
                    tick,
                    truth,
                },
            ));
        }
        self.say(index, Up::Accept(epoch));
    }

    fn on_granted(&mut self, index: usize, epoch: Epoch, tick: Tick) {
        let truth = self.now;
        let node = &mut self.nodes[index];
        let Some((accepted, said)) = node.accepted else {
            return;
        };
        let waited_for = accepted == epoch || self.mutant == Some(Mutant::GrantWithoutAccept);
        if !waited_for || node.holder.is_some() || node.worker.is_some() || epoch <= node.epoch {
            return;
        }
        let from = match self.mutant {
            Some(Mutant::ReceiptAnchor) => tick,
            _ => said.tick,
        };
        let mut holder = Holder::granted(self.setup.terms, from);
        node.accepted = None;
        if holder.check(tick) == Standing::Expired {
            return;
        }
        // Beats count for this worker from here on, however long all has been well; a grant may have come late.
        (node.good, node.calm_since) = (0, node.calm_since.max(truth));
        node.epoch = epoch;
        node.holder = Some(holder);
        node.ack_seen = node.seq;
        node.worker = Some(Worker {
            epoch,
            deadline: Tick::ZERO,
            timer: 0,
            armed: u64::MAX,
            dying: false,
            permitted: said.truth + self.setup.ttl,
            excused: node
                .machine
                .paused
                .is_some_and(|paused| paused > said.truth),
        });
        let slot = node.slot;
        self.note(|| format!("node {index} starts a worker in slot {slot}, epoch {epoch}"));
        self.extend_worker(index);
        self.check_live(slot);
        self.act(index, epoch);
    }

    fn on_welcome(&mut self, index: usize, epoch: Epoch, tick: Tick) {
        let node = &mut self.nodes[index];
        if node.found && epoch == node.epoch && node.ack_seen == 0 {
            // Beats are counted from here.
            node.ack_seen = node.seq;
            self.beat(index, tick);
        }
    }

    fn on_ack(&mut self, index: usize, (seq, extended, excused): (u64, bool, bool), tick: Tick) {
        let node = &mut self.nodes[index];
        let Some(said) = node.said(seq) else { return };
        node.ack_seen = node.ack_seen.max(seq);
        let alive = node.worker.is_some_and(|worker| !worker.dying);
        if !extended {
            if seq == node.seq && (node.holder.is_some() || node.found) {
                // The next beat shows that this answer arrived.
                self.beat(index, tick);
            }
            return;
        }
        let from = match self.mutant {
            Some(Mutant::ReceiptAnchor) => tick,
            _ => said.tick,
        };
        let ttl = self.setup.terms.ttl();
        let standing = match &mut node.holder {
            Some(holder) => holder.on_ack(from, ttl, tick),
            None if node.found && alive => {
                let holder = node.holder.insert(Holder::granted(self.setup.terms, from));
                holder.check(tick)
            }
            None => return,
        };
        if standing == Standing::Expired {
            (node.holder, node.found) = (None, false);
            return;
        }
        if let Some(worker) = &mut node.worker {
            worker.permitted = worker.permitted.max(said.truth + self.setup.ttl);
            let unseen = node
                .machine
                .paused
                .is_some_and(|paused| paused > said.truth);
            worker.excused = excused || (worker.excused && unseen);
            let epoch = worker.epoch;
            self.extend_worker(index);
            self.act(index, epoch);
        }
    }
}

/// What an agent reads of its machine's clocks.
pub(crate) fn reading(machine: &Machine, mutant: Option<Mutant>, now: u64) -> Reading {
    match mutant {
        Some(Mutant::MonotonicOnly) => machine.monotonic_reading(now),
        _ => machine.reading(now),
    }
}
