//! Gateways of the model: what they count, and how they tell it.

use std::collections::BTreeMap;

use tether_proto::common::WorkerRef;
use tether_types::WorkerId;

use super::world::World;

/// One gateway, which may start anew and has forgotten everything then.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    /// Which life of it this is.
    life: u32,
    counts: BTreeMap<WorkerId, u64>,
    /// What it told over the stream it has.
    sent: BTreeMap<WorkerId, u64>,
}

impl World {
    /// Workers that gateways send calls to and are asked to count.
    fn counted(&self) -> Vec<WorkerId> {
        let told = self.endpoints();
        told.filter(|endpoint| endpoint.count_calls && !endpoint.draining)
            .map(|endpoint| WorkerRef::required(endpoint.worker.as_ref()).unwrap())
            .collect()
    }

    /// A gateway sends calls to one of the workers it is to count, and they are over.
    pub(super) fn call(&mut self, gateway: usize, nth: usize, calls: u64) {
        let counted = self.counted();
        if counted.is_empty() {
            return;
        }
        let worker = &counted[nth % counted.len()];
        let gateway = &mut self.gateways[gateway];
        *gateway.counts.entry(worker.clone()).or_default() += calls;
        *self.served.entry(worker.clone()).or_default() += calls;
    }

    /// A gateway begins another stream, or another life.
    pub(super) fn restart_gateway(&mut self, gateway: usize, another_life: bool) {
        let gateway = &mut self.gateways[gateway];
        gateway.sent.clear();
        if another_life {
            gateway.life += 1;
            gateway.counts.clear();
        }
    }

    /// Everybody tells what is new.
    pub(super) fn report_calls(&mut self) {
        for index in 0..self.gateways.len() {
            let gateway = &mut self.gateways[index];
            let news = |(id, calls): &(&WorkerId, &u64)| gateway.sent.get(*id) != Some(*calls);
            let news = gateway.counts.iter().filter(news);
            let news: Vec<_> = news.map(|(id, calls)| (id.clone(), *calls)).collect();
            if news.is_empty() {
                continue;
            }
            let instance = format!("{index}.{}", gateway.life);
            gateway.sent = match self.ledger.on_calls(&instance, &news, self.now) {
                Ok(()) => gateway.counts.clone(),
                // The stream is over.
                Err(_) => BTreeMap::new(),
            };
            self.settle();
        }
    }

    /// A7; and what gateways told and still have is known, whoever was restarted meanwhile.
    pub(super) fn check_calls(&self) {
        for (name, pool) in &self.ledger.pools {
            for (slot, place) in pool.places.iter() {
                let Some(live) = &place.live else { continue };
                let id = WorkerId {
                    pool: name.clone(),
                    slot,
                    incarnation: live.incarnation,
                };
                let rare = live.rare.as_ref();
                let known = rare.map_or(0, |rare| rare.calls.total());
                let served = self.served.get(&id).copied().unwrap_or(0);
                assert!(known <= served, "A7: {id} served {served}, not {known}");
                let told = self
                    .gateways
                    .iter()
                    .filter_map(|gateway| gateway.sent.get(&id));
                let told = told.sum::<u64>();
                assert!(
                    known >= told,
                    "A7: {id} served {told} at least, not {known}"
                );
            }
        }
    }
}
