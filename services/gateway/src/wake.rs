//! Pools of size 0 that are asked for: the arbiter gives them workers, and calls wait for those.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tether_endpoints::Target;
use tether_proto::{
    NotLeader,
    pool::{ScalePoolRequest, pool_service_client::PoolServiceClient},
};
use tether_types::PoolName;
use tokio::time::Instant;

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
    told: Mutex<HashMap<PoolName, Arc<Told>>>,
}

/// When it was asked last of one pool, and whether that has workers or is about to. Held while it is asked.
type Told = tokio::sync::Mutex<Option<(Instant, bool)>>;

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

    /// Whether workers of a pool are on the way, after the arbiter was asked for some where it has to be. Calls of one
    /// pool ask one after the other, and only the first goes to the arbiter.
    pub(crate) async fn wakes(&self, pool: &PoolName) -> bool {
        if !self.may_wake(pool) {
            return false;
        }
        let size = self.pools.rule(pool).wake;
        let told = self.told(pool);
        let mut told = told.lock().await;
        if let Some((_, comes)) = told.filter(stands) {
            return comes;
        }
        let asked = tokio::time::timeout(self.connect_timeout, self.ask(pool, size)).await;
        let comes = match asked.context("it does not answer").flatten() {
            Ok(size) => size > 0,
            Err(error) => {
                tracing::warn!(%pool, error = format!("{error:#}"), "A pool without workers cannot be woken");
                false
            }
        };
        *told = Some((Instant::now(), comes));
        comes
    }

    /// What is known of one pool; of the others it is forgotten where it stands no more.
    fn told(&self, pool: &PoolName) -> Arc<Told> {
        let mut pools = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, told| {
            let stands = |told: &Arc<Told>| {
                told.try_lock()
                    .is_ok_and(|told| told.is_some_and(|told| stands(&told)))
            };
            Arc::strong_count(told) > 1 || stands(told)
        });
        Arc::clone(pools.entry(pool.clone()).or_default())
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

/// Whether what was told is still taken as it was.
fn stands((at, comes): &(Instant, bool)) -> bool {
    at.elapsed() < if *comes { COMES } else { STAYS_AWAY }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{upstream::Dial, wire::Engine};

    #[tokio::test]
    async fn pools_do_not_wait_for_each_other_where_the_arbiter_hangs() {
        let timeout = Duration::from_millis(200);
        // It takes connections and says nothing.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let engine = Engine::default();
        let dial = Dial { timeout, engine };
        let arbiters = Arc::new(Arbiters::new(vec![address.parse().unwrap()], dial));
        let pools: Pools = toml::from_str("['*']\nwake = 1").unwrap();
        let wake = Wake::new(arbiters, timeout, pools);
        let names: Vec<PoolName> = (0..50)
            .map(|number| PoolName::new(format!("p{number}")).unwrap())
            .collect();
        let asked = Instant::now();

        // Two calls of each.
        let calls = names.iter().chain(&names).map(|pool| wake.wakes(pool));
        assert!(!join_all(calls).await.contains(&true));

        // One after the other takes twice as long as that.
        assert!(asked.elapsed() < 25 * timeout, "{:?}", asked.elapsed());
    }

    #[test]
    fn what_stands_no_more_is_forgotten_unless_somebody_has_it() {
        let address = "127.0.0.1:1".parse().unwrap();
        let (timeout, engine) = (Duration::ZERO, Engine::default());
        let arbiters = Arc::new(Arbiters::new(vec![address], Dial { timeout, engine }));
        let wake = Wake::new(arbiters, timeout, Pools::default());
        let [old, held, new] = ["old", "held", "new"].map(|name| PoolName::new(name).unwrap());
        let long_ago = Instant::now().checked_sub(2 * STAYS_AWAY);
        for (pool, at) in [
            (&old, long_ago),
            (&held, long_ago),
            (&new, Some(Instant::now())),
        ] {
            let told = at.map(|at| (at, false));
            let told = Arc::new(Told::new(told));
            wake.told.lock().unwrap().insert(pool.clone(), told);
        }
        let _held = Arc::clone(&wake.told.lock().unwrap()[&held]);

        wake.told(&new);

        let known = wake.told.lock().unwrap();
        let known = [&old, &held, &new].map(|pool| known.contains_key(pool));
        assert_eq!(known, [false, true, true]);
    }
}
