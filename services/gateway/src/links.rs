//! The connections of one lane to workers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tether_kit::tls::Connector;
use tether_types::{Address, WorkerId};

use crate::upstream::{Dial, Upstream};

/// A connection for each worker that was called.
#[derive(Debug)]
pub(crate) struct Links {
    upstreams: Mutex<HashMap<WorkerId, Arc<Upstream>>>,
    dial: Dial,
    /// For workers that speak TLS, where the gateway does to them.
    tls: Option<Arc<Connector>>,
}

impl Links {
    pub(crate) fn new(dial: Dial, tls: Option<Arc<Connector>>) -> Self {
        Self {
            upstreams: Mutex::default(),
            dial,
            tls,
        }
    }

    /// The connection to a worker that listens at `address` now, with TLS or without; and whether nobody had it before.
    pub(crate) fn to(
        &self,
        worker: &WorkerId,
        address: Arc<Address>,
        tls: bool,
    ) -> (Arc<Upstream>, bool) {
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = upstreams.get(worker);
        let tls = self.tls.as_ref().filter(|_| tls);
        let known =
            known.filter(|upstream| upstream.is_to(&address) && upstream.is_tls() == tls.is_some());
        if let Some(known) = known {
            return (Arc::clone(known), false);
        }
        let upstream = Upstream::new(address, self.dial).with_tls(tls.cloned());
        let upstream = Arc::new(upstream);
        upstreams.insert(worker.clone(), Arc::clone(&upstream));
        (upstream, true)
    }

    /// Lets go of a worker that gets no more calls. With `sever` those under way on it end too.
    pub(crate) fn remove(&self, worker: &WorkerId, sever: bool) {
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = upstreams.remove(worker)
            && sever
        {
            upstream.sever();
        }
    }

    /// Lets go of a worker that gets no more calls, those on their way to its connection included; answers the
    /// connection, for what comes over it still.
    pub(crate) fn close(&self, worker: &WorkerId) -> Option<Arc<Upstream>> {
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let upstream = upstreams.remove(worker)?;
        upstream.close();
        Some(upstream)
    }
}
