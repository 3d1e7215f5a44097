//! Every order of events of a small world: two holders, one slot, a grantor, a fence, a handful of messages.
//!
//! The state holds the real [`Holder`](tether_lease::Holder), [`Grantor`](tether_lease::Grantor),
//! [`Offer`](tether_lease::Offer) and [`Fence`](tether_lease::Fence). True time goes in seconds, clocks go at the edges of what the
//! terms allow, and a message may be delivered at any time, twice, or never.

mod play;
mod state;

use std::time::{Duration, Instant};

use stateright::{Checker as _, HasDiscoveries, Model, Property};
use tether_lease::{Margins, Terms};

use crate::Mutant;
use state::{Message, State};

/// What one of the checks allows to happen, beyond the network: how often each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Budget {
    grantor_restarts: u8,
    agent_restarts: u8,
    fence_restarts: u8,
    writes: bool,
    frozen_seconds: u8,
    repeats: u8,
    messages: usize,
    /// How often the slot may be offered.
    offers: u64,
    /// How many seconds it goes on.
    horizon: u8,
}

/// One check.
#[derive(Debug, Clone)]
struct Check {
    name: &'static str,
    budget: Budget,
    /// A holder's clock and the grantor's, in tenths of true time.
    rates: &'static [(u64, u64)],
    mutant: Option<Mutant>,
    terms: Terms,
}

/// What came of a check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Which check: what could happen.
    pub check: &'static str,
    /// States that differ.
    pub states: usize,
    /// How long it took.
    pub took: Duration,
    /// What was broken, by which events; none where nothing was.
    pub broken: Option<String>,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    /// A second passes.
    Pass,
    /// A second passes that one holder's machine is paused in.
    PassWithout(u8),
    /// A holder asks for the slot, or beats.
    Speak(u8),
    /// A message arrives.
    Deliver(usize),
    /// It arrives, and will once more.
    Repeat(usize),
    /// It never arrives.
    Lose(usize),
    /// A holder writes.
    Write(u8),
    /// The grantor loses its memory, or another takes its place.
    RestartGrantor,
    /// A holder's agent starts anew beside its worker.
    RestartAgent(u8),
    /// What is written to starts anew.
    RestartFence,
}

impl Model for Check {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let worst = self.rates.iter();
        worst
            .map(|&(holder, grantor)| State::new(self.budget, holder, grantor))
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        let left = state.left;
        if state.now < self.budget.horizon {
            actions.push(Action::Pass);
            if left.frozen_seconds > 0 {
                actions.extend([0, 1].map(Action::PassWithout));
            }
        }
        for holder in [0, 1] {
            if state.may_speak(holder, &self.budget) {
                actions.push(Action::Speak(holder));
            }
            if self.budget.writes && state.lives(holder) {
                actions.push(Action::Write(holder));
            }
            if left.agent_restarts > 0 && state.lives(holder) {
                actions.push(Action::RestartAgent(holder));
            }
        }
        for at in 0..state.network.len() {
            actions.extend([Action::Deliver(at), Action::Lose(at)]);
            if left.repeats > 0 {
                actions.push(Action::Repeat(at));
            }
        }
        if left.grantor_restarts > 0 {
            actions.push(Action::RestartGrantor);
        }
        if left.fence_restarts > 0 {
            actions.push(Action::RestartFence);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Pass => state.pass(None),
            Action::PassWithout(holder) => {
                state.left.frozen_seconds -= 1;
                state.pass(Some(holder));
            }
            Action::Speak(holder) => self.speak(&mut state, holder),
            Action::Deliver(at) => {
                let message = state.network.remove(at);
                self.deliver(&mut state, message);
            }
            Action::Repeat(at) => {
                state.left.repeats -= 1;
                let message = state.network[at];
                self.deliver(&mut state, message);
            }
            Action::Lose(at) => {
                state.network.remove(at);
            }
            Action::Write(holder) => self.write(&mut state, holder),
            Action::RestartGrantor => self.restart_grantor(&mut state),
            Action::RestartAgent(holder) => self.restart_agent(&mut state, holder),
            Action::RestartFence => self.restart_fence(&mut state),
        }
        state.judge();
        // What changes nothing leads nowhere.
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| {
                state.broken.is_none()
            }),
            Property::sometimes("a slot changes hands", |_, state: &State| {
                state
                    .owner
                    .is_some_and(|(holder, epoch)| holder == 1 && epoch.0 > 1 && state.lives(1))
            }),
        ]
    }
}

const QUIET: Budget = Budget {
    grantor_restarts: 0,
    agent_restarts: 0,
    fence_restarts: 0,
    writes: false,
    frozen_seconds: 0,
    repeats: 0,
    messages: 2,
    offers: 2,
    horizon: 4,
};

/// What holders and grantor may be off by: the holder slow and the grantor fast, the other way round.
const WORST: &[(u64, u64)] = &[(9, 11), (11, 9)];

/// Every check, for the protocol as it is or with a mistake in it.
fn checks(mutant: Option<Mutant>) -> [Check; 4] {
    let ttl = Duration::from_secs(2);
    let margins = match mutant {
        Some(Mutant::NoMargin) => (0, Duration::from_nanos(1)),
        _ => (100_000, Duration::from_millis(100)),
    };
    let margins = Margins {
        rho_ppm: margins.0,
        slack: margins.1,
        kill_budget: Duration::from_millis(300),
    };
    let terms = Terms::new(ttl, margins).expect("two seconds are a lease");
    let network = Budget {
        repeats: 1,
        ..QUIET
    };
    let failover = Budget {
        grantor_restarts: 1,
        ..QUIET
    };
    let pauses = Budget {
        frozen_seconds: 2,
        fence_restarts: 1,
        writes: true,
        messages: 1,
        ..QUIET
    };
    let agents = Budget {
        agent_restarts: 2,
        ..QUIET
    };
    let check = |name, budget| Check {
        name,
        budget,
        rates: WORST,
        mutant,
        terms,
    };
    [
        check("messages late, lost, reordered and repeated", network),
        check("and a grantor that forgets", failover),
        check("and agents that start anew", agents),
        check("pauses, and resources that start anew", pauses),
    ]
}

/// Mutants that this small world has the parts for, and the check that catches each.
const CAUGHT_BY: &[(Mutant, usize)] = &[
    (Mutant::NoMargin, 0),
    (Mutant::ReceiptAnchor, 0),
    (Mutant::GrantWithoutAccept, 0),
    (Mutant::NewLeaderDoesNotWait, 1),
    (Mutant::AgentRestartResetsClock, 2),
    (Mutant::NoFence, 3),
    (Mutant::NoAckSeen, 3),
    (Mutant::FenceNotPersisted, 3),
];

/// Looks at every state of the protocol as it is: of each check, what was broken, or that no slot ever changed hands.
pub fn exhaust() -> impl Iterator<Item = Finding> {
    checks(None).into_iter().map(run)
}

/// Looks for a counterexample of a mutant; none for one that this world has no parts for.
pub fn catch(mutant: Mutant) -> Option<Finding> {
    let (_, check) = CAUGHT_BY.iter().find(|(known, _)| *known == mutant)?;
    checks(Some(mutant)).into_iter().nth(*check).map(run)
}

fn run(check: Check) -> Finding {
    let (name, start) = (check.name, Instant::now());
    let checker = check.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let broken = match (
        checker.discovery("nothing is broken"),
        checker.discovery("a slot changes hands"),
    ) {
        (Some(path), _) => {
            let state = path.last_state().broken.unwrap_or("something");
            Some(format!("{state}: {:?}", path.into_actions()))
        }
        (None, None) => Some("no slot ever changes hands, so nothing was tried".to_owned()),
        (None, Some(_)) => None,
    };
    Finding {
        check: name,
        states: checker.unique_state_count(),
        took: start.elapsed(),
        broken,
    }
}

impl Check {
    /// A message goes out; one more than the network holds is lost.
    fn send(&self, state: &mut State, message: Message) {
        if state.network.len() < self.budget.messages {
            state.network.push(message);
            state.network.sort_unstable();
        }
    }
}
