//! What a keeper does about its service: pure decisions.
//!
//! ```text
//!            Rests: start      Starts, Runs
//!  beginning -------------> waiting -------> life -- Rests --> over
//!      `-- Runs: it is joined as it is --------^  `-- Waits, another life: stop --.
//!  asked to end: stop -- another life: stop -- patience over: kill -- Rests --> over
//! ```
//!
//! A next life would be nobody's worker, without a permission and a deadline, until the arbiter has decided that there
//! is one. So it is stopped before the keeper leaves, and started again for the next incarnation.

use std::mem;

use super::{
    last_word::{End, How},
    supervisor::{Life, State},
};

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// See how it stands.
    Look,
    /// Nothing until it may stand otherwise.
    Wait,
    /// Have it started.
    Start,
    /// It runs, with this main process, as a life that was not known; and whether its supervisor counts it as started.
    Began(Life, bool),
    /// Have it stopped.
    Stop,
    /// Have it killed.
    Kill,
    /// The worker is dead, and its supervisor does not start another.
    Over(End),
    /// The worker ended as it was asked to.
    Done,
}

/// How far it has come.
#[derive(Debug)]
pub(super) struct Plan {
    connect_only: bool,
    stage: Stage,
    /// The life that is the worker's, and whether its supervisor counted it as started.
    life: Option<(Life, bool)>,
    /// Whether somebody else was seen to have it stopped.
    asked: bool,
    /// How the worker died whose service is being stopped, where that is why.
    over: Option<End>,
    /// The life that was asked to end last.
    stopped: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has asked for anything.
    Looking,
    /// Its start was asked for.
    Started,
    /// Its end was asked for.
    Stopping,
}

impl Plan {
    pub(super) fn new(connect_only: bool) -> Self {
        Self {
            connect_only,
            stage: Stage::Looking,
            life: None,
            asked: false,
            over: None,
            stopped: String::new(),
        }
    }

    /// The life that is the worker's, and whether its supervisor counted it as started.
    pub(super) fn life(&self) -> Option<(&Life, bool)> {
        let life = self.life.as_ref().filter(|_| self.over.is_none());
        life.map(|(life, ready)| (life, *ready))
    }

    /// How the worker died, while its service is stopped because of that.
    pub(super) fn ended(&self) -> Option<&End> {
        self.over.as_ref()
    }

    /// The worker is to end, whatever was being done for it.
    pub(super) fn on_stop(&mut self) -> Next {
        self.stage = Stage::Stopping;
        self.stopped = self.life_name().to_owned();
        match self.connect_only {
            true => Next::Done,
            false => Next::Stop,
        }
    }

    fn life_name(&self) -> &str {
        self.life.as_ref().map_or("", |(life, _)| &life.name)
    }

    /// The service was seen to stand like this.
    pub(super) fn on_look(&mut self, state: State) -> Next {
        if self.stage == Stage::Stopping {
            return match state {
                State::Rests(_) => self.over.take().map_or(Next::Done, Next::Over),
                // Its supervisor began it before it heard of the stop.
                State::Starts(life) | State::Runs(life) if life.name != self.stopped => {
                    self.stopped.clone_from(&life.name);
                    self.life = Some((life, false));
                    Next::Stop
                }
                State::Starts(_) | State::Runs(_) | State::Ends { .. } | State::Waits(_) => {
                    Next::Wait
                }
            };
        }
        match state {
            State::Starts(life) => self.on_life(life, false),
            State::Runs(life) => self.on_life(life, true),
            State::Ends { life, asked } => {
                if self.life_name() == life.name {
                    self.asked |= asked;
                }
                Next::Wait
            }
            State::Rests(end) if self.life.is_some() => Next::Over(self.end(end)),
            State::Waits(end) if self.life.is_some() => self.over(end, ""),
            State::Waits(_) => Next::Wait,
            State::Rests(end) => match self.stage {
                Stage::Looking if self.connect_only => Next::Wait,
                Stage::Looking => {
                    self.stage = Stage::Started;
                    Next::Start
                }
                Stage::Started | Stage::Stopping => {
                    let none =
                        || End::new(How::SpawnFailed, "it was asked to start, and does not run");
                    // It may be taken up yet, when nobody is there to see it.
                    self.over = Some(end.unwrap_or_else(none));
                    self.stage = Stage::Stopping;
                    Next::Stop
                }
            },
        }
    }

    fn on_life(&mut self, life: Life, ready: bool) -> Next {
        match &mut self.life {
            None => {
                self.life = Some((life.clone(), ready));
                Next::Began(life, ready)
            }
            Some((known, was_ready)) if known.name == life.name => {
                let is_news = *known != life || (ready && !*was_ready);
                *known = life.clone();
                if is_news {
                    *was_ready |= ready;
                    Next::Began(life, ready)
                } else {
                    Next::Wait
                }
            }
            // Its end went by unseen.
            Some(_) => self.over(None, &life.name),
        }
    }

    /// The worker is dead, and its supervisor has another life of the service, or is about to.
    fn over(&mut self, end: Option<End>, next: &str) -> Next {
        let end = self.end(end);
        if self.connect_only {
            return Next::Over(end);
        }
        self.over = Some(end);
        self.stage = Stage::Stopping;
        next.clone_into(&mut self.stopped);
        Next::Stop
    }

    fn end(&mut self, end: Option<End>) -> End {
        let none = || {
            End::new(
                How::Signaled(0),
                "its supervisor started it anew, and did not say how it had ended",
            )
        };
        let end = end.unwrap_or_else(none);
        if mem::take(&mut self.asked) {
            return End::new(How::Stopped, end.said);
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(name: &str) -> Life {
        Life {
            name: name.to_owned(),
            pid: 7,
            said: String::new(),
        }
    }

    fn killed() -> End {
        End::new(How::Signaled(9), "Result=signal")
    }

    #[test]
    fn what_rests_is_started_and_what_runs_is_joined() {
        let mut plan = Plan::new(false);
        assert_eq!(plan.on_look(State::Rests(Some(killed()))), Next::Start);
        assert_eq!(
            plan.on_look(State::Starts(life("a"))),
            Next::Began(life("a"), false)
        );
        assert_eq!(
            plan.on_look(State::Runs(life("a"))),
            Next::Began(life("a"), true)
        );
        assert_eq!(plan.on_look(State::Runs(life("a"))), Next::Wait);

        let mut joined = Plan::new(false);
        assert_eq!(
            joined.on_look(State::Runs(life("a"))),
            Next::Began(life("a"), true)
        );
    }

    #[test]
    fn what_is_only_connected_to_is_neither_started_nor_stopped() {
        let mut plan = Plan::new(true);
        assert_eq!(plan.on_look(State::Rests(None)), Next::Wait);
        assert_eq!(
            plan.on_look(State::Runs(life("a"))),
            Next::Began(life("a"), true)
        );
        assert_eq!(plan.on_stop(), Next::Done);
    }

    #[test]
    fn the_next_life_is_stopped_before_the_worker_is_told_to_be_dead() {
        let mut plan = Plan::new(false);
        plan.on_look(State::Runs(life("a")));
        assert_eq!(
            plan.on_look(State::Rests(Some(killed()))),
            Next::Over(killed())
        );

        let mut plan = Plan::new(false);
        plan.on_look(State::Runs(life("a")));
        assert_eq!(plan.on_look(State::Waits(Some(killed()))), Next::Stop);
        assert_eq!(plan.on_look(State::Waits(None)), Next::Wait);
        // It was begun all the same, and is asked to end once.
        assert_eq!(plan.on_look(State::Starts(life("b"))), Next::Stop);
        assert_eq!(plan.on_look(State::Runs(life("b"))), Next::Wait);
        assert_eq!(plan.on_look(State::Rests(None)), Next::Over(killed()));

        let mut plan = Plan::new(false);
        plan.on_look(State::Runs(life("a")));
        assert_eq!(plan.on_look(State::Runs(life("b"))), Next::Stop);
        assert_eq!(plan.on_look(State::Runs(life("b"))), Next::Wait);
        let Next::Over(end) = plan.on_look(State::Rests(Some(killed()))) else {
            panic!("the first life is over");
        };
        assert!(end.said.contains("did not say how"), "{end:?}");
    }

    #[test]
    fn the_next_life_of_what_is_only_connected_to_goes_on() {
        for after in [State::Waits(Some(killed())), State::Runs(life("b"))] {
            let mut plan = Plan::new(true);
            plan.on_look(State::Runs(life("a")));
            assert!(matches!(plan.on_look(after), Next::Over(_)));
        }
    }

    #[test]
    fn what_somebody_has_stopped_was_ordered_and_what_never_ran_cannot_be_started() {
        let mut plan = Plan::new(false);
        plan.on_look(State::Runs(life("a")));
        let ends = State::Ends {
            life: life("a"),
            asked: true,
        };
        assert_eq!(plan.on_look(ends), Next::Wait);
        let Next::Over(end) = plan.on_look(State::Rests(Some(killed()))) else {
            panic!("it is at its end");
        };
        assert_eq!(end.how, How::Stopped);

        let mut plan = Plan::new(false);
        plan.on_look(State::Rests(None));
        assert_eq!(plan.on_look(State::Rests(None)), Next::Stop);
        let Next::Over(end) = plan.on_look(State::Rests(None)) else {
            panic!("it was to start");
        };
        assert_eq!(end.how, How::SpawnFailed);
    }

    #[test]
    fn asked_to_end_it_is_done_when_nothing_runs() {
        let mut plan = Plan::new(false);
        plan.on_look(State::Runs(life("a")));
        assert_eq!(plan.on_stop(), Next::Stop);
        assert_eq!(plan.on_look(State::Runs(life("a"))), Next::Wait);
        assert_eq!(plan.on_look(State::Runs(life("b"))), Next::Stop);
        assert_eq!(plan.on_look(State::Rests(None)), Next::Done);
    }

    #[test]
    fn a_supervisor_that_says_nothing_has_no_worker_declared_dead() {
        let silent = |state: &State, has_ended| state.unanswered(has_ended, "no answer").unwrap();
        let mut plan = Plan::new(false);
        let runs = State::Runs(life("a"));
        plan.on_look(runs.clone());

        let Next::Began(told, true) = plan.on_look(silent(&runs, false)) else {
            panic!("its status says so");
        };
        assert_eq!((told.name.as_str(), told.said.as_str()), ("a", "no answer"));
        // How its process ended, and whether there is another one, is for the supervisor to say.
        assert_eq!(plan.on_look(silent(&runs, true)), Next::Wait);
        assert_eq!(
            plan.on_look(State::Rests(Some(killed()))),
            Next::Over(killed())
        );

        let mut plan = Plan::new(false);
        plan.on_look(runs.clone());
        assert_eq!(plan.on_stop(), Next::Stop);
        for has_ended in [false, true] {
            // It may have another life, and is asked to end when that is seen.
            assert_eq!(plan.on_look(silent(&runs, has_ended)), Next::Wait);
        }
        assert_eq!(State::Waits(None).unanswered(false, ""), None);
    }

    #[test]
    fn what_is_asked_to_end_while_it_starts_is_stopped() {
        let mut plan = Plan::new(false);
        assert_eq!(plan.on_look(State::Rests(None)), Next::Start);
        assert_eq!(plan.on_stop(), Next::Stop);
        assert_eq!(plan.on_look(State::Waits(None)), Next::Wait);
        assert_eq!(plan.on_look(State::Starts(life("a"))), Next::Stop);
        assert_eq!(plan.on_look(State::Rests(None)), Next::Done);
    }
}
