//! A pool as a watcher knows it from what it is told.

use std::collections::BTreeMap;

use tether_proto::{
    common::{Endpoint, EndpointHealth},
    discovery::WatchEndpointsResponse,
};
use tokio::time::timeout;
use tonic::Streaming;

use crate::{
    PATIENCE,
    support::{Copy, Messages},
};

pub(crate) struct Told {
    messages: Messages,
    copy: Copy,
    /// How many messages changed something.
    pub(crate) changes: usize,
    /// The most endpoints there were at any time.
    pub(crate) most: usize,
    /// The last message.
    pub(crate) last: WatchEndpointsResponse,
}

impl Told {
    pub(crate) fn new(stream: Streaming<WatchEndpointsResponse>) -> Self {
        Self {
            messages: Messages(stream),
            copy: Copy::default(),
            changes: 0,
            most: 0,
            last: WatchEndpointsResponse::default(),
        }
    }

    /// Takes in the next message.
    pub(crate) async fn next(&mut self) {
        let message = self.messages.any().await;
        self.changes += usize::from(!message.upserts.is_empty() || !message.removals.is_empty());
        self.copy.take(&message);
        self.most = self.most.max(self.copy.0.len());
        self.last = message;
    }

    /// Waits until what is known is as it should be.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !wanted(self) {
                self.next().await;
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        let shown: Vec<_> = self.addresses().into_iter().take(20).collect();
        assert!(
            waited.is_ok(),
            "{what}: {shown:?} of {}, {:?}",
            self.copy.0.len(),
            self.last.pool_ages
        );
    }

    /// Waits until exactly these are told, held or not.
    pub(crate) async fn says(&mut self, addresses: &[&str]) {
        let what = format!("{addresses:?} are told");
        self.until(&what, |told| {
            told.is_heard() && told.addresses() == addresses
        })
        .await;
    }

    /// Waits to be told that a source of the pool does not answer, with all of these in the reason. On a loaded machine
    /// a server may be too slow before it is heard.
    pub(crate) async fn fails(&mut self, parts: &[&str]) {
        self.until(&format!("it fails by {parts:?}"), |told| {
            let ages = told.last.pool_ages.iter();
            let mut ages = ages.filter(|age| age.age_ms > 0);
            ages.any(|age| parts.iter().all(|part| age.why.contains(part)))
        })
        .await;
    }

    fn is_heard(&self) -> bool {
        self.last.revision > 0 && self.last.unheard_pools.is_empty()
    }

    /// Addresses, in order.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        self.by_address().into_keys().collect()
    }

    /// Each endpoint by its address.
    pub(crate) fn by_address(&self) -> BTreeMap<&str, &Endpoint> {
        let endpoints = self.copy.0.values();
        endpoints
            .map(|endpoint| (endpoint.address.as_str(), endpoint))
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.copy.0.len()
    }

    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        let endpoints = self.copy.0.values();
        endpoints
            .filter(|endpoint| endpoint.health() == EndpointHealth::Held)
            .count()
    }

    /// The slot and the incarnation of an address.
    pub(crate) fn worker(&self, address: &str) -> (u32, u64) {
        let worker = self.by_address()[address].worker.as_ref().unwrap();
        (worker.slot, worker.incarnation)
    }
}
