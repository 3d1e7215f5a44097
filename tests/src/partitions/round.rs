//! One cut, from a cluster at rest to a cluster at rest, and what was seen of it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_tests::{eventually_within, kill, program, until_ready};
use tokio::{process::Child, time::sleep};

use crate::{
    grid::{Grid, PATIENCE},
    plan::{Cut, Heals, Mode, TIMES},
};

/// What was seen, counted from the cut.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The worker's last sign of life, where it ended before or at the heal.
    pub(crate) worker_ended: Option<Duration>,
    /// The first sign of life of the next one.
    pub(crate) started_again: Option<Duration>,
    /// When the owner gave its session up.
    pub(crate) owner_ended: Option<Duration>,
    /// Incarnations that wrote after a later one had begun.
    pub(crate) double_lives: Vec<u64>,
    /// Why each worker died, as it was recorded.
    pub(crate) causes: Vec<String>,
    /// Workers that are listed when all is over, and processes that live of them.
    pub(crate) listed: usize,
    pub(crate) living: usize,
}

/// Life signs of one incarnation: the first and the last.
type Life = (Tick, Tick);

/// Plays one cut.
pub(crate) async fn play(
    grid: &mut Grid,
    number: usize,
    cut: Cut,
    mode: Mode,
    heals: Heals,
) -> anyhow::Result<Seen> {
    grid.stands().await?;
    let pool = format!("p{number}");
    let mut owner = Owner::start(grid, &pool, mode).await?;
    let beacon = beacon(grid, &pool);
    let first = eventually_within(PATIENCE, async || lives(&beacon).into_keys().next());
    let (first, _) = first.await.context("the worker gives no sign of life")?;
    // What is decided is seen before it is written, and what was never written nobody can take up.
    let served = eventually_within(PATIENCE, async || {
        let endpoints = grid.tether().json(&["endpoints", &pool]).await?;
        (!endpoints.as_array()?.is_empty()).then_some(())
    });
    served.await.context("the worker is no endpoint")?;

    let at = BootClock.now();
    for (from, to) in cut.ways() {
        grid.net.lose(from, to).await?;
    }
    // The length of the cut is what is tried.
    sleep(TIMES.lasts(heals)).await;
    let healed = BootClock.now();
    grid.net.heal().await?;

    let mut seen = Seen::default();
    settle(grid, &pool, &mut seen).await?;
    let lives = lives(&beacon);
    let is_over = |life: &Life| healed.since(life.1) > Duration::from_millis(100);
    seen.worker_ended = lives
        .get(&first)
        .filter(|life| is_over(life))
        .map(|life| life.1.since(at));
    let next = lives.range(first + 1..).next();
    seen.started_again = next.map(|(_, life)| life.0.since(at));
    seen.double_lives = double_lives(&beacon);
    seen.owner_ended = owner.lost().map(|lost| lost.since(at));
    seen.causes = causes(grid, &pool).await;
    owner.leave().await?;
    remove(grid, &pool).await?;
    Ok(seen)
}

/// Waits until what is listed of the pool is what lives of it.
async fn settle(grid: &Grid, pool: &str, seen: &mut Seen) -> anyhow::Result<()> {
    let settled = eventually_within(PATIENCE, async || {
        let tether = grid.tether();
        let workers = tether.json(&["ps"]).await?;
        let workers = workers.as_array()?.clone();
        let pools = tether.json(&["pool", "ls"]).await?;
        let size = |pool: &serde_json::Value| pool["size"].as_u64().unwrap_or_default();
        let wanted: u64 = pools.as_array()?.iter().map(size).sum();
        // An arbiter that has just begun knows of pools, and not yet of their workers.
        let settled = u64::try_from(workers.len()).ok()? >= wanted
            && workers
                .iter()
                .all(|worker| worker["phase"] == "ready" || worker["phase"] == "dead");
        let ready = workers.iter().filter(|worker| worker["phase"] == "ready");
        let ready = ready.count();
        let living = grid.living();
        (settled && ready == living).then_some((ready, living))
    });
    let ((listed, living), _) = settled.await.with_context(|| {
        format!(
            "what is listed of `{pool}` and what lives of it do not come together:\n{}",
            grid.tail("arbiter")
        )
    })?;
    (seen.listed, seen.living) = (listed, living);
    Ok(())
}

async fn causes(grid: &Grid, pool: &str) -> Vec<String> {
    let events = grid.tether().json(&["events", "--pool", pool]).await;
    let events = events.and_then(|events| events.as_array().cloned());
    let died = events.into_iter().flatten();
    died.filter_map(|event| Some(event["death"]["cause"].as_str()?.to_owned()))
        .collect()
}

async fn remove(grid: &mut Grid, pool: &str) -> anyhow::Result<()> {
    // It may be gone already, with its owner.
    let _ = grid.tether().json(&["pool", "rm", pool]).await;
    let gone = eventually_within(PATIENCE, async || (grid.living() == 0).then_some(()));
    gone.await.context("workers of a removed pool live on")?;
    Ok(())
}

fn beacon(grid: &Grid, pool: &str) -> PathBuf {
    grid.path(&format!("{pool}.beacon"))
}

/// Every line of a beacon's file: which incarnation, and when.
fn signs(beacon: &PathBuf) -> Vec<(u64, Tick)> {
    let text = fs::read_to_string(beacon).unwrap_or_default();
    let sign = |line: &str| {
        let (incarnation, tick) = line.split_once(' ')?;
        Some((
            incarnation.parse().ok()?,
            Tick::from_nanos(tick.parse().ok()?),
        ))
    };
    text.lines().filter_map(sign).collect()
}

fn lives(beacon: &PathBuf) -> BTreeMap<u64, Life> {
    let mut lives = BTreeMap::new();
    for (incarnation, tick) in signs(beacon) {
        lives.entry(incarnation).or_insert((tick, tick)).1 = tick;
    }
    lives
}

fn double_lives(beacon: &PathBuf) -> Vec<u64> {
    let mut highest = 0;
    let mut found = Vec::new();
    for (incarnation, _) in signs(beacon) {
        if incarnation < highest && !found.contains(&incarnation) {
            found.push(incarnation);
        }
        highest = highest.max(incarnation);
    }
    found
}

/// The owner of a pool, on a host of its own.
#[derive(Debug)]
struct Owner {
    child: Child,
    lost: Arc<Mutex<Option<Tick>>>,
}

impl Owner {
    /// Opens a session, applies the pool, and waits until its worker is ready.
    async fn start(grid: &Grid, pool: &str, mode: Mode) -> anyhow::Result<Self> {
        let file = grid.path(&format!("{pool}.toml"));
        fs::write(&file, pool_file(grid, pool, mode))?;
        let mut command = grid.net.command("owner", program("demo-client"));
        command
            .args([
                "--gateway",
                &format!("{}:7400", grid.net.address("gateway")),
            ])
            .args(["--owner", &format!("owner-of-{pool}")])
            .args(["--ttl-ms", &TIMES.session_ttl.as_millis().to_string()])
            .arg("--file")
            .arg(file)
            .env("TETHER_HISTORY", grid.histories());
        let (child, mut lines) = until_ready(&mut command, PATIENCE).await?;
        let lost = Arc::new(Mutex::new(None));
        let told = Arc::clone(&lost);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("\"lost\"")
                    && let Ok(mut told) = told.lock()
                {
                    told.get_or_insert_with(|| BootClock.now());
                }
            }
        });
        Ok(Self { child, lost })
    }

    fn lost(&self) -> Option<Tick> {
        self.lost.lock().ok().and_then(|lost| *lost)
    }

    /// Has it say goodbye, where it still runs.
    async fn leave(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none()
            && let Some(pid) = self.child.id()
        {
            kill(pid, Signal::TERM);
        }
        let left = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ensure!(left.is_ok(), "the owner does not end");
        Ok(())
    }
}

fn pool_file(grid: &Grid, pool: &str, mode: Mode) -> String {
    let millis = |span: Duration| format!("{}ms", span.as_millis());
    format!(
        "[template.beacon]\ncommand = {command:?}\nlisten = \"tcp\"\n\
         readiness = {{ kind = \"connect\" }}\n\
         env = {{ BEACON_FILE = {file:?}, BEACON_INCARNATION = \"{{incarnation}}\" }}\n\
         [pool.{pool}]\ntemplate = \"beacon\"\nmode = \"{mode}\"\n\
         [pool.{pool}.policy]\nheartbeat_interval = \"{interval}\"\nheartbeat_timeout = \"{timeout}\"\npartition_grace = \"{grace}\"\n",
        command = program("beacon").display().to_string(),
        file = beacon(grid, pool).display().to_string(),
        mode = mode.name(),
        interval = millis(TIMES.session_beat),
        timeout = millis(TIMES.heartbeat_timeout),
        grace = millis(TIMES.partition_grace),
    )
}
