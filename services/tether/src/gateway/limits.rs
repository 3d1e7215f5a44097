//! `tether gateway limits`.

use tether_client::Problem;
use tether_proto::{
    common::WorkerRef,
    gateway::{Limits, QueueLimits, SetLimitsRequest, WorkerLimits, limits::Of},
};

use super::{Control, millis, order};
use crate::{cli, output::Output};

pub(super) async fn limits(
    mut control: Control,
    args: cli::gateway::Limits,
    out: &Output,
) -> anyhow::Result<()> {
    let of = match (args.worker, args.pool) {
        (Some(worker), _) => Of::Worker(WorkerLimits {
            worker: Some(WorkerRef::from(&worker)),
            capacity: args.capacity,
        }),
        (None, pool) => Of::Queue(QueueLimits {
            pool: pool.unwrap_or_default(),
            max_calls: args.max_calls,
            max_wait_ms: args.max_wait.map(millis),
        }),
    };
    let request = SetLimitsRequest {
        order: order(&args.why),
        limits: Some(Limits { of: Some(of) }),
        ttl_ms: args.ttl.map_or(0, millis),
    };
    control.set_limits(request).await.map_err(Problem::from)?;
    let lasts = match args.ttl {
        Some(ttl) => format!("for {ttl:?}"),
        None => "until the gateway ends".to_owned(),
    };
    out.note(&format!("set {lasts}; `tether gateway orders` shows it"));
    Ok(())
}
