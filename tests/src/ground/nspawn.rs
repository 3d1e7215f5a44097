//! A machine in a container of systemd-nspawn: systemd is its first process, and its network is empty but for loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::timeout,
};

use super::{Ground, Refused, cgroups::Cgroups, tool};
use crate::{Ran, eventually_within};

/// Longest time to boot on a loaded machine, and to go down.
const BOOT: Duration = Duration::from_secs(60);

/// Longest time for one command.
const COMMAND: Duration = Duration::from_secs(120);

/// SIGRTMIN+4, which has systemd power off.
const POWER_OFF: &str = "kill -38 1";

/// SIGRTMIN+5, which has systemd reboot.
const REBOOT: &str = "kill -39 1";

/// Runs the machine in its cgroups, and once more for as long as it ends to be booted again. The shell itself stays outside.
const RUN: &str = "
while (for group in $groups; do echo 0 > \"$group/cgroup.procs\"; done; exec \"$@\"); [ $? = 133 ]; do :; done
exit
";

/// A booted machine. Killed with all in it when it is dropped.
#[derive(Debug)]
pub struct Nspawn {
    child: Child,
    /// Its first process, as the host sees it.
    leader: u32,
    ground: Ground,
    cgroups: Cgroups,
}

impl Ground {
    /// Boots it, and waits until all that is to be started is.
    ///
    /// # Errors
    /// Says what this machine refuses.
    pub async fn boot(self) -> Result<Nspawn, Refused> {
        let nspawn = tool("systemd-nspawn")?;
        let cgroups = Cgroups::new();
        let (out, err) = self
            .console()
            .map_err(|error| Refused(format!("no console: {error}")))?;
        let groups = cgroups.paths.iter().map(|path| path.display().to_string());
        let groups: Vec<_> = groups.collect();
        let started = self
            .command(RUN)
            .env("groups", groups.join(" "))
            .arg(nspawn)
            .args(["--quiet", "--boot", "--register=no", "--keep-unit"])
            .args(["--private-network", "--console=pipe", "--link-journal=no"])
            .args(["--resolv-conf=off", "--timezone=off", "--settings=no"])
            .arg(format!("--machine={}", cgroups.name))
            .arg(format!("--directory={}", self.path("merged").display()))
            .stdout(out)
            .stderr(err)
            .spawn();
        let child = started.map_err(|error| Refused(format!("`unshare`: {error}")))?;
        let mut machine = Nspawn {
            child,
            leader: 0,
            ground: self,
            cgroups,
        };
        machine.is_up().await?;
        Ok(machine)
    }
}

impl Nspawn {
    async fn is_up(&mut self) -> Result<(), Refused> {
        let up = eventually_within(BOOT, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(format!("systemd-nspawn ended ({status})")));
            }
            let shell = *children(self.child.id()?).first()?;
            let leader = leader(*children(shell).first()?)?;
            self.leader = leader;
            let ran = self.run(&["systemctl", "is-system-running"]).await.ok()?;
            match ran.out.trim() {
                "running" => Some(Ok(())),
                "degraded" => Some(Err("units failed".to_owned())),
                _ => None,
            }
        })
        .await;
        let why = match up {
            Some((Ok(()), _)) => return Ok(()),
            Some((Err(why), _)) => why,
            None => format!("it is not up after {BOOT:?}"),
        };
        let words = self.ground.last_words();
        Err(Refused(format!("{why}: {words}")))
    }

    /// A command in the machine, not yet started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.leader))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .arg("--")
            .args(words)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command in the machine to its end.
    ///
    /// # Errors
    /// When it cannot be started, or does not end.
    pub async fn run(&self, words: &[&str]) -> anyhow::Result<Ran> {
        let output = timeout(COMMAND, self.command(words).output()).await;
        let output = output.with_context(|| format!("{words:?} does not end"))??;
        Ok(Ran {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a line of shell in the machine, which is to succeed, and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn sh(&self, line: &str) -> anyhow::Result<String> {
        let ran = self.run(&["sh", "-ec", line]).await?;
        anyhow::ensure!(
            ran.code == Some(0),
            "`{line}` ended with {:?}: {}{}",
            ran.code,
            ran.out,
            ran.err
        );
        Ok(ran.out.trim_end().to_owned())
    }

    /// Writes a file in the machine.
    ///
    /// # Errors
    /// When that fails.
    pub async fn write(&self, path: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let line = format!("mkdir -p \"$(dirname '{path}')\"; cat > '{path}'");
        let mut command = self.command(&["sh", "-ec", &line]);
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("it has no input")?;
        input.write_all(content.as_ref()).await?;
        drop(input);
        let status = child.wait().await?;
        anyhow::ensure!(status.success(), "`{path}` cannot be written");
        Ok(())
    }

    /// Where the host sees a file of the machine.
    pub fn path(&self, path: &str) -> PathBuf {
        let root = Path::new("/proc").join(self.leader.to_string());
        root.join("root").join(path.trim_start_matches('/'))
    }

    /// What a unit's property is, as `systemctl show` says.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub async fn show(&self, unit: &str, property: &str) -> anyhow::Result<String> {
        let words = ["systemctl", "show", "--property", property, "--value", unit];
        Ok(self.run(&words).await?.out.trim().to_owned())
    }

    /// What the journal has of a unit.
    pub async fn journal(&self, unit: &str) -> String {
        let words = ["journalctl", "--no-pager", "--output=cat", "--unit", unit];
        let ran = self.run(&words).await;
        ran.map_or_else(|error| error.to_string(), |ran| ran.out)
    }

    /// Boots it again, with what was written, and waits until all that is to be started is.
    ///
    /// # Errors
    /// When it does not go down or come up.
    pub async fn reboot(&mut self) -> anyhow::Result<()> {
        let before = self.leader;
        self.sh(REBOOT).await?;
        let down = eventually_within(BOOT, async || (!is_there(before)).then_some(()));
        down.await.context("the machine does not go down")?;
        self.leader = 0;
        let up = self.is_up().await;
        up.map_err(|Refused(why)| anyhow::anyhow!("it does not come up: {why}"))
    }

    /// Sends a signal to its first process, which from within may have none that it does not want.
    ///
    /// # Errors
    /// When it is not there.
    pub fn signal_first(&self, signal: Signal) -> anyhow::Result<()> {
        let leader = i32::try_from(self.leader).ok().and_then(Pid::from_raw);
        let leader = leader.context("no machine")?;
        let leader = pidfd_open(leader, PidfdFlags::empty())?;
        Ok(pidfd_send_signal(&leader, signal)?)
    }

    /// Powers it off, and waits until that is done.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn power_off(mut self) -> anyhow::Result<()> {
        self.sh(POWER_OFF).await?;
        let ended = timeout(BOOT, self.child.wait()).await;
        ended.context("the machine does not power off")??;
        Ok(())
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        // The death of the machine's first process is that of all in it; only then are its cgroups empty. That of
        // systemd-nspawn need not be.
        let leader = i32::try_from(self.leader).ok().and_then(Pid::from_raw);
        if let Some(leader) = leader
            && let Ok(leader) = pidfd_open(leader, PidfdFlags::empty())
        {
            let _ = pidfd_send_signal(&leader, Signal::KILL);
        }
        let _ = self.child.start_kill();
        while matches!(self.child.try_wait(), Ok(None)) || is_there(self.leader) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let propagated = Path::new("/run/systemd/nspawn/propagate").join(&self.cgroups.name);
        let _ = fs::remove_dir_all(propagated);
    }
}

fn is_there(pid: u32) -> bool {
    pid != 0 && Path::new("/proc").join(pid.to_string()).exists()
}

/// The first process of the machine that this systemd-nspawn runs.
fn leader(nspawn: u32) -> Option<u32> {
    children(nspawn).into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let own = numbers.and_then(|numbers| numbers.split_ascii_whitespace().last());
        own == Some("1")
    })
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
