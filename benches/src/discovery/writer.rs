//! Writes endpoints as the arbiter does.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tether_clock::{BootClock, Clock as _};
use tether_proto::common::{Endpoint, WorkerRef};
use tether_store::{Store, Txn, keys};
use tether_types::PoolName;
use tokio::time::{MissedTickBehavior, interval};

use super::Rate;
use crate::etcd::Etcd;

/// Workers of one pool.
const POOL: usize = 100;

/// Puts in one commit: etcd takes no more than 128 operations.
const AT_ONCE: usize = 50;

pub(super) struct Writer {
    store: Arc<dyn Store>,
    endpoints: usize,
    next: usize,
}

impl Writer {
    pub(super) async fn new(etcd: &Etcd, endpoints: usize) -> anyhow::Result<Self> {
        Ok(Self {
            store: tether_store::open(&etcd.store()).await?,
            endpoints,
            next: 0,
        })
    }

    /// Writes all of them.
    pub(super) async fn fill(&mut self) -> anyhow::Result<()> {
        for first in (0..self.endpoints).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(self.endpoints);
            let puts = (first..last).try_fold(Txn::new(), |txn, number| put(txn, number, ""))?;
            self.store.commit(puts).await?;
        }
        Ok(())
    }

    /// Changes endpoints at this rate, one after the other. Tells how many changes that were.
    pub(super) async fn change(&mut self, rate: Rate, span: Duration) -> anyhow::Result<usize> {
        let mut due = interval(Duration::from_secs(1) / rate.commits);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let commits = u128::from(rate.commits) * span.as_millis() / 1_000;
        let mut sent = 0;
        for _ in 0..commits {
            due.tick().await;
            let mut txn = Txn::new();
            for _ in 0..rate.each {
                let now = BootClock.now().as_nanos().to_string();
                txn = put(txn, self.next, &now)?;
                self.next = (self.next + 1) % self.endpoints;
                sent += 1;
            }
            self.store.commit(txn).await?;
        }
        Ok(sent)
    }
}

/// The endpoint of this number, with the time at which it is written where others have their zone.
fn put(txn: Txn, number: usize, written: &str) -> anyhow::Result<Txn> {
    let pool = PoolName::new(format!("pool-{:04}", number / POOL).as_str())?;
    let slot = u32::try_from(number % POOL)?;
    let endpoint = Endpoint {
        worker: Some(WorkerRef {
            pool: pool.to_string(),
            slot,
            incarnation: u64::try_from(number)? + 1,
        }),
        address: format!("10.0.{}.{}:50051", number / 250, number % 250 + 1),
        node: format!("node-{:03}", number / POOL),
        zone: written.to_owned(),
        capacity: 8,
        ..Endpoint::default()
    };
    Ok(txn.put(keys::endpoint(&pool, slot), endpoint.encode_to_vec()))
}
