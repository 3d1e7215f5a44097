//! What of one list's answers is believed. Pure.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_discovery_backends::Targets;
use tether_proto::common::EndpointHealth;
use tether_types::Address;

use super::{Change, peaks::Peaks, share};
use crate::{
    config::{Empty, PoolSource},
    numbering::Member,
};

/// One list of endpoints, measured by what it said itself before.
#[derive(Debug)]
pub(super) struct Believed {
    believed_loss: f64,
    hold: Duration,
    empty: Empty,
    serving: Targets,
    /// Endpoints that are not named any more, until when, with what was known of them.
    held: BTreeMap<Address, (Member, Tick)>,
    /// How many served, for as long as an endpoint would be held.
    peaks: Peaks,
}

impl Believed {
    pub(super) fn new(terms: &PoolSource) -> Self {
        Self {
            believed_loss: terms.believed_loss,
            hold: terms.hold,
            empty: terms.empty,
            serving: Targets::new(),
            held: BTreeMap::new(),
            peaks: Peaks::default(),
        }
    }

    /// These are named, and no others.
    pub(super) fn on_named(&mut self, named: Targets, now: Tick) -> Change {
        self.held.retain(|address, _| !named.contains_key(address));
        let gone = self
            .serving
            .iter()
            .filter(|(address, _)| !named.contains_key(*address));
        let gone: Vec<_> = gone
            .map(|(address, traits)| (address.clone(), traits.clone()))
            .collect();
        let most = self.peaks.most(now).max(self.serving.len());
        let lost = share(gone.len(), self.serving.len())
            .max(share(most.saturating_sub(named.len()), most));
        let nobody = named.is_empty() && self.empty == Empty::Believe;
        let believed = nobody || gone.is_empty() || lost <= self.believed_loss;
        if named.len() < self.serving.len() {
            self.peaks.on_fall(self.serving.len(), now + self.hold);
        }
        let before = std::mem::replace(&mut self.serving, named);
        if nobody {
            self.held.clear();
            self.peaks.forget();
        }
        if believed {
            return match before == self.serving {
                true => Change::None,
                false => Change::Members,
            };
        }
        let until = now + self.hold;
        let count = gone.len();
        for (address, traits) in gone {
            let health = EndpointHealth::Held;
            self.held
                .insert(address, (Member { traits, health }, until));
        }
        self.hold_no_more_than(most);
        Change::Held(count)
    }

    /// A source that names others each time would have all of them held. Those go that were held longest.
    fn hold_no_more_than(&mut self, most: usize) {
        let excess = self.held.len().saturating_sub(most);
        if excess == 0 {
            return;
        }
        let held = self.held.iter();
        let mut by_end: Vec<_> = held
            .map(|(address, (_, until))| (*until, address.clone()))
            .collect();
        by_end.sort_unstable();
        for (_, address) in by_end.into_iter().take(excess) {
            self.held.remove(&address);
        }
    }

    /// Lets go of what was held for long enough. True where that changed who serves.
    pub(super) fn check(&mut self, now: Tick) -> bool {
        let before = self.held.len();
        self.held.retain(|_, (_, until)| *until > now);
        before != self.held.len()
    }

    /// When to call [`Believed::check`].
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.held.values().map(|(_, until)| *until).min()
    }

    /// Who serves.
    pub(super) fn members(&self) -> BTreeMap<Address, Member> {
        let serving = self.serving.iter().map(|(address, traits)| {
            let member = Member {
                traits: traits.clone(),
                health: EndpointHealth::Unspecified,
            };
            (address.clone(), member)
        });
        let held = self.held.iter();
        let held = held.map(|(address, (member, _))| (address.clone(), member.clone()));
        serving.chain(held).collect()
    }
}
