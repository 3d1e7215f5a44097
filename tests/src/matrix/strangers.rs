//! Keeps the pids moving: processes that come and go, and strangers that take over the pids of the dead and
//! report every signal they get.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};

use crate::{lineage::Pinned, world::WORKER};

/// Sends pids of the dead to be taken over; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recycler(UnboundedSender<u32>);

/// The helper process.
#[derive(Debug)]
pub(crate) struct Strangers {
    recycler: Recycler,
    child: Child,
    feeding: tokio::task::JoinHandle<()>,
    out: BufReader<ChildStdout>,
}

/// What became of them.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Account {
    /// Processes that came and went.
    pub(crate) forks: u64,
    /// Of them, those that watched for signals.
    pub(crate) strangers: u64,
    /// Of them, those on the very pid of a process that had just been killed.
    pub(crate) on_pids_of_the_dead: u64,
    /// Signals that any of them got.
    pub(crate) signals: u64,
    /// Which, as pid and signal.
    pub(crate) hits: Vec<String>,
}

impl Strangers {
    /// Starts them, with so many processes a second.
    pub(crate) fn start(rate: u32) -> anyhow::Result<Self> {
        Self::spawn(Command::new(WORKER).args(["strangers", &rate.to_string()]))
    }

    /// Starts them in the container with this first process; the pids of the dead are those of there.
    pub(crate) fn inside(first: &Pinned, rate: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(WORKER);
        command.args(["strangers", &rate.to_string(), "inside"]);
        Self::spawn(command.stderr(Stdio::from(first.fd()?)))
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("it is piped")?;
        let out = BufReader::new(child.stdout.take().context("it is piped")?);
        let (sender, mut pids): (_, UnboundedReceiver<u32>) = unbounded_channel();
        let feeding = tokio::spawn(async move {
            while let Some(pid) = pids.recv().await {
                if pid == 0 || input.write_all(&pid.to_le_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            recycler: Recycler(sender),
            child,
            feeding,
            out,
        })
    }

    /// Where pids of the dead go.
    pub(crate) fn recycler(&self) -> Recycler {
        self.recycler.clone()
    }

    /// The process that they are children of.
    #[cfg(test)]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Ends them and counts. No pid is taken over any more.
    pub(crate) async fn end(mut self) -> anyhow::Result<Account> {
        self.recycler.take_over(0);
        self.feeding.await?;
        let mut account = Account::default();
        let mut line = String::new();
        while timeout(Duration::from_secs(20), self.out.read_line(&mut line)).await?? > 0 {
            if let Some(figures) = line.strip_prefix("done ") {
                let mut figures = figures.split_whitespace().map(str::parse);
                let mut next = || {
                    figures
                        .next()
                        .context("a figure is missing")?
                        .context("no figure")
                };
                account.forks = next()?;
                account.strangers = next()?;
                account.on_pids_of_the_dead = next()?;
                account.signals = next()?;
            } else {
                account.hits.push(line.trim_end().to_owned());
            }
            line.clear();
        }
        self.child.wait().await?;
        Ok(account)
    }
}

impl Account {
    /// Adds what another helper counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.forks += other.forks;
        self.strangers += other.strangers;
        self.on_pids_of_the_dead += other.on_pids_of_the_dead;
        self.signals += other.signals;
        self.hits.extend(other.hits);
    }
}

impl Recycler {
    /// Has a stranger take this pid as soon as it is free.
    pub(crate) fn take_over(&self, pid: u32) {
        let _ = self.0.send(pid);
    }
}

#[cfg(test)]
mod tests {
    use tether_tests::eventually;

    use super::*;
    use crate::lineage::descendants;

    #[tokio::test]
    async fn a_stranger_takes_the_pid_of_a_dead_process_and_a_signal_to_it_is_counted() {
        let strangers = Strangers::start(0).unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();

        strangers.recycler().take_over(dead.id());

        let helper = strangers.pid();
        eventually("a stranger has the pid", async || {
            let found = descendants(helper).iter().any(|kin| kin.pid == dead.id());
            found.then_some(())
        })
        .await;
        assert!(Pinned::new(dead.id()).unwrap().terminate());
        let account = strangers.end().await.unwrap();
        assert_eq!((account.on_pids_of_the_dead, account.signals), (1, 1));
        assert_eq!(account.hits, [format!("hit {} 15", dead.id())]);
    }
}
