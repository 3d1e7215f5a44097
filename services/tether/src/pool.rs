//! `tether pool apply|ls|scale|drain|rm`.

use anyhow::anyhow;
use tether_client::{Client, Problem};
use tether_proto::pool::{
    ApplyPoolRequest, DeletePoolRequest, DrainPoolRequest, ListPoolsRequest, Pool, ScalePoolRequest,
};
use tether_settings::PoolFile;

use crate::{
    Refused, cli,
    output::{Output, PoolRow},
};

pub(crate) async fn pool(client: &Client, command: cli::Pool, out: &Output) -> anyhow::Result<()> {
    let mut pools = client.pools();
    let changed: Vec<Pool> = match command {
        cli::Pool::Apply(args) => apply(client, &args).await?,
        cli::Pool::Ls => {
            pools
                .list_pools(ListPoolsRequest {})
                .await
                .map_err(Problem::from)?
                .into_inner()
                .pools
        }
        cli::Pool::Scale { name, size } => {
            let request = ScalePoolRequest {
                name,
                size,
                ..ScalePoolRequest::default()
            };
            pools
                .scale_pool(request)
                .await
                .map_err(Problem::from)?
                .into_inner()
                .pool
                .into_iter()
                .collect()
        }
        cli::Pool::Drain { name, undo } => {
            let request = DrainPoolRequest {
                name,
                undrain: undo,
                ..DrainPoolRequest::default()
            };
            pools
                .drain_pool(request)
                .await
                .map_err(Problem::from)?
                .into_inner()
                .pool
                .into_iter()
                .collect()
        }
        cli::Pool::Rm { name } => {
            pools
                .delete_pool(DeletePoolRequest {
                    name: name.clone(),
                    ..DeletePoolRequest::default()
                })
                .await
                .map_err(Problem::from)?;
            return out.line(&match out.is_json() {
                true => serde_json::json!({ "stopping": name }).to_string(),
                false => format!(
                    "pool `{name}` is being stopped; `tether events -f` tells when it is gone"
                ),
            });
        }
    };
    out.list(&changed.iter().map(PoolRow::new).collect::<Vec<_>>())
}

async fn apply(client: &Client, args: &cli::Apply) -> anyhow::Result<Vec<Pool>> {
    let (file, base) = PoolFile::read(&args.file).map_err(Refused)?;
    let mut applied = Vec::new();
    for spec in file.specs(&base, args.pool.as_deref())? {
        let request = ApplyPoolRequest {
            pool: Some(spec),
            owner: args.owner.clone(),
            epoch: 0,
        };
        let answer = client
            .pools()
            .apply_pool(request)
            .await
            .map_err(Problem::from)?
            .into_inner();
        applied.push(
            answer
                .pool
                .ok_or_else(|| anyhow!("the arbiter answered without the pool"))?,
        );
    }
    Ok(applied)
}
