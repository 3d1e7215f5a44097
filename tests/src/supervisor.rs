//! supervisord and runit for real, each with the services as `deploy/` has them, in a directory of their own.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tether_kit::process::parent;
use tokio::process::{Child, Command};

use crate::{
    Ran, eventually_within, mentioning,
    programs::{program, repository},
    tidy,
};

/// Longest time for it to answer, with as many beside it as a machine has processors.
const ANSWERS: Duration = Duration::from_secs(60);

/// Longest time for what was killed to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// supervisord.
    Supervisord,
    /// runsvdir, with a runsv for each service.
    Runit,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Supervisord, Self::Runit];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervisord => "supervisord",
            Self::Runit => "runit",
        }
    }
}

/// A running supervisor. Dropping it ends all that it has started, and fails nothing.
#[derive(Debug)]
pub struct Supervisor {
    kind: Kind,
    dir: PathBuf,
    child: Child,
}

/// A supervisor in the making: a directory with services in it.
#[derive(Debug)]
pub struct Services {
    kind: Kind,
    dir: PathBuf,
}

impl Services {
    /// An empty directory's.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn new(kind: Kind, dir: &Path) -> anyhow::Result<Self> {
        for name in ["etc", "run", "lib", "log", "services"] {
            fs::create_dir_all(dir.join(name))?;
        }
        // Of the owner alone, as it is wanted of a runtime directory.
        for name in ["run", "lib"] {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o700))?;
        }
        let dir = dir.to_owned();
        Ok(Self { kind, dir })
    }

    /// Adds one of ours, as `deploy/` has it, with its paths below this directory.
    ///
    /// # Errors
    /// When it is not there.
    pub fn deploy(self, service: &str) -> anyhow::Result<Self> {
        let from = repository().join("deploy").join(self.kind.name());
        match self.kind {
            Kind::Supervisord => {
                let text = fs::read_to_string(from.join(format!("{service}.conf")))?;
                let text = self.here(&text);
                self.add(service, &text)
            }
            Kind::Runit => {
                let to = self.dir.join("services").join(service);
                fs::create_dir_all(to.join("log"))?;
                for script in ["run", "finish", "check", "log/run"] {
                    let text = fs::read_to_string(from.join(service).join(script))?;
                    executable(&to.join(script), &self.here(&text))?;
                }
                Ok(self)
            }
        }
    }

    /// Adds a service of a test: a section of `supervisord.conf`, or a `run` script.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(self, service: &str, text: &str) -> anyhow::Result<Self> {
        let services = self.dir.join("services");
        match self.kind {
            Kind::Supervisord => fs::write(services.join(format!("{service}.conf")), text)?,
            Kind::Runit => {
                fs::create_dir_all(services.join(service))?;
                executable(&services.join(service).join("run"), text)?;
            }
        }
        Ok(self)
    }

    /// Adds another file to a service of runit.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn script(self, service: &str, name: &str, text: &str) -> anyhow::Result<Self> {
        executable(&self.dir.join("services").join(service).join(name), text)?;
        Ok(self)
    }

    /// Writes `/etc/tether/tether.toml`, which all services read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(self, text: &str) -> anyhow::Result<Self> {
        fs::write(self.dir.join("etc/tether.toml"), self.here(text))?;
        Ok(self)
    }

    /// A text of `deploy/` or of a guide, with this directory for the machine's and this user for `tether`.
    pub fn here(&self, text: &str) -> String {
        let dir = |name: &str| self.dir.join(name).display().to_string();
        let text = text
            .replace("/etc/tether", &dir("etc"))
            .replace("/run/tether", &dir("run"))
            .replace("/var/lib/tether", &dir("lib"))
            .replace("/var/log/supervisor", &dir("log"))
            .replace("/var/log/runit", &dir("log"));
        [
            "user=tether\n",
            " -u tether",
            " -u _runit-log",
            " -o tether -g tether",
            " -o _runit-log",
        ]
        .iter()
        .fold(text, |text, user| text.replace(user, ""))
    }

    /// Starts the supervisor, and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed, or does not answer.
    pub async fn start(self) -> anyhow::Result<Supervisor> {
        let Self { kind, dir } = self;
        let mut command = match kind {
            Kind::Supervisord => {
                fs::write(dir.join("supervisord.conf"), supervisord_conf(&dir))?;
                let mut command = Command::new("supervisord");
                command.args(["--nodaemon", "--configuration"]);
                command.arg(dir.join("supervisord.conf"));
                command
            }
            Kind::Runit => {
                let mut command = Command::new("runsvdir");
                command.arg("-P").arg(dir.join("services"));
                command
            }
        };
        let child = surroundings(&mut command, &dir)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("log/supervisor"))?)
            .spawn();
        let name = kind.name();
        let child = child.with_context(|| {
            format!("cannot run {name}: install it, or let `cargo xtask test` fetch it")
        })?;
        let supervisor = Supervisor { kind, dir, child };
        let answers = eventually_within(ANSWERS, async || supervisor.answers().then_some(()));
        ensure!(answers.await.is_some(), "{name} does not answer");
        Ok(supervisor)
    }
}

impl Supervisor {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process id of supervisord, or of runsvdir.
    ///
    /// # Errors
    /// When it was waited for.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the supervisor has ended")
    }

    /// Who starts the process `pid` of a service anew: supervisord, or its runsv.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn keeper_of(&self, pid: u32) -> anyhow::Result<u32> {
        parent(pid).context("the service has ended")
    }

    /// The agent's process, as it wrote it down.
    pub fn agent(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("run/agent.lock")).ok()?;
        let pid = text.trim_end().parse().ok()?;
        parent(pid).map(|_| pid)
    }

    /// `supervisorctl`, or `sv` with a service by its name alone.
    pub fn control(&self, args: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Supervisord => {
                let mut command = Command::new("supervisorctl");
                command.arg("--configuration");
                command.arg(self.dir.join("supervisord.conf"));
                command
            }
            Kind::Runit => {
                let mut command = Command::new("sv");
                command.env("SVDIR", self.dir.join("services"));
                command
            }
        };
        surroundings(&mut command, &self.dir);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs that to its end.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn say(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let output = self.control(args).output().await?;
        Ok(Ran {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn answers(&self) -> bool {
        match self.kind {
            Kind::Supervisord => UnixStream::connect(self.dir.join("supervisor.sock")).is_ok(),
            Kind::Runit => {
                let services = fs::read_dir(self.dir.join("services"));
                let mut services = services.into_iter().flatten().flatten();
                services.all(|service| service.path().join("supervise/ok").exists())
            }
        }
    }

    /// What a service has written.
    pub fn log(&self, service: &str) -> String {
        let log = self.dir.join("log");
        let file = match self.kind {
            Kind::Supervisord => log.join(format!("{service}.log")),
            Kind::Runit => log.join(service).join("current"),
        };
        fs::read_to_string(file).unwrap_or_default()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // First of all, since it starts others.
        let _ = self.child.start_kill();
        let start = Instant::now();
        while start.elapsed() < GONE {
            let _ = self.child.try_wait();
            let left = mentioning(&self.dir);
            let left: Vec<_> = left
                .iter()
                .filter(|process| process.pid != std::process::id())
                .collect();
            if left.is_empty() {
                break;
            }
            for process in left {
                let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
                if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        tidy(&self.dir.join("run"));
    }
}

/// As Debian has it in `/etc/supervisor/supervisord.conf`.
fn supervisord_conf(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[unix_http_server]\nfile={dir}/supervisor.sock\nchmod=0700\n\n\
         [supervisord]\nlogfile={dir}/log/supervisord.log\npidfile={dir}/supervisord.pid\nchildlogdir={dir}/log\n\n\
         [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
         [supervisorctl]\nserverurl=unix://{dir}/supervisor.sock\n\n\
         [include]\nfiles={dir}/services/*.conf\n"
    )
}

/// Our programs come first, and all that is started here can be told by its environment.
fn surroundings<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    let programs = program("tether-agent");
    let mut path: Vec<PathBuf> = programs.parent().map(PathBuf::from).into_iter().collect();
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let path = env::join_paths(path).unwrap_or_default();
    command
        .env("PATH", path)
        .env("TETHER_TEST", dir)
        .env(
            "TETHER_GATEWAY",
            format!("unix:{}", dir.join("run/gateway.sock").display()),
        )
        .env_remove("TETHER_CONFIG")
}

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
