//! `tether events`.

use tether_client::{Client, Problem};
use tether_proto::worker::WatchEventsRequest;

use crate::{
    cli,
    output::{EventRow, Output},
};

pub(crate) async fn events(
    client: &Client,
    args: &cli::Events,
    out: &Output,
) -> anyhow::Result<()> {
    let request = WatchEventsRequest {
        after_revision: args.after,
        follow: args.follow,
        pool: args.pool.clone().unwrap_or_default(),
    };
    let mut events = client
        .workers()
        .watch_events(request)
        .await
        .map_err(Problem::from)?
        .into_inner();
    while let Some(answer) = events.message().await.map_err(Problem::from)? {
        if let Some(event) = &answer.event {
            out.item(&EventRow::new(event))?;
        }
    }
    Ok(())
}
