//! Every metric of the agent, declared here and nowhere else.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_kit::metrics::{By, Counter, Gauge, Histogram, Label, Metrics as Registry};
use tether_proto::{common::WorkerPhase, node::WorkerReport};
use tether_shim_protocol::Stage;
use tether_types::{Death, DeathCause, Orderer};

use crate::guarantee::Guarantee;

/// From a static program that is ready at once to a model that is loaded.
const START_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// From a socket of the same machine to another continent.
const BEAT_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

/// What the agent counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    workers: By<State, Gauge>,
    pub(crate) starts: Counter,
    deaths: By<Cause, Counter>,
    pub(crate) start_seconds: Histogram,
    pub(crate) orphans: By<How, Counter>,
    pub(crate) spawn_failures: By<FailedAt, Counter>,
    pub(crate) clock_steps: Counter,
    beat_seconds: Histogram,
    /// When the arbiter answered last.
    heard: Arc<AtomicU64>,
}

impl Metrics {
    /// Declares them; `reduced` is whether the configuration keeps the guarantee from being more.
    pub(crate) fn declare(into: &mut Registry, guarantee: Guarantee, reduced: bool) -> Self {
        into.is(
            "agent_guarantee_level",
            "How surely workers' processes end here: the level that `tether nodes` shows",
            guarantee,
        );
        into.gauge(
            "agent_guarantee_reduced",
            "Whether `agent.no_namespaces` or `agent.no_cgroups` holds back what might raise that level",
        )
        .set(reduced.into());
        let workers = into.gauges(
            "workers",
            "Workers the agent speaks for; the dead among them are not recorded by the arbiter yet",
        );
        let starts = into.counter("worker_starts", "Workers whose program was started");
        let deaths = into.counters("worker_deaths", "Deaths by their recorded cause");
        let start_seconds = into.seconds(
            "worker_start_duration_seconds",
            "From the order to start a worker until it was ready",
            START_SECONDS,
        );
        let orphans = into.counters(
            "orphans_reaped",
            "Processes of workers' trees that were reaped by the shim beyond the main one; or, the shim being gone, \
             were killed in the cgroup, or after a search for their environment",
        );
        let spawn_failures =
            into.counters("spawn_failures", "Starts that failed, by how far they got");
        let clock_steps = into.counter(
            "clock_steps",
            "How often the time of day was set by more than a second; leases count by other clocks",
        );
        let beat_seconds = into.seconds(
            "heartbeat_rtt_seconds",
            "From sending a heartbeat until the arbiter's answer",
            BEAT_SECONDS,
        );
        let heard = Arc::new(AtomicU64::new(BootClock.now().as_nanos()));
        let last = Arc::clone(&heard);
        into.reading(
            "heartbeat_age_seconds",
            "Since the arbiter last answered a heartbeat, or since the agent was started",
            move || {
                let heard = Tick::from_nanos(last.load(Ordering::Relaxed));
                BootClock.now().since(heard).as_secs_f64()
            },
        );
        Self {
            workers,
            starts,
            deaths,
            start_seconds,
            orphans,
            spawn_failures,
            clock_steps,
            beat_seconds,
            heard,
        }
    }

    /// A worker is spoken for from here on.
    pub(crate) fn on_worker(&self) {
        self.workers.of(State::Waiting).inc();
    }

    /// A worker that was in `before` tells something.
    pub(crate) fn on_report(&self, before: WorkerPhase, report: &WorkerReport) {
        let phase = report.phase();
        self.workers.of(State::of(before)).dec();
        self.workers.of(State::of(phase)).inc();
        if phase == WorkerPhase::Dead
            && before != WorkerPhase::Dead
            && let Some(death) = &report.death
        {
            let death = Death::from(death);
            self.deaths.of(Cause(death.cause)).inc();
            let reaped = death.measures.map_or(0, |measures| measures.reaped);
            self.orphans.of(How::Shim).inc_by(reaped.into());
        }
    }

    /// A worker that was in `last` is forgotten.
    pub(crate) fn on_forgotten(&self, last: WorkerPhase) {
        self.workers.of(State::of(last)).dec();
    }

    /// The arbiter answers at `now` what was sent at `sent`.
    pub(crate) fn on_answer(&self, sent: Tick, now: Tick) {
        self.heard
            .store(BootClock.now().as_nanos(), Ordering::Relaxed);
        self.beat_seconds.observe(now.since(sent).as_secs_f64());
    }
}

impl Label for Guarantee {
    const NAME: &'static str = "level";
    const ALL: &'static [Self] = Guarantee::ALL;

    fn word(self) -> &'static str {
        match self {
            Self::G1 => "G1",
            Self::G2 => "G2",
            Self::G3 => "G3",
            Self::G4 => "G4",
            Self::G5 => "G5",
        }
    }
}

/// Where a worker stands, as `tether ps` says it.
#[derive(Debug, Clone, Copy)]
enum State {
    Waiting,
    Starting,
    Ready,
    Stopping,
    Dead,
}

impl State {
    /// An agent knows of no other phases.
    fn of(phase: WorkerPhase) -> Self {
        match phase {
            WorkerPhase::Unspecified | WorkerPhase::Waiting | WorkerPhase::CrashLoop => {
                Self::Waiting
            }
            WorkerPhase::Starting => Self::Starting,
            WorkerPhase::Ready => Self::Ready,
            WorkerPhase::Stopping => Self::Stopping,
            WorkerPhase::Dead => Self::Dead,
        }
    }
}

impl Label for State {
    const NAME: &'static str = "state";
    const ALL: &'static [Self] = &[
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::Stopping,
        Self::Dead,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Dead => "dead",
        }
    }
}

/// A cause of death, without the code or signal that comes with it.
#[derive(Debug, Clone, Copy)]
struct Cause(DeathCause);

impl Label for Cause {
    const NAME: &'static str = "cause";
    const ALL: &'static [Self] = &[
        Self(DeathCause::Exited(0)),
        Self(DeathCause::Signaled(0)),
        Self(DeathCause::OutOfMemory),
        Self(DeathCause::LeaseExpired),
        Self(DeathCause::OwnerGone),
        Self(DeathCause::AgentGone),
        Self(DeathCause::Ordered(Orderer::Operator)),
        Self(DeathCause::Ordered(Orderer::Scale)),
        Self(DeathCause::Ordered(Orderer::Owner)),
        Self(DeathCause::Ordered(Orderer::Agent)),
        Self(DeathCause::NeverReady),
        Self(DeathCause::Unhealthy),
        Self(DeathCause::Recycled),
        Self(DeathCause::SpawnFailed),
        Self(DeathCause::Unknown),
    ];

    fn word(self) -> &'static str {
        self.0.word()
    }
}

/// What ended or reaped a process that its worker left behind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum How {
    Shim,
    Cgroup,
    Search,
}

impl Label for How {
    const NAME: &'static str = "how";
    const ALL: &'static [Self] = &[Self::Shim, Self::Cgroup, Self::Search];

    fn word(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Cgroup => "cgroup",
            Self::Search => "search",
        }
    }
}

/// How far a start got that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FailedAt {
    /// What comes before the fork.
    Preparation,
    /// No shim was to be had.
    Zygote,
    /// In the shim.
    Shim(Stage),
}

impl Label for FailedAt {
    const NAME: &'static str = "stage";
    const ALL: &'static [Self] = &[
        Self::Preparation,
        Self::Zygote,
        Self::Shim(Stage::Directory),
        Self::Shim(Stage::Pipe),
        Self::Shim(Stage::Fork),
        Self::Shim(Stage::Cgroup),
        Self::Shim(Stage::Namespace),
        Self::Shim(Stage::Limits),
        Self::Shim(Stage::User),
        Self::Shim(Stage::Chdir),
        Self::Shim(Stage::Exec),
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Preparation => "preparation",
            Self::Zygote => "zygote",
            Self::Shim(Stage::Directory) => "directory",
            Self::Shim(Stage::Pipe) => "pipe",
            Self::Shim(Stage::Fork) => "fork",
            Self::Shim(Stage::Cgroup) => "cgroup",
            Self::Shim(Stage::Namespace) => "namespace",
            Self::Shim(Stage::Limits) => "limits",
            Self::Shim(Stage::User) => "user",
            Self::Shim(Stage::Chdir) => "chdir",
            Self::Shim(Stage::Exec) => "exec",
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::common;
    use tether_types::WorkerId;

    use super::*;
    use crate::report;

    #[test]
    fn each_cause_of_death_has_a_series_and_a_death_counts_once() {
        let mut registry = Registry::new();
        let metrics = Metrics::declare(&mut registry, Guarantee::G2, false);
        let id: WorkerId = "digits/0.1".parse().unwrap();
        let causes: Vec<_> = (1..)
            .map_while(|number| common::DeathCause::try_from(number).ok())
            .collect();

        for cause in &causes {
            let known = cause.to_cause(Some(3), Some(9));
            let report = report::lost(&id, known, "");
            metrics.on_worker();
            metrics.on_report(WorkerPhase::Waiting, &report);
            // Told again, as on a new stream.
            metrics.on_report(WorkerPhase::Dead, &report);
        }

        let text = registry.text();
        let counted = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter(|line| line.ends_with(" 1")).count()
        };
        assert_eq!(counted("tether_worker_deaths_total{"), causes.len());
        let dead = format!("tether_workers{{state=\"dead\"}} {}\n", causes.len());
        assert!(text.contains(&dead), "{text}");
        for _ in &causes {
            metrics.on_forgotten(WorkerPhase::Dead);
        }
        assert!(registry.text().contains("tether_workers{state=\"dead\"} 0"));
    }
}
