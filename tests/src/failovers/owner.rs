//! Owners: a process that holds a session, and the workers of its pool.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tether_proto::{
    common::{WorkerPhase, WorkerRef},
    worker::ListWorkersRequest,
};
use tether_tests::{program, until_ready};
use tokio::process::Child;

use crate::world::{PATIENCE, World};

/// The modes whose workers outlive what is lost here; the pool of each is named after it.
pub(crate) const MODES: [&str; 2] = ["independent", "distributed"];

/// Workers of each pool.
const WORKERS: usize = 2;

/// One owner. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    child: Child,
    lost: Arc<AtomicBool>,
}

impl Owner {
    /// Opens a session, applies the pool, and waits until its workers are ready.
    pub(crate) async fn start(world: &World, mode: &str) -> anyhow::Result<Self> {
        let file = world.path(&format!("{mode}.pool.toml"));
        fs::write(&file, pool_file(world, mode))?;
        let mut command = world.net.command("owner", program("demo-client"));
        command
            .args(["--gateway", &world.gateway()])
            .args(["--owner", &format!("owner-of-{mode}")])
            .arg("--file")
            .arg(file);
        let (child, mut lines) = until_ready(&mut command, PATIENCE).await?;
        let lost = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&lost);
        tokio::spawn(async move {
            // It says nothing more unless its session is lost, and closes its output when it ends.
            while let Ok(Some(_)) = lines.next_line().await {}
            told.store(true, Ordering::Relaxed);
        });
        Ok(Self { child, lost })
    }

    /// Whether it runs and has its session.
    pub(crate) fn holds(&mut self) -> bool {
        !self.lost.load(Ordering::Relaxed) && matches!(self.child.try_wait(), Ok(None))
    }
}

fn pool_file(world: &World, mode: &str) -> String {
    let file = world.path(&format!("{mode}-{{slot}}.beacon"));
    format!(
        "[template.beacon]\ncommand = {command:?}\nlisten = \"tcp\"\n\
         readiness = {{ kind = \"connect\" }}\n\
         env = {{ BEACON_FILE = {file:?}, BEACON_INCARNATION = \"{{incarnation}}\" }}\n\
         [pool.{mode}]\ntemplate = \"beacon\"\nmode = \"{mode}\"\nsize = {WORKERS}\n",
        command = program("beacon").display().to_string(),
        file = file.display().to_string(),
    )
}

/// The workers of all pools by name and incarnation, with their processes; none where not all are in service.
pub(crate) async fn workers(world: &World) -> Option<BTreeMap<String, u32>> {
    let client = world.client().ok()?;
    let request = ListWorkersRequest {
        pool: String::new(),
    };
    let workers = client.workers().list_workers(request).await.ok()?;
    let workers = workers.into_inner().workers;
    let serving = workers
        .iter()
        .filter(|worker| worker.phase() == WorkerPhase::Ready && !worker.disabled);
    let named = serving.map(|worker| {
        let name = WorkerRef::required(worker.worker.as_ref()).ok()?;
        Some((format!("{name}"), worker.pid))
    });
    let named: BTreeMap<_, _> = named.collect::<Option<_>>()?;
    (named.len() == MODES.len() * WORKERS).then_some(named)
}

/// Incarnations that gave signs of life in each place.
pub(crate) fn lives(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut lives = BTreeMap::new();
    for mode in MODES {
        for slot in 0..WORKERS {
            let name = format!("{mode}-{slot}");
            let path = world.path(&format!("{name}.beacon"));
            let text = fs::read_to_string(path).unwrap_or_default();
            let incarnations = text.lines().filter_map(|line| line.split_once(' '));
            let incarnations = incarnations.map(|(incarnation, _)| incarnation.to_owned());
            lives.insert(name, incarnations.collect());
        }
    }
    lives
}
