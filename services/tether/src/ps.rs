//! `tether ps`.

use tether_client::{Client, Problem};
use tether_proto::worker::ListWorkersRequest;

use crate::{
    cli,
    output::{Output, WorkerRow},
};

pub(crate) async fn ps(client: &Client, args: &cli::Ps, out: &Output) -> anyhow::Result<()> {
    let request = ListWorkersRequest {
        pool: args.pool.clone().unwrap_or_default(),
    };
    let workers = client
        .workers()
        .list_workers(request)
        .await
        .map_err(Problem::from)?
        .into_inner()
        .workers;
    out.list(&workers.iter().map(WorkerRow::new).collect::<Vec<_>>())
}
