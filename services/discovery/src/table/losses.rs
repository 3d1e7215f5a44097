//! Nodes whose leases were lost: their endpoints are over, although the store still has them.

use std::collections::{BTreeMap, BTreeSet};

use tether_proto::{
    common::{Death, Endpoint},
    discovery::NodeLoss,
};

use super::Place;

/// What the store says of losses, and which endpoints each would end.
#[derive(Debug, Default)]
pub(super) struct Losses {
    records: BTreeMap<String, NodeLoss>,
    /// Places with an endpoint, by its node: a loss must not look through all there are.
    places: BTreeMap<String, BTreeSet<Place>>,
}

impl Losses {
    pub(super) fn nodes(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }

    /// What the store says of a node changes. The places that have an endpoint there.
    pub(super) fn change(&mut self, node: &str, loss: Option<NodeLoss>) -> BTreeSet<Place> {
        match loss {
            Some(loss) => {
                self.records.insert(node.to_owned(), loss);
                self.places.get(node).cloned().unwrap_or_default()
            }
            None => {
                self.records.remove(node);
                BTreeSet::new()
            }
        }
    }

    /// The loss that ended this endpoint.
    fn of(&self, endpoint: &Endpoint) -> Option<&NodeLoss> {
        let loss = self.records.get(&endpoint.node)?;
        let incarnation = endpoint.worker.as_ref()?.incarnation;
        (incarnation <= loss.up_to_incarnation).then_some(loss)
    }

    pub(super) fn ended(&self, endpoint: &Endpoint) -> bool {
        self.of(endpoint).is_some()
    }

    /// How the worker of an endpoint died that such a loss has ended.
    pub(super) fn death(&self, endpoint: &Endpoint) -> Option<Death> {
        let loss = self.of(endpoint)?;
        let pool = &endpoint.worker.as_ref()?.pool;
        let epoch = loss.epochs.iter().find(|of| of.pool == *pool);
        Some(Death {
            epoch: epoch.map_or(0, |of| of.epoch),
            ..loss.death.clone()?
        })
    }

    /// An endpoint takes the place of another.
    pub(super) fn moved(&mut self, place: &Place, old: Option<&Endpoint>, new: Option<&Endpoint>) {
        if let Some(old) = old
            && let Some(places) = self.places.get_mut(&old.node)
        {
            places.remove(place);
            if places.is_empty() {
                self.places.remove(&old.node);
            }
        }
        if let Some(new) = new.filter(|new| !new.node.is_empty()) {
            let places = self.places.entry(new.node.clone()).or_default();
            places.insert(place.clone());
        }
    }
}
