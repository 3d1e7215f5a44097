//! What an agent tells of a worker.

use tether_proto::{
    common::{self, WorkerPhase},
    node::WorkerReport,
    pool::Template,
};
use tether_shim_protocol::{Cause, Dead, Orderer};
use tether_types::{Death, DeathCause, Measures, Orderer as Who, WorkerId};

use crate::launch;

/// A report of `phase` and nothing else.
pub(crate) fn phase(id: &WorkerId, phase: WorkerPhase) -> WorkerReport {
    WorkerReport {
        worker: Some(id.into()),
        phase: phase.into(),
        ..WorkerReport::default()
    }
}

/// A report of a death the shim recorded; `signalled` is the last signal somebody had sent.
pub(crate) fn dead(
    id: &WorkerId,
    dead: &Dead,
    template: &Template,
    signalled: Option<i32>,
) -> WorkerReport {
    let (mut detail, permanent) = match dead.spawn_failure {
        Some(failure) if template.forked_from.is_some() => {
            launch::explain_unforked(failure, &dead.stderr_tail)
        }
        Some(failure) => launch::explain(failure.stage, failure.errno, template),
        None => (String::new(), false),
    };
    if dead.survivors > 0 {
        detail = unkillable(dead.survivors);
    }
    let death = Death {
        cause: match cause(dead.cause, dead.exit_code, dead.signal) {
            // It was Tether that sent this one, on somebody's order.
            DeathCause::Signaled(signal) if signalled == Some(signal) => {
                DeathCause::Ordered(Who::Operator)
            }
            cause => cause,
        },
        exit_code: dead.exit_code,
        signal: dead.signal,
        detail,
        stderr_tail: String::from_utf8_lossy(&dead.stderr_tail).into_owned(),
        measures: Some(Measures {
            core_dumped: dead.core,
            max_rss_kib: dead.max_rss_kib,
            peak_memory_bytes: dead.peak_memory_bytes,
            cpu_ms: dead.cpu_ms,
            reaped: dead.reaped,
            gone_unix_ms: dead.unix_ms,
            proof: dead.proof.word().to_owned(),
        }),
    };
    WorkerReport {
        permanent,
        ..of_death(id, &death)
    }
}

/// What is said of a worker of which so many processes do not die.
pub(crate) fn unkillable(survivors: u32) -> String {
    format!(
        "{survivors} of its processes cannot be killed (uninterruptible sleep, as in a hung driver)"
    )
}

/// A report of a death about which the shim says nothing.
pub(crate) fn lost(id: &WorkerId, cause: DeathCause, detail: impl Into<String>) -> WorkerReport {
    let signal = if let DeathCause::Signaled(signal) = cause {
        Some(signal)
    } else {
        None
    };
    let death = Death {
        cause,
        exit_code: None,
        signal,
        detail: detail.into(),
        stderr_tail: String::new(),
        measures: None,
    };
    of_death(id, &death)
}

fn of_death(id: &WorkerId, death: &Death) -> WorkerReport {
    WorkerReport {
        death: Some(death.into()),
        ..phase(id, WorkerPhase::Dead)
    }
}

/// The cause of a death in the words of everybody but the shim.
pub(crate) fn cause(cause: Cause, exit_code: Option<i32>, signal: Option<i32>) -> DeathCause {
    match cause {
        Cause::Exited => DeathCause::Exited(exit_code.unwrap_or_default()),
        Cause::Signaled => DeathCause::Signaled(signal.unwrap_or_default()),
        Cause::OutOfMemory => DeathCause::OutOfMemory,
        Cause::LeaseExpired => DeathCause::LeaseExpired,
        Cause::OwnerGone => DeathCause::OwnerGone,
        Cause::AgentGone => DeathCause::AgentGone,
        Cause::Ordered(Orderer::Operator) => DeathCause::Ordered(Who::Operator),
        Cause::Ordered(Orderer::Scale) => DeathCause::Ordered(Who::Scale),
        Cause::Ordered(Orderer::Owner) => DeathCause::Ordered(Who::Owner),
        Cause::Ordered(Orderer::Agent) => DeathCause::Ordered(Who::Agent),
        Cause::NeverReady => DeathCause::NeverReady,
        Cause::Unhealthy => DeathCause::Unhealthy,
        Cause::Recycled => DeathCause::Recycled,
        Cause::SpawnFailed => DeathCause::SpawnFailed,
        Cause::Unknown => DeathCause::Unknown,
    }
}

/// The shim's word for a cause somebody orders; anything else is an operator's order.
pub(crate) fn ordered(cause: common::DeathCause) -> Cause {
    match cause.to_cause(None, None) {
        DeathCause::Ordered(Who::Scale) => Cause::Ordered(Orderer::Scale),
        DeathCause::Ordered(Who::Owner) => Cause::Ordered(Orderer::Owner),
        DeathCause::Ordered(Who::Agent) => Cause::Ordered(Orderer::Agent),
        DeathCause::OwnerGone => Cause::OwnerGone,
        DeathCause::NeverReady => Cause::NeverReady,
        DeathCause::Unhealthy => Cause::Unhealthy,
        DeathCause::Recycled => Cause::Recycled,
        DeathCause::LeaseExpired => Cause::LeaseExpired,
        _ => Cause::Ordered(Orderer::Operator),
    }
}
