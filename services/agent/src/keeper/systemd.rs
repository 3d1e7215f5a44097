//! Units that an administrator has written, started and watched over D-Bus.

use std::{io, time::Duration};

use tether_systemd::{Active, Ending, Error, Limits, Systemd, Unit, Watch};
use tokio::time::sleep;

use super::{
    Errand,
    last_word::{End, How},
    supervisor::{Life, State, Supervisor},
};

/// A signal may have been lost with the bus, which somebody restarted.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How often a bus that is gone is looked for again, and after how long each time.
const TRIES: u32 = 50;
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
        })
    }

    /// As systemd says it; asked again where the bus was restarted.
    async fn unit(&mut self) -> Result<Unit, Error> {
        let mut tries = 0;
        loop {
            let answered = self.systemd.unit(&self.name).await;
            tries += 1;
            match answered {
                Err(Error::Refused { .. }) if self.systemd.is_closed() && tries < TRIES => {
                    sleep(TRY_AGAIN).await;
                    if let Ok(systemd) = Systemd::connect(self.systemd.bus()).await
                        && let Ok(watch) = systemd.watch(&self.name).await
                    {
                        let _ = systemd.hold(&self.name).await;
                        (self.systemd, self.watch) = (systemd, watch);
                    }
                }
                answered => return answered,
            }
        }
    }

    async fn limit(&mut self) -> io::Result<()> {
        let limited = self.systemd.limit(&self.name, self.limits).await;
        self.is_limited = limited.is_ok();
        limited.map_err(io::Error::other)
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
                self.asked = false;
                self.ran.clone_from(&unit.invocation);
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
        let unit = self.unit().await.map_err(io::Error::other)?;
        // Told before the answer was.
        self.asked |= self.watch.was_stopped();
        let state = self.state(&unit);
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
        let started = self.systemd.start(&self.name).await;
        started.map_err(io::Error::other)?;
        self.limit().await
    }

    async fn stop(&mut self) -> io::Result<()> {
        let stopped = self.systemd.stop(&self.name).await;
        stopped.map_err(io::Error::other)
    }

    async fn kill(&mut self) -> io::Result<()> {
        let killed = self.systemd.kill(&self.name).await;
        killed.map_err(io::Error::other)
    }
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
