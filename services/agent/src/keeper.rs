//! The keeper: a worker's process where the worker is a service that somebody has defined with a supervisor.
//!
//! Such a service is not below our shim, so a small process is, and stands for it: it has the service started, or joins
//! it where it runs, lives for as long as that one run of it does, and has it stopped when it is itself asked to end, or
//! when its supervisor starts it anew: the next run is the next incarnation's.
//! All else holds for it as for any worker: its shim has the deadline, the agent adopts it, asks the service at its
//! address whether it is ready, and hears of its end.
//!
//! ```text
//! agent - zygote -> shim -> keeper . . D-Bus, socket . . > supervisor -> service
//!                  SIGTERM in time      start, stop, look
//! ```
//!
//! What a supervisor must be able to do for that is in [`supervisor::Supervisor`]: one file for each below here, and a
//! line in [`act`]. How the service ended is left in the incarnation's directory ([`last_word`]), where it counts for
//! more than how the keeper did.
//!
//! A keeper that is killed takes nothing with it. The agent then has the service stopped before it tells of the death;
//! where the agent was killed as well, the next one does. Under systemd the keeper is in a unit of its own, which has
//! the service stopped when that is over ([`after`]), whoever else was killed.

mod drive;
mod kin;
pub(crate) mod last_word;
mod plan;
pub(crate) mod runit;
pub(crate) mod supervisor;
pub(crate) mod supervisord;
pub(crate) mod systemd;
mod watched;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use last_word::{End, How};
use runit::RunitService;
use serde::{Deserialize, Serialize};
use supervisor::Supervisor;
use systemd::SystemdUnit;

/// The first argument of this program as a keeper.
const FLAG: &str = "--keep";

/// The same of this program where a keeper was killed, and its service is to end.
const END_FLAG: &str = "--end-kept";

/// In the keeper's environment, what it is told: [`Errand`] as JSON.
const VARIABLE: &str = "TETHER_SERVICE";

/// In the incarnation's directory: for how long it may stop.
const PATIENCE: &str = "patience";

/// What a keeper is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Errand {
    /// Whose service it is: `systemd`, `supervisord` or `runit`.
    pub(crate) launcher: String,
    /// Its name there, of this one place.
    pub(crate) name: String,
    /// Whether it is never started or stopped.
    pub(crate) connect_only: bool,
    /// How long it may take to stop before it is killed, where its agent has not said otherwise ([`be_patient`]).
    pub(crate) patience_ms: u64,
    /// How to reach the supervisor: the bus, or another such word.
    pub(crate) at: String,
    /// Limits that it is to have, where the supervisor can give it some; 0 is none.
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) tasks: u32,
}

/// Written when the service is not a keeper's to end any more: somebody else may have started it again.
const OVER: &str = "service-over";

/// Arguments and environment of this program to end what a keeper that was killed left: for the unit of such a keeper,
/// where systemd runs it however that came.
///
/// # Errors
/// When it cannot be told of that.
pub(crate) fn after(
    program: &str,
    errand: &Errand,
    dir: &Path,
) -> io::Result<(Vec<String>, Vec<String>)> {
    let argv = vec![program.to_owned(), END_FLAG.to_owned()];
    let told = serde_json::to_string(errand)?;
    let env = vec![
        format!("{VARIABLE}={told}"),
        format!("TETHER_DIR={}", dir.display()),
    ];
    Ok((argv, env))
}

/// Says that the service of this directory is not its keeper's any more.
pub(crate) fn mark_over(dir: &Path) {
    if let Err(error) = fs::write(dir.join(OVER), "") {
        tracing::warn!(dir = %dir.display(), %error, "Cannot mark a service as ended");
    }
}

/// Whether that was said.
pub(crate) fn is_over(dir: &Path) -> bool {
    dir.join(OVER).exists()
}

/// This program, to be started again; an upgrade may have replaced it while it ran, and is then what is started.
///
/// # Errors
/// When it cannot be named.
pub(crate) fn program() -> io::Result<String> {
    Ok(started_again(&std::env::current_exe()?))
}

/// The kernel says so of a program whose file was replaced.
fn started_again(program: &Path) -> String {
    let named = program.display().to_string();
    named.trim_end_matches(" (deleted)").to_owned()
}

/// Arguments and environment of this program as a keeper of that.
///
/// # Errors
/// When this program cannot be named.
pub(crate) fn command(errand: &Errand) -> io::Result<(Vec<String>, (String, String))> {
    let argv = vec![program()?, FLAG.to_owned()];
    let told = serde_json::to_string(errand)?;
    Ok((argv, (VARIABLE.to_owned(), told)))
}

/// Where this program was started as a keeper, is one, and comes back when that is over. To be called before anything
/// else is set up.
pub(crate) fn keep_where_asked() -> Option<ExitCode> {
    let flag = std::env::args_os().nth(1)?;
    let part = match flag.to_str()? {
        FLAG => Part::Keep,
        END_FLAG => Part::End,
        _ => return None,
    };
    let told = std::env::var(VARIABLE).unwrap_or_default();
    let dir = own_dir();
    if matches!(part, Part::End) && is_over(&dir) {
        return Some(ExitCode::SUCCESS);
    }
    let kept = serde_json::from_str(&told)
        .map_err(io::Error::other)
        .and_then(|errand: Errand| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(act(&errand, &dir, part))
        });
    Some(match kept {
        Ok(None) => {
            mark_over(&dir);
            ExitCode::SUCCESS
        }
        Ok(Some(end)) => {
            // Without it the agent tells of the keeper's own end.
            let _ = end.write(&dir);
            mark_over(&dir);
            ExitCode::FAILURE
        }
        // Whether it runs is not known: its agent, or its unit, sees to that.
        Err(error) => {
            if End::read(&dir).is_none() {
                let _ = End::new(How::SpawnFailed, error.to_string()).write(&dir);
            }
            ExitCode::FAILURE
        }
    })
}

fn own_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("TETHER_DIR").unwrap_or_default())
}

/// What is to be done for a service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// Stand for it.
    Keep,
    /// End it, as nobody stands for it any more.
    End,
}

/// Has a service ended for which a keeper stood that was killed. Comes back when it does not run.
///
/// # Errors
/// When its supervisor does not do that.
pub(crate) async fn end(errand: &Errand, dir: &Path) -> io::Result<()> {
    act(errand, dir, Part::End).await.map(drop)
}

/// Plays one part; how the service ended, where nobody asked the keeper to end it.
async fn act(errand: &Errand, dir: &Path, part: Part) -> io::Result<Option<End>> {
    match errand.launcher.as_str() {
        "supervisord" => {
            let program = supervisord::Program::connect(errand, dir, part);
            part.of(errand, program).await
        }
        "runit" => {
            let service = RunitService::connect(errand, dir, part)?;
            part.of(errand, service).await
        }
        "systemd" => part.of(errand, SystemdUnit::connect(errand).await?).await,
        launcher => Err(io::Error::other(format!(
            "this agent has no launcher `{launcher}` for services"
        ))),
    }
}

impl Part {
    async fn of(self, errand: &Errand, service: impl Supervisor) -> io::Result<Option<End>> {
        match self {
            Self::Keep => drive::keep(errand, service).await,
            Self::End => drive::end(errand, service).await.map(|()| None),
        }
    }
}

/// Says how long the service of the keeper in this directory has to stop, before it is asked to.
pub(crate) fn be_patient(dir: &Path, patience_ms: u64) {
    // Not said, it has what it has at the end of its permission, which is less.
    let _ = fs::write(dir.join(PATIENCE), patience_ms.to_string());
}

fn patience(errand: &Errand) -> Duration {
    let dir = own_dir();
    let said = fs::read_to_string(dir.join(PATIENCE)).ok();
    let ms = said.and_then(|said| said.parse().ok());
    before_kill(Duration::from_millis(ms.unwrap_or(errand.patience_ms)))
}

/// Until the service is killed, of the time that its keeper has. The shim kills that one up to a quarter of it early,
/// which is 250 ms at most, and the service is to be gone by then: nobody else may be there to kill it.
fn before_kill(grace: Duration) -> Duration {
    const SHIMS: Duration = Duration::from_millis(250);
    grace * 3 / 4 - (grace / 4).min(SHIMS)
}

#[cfg(test)]
impl Errand {
    /// To keep a program of the supervisord at this socket.
    fn of_program(socket: &Path) -> Self {
        Self {
            launcher: "supervisord".to_owned(),
            name: "w".to_owned(),
            connect_only: false,
            patience_ms: 1_000,
            at: socket.display().to_string(),
            memory_bytes: 0,
            cpu_millis: 0,
            tasks: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_started_by_its_name() {
        for program in ["/usr/bin/tether", "/usr/bin/tether (deleted)"] {
            assert_eq!(started_again(Path::new(program)), "/usr/bin/tether");
        }
    }

    #[test]
    fn a_service_is_killed_well_before_its_keeper_is() {
        for ms in [400, 1_000, 2_000, 10_000] {
            let grace = Duration::from_millis(ms);
            let keepers_end = grace - (grace / 4).min(Duration::from_millis(250));
            let left = keepers_end - before_kill(grace);

            assert!(left >= Duration::from_millis(100), "{grace:?}: {left:?}");
        }
    }
}
