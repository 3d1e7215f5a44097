//! The rows: what is measured how often, beside whom, and against which target.

use std::time::{Duration, Instant};

use tether_proto::pool::ReadinessKind;

use super::{
    IN_FLIGHT, Plan, STUBBORN, SURVIVAL,
    ends::{self, Blow, End},
    floor, lives,
    ours::template,
    renewals,
};
use crate::{
    figure::{Figure, Target, median},
    ground::{Ground, WORKER_NAME},
    peer::{Elixir, Mode, Peer, RUNIT, Rate, S6, Short, Stage, Supervisord, Systemd, Venue},
    processes::{Pinned, cpu_below, kernel_bytes, pss_bytes, settled},
};

/// Every peer, in the order of the evidence.
const PEERS: &[&dyn Peer] = &[&Systemd, &Supervisord, &Elixir, &RUNIT, &S6];

/// What is measured against what.
pub(super) struct Bench<'a> {
    ground: &'a Ground,
    plan: &'a Plan,
    worker: String,
}

impl<'a> Bench<'a> {
    pub(super) fn new(ground: &'a Ground, plan: &'a Plan) -> Self {
        let worker = ground.dir().join(WORKER_NAME).display().to_string();
        Self {
            ground,
            plan,
            worker,
        }
    }

    /// One number for a whole run, another for a quick one.
    fn scale<T>(&self, whole: T, quick: T) -> T {
        if self.plan.quick { quick } else { whole }
    }

    /// Measures a peer, on cleared ground; the reason where that is not possible.
    fn beside<T>(&self, measure: impl FnOnce(Venue<'_>) -> anyhow::Result<T>) -> Result<T, String> {
        let root = self.plan.peers.as_ref().map_err(Clone::clone)?;
        let venue = Venue {
            ground: self.ground,
            root,
        };
        let cleared = self.ground.clear();
        cleared.and_then(|()| measure(venue)).map_err(|error| {
            let log = std::fs::read_to_string(self.ground.dir().join("peer.log"));
            match log.unwrap_or_default().lines().last() {
                Some(line) => format!("{error:#}; it said last: `{line}`"),
                None => format!("{error:#}"),
            }
        })
    }

    /// Row 1: spawn, exec and reap.
    pub(super) async fn spawning(&self, plain: bool) -> anyhow::Result<Vec<Figure>> {
        let time = self.scale(Duration::from_secs(6), Duration::from_secs(2));
        let (short, template, what) = if plain {
            (
                Short::True,
                template("/bin/true", &[], ReadinessKind::Started),
                "/bin/true",
            )
        } else {
            let template = template(&self.worker, &["exit"], ReadinessKind::Started);
            (Short::Static, template, "a static worker")
        };
        let name = format!("spawn, exec and reap of {what}, {IN_FLIGHT} at a time");
        let ours = lives::spawn_rate(self.ground, &self.plan.agent, &template, time).await?;
        let floor = floor::rate(self.ground, &template.command, &template.args, time);
        let row = |name: String| {
            Figure::new(name, "per second")
                .ours(ours.value)
                .cpu("ours", ours.cpu_seconds)
        };
        let mut bare = row(format!("{name}, beside a bare loop around the same walls"));
        if let Ok(Rate { cpu_seconds, .. }) = floor {
            bare = bare.cpu("bare loop", cpu_seconds);
        }
        let floor = floor.map(|rate| rate.per_second);
        let mut rows = vec![bare.peer("bare loop", floor.map_err(|error| format!("{error:#}")))];
        for (peer, times) in PEERS
            .iter()
            .zip([Some(8.0), Some(12.0), Some(1.0), None, None])
        {
            let rate = self.beside(|venue| peer.rate(venue, short, IN_FLIGHT, time));
            let mut one = row(format!("{name}, beside {}", peer.name()));
            if let Ok(Rate { cpu_seconds, .. }) = rate {
                one = one.cpu(peer.name(), cpu_seconds);
            }
            one = one.peer(peer.name(), rate.map(|rate| rate.per_second));
            rows.push(match times {
                Some(times) => one.target(Target::Times(times, peer.name())),
                None => one,
            });
        }
        Ok(rows)
    }

    /// Row 2: everything killed at once, and the owner killed alone.
    pub(super) async fn ending(&self) -> anyhow::Result<Vec<Figure>> {
        let repeat = self.scale(5, 3);
        let systemd = self.beside(|venue| {
            let mut millis = Vec::new();
            for _ in 0..repeat {
                let stage = Systemd.start(venue, Mode::Stubborn, STUBBORN)?;
                millis.push(bound(&stage)?);
                drop(stage);
                self.ground.clear()?;
            }
            Ok(median(millis).unwrap_or_default())
        });
        let mut rows = Vec::new();
        for (blow, what) in [
            (
                Blow::Everything,
                "owner, agent and all helpers killed at once",
            ),
            (Blow::Owner, "owner killed alone, workers coupled to it"),
        ] {
            let cpu = cpu_below(std::process::id());
            let mut ends = Vec::new();
            for _ in 0..repeat {
                ends.push(ends::strike(self.ground, &self.plan.agent, &self.worker, blow).await?);
            }
            let cpu = cpu_below(std::process::id())
                .saturating_sub(cpu)
                .as_secs_f64();
            let name =
                format!("{what}, until {STUBBORN} stubborn workers and their daemons are dead");
            let row = |target| {
                ended(Figure::new(name.clone(), "ms").cpu("ours", cpu), &ends)
                    .peer("systemd", systemd.clone())
                    .target(target)
            };
            rows.push(row(Target::AtMost(20.0)));
            rows.push(row(Target::Share(0.5, "systemd")));
            if blow == Blow::Everything {
                rows.push(self.survivors(&ends));
            }
        }
        Ok(rows)
    }

    /// How many processes outlive their supervisors.
    fn survivors(&self, ends: &[End]) -> Figure {
        let ours = ends.iter().map(|end| end.survivors).max().unwrap_or(0);
        let name = format!(
            "processes of {} alive 5 s after all supervisors were killed",
            2 * STUBBORN
        );
        let mut row = Figure::new(name, "processes").ours(ours as f64);
        for peer in PEERS.iter().filter(|peer| peer.name() != Systemd.name()) {
            let survivors = self.beside(|venue| {
                let stage = peer.start(venue, Mode::Stubborn, STUBBORN)?;
                let (workers, helpers) = (
                    Pinned::new(&stage.workers()),
                    Pinned::new(&stage.supervisors()),
                );
                helpers.signal(rustix::process::Signal::KILL);
                Ok(workers.survivors(SURVIVAL) as f64)
            });
            row = row.peer(peer.name(), survivors);
        }
        let pid_one = "it is process 1, whose death is the end of the container whoever it is";
        row.peer(Systemd.name(), Err(pid_one.to_owned()))
            .target(Target::AtMost(0.0))
    }

    /// Row 3: the end of a lease while everything is stopped.
    pub(super) async fn lease(&self) -> anyhow::Result<Vec<Figure>> {
        let mut ends = Vec::new();
        for _ in 0..self.scale(5, 2) {
            ends.push(ends::lease_end(self.ground, &self.plan.agent, &self.worker).await?);
        }
        let name = format!(
            "end of the lease with everything stopped, until {STUBBORN} workers and their daemons are dead"
        );
        let mut row = ended(Figure::new(name, "ms after the deadline"), &ends);
        for peer in PEERS {
            row = row.peer(peer.name(), Err("its workers have no lease".to_owned()));
        }
        let mut rows = vec![row.target(Target::AtMost(50.0))];
        rows.push(self.hung().await?);
        rows.push(self.renewing().await?);
        Ok(rows)
    }

    /// Row 3 once more: an agent that hangs.
    async fn hung(&self) -> anyhow::Result<Figure> {
        let count = self.scale(1_000, 200);
        let name = format!("agent alone stopped, until {count} workers are dead");
        let row = Figure::new(name, "ms after the deadline");
        let hung = renewals::hung_agent(self.ground, &self.plan.agent, count).await?;
        if hung.early + hung.survivors > 0 {
            let (early, late) = (hung.early, hung.survivors);
            return Ok(row.without(format!("{early} died early, and {late} lived on")));
        }
        let slowest = hung.slowest.as_secs_f64() * 1e3;
        Ok(row.ours(slowest).target(Target::AtMost(500.0)))
    }

    /// Row 3 without an end.
    async fn renewing(&self) -> anyhow::Result<Figure> {
        let (count, time) = self.scale(
            (1_000, Duration::from_secs(40)),
            (200, Duration::from_secs(20)),
        );
        let (agent, worker) = (&self.plan.agent, &self.worker);
        let cores = renewals::cost(self.ground, agent, worker, count, time).await?;
        let name = format!(
            "agent and shims beside {count} idle workers, a beat each 5 s and a lease of 20 s"
        );
        let row = Figure::new(name, "thousandths of a processor").ours(cores * 1e3);
        Ok(row.target(Target::AtMost(count as f64 * 0.005)))
    }

    /// Row 4: a killed worker's replacement.
    pub(super) async fn replacing(&self) -> anyhow::Result<Vec<Figure>> {
        let times = self.scale(30, 10);
        let ours = lives::replacement(self.ground, &self.plan.agent, &self.worker, times).await?;
        let mut row = Figure::new("worker killed, until its replacement is ready", "ms")
            .ours(ours.value)
            .cpu("ours", ours.cpu_seconds);
        for peer in PEERS {
            // Those that wait a second between two starts are asked less often.
            let times = if peer.name() == Systemd.name() {
                times
            } else {
                self.scale(9, 3)
            };
            row = row.peer(peer.name(), self.replaced(*peer, times));
        }
        Ok(vec![row.target(Target::AtMost(2.0))])
    }

    fn replaced(&self, peer: &dyn Peer, times: usize) -> Result<f64, String> {
        if !peer.restarts() {
            return Err("it starts nothing again".to_owned());
        }
        self.beside(|venue| {
            let stage = peer.start(venue, Mode::Ready, 1)?;
            let mut millis = Vec::new();
            for _ in 0..times {
                // Supervisors that hold back a service that ended within its first second show what they
                // can do with one that did not.
                std::thread::sleep(Duration::from_millis(if peer.name() == Systemd.name() {
                    0
                } else {
                    1_100
                }));
                millis.push(stage.replacement()?);
            }
            Ok(median(millis).unwrap_or_default())
        })
    }

    /// Row 5: memory.
    pub(super) async fn memory(&self) -> anyhow::Result<Vec<Figure>> {
        let (few, many) = self.scale((100, 500), (50, 200));
        let floor = floor::kernel_bytes_each(self.ground, &self.worker, many);
        let floor = floor.map(|bytes| bytes / 1e3);
        let ours = lives::memory(self.ground, &self.plan.agent, &self.worker, few, many).await?;
        let mut base = Figure::new("supervisors without a worker, PSS", "kB").ours(ours.base / 1e3);
        let mut each = Figure::new(
            format!("supervisors' growth per worker, PSS, {few} idle workers"),
            "kB",
        )
        .ours(ours.per_worker / 1e3);
        let mut all = Figure::new(
            format!("the same with all the kernel holds, the worker's own share included, {many} idle workers"),
            "kB",
        )
        .ours(ours.with_kernel / 1e3);
        all = all.peer(
            "bare walls, kernel only",
            floor.map_err(|error| format!("{error:#}")),
        );
        for peer in PEERS {
            let memory = self.beside(|venue| held(venue, *peer, few, many));
            let of = |value: fn(&lives::Memory) -> f64| {
                memory
                    .as_ref()
                    .map(|memory| value(memory) / 1e3)
                    .map_err(Clone::clone)
            };
            base = base.peer(peer.name(), of(|memory| memory.base));
            each = each.peer(peer.name(), of(|memory| memory.per_worker));
            all = all.peer(peer.name(), of(|memory| memory.with_kernel));
        }
        Ok(vec![
            base,
            each.target(Target::AtMost(32.0)),
            all.target(Target::AtMost(128.0)),
        ])
    }

    /// Row 6: a new agent takes workers over.
    pub(super) async fn adopting(&self) -> anyhow::Result<Vec<Figure>> {
        let count = self.scale(1_000, 200);
        let (mut listed, mut steered, mut cpu) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..self.scale(3, 1) {
            let taken = lives::adoption(self.ground, &self.plan.agent, &self.worker, count).await?;
            listed.push(taken.listed);
            steered.push(taken.steered);
            cpu += taken.cpu_seconds;
        }
        let row = |what: &str, values| {
            let name =
                format!("agent killed, from the next one's start until {count} workers are {what}");
            let row = Figure::new(name, "ms").cpu("ours", cpu);
            match median(values) {
                Some(value) => row.ours(value),
                None => row,
            }
        };
        let target = Target::AtMost(50.0);
        Ok(vec![
            row("listed", listed),
            row(
                "reported as taken over and running, none restarted",
                steered,
            )
            .target(target),
        ])
    }

    /// Row 7: a Python worker that has imported grpc and numpy.
    pub(super) async fn python(&self) -> anyhow::Result<Vec<Figure>> {
        let times = self.scale(15, 5);
        let millis = async |forked| {
            let python = self.plan.python.as_ref().map_err(Clone::clone)?;
            let agent = &self.plan.agent;
            let median = lives::python(self.ground, agent, python, forked, times).await;
            median.map_err(|error| format!("{error:#}"))
        };
        let row = Figure::new(
            "Python with grpc and numpy, from the order until it listens",
            "ms",
        )
        .peer("cold start", millis(false).await);
        let row = match millis(true).await {
            Ok(forked) => row.ours(forked),
            Err(why) => row.without(why),
        };
        Ok(vec![row.target(Target::AtMost(5.0))])
    }
}

/// The median of ends without survivors; else there is no such time.
fn ended(row: Figure, ends: &[End]) -> Figure {
    let most = ends.iter().map(|end| end.survivors).max().unwrap_or(0);
    if most > 0 {
        return row.without(format!("{most} processes lived on for {SURVIVAL:?}"));
    }
    match median(ends.iter().map(|end| end.millis).collect()) {
        Some(millis) => row.ours(millis),
        None => row,
    }
}

/// Kills the unit that systemd's workers are bound to; milliseconds until all of them are dead.
fn bound(stage: &Stage) -> anyhow::Result<f64> {
    let workers = Pinned::new(&stage.workers());
    let owner = Pinned::new(&Systemd::owner(stage));
    let struck = Instant::now();
    owner.signal(rustix::process::Signal::KILL);
    let survivors = workers.survivors(SURVIVAL);
    anyhow::ensure!(
        survivors == 0,
        "{survivors} processes outlived the unit they were bound to"
    );
    Ok(struck.elapsed().as_secs_f64() * 1e3)
}

/// Memory of a peer without workers, with a few and with many.
fn held(
    venue: Venue<'_>,
    peer: &dyn Peer,
    few: usize,
    many: usize,
) -> anyhow::Result<lives::Memory> {
    let pss = |stage: &Stage| {
        stage
            .supervisors()
            .iter()
            .map(|process| pss_bytes(process.pid))
            .sum::<u64>() as f64
    };
    // One of one worker stands for one of none, which not every peer can be.
    let stage = peer.start(venue, Mode::Ready, 1)?;
    let (base, kernel) = (settled(|| pss(&stage)), kernel_bytes()? as f64);
    drop(stage);
    let stage = peer.start(venue, Mode::Ready, few + 1)?;
    let per_worker = (settled(|| pss(&stage)) - base) / few as f64;
    drop(stage);
    let stage = peer.start(venue, Mode::Ready, many + 1)?;
    let grown = settled(|| pss(&stage)) - base + kernel_bytes()? as f64 - kernel;
    Ok(lives::Memory {
        base,
        per_worker,
        with_kernel: grown / many as f64,
    })
}
