//! Units that an administrator has written, started and watched over D-Bus.
//!
//! The main process of a run is held by its pidfd beside that: while systemd, or its bus, does not answer, it is what the
//! keeper goes by, and signals. What else is of that run is known by the `INVOCATION_ID` in its environment.

use std::{future::Future, io, time::Duration};

use rustix::process::Signal;
use tether_systemd::{Active, Ending, Error, Limits, Systemd, Unit, Watch};
use tokio::time::{sleep, timeout};

use super::{
    Errand,
    kin::{Kin, Mark, Moment},
    last_word::{End, How},
    supervisor::{ANSWERS_BEFORE_KILL, ANSWERS_OF_KNOWN, Life, State, Supervisor},
    watched::Watched,
};

/// A signal may have been lost with the bus, which somebody restarted.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Longest time for an answer on a unit of which nothing is known.
const ANSWERS: Duration = Duration::from_secs(10);

/// How soon a bus that is gone is looked for again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// One unit.
pub(crate) struct SystemdUnit {
    name: String,
    limits: Limits,
    /// Whether it has them, or is to have none of ours.
    is_limited: bool,
    systemd: Systemd,
    watch: Watch,
    /// The run that counted as started.
    ran: String,
    /// Whether somebody was seen to stop it since it began.
    asked: bool,
    /// Whether it may run by now although it was not seen to: systemd was asked to start it, or was about to.
    is_begun: bool,
    /// As it was seen last, with what was there then.
    seen: Option<Seen>,
}

/// A run of it.
struct Seen {
    state: State,
    life: Life,
    /// None where this user may not look at it.
    main: Option<Watched>,
}

impl SystemdUnit {
    pub(crate) async fn connect(errand: &Errand) -> io::Result<Self> {
        let bus = errand.at.parse().map_err(io::Error::other)?;
        let systemd = Systemd::connect(bus).await.map_err(io::Error::other)?;
        let watch = systemd
            .watch(&errand.name)
            .await
            .map_err(io::Error::other)?;
        // Else it is let go of with its end, and how that came. Who may only look does without.
        let _ = systemd.hold(&errand.name).await;
        Ok(Self {
            name: errand.name.clone(),
            limits: Limits {
                memory_bytes: errand.memory_bytes,
                cpu_millis: errand.cpu_millis,
                tasks: errand.tasks,
            },
            is_limited: errand.connect_only,
            systemd,
            watch,
            ran: String::new(),
            asked: false,
            is_begun: false,
            seen: None,
        })
    }

    /// As systemd says it; asked again where the bus was restarted.
    async fn unit(&mut self) -> Result<Unit, Error> {
        loop {
            let answered = self.systemd.unit(&self.name).await;
            if answered.is_ok() || !self.systemd.is_closed() {
                return answered;
            }
            sleep(TRY_AGAIN).await;
            if let Ok(systemd) = Systemd::connect(self.systemd.bus()).await
                && let Ok(watch) = systemd.watch(&self.name).await
            {
                let _ = systemd.hold(&self.name).await;
                (self.systemd, self.watch) = (systemd, watch);
            }
        }
    }

    /// Longest time for an answer.
    fn patience(&self) -> Duration {
        self.seen.as_ref().map_or(ANSWERS, |_| ANSWERS_OF_KNOWN)
    }

    fn main(&self) -> Option<&Watched> {
        self.seen.as_ref()?.main.as_ref()
    }

    fn see(&mut self, state: &State) {
        let before = self.seen.take();
        self.is_begun |= matches!(state, State::Waits(_));
        let (State::Starts(life) | State::Runs(life) | State::Ends { life, .. }) = state else {
            return;
        };
        let is_same = |seen: &Seen| seen.life.name == life.name && seen.life.pid == life.pid;
        let held = before.filter(is_same).and_then(|seen| seen.main);
        self.seen = Some(Seen {
            state: state.clone(),
            life: life.clone(),
            // Not held, it is known by what systemd says alone.
            main: held.or_else(|| Watched::open(life.pid).ok().flatten()),
        });
    }

    /// As it was last seen, while systemd says nothing.
    fn unanswered(&self) -> Option<State> {
        let Some(seen) = &self.seen else {
            return self.is_begun.then_some(State::Waits(None));
        };
        let has_ended = self.main().is_some_and(Watched::has_ended);
        seen.state.unanswered(has_ended, "systemd does not answer")
    }

    async fn limit(&mut self) -> io::Result<()> {
        let limited = self.systemd.limit(&self.name, self.limits).await;
        self.is_limited = limited.is_ok();
        match limited {
            // It gets them when it is looked at again.
            Err(error) if error.is_silence() => Ok(()),
            limited => limited.map_err(io::Error::other),
        }
    }

    fn state(&mut self, unit: &Unit) -> State {
        if unit.load != "loaded" {
            // Asked to start it, systemd says no more.
            let said = format!("systemd cannot load `{}` ({})", self.name, unit.load);
            return State::Rests(Some(End::new(How::SpawnFailed, said)));
        }
        let life = || Life {
            name: unit.invocation.clone(),
            pid: unit.main_pid,
            said: unit.limits(),
        };
        let end = |ran: &str| {
            let ending = unit.ending(ran == unit.invocation)?;
            let how = match self.asked {
                true => How::Stopped,
                false => how(ending),
            };
            Some(End::new(how, format!("systemd: {unit}")))
        };
        match unit.active {
            Active::Active => {
                // A run whose stop was seen may not have begun to stop when this was read; what comes after a stop is another.
                if self.ran != unit.invocation {
                    self.asked = false;
                    self.ran.clone_from(&unit.invocation);
                }
                State::Runs(life())
            }
            Active::Activating if unit.will_be_restarted() => State::Waits(end(&self.ran)),
            Active::Activating if unit.main_pid == 0 => State::Waits(None),
            Active::Activating => State::Starts(life()),
            Active::Deactivating => State::Ends {
                life: life(),
                asked: unit.is_being_stopped(),
            },
            Active::Inactive | Active::Failed if unit.has_job => State::Waits(end(&self.ran)),
            Active::Inactive | Active::Failed => State::Rests(end(&self.ran)),
        }
    }
}

impl Supervisor for SystemdUnit {
    async fn look(&mut self) -> io::Result<State> {
        let unit = match within(self.patience(), self.unit()).await {
            Ok(unit) => unit,
            Err(error) => {
                let state = self.unanswered().filter(|_| error.is_silence());
                return state.ok_or_else(|| io::Error::other(error));
            }
        };
        // Told before the answer was, or right after what the answer says.
        self.asked |= self.watch.was_stopped();
        let state = self.state(&unit);
        self.see(&state);
        if matches!(state, State::Runs(_)) && !self.is_limited {
            // One that ran before it was joined.
            self.limit().await?;
        }
        Ok(state)
    }

    async fn changed(&mut self) {
        tokio::select! {
            stopped = self.watch.changed() => self.asked |= stopped,
            () = sleep(LOOK_AGAIN) => {}
        }
    }

    async fn start(&mut self) -> io::Result<()> {
        self.is_begun = true;
        match self.systemd.start(&self.name).await {
            // It may have heard; if not, a look says so when it answers.
            Err(error) if error.is_silence() => return Ok(()),
            started => started.map_err(io::Error::other)?,
        }
        self.limit().await
    }

    async fn stop(&mut self) -> io::Result<()> {
        let stopped = within(self.patience(), self.systemd.stop(&self.name)).await;
        match (stopped, self.main()) {
            // It does the same once it has heard: what was asked is not lost with this connection.
            (Err(error), Some(main)) if error.is_silence() => {
                main.signal(Signal::TERM);
                Ok(())
            }
            (stopped, _) => stopped.map_err(io::Error::other),
        }
    }

    async fn kill(&mut self) -> io::Result<()> {
        let killed = within(ANSWERS_BEFORE_KILL, self.systemd.kill(&self.name)).await;
        match killed {
            Err(error) if error.is_silence() => {}
            killed => return killed.map_err(io::Error::other),
        }
        if let Some(Seen { life, main, .. }) = &self.seen {
            let mut kin = Kin::of(vec![Mark::Says(format!("INVOCATION_ID={}", life.name))]);
            if let Some(main) = main {
                kin.look(main.pid);
                main.signal(Signal::KILL);
            }
            kin.end(Moment::now()).await;
        }
        Ok(())
    }
}

/// What comes of that in time.
async fn within<T>(
    time: Duration,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| {
        Err(Error::Silent {
            why: format!("no answer within {time:?}"),
        })
    };
    timeout(time, asked).await.unwrap_or_else(late)
}

pub(crate) fn how(ending: Ending) -> How {
    match ending {
        Ending::Exited(code) => How::Exited(code),
        Ending::Signaled(signal) => How::Signaled(signal),
        Ending::OutOfMemory => How::OutOfMemory,
        Ending::Watchdog => How::Unhealthy,
        Ending::NeverStarted => How::NeverReady,
        Ending::Unstartable => How::SpawnFailed,
    }
}
