//! What an agent writes of its lease and its workers, where a history is wanted.

use std::time::{Duration, SystemTime};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_history::{Scope, What, Worker, lease_of_node, left, note};
use tether_proto::{common::WorkerPhase, node::WorkerReport};
use tether_types::{Death, NodeName, WorkerId};

use crate::permission::Permissions;

/// The arbiter has answered a beat.
pub(crate) fn on_answer(node: &NodeName, granted: &Permissions) {
    if !tether_history::is_on() {
        return;
    }
    let now = BootClock.now();
    let rest = |nanos| left(Tick::from_nanos(nanos), now);
    if let Some(until) = granted.node_until() {
        note(|| What::Permitted {
            scope: Scope::Node(node.to_string()),
            enabled: rest(until.enabled),
            alive: Some(rest(until.alive)),
        });
        for (pool, granted_to) in &granted.pools {
            let until = granted_to.until(granted.node);
            // Those with a job are told in messages, and longer.
            let alive = until.alive.min(until.enabled);
            note(|| What::Permitted {
                scope: Scope::Pool {
                    node: node.to_string(),
                    pool: pool.to_string(),
                },
                enabled: rest(until.enabled),
                alive: granted_to.jobs.is_empty().then(|| rest(alive)),
            });
        }
    }
}

/// The node's lease is held under this epoch, for so long.
pub(crate) fn on_held(node: &NodeName, epoch: u64, until: Tick, now: Tick) {
    note(|| What::Held {
        lease: lease_of_node(node),
        epoch,
        left: left(until, now),
    });
}

/// What was done under this epoch of it is done no more.
pub(crate) fn on_stopped(node: &NodeName, epoch: u64) {
    note(|| What::Stopped {
        lease: lease_of_node(node),
        epoch,
    });
}

/// A worker is somewhere else in its life.
pub(crate) fn on_report(
    node: &NodeName,
    grace_ms: u64,
    before: WorkerPhase,
    report: &WorkerReport,
) {
    let id = report.worker.as_ref();
    let Some(id) = id.and_then(|id| WorkerId::try_from(id).ok()) else {
        return;
    };
    if before == WorkerPhase::Waiting && report.pid != 0 {
        note(|| What::Started {
            worker: Worker(id.clone()),
            node: node.to_string(),
            grace_ms,
        });
    }
    if let Some(death) = &report.death {
        note(|| What::Died {
            worker: Worker(id),
            died: death
                .measures
                .as_ref()
                .and_then(|m| since_boot(m.gone_unix_ms)),
            cause: Death::from(death).cause.word().to_owned(),
        });
    }
}

/// The tick of a time of day that is not long ago; none where nobody said one.
fn since_boot(unix_ms: u64) -> Option<u64> {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(Some(unix_ms).filter(|&ms| ms > 0)?);
    let ago = SystemTime::now().duration_since(then).unwrap_or_default();
    Some(BootClock.now().saturating_sub(ago).as_nanos())
}
