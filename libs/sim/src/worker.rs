//! A worker: it acts until the timer beside it ends it.

use tether_clock::Tick;
use tether_types::Epoch;

use crate::{
    Mutant,
    agenda::Event,
    node::reading,
    oracle::KILL,
    world::{World, nanos},
};

/// A worker that lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worker {
    pub(crate) epoch: Epoch,
    /// Its end as its agent counts.
    pub(crate) deadline: Tick,
    /// Its end on the clock of the kernel's timer.
    pub(crate) timer: u64,
    /// When the timer is looked at next.
    pub(crate) armed: u64,
    pub(crate) dying: bool,
    /// Until when it may live, in truth: for the oracle.
    pub(crate) permitted: u64,
    /// Its end was set by somebody whose machine was paused, unseen by its clocks.
    pub(crate) excused: bool,
}

impl World {
    /// Sets the worker's timer to the end of the lease.
    pub(crate) fn extend_worker(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (Some(worker), Some(holder)) = (&mut node.worker, &node.holder) else {
            return;
        };
        if worker.dying {
            return;
        }
        worker.deadline = holder.deadline();
        worker.timer = match self.mutant {
            Some(Mutant::MonotonicOnly) => worker.deadline.as_nanos(),
            _ => node.time.on_boot(worker.deadline).as_nanos(),
        };
        self.arm(index);
    }

    /// Has the timer looked at when it may have run out; not again where that is done before anyway.
    fn arm(&mut self, index: usize) {
        let only = self.mutant == Some(Mutant::MonotonicOnly);
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(worker) = &mut node.worker else {
            return;
        };
        let left = match node.in_process {
            true => {
                // Ahead by more than it will be: it is looked at again.
                let tick = node
                    .time
                    .on_reading(reading(&node.machine, self.mutant, now));
                nanos(worker.deadline.since(tick)) / 100 * 90
            }
            false => worker
                .timer
                .saturating_sub(node.machine.timer_clock(only, now)),
        };
        let at = now + node.machine.until(left).max(1_000);
        if at < worker.armed {
            worker.armed = at;
            self.agenda.add(at, Event::Timer { node: node.id });
        }
    }

    /// The timer may have run out.
    pub(crate) fn on_timer(&mut self, index: usize) {
        let (now, only) = (self.now, self.mutant == Some(Mutant::MonotonicOnly));
        let up_at = self.nodes[index].machine.up_at;
        let ticks = self.nodes[index].in_process.then(|| self.tick(index));
        let node = &mut self.nodes[index];
        let Some(worker) = &mut node.worker else {
            return;
        };
        if now < worker.armed || worker.dying || self.mutant == Some(Mutant::DeadlineInRpcLoop) {
            return;
        }
        worker.armed = u64::MAX;
        if !node.machine.is_up() {
            worker.armed = up_at;
            return self.agenda.add(up_at, Event::Timer { node: node.id });
        }
        let is_over = match ticks {
            Some(tick) => tick >= worker.deadline,
            None => node.machine.timer_clock(only, now) >= worker.timer,
        };
        if !is_over {
            return self.arm(index);
        }
        worker.dying = true;
        let (node, epoch) = (node.id, worker.epoch);
        let gone_at = now + self.chance.span(KILL);
        self.agenda.add(gone_at, Event::Gone { node, epoch });
    }

    /// A killed worker is gone.
    pub(crate) fn on_gone(&mut self, index: usize, epoch: Epoch) {
        let node = &self.nodes[index];
        if node.worker.is_none_or(|worker| worker.epoch != epoch) {
            return;
        }
        if !node.machine.is_up() {
            let event = Event::Gone {
                node: node.id,
                epoch,
            };
            return self.agenda.add(node.machine.up_at, event);
        }
        self.note(|| format!("the worker of node {index}, epoch {epoch}, is gone"));
        self.check_end(index, true);
        let node = &mut self.nodes[index];
        (node.worker, node.holder, node.found) = (None, None, false);
    }

    /// The machine runs again: its worker acts before anybody has looked at the time.
    pub(crate) fn on_resume(&mut self, index: usize, was_paused: bool) {
        let node = &mut self.nodes[index];
        if let Some(worker) = &mut node.worker {
            worker.excused |= was_paused;
            let (id, epoch) = (node.id, worker.epoch);
            self.agenda
                .add(self.now + KILL * 2, Event::Awake { node: id });
            self.act(index, epoch);
        }
    }
}
