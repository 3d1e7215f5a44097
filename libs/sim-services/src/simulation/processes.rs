//! The processes of one machine's workers, and its kernel's timers: they outlive the agent, and need it for nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tether_agent::hands::Permissions;
use tether_clock::Tick;
use tether_types::{DeathCause, WorkerId};
use tokio::sync::Notify;

use super::{
    clocks::{self, Host},
    mutant::Mutant,
};

/// One worker under its shim.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// When it ends by itself, by the machine's `BOOTTIME`.
    until: Tick,
    /// When it ends because it was told to, and why.
    ending: Option<(Tick, DeathCause)>,
    /// Why it is dead, once it is.
    pub(crate) death: Option<DeathCause>,
    pub(crate) pid: u32,
    kill_on_agent_loss: bool,
    /// Rings when it died.
    pub(crate) died: Arc<Notify>,
}

/// Those of one machine; clones show the same.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    pub(crate) host: Host,
    mutant: Option<Mutant>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    all: BTreeMap<WorkerId, Process>,
    pids: u32,
}

impl Processes {
    pub(crate) fn new(host: Host, mutant: Option<Mutant>) -> Self {
        Self {
            host,
            mutant,
            table: Arc::default(),
        }
    }

    /// What the kernel's timers do, whoever is stopped, hung or gone.
    pub(crate) fn fire(&self) {
        if self.mutant != Some(Mutant::DeadlineInRpcLoop) {
            self.lock().end_what_is_over(clocks::boot(self.host));
        } else {
            self.lock().end_what_was_told_to(clocks::boot(self.host));
        }
    }

    /// Starts one, unless its permission is over; tells whether it did.
    pub(crate) fn start(&self, id: &WorkerId, until: Tick, kill_on_agent_loss: bool) -> Process {
        let mut table = self.lock();
        table.pids += 1;
        let is_over = until <= clocks::boot(self.host);
        let process = Process {
            until,
            ending: None,
            death: is_over.then_some(DeathCause::LeaseExpired),
            pid: table.pids,
            kill_on_agent_loss,
            died: Arc::default(),
        };
        table.all.insert(id.clone(), process.clone());
        process
    }

    /// Stores what was granted, after what is over has ended: it is not to see the next term.
    pub(crate) fn permit(&self, granted: &Permissions, term: std::time::Duration) -> bool {
        let now = clocks::boot(self.host);
        let mut table = self.lock();
        table.end_what_is_over(now);
        let mut nearer = false;
        for (id, process) in &mut table.all {
            let alive_until = granted.alive_until(id);
            let Some(pool) = granted.pool(&id.pool).filter(|_| alive_until > Tick::ZERO) else {
                continue;
            };
            let alive_until = match self.mutant {
                Some(Mutant::ReceiptAnchor) => now + term + alive_until.since(granted.node),
                _ => alive_until,
            };
            let until = alive_until.min(pool.deadline);
            nearer |= until < process.until;
            process.until = until;
        }
        nearer
    }

    /// Ends one by `at`.
    pub(crate) fn end(&self, id: &WorkerId, at: Tick, cause: DeathCause) {
        if let Some(process) = self.lock().all.get_mut(id) {
            process.ending.get_or_insert((at, cause));
        }
    }

    /// The agent is gone.
    pub(crate) fn on_agent_lost(&self) {
        for process in self.lock().all.values_mut() {
            if process.kill_on_agent_loss {
                process.die(DeathCause::AgentGone);
            }
        }
    }

    /// An agent has come that takes them over.
    pub(crate) fn found(&self, term: std::time::Duration) -> Vec<(WorkerId, Process)> {
        let now = clocks::boot(self.host);
        let mut table = self.lock();
        if self.mutant == Some(Mutant::AgentRestartResetsClock) {
            for process in table.all.values_mut() {
                process.until = process.until.max(now + term);
            }
        }
        let all = table.all.iter();
        all.map(|(id, process)| (id.clone(), process.clone()))
            .collect()
    }

    /// Why it is dead, if it is.
    pub(crate) fn death(&self, id: &WorkerId) -> Option<DeathCause> {
        self.lock().all.get(id)?.death
    }

    /// Its death is recorded.
    pub(crate) fn forget(&self, id: &WorkerId) {
        let mut table = self.lock();
        if table.all.get(id).is_some_and(|it| it.death.is_some()) {
            table.all.remove(id);
        }
    }

    /// Of all that are there: whether they live, or why they died.
    pub(crate) fn look(&self) -> Vec<(WorkerId, Option<DeathCause>)> {
        let table = self.lock();
        let all = table.all.iter();
        all.map(|(id, process)| (id.clone(), process.death))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn end_what_is_over(&mut self, now: Tick) {
        self.end_what_was_told_to(now);
        for process in self.all.values_mut() {
            if now >= process.until {
                process.die(DeathCause::LeaseExpired);
            }
        }
    }

    fn end_what_was_told_to(&mut self, now: Tick) {
        for process in self.all.values_mut() {
            if let Some((at, cause)) = process.ending
                && now >= at
            {
                process.die(cause);
            }
        }
    }
}

impl Process {
    fn die(&mut self, cause: DeathCause) {
        if self.death.is_none() {
            self.death = Some(cause);
            self.died.notify_one();
        }
    }
}
