//! Pools of size 0 that are asked for: the arbiter gives them workers, and calls wait for those.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use tether_endpoints::Target;
use tether_proto::{
    NotLeader,
    pool::{ScalePoolRequest, pool_service_client::PoolServiceClient},
};
use tether_types::PoolName;
use tokio::{sync::Mutex, time::Instant};

use crate::{arbiters::Arbiters, pools::Pools, watch::connect};

/// How long it stands that workers are on the way, for those who came to ask at the same time: from then on they are expected.
const COMES: Duration = Duration::from_millis(100);
/// And that none is, or that the arbiter does not answer: it is not asked again for every call.
const STAYS_AWAY: Duration = Duration::from_secs(1);

/// Asks the arbiter for workers of pools that have none.
#[derive(Debug)]
pub(crate) struct Wake {
    arbiters: Arc<Arbiters>,
    connect_timeout: Duration,
    pools: Pools,
    /// When it was asked last, of which pool, and whether that has workers or is about to.
    told: Mutex<HashMap<PoolName, (Instant, bool)>>,
}

impl Wake {
    pub(crate) fn new(arbiters: Arc<Arbiters>, connect_timeout: Duration, pools: Pools) -> Self {
        Self {
            arbiters,
            connect_timeout,
            pools,
            told: Mutex::default(),
        }
    }

    /// Whether workers are asked for because of a call with this target: one by its name is not.
    pub(crate) fn is_for(target: &Target) -> bool {
        !matches!(target, Target::Worker { .. })
    }

    /// Whether the arbiter is asked for workers of this pool, where it has none.
    pub(crate) fn may_wake(&self, pool: &PoolName) -> bool {
        self.pools.rule(pool).wake > 0
    }

    /// Whether workers of a pool are on the way, after the arbiter was asked for some where it has to be. Calls of all
    /// pools ask one after the other: of each only the first goes to the arbiter.
    pub(crate) async fn wakes(&self, pool: &PoolName) -> bool {
        if !self.may_wake(pool) {
            return false;
        }
        let size = self.pools.rule(pool).wake;
        let mut told = self.told.lock().await;
        told.retain(|_, (at, comes)| at.elapsed() < if *comes { COMES } else { STAYS_AWAY });
        if let Some((_, comes)) = told.get(pool) {
            return *comes;
        }
        let asked = tokio::time::timeout(self.connect_timeout, self.ask(pool, size)).await;
        let comes = match asked.context("it does not answer").flatten() {
            Ok(size) => size > 0,
            Err(error) => {
                tracing::warn!(%pool, error = format!("{error:#}"), "A pool without workers cannot be woken");
                false
            }
        };
        told.insert(pool.clone(), (Instant::now(), comes));
        comes
    }

    /// Answers the size that the pool has then.
    async fn ask(&self, pool: &PoolName, size: u32) -> anyhow::Result<u32> {
        let asked = self.arbiters.current();
        let channel = connect(asked.address(), self.connect_timeout).await?;
        let request = ScalePoolRequest {
            name: pool.to_string(),
            size,
            from: Some(0),
            ..ScalePoolRequest::default()
        };
        match PoolServiceClient::new(channel).scale_pool(request).await {
            Ok(answer) => {
                let spec = answer.into_inner().pool.and_then(|pool| pool.spec);
                Ok(spec.map_or(0, |spec| spec.size))
            }
            Err(status) => {
                if let Some(said) = NotLeader::of(&status) {
                    self.arbiters.on_not_leader(&asked, said);
                }
                Err(status.into())
            }
        }
    }
}
