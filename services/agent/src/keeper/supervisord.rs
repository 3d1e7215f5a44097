//! Programs of supervisord, over XML-RPC on its unix socket.
//!
//! It says of a program that a signal has ended only that, so the kernel is asked which. Where supervisord is killed,
//! its programs run on: each is then held by its process alone, and signalled there.

mod rpc;
mod xmlrpc;

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use tether_sys::Exit;
use tokio::time::timeout;

use super::{
    Errand, Part,
    kin::{Kin, Mark, Moment},
    last_word::{End, How},
    supervisor::{ANSWERS_BEFORE_KILL, ANSWERS_OF_KNOWN, State, Supervisor},
    watched::{self, Watched},
};
use rpc::{ANSWERS, Error, ask, slow};
use xmlrpc::Value;

/// supervisord starts again what has exited within two seconds of that, by its clock of whole ones, or not at all.
const STARTS_AGAIN_WITHIN: i64 = 3;

/// Faults that say that all is as it was asked for.
const NOT_RUNNING: i64 = 70;
const ALREADY_STARTED: i64 = 60;

/// There is no such program.
const BAD_NAME: i64 = 10;

/// It is there to be talked to.
const RUNNING: i64 = 1;

/// One program.
pub(crate) struct Program {
    socket: PathBuf,
    name: String,
    connect_only: bool,
    dir: PathBuf,
    part: Part,
    main: Option<Watched>,
    kin: Kin,
}

/// What supervisord says in the environment of each program; it is called after its group where nothing is said of one.
fn marks(socket: &str, name: &str) -> Vec<Mark> {
    let (group, process) = name.split_once(':').unwrap_or((name, name));
    vec![
        Mark::names("SUPERVISOR_SERVER_URL=unix://", Path::new(socket)),
        Mark::Says(format!("SUPERVISOR_GROUP_NAME={group}")),
        Mark::Says(format!("SUPERVISOR_PROCESS_NAME={process}")),
    ]
}

impl Program {
    pub(crate) fn connect(errand: &Errand, dir: &Path, part: Part) -> Self {
        Self {
            socket: PathBuf::from(&errand.at),
            name: errand.name.clone(),
            connect_only: errand.connect_only,
            dir: dir.to_owned(),
            part,
            main: Watched::recall(dir),
            kin: Kin::of(marks(&errand.at, &errand.name)),
        }
    }

    async fn ask(&self, method: &str, more: &[Value]) -> Result<Value, Error> {
        let arguments = [&[Value::Text(self.name.clone())], more].concat();
        let within = self.main.as_ref().map_or(ANSWERS, |_| ANSWERS_OF_KNOWN);
        let asked = ask(&self.socket, method, &arguments);
        timeout(within, asked).await.unwrap_or_else(|_| Err(slow()))
    }

    fn refused(&self, error: Error) -> io::Error {
        let (at, name) = (self.socket.display(), &self.name);
        match error {
            Error::Away(error) => io::Error::new(
                error.kind(),
                format!(
                    "cannot reach supervisord at `{at}` for `{name}` ({error}): {}",
                    advice(&error)
                ),
            ),
            Error::Fault(BAD_NAME, _) => io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "supervisord has no program `{name}`: define `[program:{name}]`, and say `supervisorctl update`"
                ),
            ),
            Error::Fault(_, said) => {
                io::Error::other(format!("supervisord refuses `{name}`: {said}"))
            }
            Error::Other(why) => io::Error::other(format!("supervisord at `{at}`: {why}")),
        }
    }

    /// How the run ended that was watched; none where none was.
    fn ended(&mut self, info: Option<&Value>) -> Option<End> {
        let main = self.main.take()?;
        let status = info.and_then(|info| info.int("exitstatus"));
        let spawn = info.map_or("", |info| info.text("spawnerr"));
        let state = info.map_or("", |info| info.text("statename"));
        // Of another run than this one while that runs.
        let status = status.filter(|_| !matches!(state, "RUNNING" | "STARTING"));
        let exit = main.exit().or_else(|| match status? {
            // Supervisord says so of any signal.
            -1 => None,
            code => Some(Exit::Code(i32::try_from(code).ok()?)),
        });
        let how = match exit {
            Some(Exit::Code(code)) => format!("exit status {code}"),
            Some(Exit::Signal(signal)) => format!("signal {signal}"),
            None => "ended by a signal, and the kernel does not say which".to_owned(),
        };
        let said = [state, &how, spawn]
            .into_iter()
            .filter(|part| !part.is_empty());
        let said = format!("supervisord: {}", said.collect::<Vec<_>>().join(", "));
        Some(match exit {
            Some(exit) => watched::end(exit, said),
            None => End::new(How::Signaled(0), said),
        })
    }

    async fn state(&mut self) -> io::Result<State> {
        let now = Moment::now();
        let info = match self.ask("supervisor.getProcessInfo", &[]).await {
            Ok(info) => info,
            Err(error) if error.is_silence() => return self.alone(error, now).await,
            Err(error) => return Err(self.refused(error)),
        };
        let may_start_again = may_start_again(&info);
        let pid = info.int("pid").and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        // One that has ended is told once supervisord has noticed.
        let is_same = |main: &Watched| Some(main.pid) == pid && main.has_its_number();
        if self.main.as_ref().is_some_and(|main| !is_same(main)) {
            let next = pid.filter(|pid| self.main.as_ref().is_some_and(|main| main.pid != *pid));
            let until = next.map_or(now, |pid| now.or_start_of(pid));
            // The run before is told first, with what the next one says.
            let was_unknown = match self.main.as_ref().filter(|_| !self.connect_only) {
                // A supervisord that came after one that was killed knows nothing of what that one ran.
                Some(main) => main.leave_nothing().await,
                None => false,
            };
            let end = self.ended(Some(&info));
            self.end_kin(until).await;
            return Ok(match info.text("statename") {
                "STOPPED" if !was_unknown => State::Rests(end.map(|end| {
                    End::new(
                        How::Stopped,
                        format!("{}, after somebody had it stopped", end.said),
                    )
                })),
                _ if !may_start_again => State::Rests(end),
                _ => State::Waits(end),
            });
        }
        let Some(pid) = pid else {
            self.end_kin(now).await;
            let spawn = info.text("spawnerr");
            let failed = (!spawn.is_empty())
                .then(|| End::new(How::SpawnFailed, format!("supervisord: {spawn}")));
            return Ok(match may_start_again {
                true => State::Waits(failed),
                false => State::Rests(failed),
            });
        };
        if self.main.is_none() {
            self.main = Watched::open(pid)?;
            if let Some(main) = &self.main {
                main.remember(&self.dir);
            }
        }
        let Some(main) = &self.main else {
            return Ok(State::Waits(None));
        };
        self.kin.look(main.pid);
        let life = main.life(self.kin.said());
        Ok(match info.text("statename") {
            "STARTING" => State::Starts(life),
            "STOPPING" => State::Ends { life, asked: true },
            _ => State::Runs(life),
        })
    }

    /// While there is no supervisord, or it does not say how the program stands.
    async fn alone(&mut self, error: Error, now: Moment) -> io::Result<State> {
        match &self.main {
            Some(main) if !main.has_ended() => {
                Ok(State::Runs(main.life("supervisord does not answer")))
            }
            Some(_) => {
                // Before its end is told, should this be dropped.
                self.end_kin(now).await;
                let end = self.ended(None);
                Ok(match error.is_end() {
                    true => State::Rests(end),
                    false => State::Waits(end),
                })
            }
            None if matches!((self.part, &error), (Part::End, Error::Away(_)) if error.is_end()) => {
                self.end_kin(now).await;
                Ok(State::Rests(None))
            }
            None => Err(self.refused(error)),
        }
    }

    async fn end_kin(&mut self, now: Moment) {
        if !self.connect_only {
            self.kin.end(now).await;
        }
    }
}

impl Supervisor for Program {
    async fn look(&mut self) -> io::Result<State> {
        self.state().await
    }

    async fn changed(&mut self) {
        watched::changed(self.main.as_ref()).await;
    }

    async fn start(&mut self) -> io::Result<()> {
        match self
            .ask("supervisor.startProcess", &[Value::Bool(false)])
            .await
        {
            Ok(_) | Err(Error::Fault(ALREADY_STARTED, _)) => Ok(()),
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn stop(&mut self) -> io::Result<()> {
        self.kin.may_have_more();
        match self
            .ask("supervisor.stopProcess", &[Value::Bool(false)])
            .await
        {
            Ok(_) | Err(Error::Fault(NOT_RUNNING, _)) => Ok(()),
            Err(error) if error.is_silence() => match (&self.main, self.part) {
                (Some(main), _) => {
                    main.signal(Signal::TERM);
                    Ok(())
                }
                // Whether there is anything to stop is seen by the next look.
                (None, Part::End) if error.is_end() => Ok(()),
                (None, _) => Err(self.refused(error)),
            },
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn kill(&mut self) -> io::Result<()> {
        // It is ending already, or it would be started again. A supervisord that hangs does not do that.
        let told = timeout(ANSWERS_BEFORE_KILL, self.stop()).await;
        match &self.main {
            Some(main) => main.signal(Signal::KILL),
            None => told.unwrap_or(Ok(()))?,
        }
        Ok(())
    }
}

/// Whether what does not run may yet be started by supervisord itself, or is not at its end. It does not say of a program whether it has
/// `autorestart`, so what has exited counts as such for a while.
fn may_start_again(info: &Value) -> bool {
    match info.text("statename") {
        "BACKOFF" | "STARTING" | "RUNNING" | "STOPPING" => true,
        "EXITED" => {
            let at = |name| info.int(name).unwrap_or_default();
            at("now") - at("stop") < STARTS_AGAIN_WITHIN
        }
        _ => false,
    }
}

/// Whether programs can be had of the supervisord at this socket.
///
/// # Errors
/// Says what is missing and how to get it.
pub(crate) async fn check(socket: &Path) -> Result<(), String> {
    let at = socket.display();
    match ask(socket, "supervisor.getState", &[]).await {
        Ok(state) if state.int("statecode") == Some(RUNNING) => Ok(()),
        Ok(state) => Err(format!(
            "supervisord at `{at}` is {}",
            state.text("statename")
        )),
        Err(Error::Away(error)) => Err(format!(
            "cannot reach supervisord at `{at}` ({error}): {}",
            advice(&error)
        )),
        Err(Error::Fault(_, why) | Error::Other(why)) => Err(format!(
            "supervisord at `{at}` does not answer ({why}): see that `supervisor.rpcinterface_factory` is set there, and no password"
        )),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "have the agent run as root, or say `chown` under `[unix_http_server]` in supervisord's configuration"
        }
        _ => "start it, or set `agent.supervisord.socket` to `file` under its `[unix_http_server]`",
    }
}

#[cfg(test)]
mod tests {
    use super::{rpc::SHUTDOWN_STATE, *};

    #[tokio::test]
    async fn what_is_known_goes_on_while_supervisord_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let watched = Watched::open(child.id()).unwrap().unwrap();
        watched.remember(dir.path());
        let errand = Errand::of_program(&socket);

        let mut program = Program::connect(&errand, dir.path(), Part::Keep);
        assert!(matches!(program.look().await.unwrap(), State::Runs(_)));
        program.kill().await.unwrap();
        child.wait().unwrap();
        // It may yet start it again.
        assert!(matches!(program.look().await.unwrap(), State::Waits(_)));

        drop(silent);
        program.look().await.unwrap_err();
        let mut rest = Program::connect(&errand, dir.path(), Part::End);
        rest.stop().await.unwrap();
        assert_eq!(rest.look().await.unwrap(), State::Rests(None));
    }

    #[test]
    fn what_has_exited_may_be_started_again_for_a_while() {
        let program = |state: &str, since: i64| {
            let members = [
                ("statename", Value::Text(state.to_owned())),
                ("now", Value::Int(100)),
                ("stop", Value::Int(100 - since)),
            ];
            let members = members.map(|(name, value)| (name.to_owned(), value));
            may_start_again(&Value::Struct(members.into()))
        };

        assert!(program("BACKOFF", 9) && program("EXITED", 2));
        assert!(!program("EXITED", 3) && !program("STOPPED", 0) && !program("FATAL", 0));
        let ends = Error::Fault(SHUTDOWN_STATE, String::new());
        assert!(ends.is_silence() && ends.is_end());
        assert!(!Error::Fault(BAD_NAME, String::new()).is_silence());
        assert!(slow().is_silence() && !slow().is_end());
    }

    #[tokio::test]
    async fn a_socket_without_supervisord_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let why = check(&dir.path().join("none.sock")).await.unwrap_err();
        assert!(why.contains("agent.supervisord.socket"), "{why}");
    }
}
