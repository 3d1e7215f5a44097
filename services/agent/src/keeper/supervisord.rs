//! Programs of supervisord, over XML-RPC on its unix socket.
//!
//! It says of a program that a signal has ended only that, so the kernel is asked which. Where supervisord is killed,
//! its programs run on: each is then held by its process alone, and signalled there.

mod xmlrpc;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tether_sys::Exit;
use tokio::{net::UnixStream, time::timeout};

use super::{
    Errand,
    kin::{Kin, Moment},
    last_word::{End, How},
    supervisor::{State, Supervisor},
    watched::{self, Watched},
};
use xmlrpc::{Failure, Value};

/// Longest time for an answer.
const ANSWERS: Duration = Duration::from_secs(10);

/// More than any answer has.
const ANSWER_BYTES: usize = 1 << 20;

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
    main: Option<Watched>,
    kin: Kin,
}

/// What supervisord says in the environment of each program; it is called after its group where nothing is said of one.
fn marks(socket: &str, name: &str) -> [String; 3] {
    let (group, process) = name.split_once(':').unwrap_or((name, name));
    [
        format!("SUPERVISOR_SERVER_URL=unix://{socket}"),
        format!("SUPERVISOR_GROUP_NAME={group}"),
        format!("SUPERVISOR_PROCESS_NAME={process}"),
    ]
}

/// Why nothing came of a call.
#[derive(Debug)]
enum Error {
    /// Nobody listens there.
    Away(io::Error),
    Fault(i64, String),
    Other(String),
}

impl Program {
    pub(crate) fn connect(errand: &Errand) -> Self {
        Self {
            socket: PathBuf::from(&errand.at),
            name: errand.name.clone(),
            connect_only: errand.connect_only,
            main: None,
            kin: Kin::of(&marks(&errand.at, &errand.name)),
        }
    }

    async fn ask(&self, method: &str, more: &[Value]) -> Result<Value, Error> {
        let arguments = [&[Value::Text(self.name.clone())], more].concat();
        ask(&self.socket, method, &arguments).await
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
            Err(Error::Away(error)) => return self.alone(error, now).await,
            Err(error) => return Err(self.refused(error)),
        };
        let pid = info.int("pid").and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        let is_same = |main: &Watched| Some(main.pid) == pid && !main.has_ended();
        if self.main.as_ref().is_some_and(|main| !is_same(main)) {
            // The run before is told first, with what the next one says.
            let end = self.ended(Some(&info));
            self.end_kin(now).await;
            return Ok(match info.text("statename") {
                "STOPPED" => State::Rests(end.map(|end| {
                    End::new(
                        How::Stopped,
                        format!("{}, after somebody had it stopped", end.said),
                    )
                })),
                "EXITED" | "FATAL" => State::Rests(end),
                _ => State::Waits(end),
            });
        }
        let Some(pid) = pid else {
            self.end_kin(now).await;
            let spawn = info.text("spawnerr");
            let failed = (!spawn.is_empty())
                .then(|| End::new(How::SpawnFailed, format!("supervisord: {spawn}")));
            return Ok(match info.text("statename") {
                "BACKOFF" | "STARTING" | "RUNNING" => State::Waits(failed),
                _ => State::Rests(failed),
            });
        };
        if self.main.is_none() {
            self.main = Watched::open(pid)?;
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

    /// While there is no supervisord.
    async fn alone(&mut self, error: io::Error, now: Moment) -> io::Result<State> {
        match &self.main {
            Some(main) if !main.has_ended() => Ok(State::Runs(main.life("supervisord is gone"))),
            Some(_) => {
                let end = self.ended(None);
                self.end_kin(now).await;
                Ok(State::Rests(end))
            }
            None => Err(self.refused(Error::Away(error))),
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
        match self
            .ask("supervisor.stopProcess", &[Value::Bool(false)])
            .await
        {
            Ok(_) | Err(Error::Fault(NOT_RUNNING, _)) => Ok(()),
            Err(Error::Away(error)) => match &self.main {
                Some(main) => {
                    main.signal(Signal::TERM);
                    Ok(())
                }
                None => Err(self.refused(Error::Away(error))),
            },
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn kill(&mut self) -> io::Result<()> {
        // It is ending already, or it would be started again.
        self.stop().await?;
        if let Some(main) = &self.main {
            main.signal(Signal::KILL);
        }
        Ok(())
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

async fn ask(socket: &Path, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let stream = UnixStream::connect(socket).await.map_err(Error::Away)?;
    let said = timeout(ANSWERS, post(stream, xmlrpc::call(method, arguments))).await;
    let said = said.map_err(|_| Error::Other("it does not answer".to_owned()))?;
    match xmlrpc::answer(&said.map_err(Error::Other)?) {
        Ok(value) => Ok(value),
        Err(Failure::Fault(code, said)) => Err(Error::Fault(code, said)),
        Err(Failure::Garbled) => Err(Error::Other("it does not speak XML-RPC".to_owned())),
    }
}

/// One call on one connection.
async fn post(stream: UnixStream, body: String) -> Result<String, String> {
    let request = Request::post("/RPC2")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "text/xml")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("it answers with status {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect();
        let body = body.await.map_err(|error| error.to_string())?;
        String::from_utf8(body.to_bytes().into()).map_err(|error| error.to_string())
    };
    // A connection that ends may have brought the answer as its last act, so its end decides nothing.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = asked => answer,
        () = driven => Err("the connection ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_without_supervisord_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let why = check(&dir.path().join("none.sock")).await.unwrap_err();
        assert!(why.contains("agent.supervisord.socket"), "{why}");
    }
}
