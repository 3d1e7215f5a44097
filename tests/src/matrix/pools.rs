//! The pools of a trial: one of each behaviour, never started again by themselves.

use tether_proto::pool::{
    Listen, PolicyOverrides, PoolSpec, Readiness, ReadinessKind, Restart, RestartMode, Stop,
    Template,
};

use crate::{
    plan::{Behaviour, Level},
    world::{WORKER, World},
};

/// How a pool depends on others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Dies with its owner; and with the agent, unless held.
    Coupled { held: bool },
    /// Lives on without either.
    Independent,
}

/// Longest time from SIGTERM to SIGKILL: longer than a round, so that who does not end is killed by nothing
/// but what the round is about.
const GRACE_MS: u64 = 60_000;

/// The behaviours that can be had at a level.
pub(crate) fn behaviours(level: Level) -> impl Iterator<Item = Behaviour> {
    let all = Behaviour::ALL.iter().copied();
    all.filter(move |&behaviour| why_not(level, behaviour).is_none())
}

/// Why a behaviour cannot be had.
pub(crate) fn why_not(level: Level, behaviour: Behaviour) -> Option<&'static str> {
    match behaviour {
        Behaviour::Frozen if !level.has_cgroup() => Some("this level has no cgroup to freeze"),
        Behaviour::SetUid if !rustix::process::geteuid().is_root() => {
            Some("a set-uid copy that belongs to somebody else takes root to make")
        }
        Behaviour::Polite
        | Behaviour::Stubborn
        | Behaviour::Daemon
        | Behaviour::Chain
        | Behaviour::Stopped
        | Behaviour::Frozen
        | Behaviour::SetUid => None,
    }
}

/// A pool of workers with this behaviour, named with the prefix.
pub(crate) fn spec(
    world: &World,
    behaviour: Behaviour,
    prefix: &str,
    size: u32,
    mode: Mode,
) -> PoolSpec {
    let args = [
        "worker".to_owned(),
        behaviour.to_string(),
        world.path("witness").display().to_string(),
        "{pool}/{slot}.{incarnation}".to_owned(),
        "{socket}".to_owned(),
        world.set_uid.display().to_string(),
    ];
    let (mode, on_agent_loss, grace_ms) = match mode {
        Mode::Coupled { held } => {
            let held = held.then(|| "hold_until_lease".to_owned());
            ("coupled", held, GRACE_MS)
        }
        Mode::Independent => ("independent", None, 100),
    };
    let template = Template {
        command: WORKER.to_owned(),
        args: args.to_vec(),
        listen: Listen::Unix.into(),
        readiness: Some(Readiness {
            kind: ReadinessKind::Connect.into(),
            ..Readiness::default()
        }),
        stop: Some(Stop {
            grace_ms: Some(grace_ms),
            ..Stop::default()
        }),
        restart: Some(Restart {
            mode: RestartMode::Never.into(),
            ..Restart::default()
        }),
        ..Template::default()
    };
    PoolSpec {
        name: format!("{prefix}{behaviour}"),
        mode: mode.to_owned(),
        template: Some(template),
        size,
        policy: Some(PolicyOverrides {
            on_agent_loss,
            // What is measured is the end of the lease.
            partition_grace_ms: Some(0),
            ..PolicyOverrides::default()
        }),
        ..PoolSpec::default()
    }
}
