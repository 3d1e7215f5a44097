//! The connections of one lane to workers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tether_types::{Address, WorkerId};

use crate::upstream::{Dial, Upstream};

/// A connection for each worker that was called.
#[derive(Debug)]
pub(crate) struct Links {
    upstreams: Mutex<HashMap<WorkerId, Arc<Upstream>>>,
    dial: Dial,
}

impl Links {
    pub(crate) fn new(dial: Dial) -> Self {
        Self {
            upstreams: Mutex::default(),
            dial,
        }
    }

    /// The connection to a worker that listens at `address` now.
    pub(crate) fn to(&self, worker: &WorkerId, address: Address) -> Arc<Upstream> {
        let mut upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = upstreams.get(worker);
        let known = known.filter(|upstream| *upstream.address() == address);
        known.cloned().unwrap_or_else(|| {
            let upstream = Arc::new(Upstream::new(address, self.dial));
            upstreams.insert(worker.clone(), Arc::clone(&upstream));
            upstream
        })
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
}
