//! A proxy with its workers, as each turn has it anew.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tether_tests::clerk::book;
use tokio::time::{Instant, sleep};

use super::{
    DEADLINE, Programs, RATE, SETTLING, WORKERS, blows::evidence, kept::Kept, load::Steady,
    ours::Ours, peers, wire::Tap,
};
use crate::{
    cores::Cores,
    ground::Ground,
    net::free_port,
    proxies::{H2_ENGINE, Proxy, Running, launch, peers::ALL, set},
};

/// Longest time for workers to be there, and to be there again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks whether they are.
const PAUSE: Duration = Duration::from_millis(20);

/// How much longer something is waited for.
#[derive(Debug)]
pub(super) struct Patience(Instant);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    /// Waits for the next look; fails where there have been enough.
    pub(super) async fn pause(&self, missing: &str) -> anyhow::Result<()> {
        anyhow::ensure!(Instant::now() < self.0, "{missing}");
        sleep(PAUSE).await;
        Ok(())
    }
}

/// How workers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) count: usize,
    /// How many times as long the first of them takes for a call.
    pub(super) slowness: u32,
    /// What the first of them has in memory.
    pub(super) resident_mib: u64,
    /// Whether workers have their agent know early of their death, where they have one.
    pub(super) holds: bool,
    /// When a dead one is started again.
    pub(super) restart_after: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            count: WORKERS,
            slowness: 1,
            resident_mib: 0,
            holds: true,
            restart_after: Duration::from_millis(100),
        }
    }
}

impl Manner {
    /// As a worker is told.
    pub(super) fn flags(self) -> Vec<String> {
        let (slowness, resident) = (self.slowness, self.resident_mib);
        let mut flags = format!("--odd-slot 0 --slowness {slowness} --resident-mib {resident}");
        if self.holds {
            flags.push_str(" --hold");
        }
        flags.split(' ').map(str::to_owned).collect()
    }
}

/// One worker as it is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) slot: usize,
    /// Whose book it writes.
    pub(super) clerk: String,
    pub(super) pid: u32,
    pub(super) port: u16,
}

/// Where all turns take place.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) ground: Arc<Ground>,
    pub(super) cores: Cores,
    pub(super) programs: Programs,
    /// How long calls go on where nothing is done to workers.
    pub(super) span: Duration,
}

/// A proxy that forwards to workers.
pub(super) struct Site {
    proxy: Running,
    crew: Crew,
    books: PathBuf,
    pub(super) tap: Tap,
}

enum Crew {
    Ours(Box<Ours>),
    Kept(Kept),
}

impl Stage {
    /// The p99 of one worker less to which nothing is done, in seconds.
    pub(super) async fn healthy(&self, proxy: Proxy) -> anyhow::Result<Option<f64>> {
        let manner = Manner {
            count: WORKERS - 1,
            ..Manner::default()
        };
        let site = self.site(proxy, manner).await?;
        let load = Steady::start(site.port(), RATE, DEADLINE);
        sleep(SETTLING + self.span).await;
        Ok(evidence(&site, load).await?.p99_of_seconds())
    }

    pub(super) async fn site(&self, proxy: Proxy, manner: Manner) -> anyhow::Result<Site> {
        let (ground, programs) = (&self.ground, &self.programs);
        ground.clear()?;
        let books = ground.fresh("books")?;
        let tap = Tap::open()?;
        let port = free_port()?;
        let (name, mut command, crew) = match proxy {
            Proxy::Direct => anyhow::bail!("without a proxy there is nobody to choose a worker"),
            Proxy::Ours | Proxy::OursH2 => {
                let ours = Ours::start(ground, programs, &books, manner).await?;
                let mut command = ours.gateway(port);
                if proxy == Proxy::OursH2 {
                    set(&mut command, H2_ENGINE);
                }
                ("gateway", command, Crew::Ours(Box::new(ours)))
            }
            Proxy::Peer(index) => {
                let peer = ALL[index];
                let name = peer.name;
                let program = programs.proxies.find(name);
                let program = program.map_err(|why| anyhow::anyhow!("{why}"))?;
                let clerk = programs.clerk.clone();
                let kept = Kept::start(ground, clerk, books.clone(), manner).await?;
                let dir = ground.fresh(name)?;
                let care = peers::care(name);
                let command = peer.command(&program, &dir, port, &kept.ports(), care)?;
                (name, command, Crew::Kept(kept))
            }
        };
        Ok(Site {
            proxy: launch(ground, self.cores, name, &mut command, port).await?,
            crew,
            books,
            tap,
        })
    }
}

impl Site {
    pub(super) fn port(&self) -> u16 {
        self.proxy.port
    }

    /// What workers have written down.
    pub(super) fn entries(&self) -> anyhow::Result<Vec<book::Entry>> {
        Ok(book::read(&self.books)?)
    }

    /// Waits a while for a worker to have a call.
    pub(super) async fn busy(&self, worker: &Member) {
        let book = self.books.join(&worker.clerk);
        let until = Instant::now() + SETTLING;
        while !book::is_busy(&book) && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The workers that are there.
    pub(super) async fn members(&self) -> anyhow::Result<Vec<Member>> {
        match &self.crew {
            Crew::Ours(ours) => ours.members().await,
            Crew::Kept(kept) => Ok(kept.members().await),
        }
    }

    /// Waits until so many are there and none of these any more.
    pub(super) async fn back(&self, count: usize, gone: &[Member]) -> anyhow::Result<()> {
        let patience = Patience::new();
        loop {
            let members = self.members().await?;
            if members.len() == count && members.iter().all(|one| !gone.contains(one)) {
                return Ok(());
            }
            patience.pause("not all workers are back").await?;
        }
    }

    /// Replaces all workers, one after the other, as is usual beside this proxy.
    pub(super) async fn roll(&self) -> anyhow::Result<()> {
        match &self.crew {
            Crew::Ours(ours) => ours.roll().await,
            Crew::Kept(kept) => kept.roll().await,
        }
    }
}
