//! One repetition: a supervisor with a service, workers with daemonised children, somebody killed, and what was left.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tether_client::Client;
use tether_proto::{
    common::WorkerPhase,
    pool::DeletePoolRequest,
    worker::{ListWorkersRequest, Worker},
};
use tether_tests::{
    Cluster, Tether, Traces, eventually_within, signal_all,
    supervisor::{Services, Supervisor},
};
use tokio::time::Instant;

use crate::plan::{Outcome, Row, Service};

/// Of each node's lease: longer than supervisord takes to start an agent anew on a machine that is busy.
pub(crate) const TTL: Duration = Duration::from_secs(5);

/// Between two beats of a node.
pub(crate) const BEAT: Duration = Duration::from_millis(500);

/// What a count may take beyond the lease.
const BEYOND: Duration = Duration::from_secs(1);

/// For what is no question of leases: starting, joining, being started anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of each worker: itself, and a shell with a child that both ignore SIGTERM in a session of their own.
const PROCESSES: usize = 3;

/// What was left after a repetition, and when nothing was left that had to go.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Processes of workers that had to be gone, when the lease and a second were over.
    pub(crate) left: usize,
    /// How long the last of them lived on.
    pub(crate) gone_after: Duration,
    /// What else is wrong.
    pub(crate) wrong: Option<String>,
}

/// Plays it once, in a directory of its own.
pub(crate) async fn play(row: Row, cluster: &Cluster, number: usize) -> anyhow::Result<Seen> {
    let dir = cluster.dir().join(format!("t{number}"));
    let node = format!("t{number}");
    let services = Services::new(row.kind, &dir)?.configure(&settings(row, cluster, &node))?;
    let supervisor = services.deploy(row.service.name())?.start().await?;
    let gateway = match row.service {
        Service::Agent => cluster.gateway(),
        Service::Up => format!("unix:{}", dir.join("run/gateway.sock").display()),
    };
    let trial = Trial {
        row,
        supervisor,
        client: Client::connect(&gateway.parse()?),
        traces: Traces::of(&dir.join("run")),
        pools: [format!("tied-{number}"), format!("free-{number}")],
    };
    trial.apply(&gateway, &dir, &node).await?;
    let seen = trial.kill().await;
    if row.service == Service::Agent {
        for pool in &trial.pools {
            let request = DeletePoolRequest {
                name: pool.clone(),
                ..DeletePoolRequest::default()
            };
            let _ = trial.client.pools().delete_pool(request).await;
        }
    }
    drop(trial);
    let _ = fs::remove_dir_all(&dir);
    seen
}

fn settings(row: Row, cluster: &Cluster, node: &str) -> String {
    let agent = format!("[agent]\nnode = {node:?}\nlabels = {{ trial = {node:?} }}\n");
    match row.service {
        Service::Agent => {
            let arbiter = cluster.runtime().join("arbiter.sock");
            format!(
                "[connect]\narbiter = \"unix:{}\"\n{agent}",
                arbiter.display()
            )
        }
        Service::Up => format!(
            "store = \"redb:/var/lib/tether/tether.redb\"\n[listen]\ngateway = [\"unix:/run/tether/gateway.sock\"]\n[lease]\nnode_ttl = \"{TTL:?}\"\nnode_beat = \"{BEAT:?}\"\n{agent}"
        ),
    }
}

struct Trial {
    row: Row,
    supervisor: Supervisor,
    client: Client,
    traces: Traces,
    /// Whose workers are tied to their agent, and whose are not.
    pools: [String; 2],
}

impl Trial {
    /// Applies the pools, and waits until each worker has its children.
    async fn apply(&self, gateway: &str, dir: &Path, node: &str) -> anyhow::Result<()> {
        let script = "setsid sh -c 'trap \"\" TERM; sleep 600; :' & exec sleep 600";
        let mut text = format!(
            "[template.t]\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\nreadiness = {{ kind = \"started\" }}\nstop = {{ grace = \"200ms\" }}\n"
        );
        for (pool, on_agent_loss) in self.pools.iter().zip(["kill", "hold_until_lease"]) {
            text += &format!(
                "[pool.{pool}]\ntemplate = \"t\"\nmode = \"independent\"\nsize = 1\nplacement = {{ labels = {{ trial = {node:?} }} }}\n[pool.{pool}.policy]\non_agent_loss = \"{on_agent_loss}\"\npartition_grace = \"0s\"\n"
            );
        }
        let file = dir.join("pools.toml");
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let tether = Tether::at(gateway);
        let mut refused = String::new();
        let applied = eventually_within(PATIENCE, async || {
            let args = ["pool", "apply", "--file", &file, "--owner", node];
            let ran = tether.run(&args).await;
            refused = ran.err;
            (ran.code == Some(0)).then_some(())
        });
        let applied = applied.await;
        applied.with_context(|| {
            let log = self.supervisor.log(self.row.service.name());
            format!("the pools are not taken: {refused}\n{log}")
        })?;
        let whole = async || (self.traces.find().len() == 2 * PROCESSES).then_some(());
        let whole = eventually_within(PATIENCE, whole).await;
        whole.context("the workers do not start")?;
        for pool in &self.pools {
            self.ready(pool, |_| true).await?;
        }
        Ok(())
    }

    /// The pool's worker, once it is ready and like that.
    async fn ready(&self, pool: &str, is: impl Fn(&Worker) -> bool) -> anyhow::Result<Worker> {
        let look = async || {
            let request = ListWorkersRequest {
                pool: pool.to_owned(),
            };
            let answer = self.client.workers().list_workers(request).await.ok()?;
            let mut workers = answer.into_inner().workers.into_iter();
            workers.find(|worker| worker.phase() == WorkerPhase::Ready && is(worker))
        };
        let found = eventually_within(PATIENCE, look).await;
        Ok(found
            .with_context(|| format!("no worker of {pool} is ready"))?
            .0)
    }

    async fn kill(&self) -> anyhow::Result<Seen> {
        let [tied, free] = &self.pools;
        let (tied, free) = (
            self.ready(tied, |_| true).await?,
            self.ready(free, |_| true).await?,
        );
        let service = self.supervisor.agent().context("there is no agent")?;
        let keeper = self.supervisor.keeper_of(service)?;
        let root = self.supervisor.pid()?;
        let who = self.row.victims;
        let mut pids: Vec<u32> = [
            (who.root, root),
            (who.keeper, keeper),
            (who.service, service),
        ]
        .into_iter()
        .filter_map(|(is_killed, pid)| is_killed.then_some(pid))
        .collect();
        pids.dedup();
        let killed = Instant::now();
        signal_all(&pids, Signal::KILL);
        match self.row.outcome() {
            Outcome::Unharmed => self.unharmed(killed, service, [&tied, &free]).await,
            Outcome::Adopted => self.adopted(killed, service, &tied, &free).await,
            Outcome::Gone => self.gone(killed, &self.traces).await,
        }
    }

    /// When none of these is left.
    async fn gone(&self, killed: Instant, traces: &Traces) -> anyhow::Result<Seen> {
        // Of a look that takes long it is known only that what it did not find was gone when it began.
        let none = async || {
            let began = killed.elapsed();
            let found = traces.find().len();
            (found == 0 || began > TTL + BEYOND).then_some((found, began))
        };
        let seen = eventually_within(PATIENCE, none).await;
        let ((left, gone_after), _) = seen.context("nobody looked")?;
        let late = gone_after > TTL + BEYOND;
        Ok(Seen {
            left,
            gone_after,
            wrong: (late && left == 0).then(|| format!("all gone only after {gone_after:.2?}")),
        })
    }

    async fn adopted(
        &self,
        killed: Instant,
        service: u32,
        tied: &Worker,
        free: &Worker,
    ) -> anyhow::Result<Seen> {
        let (tied, free) = (name(tied)?, (name(free)?, free.pid));
        let seen = self.gone(killed, &self.traces.of_one(&tied)).await?;
        let next = async || self.supervisor.agent().filter(|pid| *pid != service);
        ensure!(
            eventually_within(PATIENCE, next).await.is_some(),
            "no agent came after the first"
        );
        // One that comes after the lease finds nothing to take over, and another life has begun.
        let is_late = killed.elapsed() + BEYOND > TTL;
        // The next life of the tied one is told by that agent.
        self.ready(&self.pools[0], |worker| {
            name(worker).is_ok_and(|name| name != tied)
        })
        .await?;
        let now = self.ready(&self.pools[1], |_| true).await?;
        let now = (name(&now)?, now.pid);
        let is_same = now == free;
        let wrong = (!is_same && !is_late).then(|| format!("{free:?} was followed by {now:?}"));
        let lives = self.traces.of_one(&free.0).find().len();
        let expected = if is_same { PROCESSES } else { 0 };
        let wrong = wrong.or_else(|| {
            (lives != expected)
                .then(|| format!("{lives} processes of the worker that was to have {expected}"))
        });
        Ok(Seen { wrong, ..seen })
    }

    /// Looks for longer than the lease, beyond which nothing would live whose agent does not.
    async fn unharmed(
        &self,
        killed: Instant,
        service: u32,
        workers: [&Worker; 2],
    ) -> anyhow::Result<Seen> {
        let changed = async || {
            let lives = self.supervisor.agent() == Some(service);
            let whole = self.traces.find().len() == 2 * PROCESSES;
            (!lives || !whole).then_some(())
        };
        let changed = eventually_within(TTL + BEYOND, changed).await;
        let mut wrong = changed.map(|_| "something ended".to_owned());
        for (pool, before) in self.pools.iter().zip(workers) {
            let now = self.ready(pool, |_| true).await?;
            if now.pid != before.pid {
                wrong = Some(format!("{pool} has another worker"));
            }
        }
        Ok(Seen {
            left: 0,
            gone_after: killed.elapsed(),
            wrong,
        })
    }
}

/// `POOL.SLOT.INCARNATION`, as its directory is called.
fn name(worker: &Worker) -> anyhow::Result<String> {
    let id = worker.worker.as_ref().context("a worker without a name")?;
    Ok(format!("{}.{}.{}", id.pool, id.slot, id.incarnation))
}
