//! The slot itself: a process's events in, orders out.

use std::{collections::VecDeque, sync::Arc};

use tether_clock::Tick;
use tether_types::{DeathCause, Incarnation};

use crate::{Action, GaveUp, Phase, Plan, RestartPolicy, Snapshot, Worn, recycle::SETTLE};

/// One slot of a pool.
#[derive(Debug, Clone)]
pub struct Slot {
    plan: Arc<Plan>,
    seed: u64,
    phase: Phase,
    next: Incarnation,
    /// Whether the incarnation before the next one lives.
    live: bool,
    /// Starts in a row of which none became ready.
    never_ready: u32,
    /// Whether the next spawn is a restart.
    started: bool,
    /// Whether it replaces a worker that was recycled, and is no sign of trouble.
    replaces: bool,
    /// Since when the live process runs.
    born: Tick,
    /// Set once [`Action::Worn`] was given.
    worn: Option<Worn>,
    /// Apart, because of a million slots few have any of it.
    rare: Option<Box<Rare>>,
}

/// What a slot has not of which nothing was ever measured, and that was never stopped nor started again.
#[derive(Debug, Clone, Default)]
struct Rare {
    /// Set by a stop order, which outlasts whatever the process does.
    stopping_for: Option<DeathCause>,
    /// Restarts since a worker last ran well, which make the next wait longer.
    in_a_row: u32,
    /// When restarts were ordered, the recent ones only.
    recent: VecDeque<Tick>,
    restarts: u64,
    /// What the process was last seen to use.
    memory_bytes: u64,
    /// What it is known to have served.
    calls: u64,
}

impl Slot {
    /// An empty slot run by a valid `plan`, whose first worker, incarnation `next`, is due at `now`: call
    /// [`Slot::check`].
    pub fn new(plan: impl Into<Arc<Plan>>, next: Incarnation, seed: u64, now: Tick) -> Self {
        Self {
            plan: plan.into(),
            seed,
            phase: Phase::Backoff { until: now },
            next,
            live: false,
            never_ready: 0,
            started: false,
            replaces: false,
            born: now,
            worn: None,
            rare: None,
        }
    }

    /// A slot whose worker was found running since `born`, after a restart of its agent. It has its
    /// start timeout to prove itself ready again.
    pub fn adopted(
        plan: impl Into<Arc<Plan>>,
        live: Incarnation,
        born: Tick,
        seed: u64,
        now: Tick,
    ) -> Self {
        let mut slot = Self::new(plan, Incarnation(live.0.saturating_add(1)), seed, now);
        slot.started = true;
        slot.live = true;
        slot.run(now);
        slot.born = born;
        slot
    }

    /// Changes how the slot is run; what is under way goes on as it began.
    pub fn change_plan(&mut self, plan: impl Into<Arc<Plan>>) {
        self.plan = plan.into();
        self.worn = None;
    }

    /// The ordered process runs.
    pub fn on_spawned(&mut self, now: Tick) -> Option<Action> {
        if self.phase != Phase::Spawning {
            return None;
        }
        self.run(now);
        // Whoever ordered the stop meanwhile could not name a process yet.
        self.stopping_for().map(|why| self.order_stop(why))
    }

    /// The ordered process could not be started; `permanent` where another try would end the same.
    pub fn on_spawn_failed(&mut self, permanent: bool, now: Tick) -> Option<Action> {
        if self.phase != Phase::Spawning {
            return None;
        }
        self.live = false;
        if self.stopping_for().is_some() {
            self.phase = Phase::Stopped;
            None
        } else if permanent || self.plan.restart == RestartPolicy::Never {
            Some(self.give_up(GaveUp::CannotStart))
        } else {
            self.restart(now)
        }
    }

    /// The process is ready. Too late once it was told to stop.
    pub fn on_ready(&mut self, now: Tick) {
        if let Phase::Starting { .. } = self.phase {
            self.phase = Phase::Ready { since: now };
            self.never_ready = 0;
        }
    }

    /// What the process was seen to use; call [`Slot::check`] after it.
    pub fn on_memory(&mut self, bytes: u64) {
        if bytes > 0 || self.rare.is_some() {
            self.rare().memory_bytes = bytes;
        }
    }

    /// What the process is known to have served; call [`Slot::check`] after it.
    pub fn on_calls(&mut self, calls: u64) {
        self.rare().calls = calls;
    }

    /// Has a ready process replaced: drained, stopped, started anew. False where none is ready.
    pub fn recycle(&mut self, now: Tick) -> bool {
        let Phase::Ready { since } = self.phase else {
            return false;
        };
        self.forgive(since, now);
        self.phase = Phase::Draining {
            until: now + self.plan.stop.grace,
        };
        true
    }

    /// Has a process that serves nobody yet replaced: stopped at once and started anew. Nothing where none is on
    /// its way to be ready.
    pub fn abandon(&mut self) -> Option<Action> {
        let Phase::Starting { .. } = self.phase else {
            return None;
        };
        // It was not given the time to become ready, so that it did not fail to.
        self.never_ready = self.never_ready.saturating_sub(1);
        Some(self.order_stop(DeathCause::Recycled))
    }

    /// All of the process is gone; `clean` where it ended by itself with success.
    pub fn on_exit(&mut self, clean: bool, now: Tick) -> Option<Action> {
        let clean = match self.phase {
            Phase::Ready { since } => {
                self.forgive(since, now);
                clean
            }
            Phase::Starting { .. } | Phase::Draining { .. } => clean,
            // Only a worker that was never ready, or is recycled, is stopped and may come back.
            Phase::Stopping { .. } => false,
            Phase::Backoff { .. } | Phase::Spawning | Phase::CrashLoop { .. } | Phase::Stopped => {
                return None;
            }
        };
        self.live = false;
        let recycled = DeathCause::Recycled;
        if self.phase == (Phase::Stopping { why: recycled }) && self.stopping_for().is_none() {
            self.replaces = true;
            self.phase = Phase::Backoff { until: now };
            return None;
        }
        let again = match self.plan.restart {
            RestartPolicy::Always => true,
            RestartPolicy::Transient => !clean,
            RestartPolicy::Never => false,
        };
        if self.stopping_for().is_none() && again {
            return self.restart(now);
        }
        self.phase = Phase::Stopped;
        None
    }

    /// Ends the slot: its process is stopped because of `why`, and none follows (S3).
    pub fn stop(&mut self, why: DeathCause) -> Option<Action> {
        let why = *self.rare().stopping_for.get_or_insert(why);
        match self.phase {
            Phase::Starting { .. } | Phase::Ready { .. } | Phase::Draining { .. } => {
                Some(self.order_stop(why))
            }
            // The process is not there to be stopped yet, or was told already (S4).
            Phase::Spawning | Phase::Stopping { .. } => None,
            Phase::Backoff { .. } | Phase::CrashLoop { .. } | Phase::Stopped => {
                self.phase = Phase::Stopped;
                None
            }
        }
    }

    /// Only time passed.
    pub fn check(&mut self, now: Tick) -> Option<Action> {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        match self.phase {
            Phase::Backoff { .. } => Some(self.spawn(now)),
            Phase::Starting { .. } => Some(self.order_stop(DeathCause::NeverReady)),
            Phase::Ready { since } => {
                let (_, why) = self.worn_at(since)?;
                self.worn = Some(why);
                Some(Action::Worn { why })
            }
            Phase::Draining { .. } => Some(self.order_stop(DeathCause::Recycled)),
            Phase::Spawning | Phase::Stopping { .. } | Phase::CrashLoop { .. } | Phase::Stopped => {
                None
            }
        }
    }

    /// When to call [`Slot::check`] at the latest.
    pub fn next_deadline(&self) -> Option<Tick> {
        match self.phase {
            Phase::Backoff { until } | Phase::Draining { until } => Some(until),
            Phase::Starting { ready_by } => Some(ready_by),
            Phase::Ready { since } => self
                .worn_at(since)
                .filter(|_| self.worn.is_none())
                .map(|(at, _)| at),
            Phase::Spawning | Phase::Stopping { .. } | Phase::CrashLoop { .. } | Phase::Stopped => {
                None
            }
        }
    }

    /// Since when its process runs, or ran last; since it was made where none ever did.
    pub const fn born(&self) -> Tick {
        self.born
    }

    /// Where the slot is in its life.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Why its worker is to be replaced, once that was said.
    pub const fn worn(&self) -> Option<Worn> {
        self.worn
    }

    /// The slot as plain data.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self.phase,
            incarnation: self.live.then(|| self.incarnation()),
            restarts: self.rare.as_ref().map_or(0, |rare| rare.restarts),
        }
    }

    /// The incarnation that lives, or lived last.
    const fn incarnation(&self) -> Incarnation {
        Incarnation(self.next.0.saturating_sub(1))
    }

    fn stopping_for(&self) -> Option<DeathCause> {
        self.rare.as_ref()?.stopping_for
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// When a worker that was ready since then is worn, and why.
    fn worn_at(&self, since: Tick) -> Option<(Tick, Worn)> {
        let recycle = &self.plan.recycle;
        let salt = if self.live { self.incarnation().0 } else { 0 };
        let (memory_bytes, calls) = match &self.rare {
            Some(rare) => (rare.memory_bytes, rare.calls),
            None => (0, 0),
        };
        let lifetime = recycle.lifetime(self.seed.wrapping_add(salt));
        let aged = lifetime.map(|lifetime| (self.born + lifetime, Worn::Lifetime));
        let limit = recycle.max_memory_bytes;
        let large = limit
            .filter(|&limit| memory_bytes >= limit)
            .map(|_| (since + SETTLE, Worn::Memory));
        // No time to settle: it has served what was asked of it, however young it is.
        let served = recycle
            .max_calls
            .filter(|&limit| calls >= limit)
            .map(|_| (since, Worn::Calls));
        let all = aged.into_iter().chain(large).chain(served);
        all.min_by_key(|(at, _)| *at)
    }

    /// A worker that ran well for a while makes up for the failures before it.
    fn forgive(&mut self, since: Tick, now: Tick) {
        if let Some(rare) = &mut self.rare
            && now.since(since) >= self.plan.delay.reset_after
        {
            rare.in_a_row = 0;
        }
    }

    fn run(&mut self, now: Tick) {
        self.born = now;
        self.phase = Phase::Starting {
            ready_by: now + self.plan.start.timeout,
        };
    }

    fn spawn(&mut self, now: Tick) -> Action {
        let incarnation = self.next;
        self.next = Incarnation(incarnation.0.saturating_add(1));
        self.live = true;
        self.never_ready = self.never_ready.saturating_add(1);
        self.phase = Phase::Spawning;
        self.worn = None;
        if let Some(rare) = &mut self.rare {
            (rare.memory_bytes, rare.calls) = (0, 0);
        }
        if self.started {
            let replaces = std::mem::take(&mut self.replaces);
            let rare = self.rare();
            rare.restarts += 1;
            if !replaces {
                rare.recent.push_back(now);
            }
        }
        self.started = true;
        Action::Spawn { incarnation }
    }

    fn order_stop(&mut self, why: DeathCause) -> Action {
        self.phase = Phase::Stopping { why };
        Action::Stop {
            grace: self.plan.stop.grace,
            why,
        }
    }

    /// Plans the next start, or gives up.
    fn restart(&mut self, now: Tick) -> Option<Action> {
        let max = self.plan.intensity.max_restarts;
        let in_a_row = self.rare.as_ref().map_or(0, |rare| rare.in_a_row);
        let until = now + self.plan.delay.after(in_a_row, self.seed);
        // Counted as of the restart to come, so that no wait squeezes two windows into one (S2).
        let window = self.plan.intensity.window;
        let recent = self.rare.as_mut().map_or(0, |rare| {
            rare.recent.retain(|&at| until.since(at) < window);
            rare.recent.len()
        });

        if self.never_ready > max {
            return Some(self.give_up(GaveUp::NeverReady));
        }
        if recent >= usize::try_from(max).unwrap_or(usize::MAX) {
            return Some(self.give_up(GaveUp::TooOften));
        }
        self.rare().in_a_row = in_a_row.saturating_add(1);
        self.phase = Phase::Backoff { until };
        None
    }

    fn give_up(&mut self, why: GaveUp) -> Action {
        self.phase = Phase::CrashLoop { why };
        Action::GiveUp { why }
    }
}
