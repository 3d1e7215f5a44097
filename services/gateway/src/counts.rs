//! Tells the arbiter how many calls workers have served, where it wants to know.
//!
//! Each count is told whole, over one stream, when it has changed and once a second at most. A stream that
//! broke is followed by one that tells all again: told twice a count is the same count, and an arbiter that
//! has started anew knows none. Where nothing is to be counted there is no stream.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tether_proto::{
    NotLeader,
    gateway::{ReportCallsRequest, WorkerCalls, gateway_service_client::GatewayServiceClient},
};
use tether_types::{Address, WorkerId};
use tokio::time::{Interval, MissedTickBehavior};

use crate::{arbiters::Arbiters, directory::Directory, watch};

/// Between two messages, and before a stream that broke is followed by another: how much later than a call
/// the arbiter may know of it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells for ever. While the arbiter is away the counts go on.
pub(crate) async fn report(
    arbiters: Arc<Arbiters>,
    connect_timeout: Duration,
    directory: Arc<Directory>,
) {
    let instance = tether_kit::process::fresh_word();
    let mut warned = None;
    loop {
        while directory.counts().is_empty() {
            directory.counted().await;
        }
        let reports = reports(instance.clone(), Arc::clone(&directory));
        let asked = arbiters.current();
        let arbiter = asked.address();
        if let Err(error) = tell(arbiter, connect_timeout, reports).await {
            if let Some(said) = error.downcast_ref().and_then(NotLeader::of) {
                arbiters.on_not_leader(&asked, said);
            }
            let error = Some(format!("{error:#}"));
            if warned != error {
                tracing::warn!(%arbiter, error, "Counts of calls wait for the arbiter");
                warned = error;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Tells over one stream, until the arbiter stops or the stream breaks.
async fn tell(
    arbiter: &Address,
    connect_timeout: Duration,
    reports: impl Stream<Item = ReportCallsRequest> + Send + 'static,
) -> anyhow::Result<()> {
    let channel = watch::connect(arbiter, connect_timeout).await?;
    let mut client = GatewayServiceClient::new(channel);
    client.report_calls(reports).await?;
    Ok(())
}

/// What was told over one stream, and when more may be.
struct Told {
    counts: HashMap<WorkerId, u64>,
    pause: Interval,
}

fn reports(
    instance: String,
    directory: Arc<Directory>,
) -> impl Stream<Item = ReportCallsRequest> + Send + 'static {
    let mut pause = tokio::time::interval(INTERVAL);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let told = Told {
        counts: HashMap::new(),
        pause,
    };
    stream::unfold((told, directory), move |(mut told, directory)| {
        let instance = instance.clone();
        async move {
            let workers = loop {
                told.pause.tick().await;
                let workers = news(&mut told.counts, directory.counts());
                if !workers.is_empty() {
                    break workers;
                }
                directory.counted().await;
            };
            let report = ReportCallsRequest { instance, workers };
            Some((report, (told, directory)))
        }
    })
}

/// Counts that differ from those told; what is told then. Those of workers that are gone are forgotten.
fn news(told: &mut HashMap<WorkerId, u64>, counts: Vec<(WorkerId, u64)>) -> Vec<WorkerCalls> {
    let news = counts
        .iter()
        .filter(|(worker, calls)| told.get(worker) != Some(calls));
    let news = news.map(|(worker, calls)| WorkerCalls {
        worker: Some(worker.into()),
        calls: *calls,
    });
    let news = news.collect();
    *told = counts.into_iter().collect();
    news
}

#[cfg(test)]
mod tests {
    use tether_types::{Incarnation, PoolName};

    use super::*;

    fn worker(slot: u32) -> WorkerId {
        WorkerId {
            pool: PoolName::new("digits").unwrap(),
            slot,
            incarnation: Incarnation(7),
        }
    }

    #[test]
    fn only_what_has_changed_is_news_and_nothing_is_kept_of_who_is_gone() {
        let mut told = HashMap::new();
        let slots = |news: Vec<WorkerCalls>| -> Vec<_> {
            let slot = |counted: WorkerCalls| (counted.worker.unwrap().slot, counted.calls);
            news.into_iter().map(slot).collect()
        };

        let first = news(&mut told, vec![(worker(0), 1), (worker(1), 1)]);
        let again = news(&mut told, vec![(worker(0), 1), (worker(1), 1)]);
        let more = news(&mut told, vec![(worker(1), 4)]);

        assert_eq!(slots(first), [(0, 1), (1, 1)]);
        assert_eq!(slots(again), []);
        assert_eq!(slots(more), [(1, 4)]);
        assert_eq!(told, [(worker(1), 4)].into());
    }
}
