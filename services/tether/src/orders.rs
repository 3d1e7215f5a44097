//! `tether stop` and `tether signal`.

use tether_client::{Client, Problem};
use tether_proto::{
    common::WorkerRef,
    worker::{SignalWorkerRequest, StopWorkerRequest},
};

use tether_settings::signals;

use crate::cli;

pub(crate) async fn stop(client: &Client, args: &cli::Stop) -> anyhow::Result<()> {
    let grace_ms = args
        .grace
        .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    let request = StopWorkerRequest {
        worker: Some(WorkerRef::from(&args.worker)),
        grace_ms,
        ..StopWorkerRequest::default()
    };
    client
        .workers()
        .stop_worker(request)
        .await
        .map_err(Problem::from)?;
    Ok(())
}

pub(crate) async fn signal(client: &Client, args: &cli::Signal) -> anyhow::Result<()> {
    let signal = signals::number(&args.signal)?;
    let request = SignalWorkerRequest {
        worker: Some(WorkerRef::from(&args.worker)),
        signal,
        ..SignalWorkerRequest::default()
    };
    client
        .workers()
        .signal_worker(request)
        .await
        .map_err(Problem::from)?;
    Ok(())
}
