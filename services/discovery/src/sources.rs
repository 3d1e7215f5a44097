//! Feeds the answers of one configured source into the table.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use tether_types::PoolName;

use crate::{backends::Watch, board::Board, slots::Slots};

/// Never ends: a source that fails is asked again by its backend, and what it said last stays true.
pub(crate) async fn feed(board: Arc<Board>, pool: PoolName, mut watch: Watch) {
    // Wall time only has to differ between lives of this service, by more than the addresses change.
    let life = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    let mut slots = Slots::new(pool.clone(), life.as_secs());
    let mut failing = false;
    while let Some(answer) = watch.next().await {
        match answer {
            Ok(addresses) => {
                failing = false;
                board.change(|table| table.source(&pool, slots.assign(addresses)));
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%pool, error, "A source does not answer, its last answer is kept");
                }
                failing = true;
            }
        }
    }
    std::future::pending().await
}
