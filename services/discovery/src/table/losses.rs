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
    /// Places with an endpoint in the store, by its node: a loss must not look through all there are.
    places: BTreeMap<String, BTreeSet<Place>>,
    /// Endpoints that are over, and serve again if the loss is taken back.
    hidden: BTreeMap<Place, Endpoint>,
}

impl Losses {
    pub(super) fn nodes(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }

    /// What the store says of a node changes. The places that have an endpoint there.
    pub(super) fn change(&mut self, node: &str, loss: Option<NodeLoss>) -> BTreeSet<Place> {
        let up_to = |loss: &NodeLoss| loss.up_to_incarnation;
        let next = loss.as_ref().map(up_to);
        let before = match loss {
            Some(loss) => self.records.insert(node.to_owned(), loss),
            None => self.records.remove(node),
        };
        // Who is known to be dead meanwhile changes no endpoint.
        if before.as_ref().map(up_to) == next {
            return BTreeSet::new();
        }
        self.places.get(node).cloned().unwrap_or_default()
    }

    /// The loss that ended this endpoint.
    fn of(&self, endpoint: &Endpoint) -> Option<&NodeLoss> {
        let loss = self.records.get(&endpoint.node)?;
        let incarnation = endpoint.worker.as_ref()?.incarnation;
        (incarnation <= loss.up_to_incarnation).then_some(loss)
    }

    pub(super) fn hidden(&self, place: &Place) -> Option<&Endpoint> {
        self.hidden.get(place)
    }

    pub(super) fn hidden_places(&self) -> impl Iterator<Item = &Place> {
        self.hidden.keys()
    }

    /// Of what the store has of a place now, that which serves; `known` did until now.
    pub(super) fn show(
        &mut self,
        place: &Place,
        known: Option<&Endpoint>,
        written: Option<Endpoint>,
    ) -> Option<Endpoint> {
        let hidden = self.hidden.remove(place);
        self.index(place, known.or(hidden.as_ref()), written.as_ref());
        let written = written?;
        if self.of(&written).is_none() {
            return Some(written);
        }
        self.hidden.insert(place.clone(), written);
        None
    }

    /// How the worker of an endpoint died that such a loss has ended; none where it may live.
    pub(super) fn death(&self, endpoint: &Endpoint) -> Option<Death> {
        let loss = self.of(endpoint)?;
        let pool = &endpoint.worker.as_ref()?.pool;
        let dead = loss.dead.iter().find(|dead| dead.pool == *pool)?;
        Some(Death {
            epoch: dead.epoch,
            ..loss.death.clone()?
        })
    }

    /// What the store has of a place takes the place of what it had.
    fn index(&mut self, place: &Place, old: Option<&Endpoint>, new: Option<&Endpoint>) {
        let node = |endpoint: Option<&Endpoint>| endpoint.map(|endpoint| endpoint.node.clone());
        let (old, new) = (node(old), node(new));
        if old == new {
            return;
        }
        if let Some(old) = old
            && let Some(places) = self.places.get_mut(&old)
        {
            places.remove(place);
            if places.is_empty() {
                self.places.remove(&old);
            }
        }
        if let Some(new) = new.filter(|new| !new.is_empty()) {
            self.places.entry(new).or_default().insert(place.clone());
        }
    }
}
