//! Who stands between client and worker: nobody, ours, or a peer; each started fresh on the measured processor.

mod ours;
pub(crate) mod peers;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    calls::{
        client::{Ask, Client},
        wire::{ECHO, numbered},
    },
    cores::Cores,
    ground::Ground,
    net::free_port,
    processes::{Pinned, family, pss_bytes, run_time},
};

pub(crate) use ours::set;

use ours::Ours;
use peers::{Care, Peer};

/// Longest time until a proxy forwards its first call, and for one to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Has our gateway use the h2 library in the place of its own engine.
pub(crate) const H2_ENGINE: &str = "gateway.engine=\"h2\"";

/// What a bench of proxies is given.
#[derive(Debug, clap::Args)]
pub struct Programs {
    /// Our gateway's program.
    #[arg(long)]
    pub(crate) gateway: PathBuf,
    /// The arbiter's, which runs beside it.
    #[arg(long)]
    pub(crate) arbiter: PathBuf,
    /// Discovery's, likewise.
    #[arg(long)]
    pub(crate) discovery: PathBuf,
    /// A peer's program, as NAME=PATH; can be given several times.
    #[arg(long)]
    peer: Vec<String>,
    /// Why there is no program of a peer, as NAME=WHY.
    #[arg(long)]
    no_peer: Vec<String>,
}

impl Programs {
    pub(crate) fn find(&self, peer: &str) -> Result<PathBuf, String> {
        let given = |list: &[String]| {
            let mut pairs = list.iter().filter_map(|one| one.split_once('='));
            Some(pairs.find(|(name, _)| *name == peer)?.1.to_owned())
        };
        let why = || given(&self.no_peer).unwrap_or_else(|| "no program was given".to_owned());
        given(&self.peer).map(PathBuf::from).ok_or_else(why)
    }
}

/// All who are measured, with one worker behind them.
#[derive(Debug)]
pub(crate) struct Proxies {
    ground: Arc<Ground>,
    cores: Cores,
    worker: u16,
    ours: Ours,
    peers: Vec<(&'static Peer, Result<PathBuf, String>)>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    Direct,
    Ours,
    /// Ours on the h2 library.
    OursH2,
    Peer(usize),
}

impl Proxies {
    pub(crate) async fn new(
        ground: Arc<Ground>,
        cores: Cores,
        worker: u16,
        programs: &Programs,
    ) -> anyhow::Result<Self> {
        let peers = peers::ALL.into_iter();
        let peers = peers.map(|peer| (peer, programs.find(peer.name))).collect();
        let ours = Ours::start(&ground, programs, worker).await?;
        Ok(Self {
            ground,
            cores,
            worker,
            ours,
            peers,
        })
    }

    /// All of them with their names, in the order of the tables.
    pub(crate) fn all(&self) -> Vec<(Proxy, &'static str)> {
        let peers = self.peers.iter().enumerate();
        let ours = [(Proxy::Ours, "ours"), (Proxy::OursH2, "ours-h2")];
        [(Proxy::Direct, "direct")]
            .into_iter()
            .chain(ours)
            .chain(peers.map(|(index, (peer, _))| (Proxy::Peer(index), peer.name)))
            .collect()
    }

    /// Starts it, and waits until it forwards calls.
    pub(crate) async fn start(&self, proxy: Proxy) -> anyhow::Result<Running> {
        // Children of those that were ended before.
        self.ground.reap();
        let port = free_port()?;
        let (name, mut command) = match proxy {
            Proxy::Direct => {
                return Ok(Running {
                    child: None,
                    port: self.worker,
                });
            }
            Proxy::Ours => ("ours", self.ours.gateway(port)),
            Proxy::OursH2 => {
                let mut command = self.ours.gateway(port);
                set(&mut command, H2_ENGINE);
                ("ours-h2", command)
            }
            Proxy::Peer(index) => {
                let (peer, found) = &self.peers[index];
                let program = found.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
                let (dir, care) = (self.ground.fresh(peer.name)?, Care::default());
                let command = peer.command(program, &dir, port, &[self.worker], care)?;
                (peer.name, command)
            }
        };
        launch(&self.ground, self.cores, name, &mut command, port).await
    }
}

/// Starts a proxy that takes calls at this port on the measured processor, and waits until it forwards them.
pub(crate) async fn launch(
    ground: &Ground,
    cores: Cores,
    name: &str,
    command: &mut Command,
    port: u16,
) -> anyhow::Result<Running> {
    let log = ground.dir().join(format!("{name}.log"));
    command.stdin(Stdio::null());
    said_in(&log, command)?;
    let child = cores.start(ground, command)?;
    let mut running = Running {
        child: Some(child),
        port,
    };
    let ready = running.ready().await;
    ready.with_context(|| {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<_> = said.lines().rev().take(3).collect();
        format!("its last words, latest first: {last:?}")
    })?;
    cores.check(&family(running.pid()))?;
    Ok(running)
}

/// A proxy that forwards calls; it ends with this.
#[derive(Debug)]
pub(crate) struct Running {
    child: Option<Child>,
    /// Where it takes calls.
    pub(crate) port: u16,
}

impl Running {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Processor time of all its processes, to the nanosecond; none where nobody stands between.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        self.child.as_ref()?;
        Some(run_time(&family(self.pid())))
    }

    /// Memory of all its processes in bytes, what they share counted once.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.child.as_ref()?;
        let each = family(self.pid())
            .iter()
            .map(|process| pss_bytes(process.pid))
            .sum();
        Some(each)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let ask = Ask::new(ECHO, numbered(0, 8));
        loop {
            let call = async { Client::connect(self.port).await?.echo(&ask).await };
            let answered = tokio::time::timeout(PATIENCE, call).await;
            let Err(why) = answered.context("no answer").flatten() else {
                return Ok(());
            };
            if let Some(ended) = self.child.as_mut().map(Child::try_wait).transpose()? {
                anyhow::ensure!(ended.is_none(), "it ended by itself: {ended:?}");
            }
            anyhow::ensure!(Instant::now() < deadline, "it forwards nothing: {why:#}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let all = Pinned::new(&family(child.id()));
        all.signal(Signal::KILL);
        let _ = child.wait();
        all.survivors(PATIENCE);
    }
}

/// Has what a program says written to a file, which is made anew.
pub(crate) fn said_in(log: &Path, command: &mut Command) -> anyhow::Result<()> {
    let log = File::create(log)?;
    command.stdout(log.try_clone()?).stderr(log);
    Ok(())
}
