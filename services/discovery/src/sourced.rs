//! Who serves a pool that no agent runs, from what its sources say. Pure.

mod peaks;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_discovery_backends::{Answer, Targets};
use tether_proto::common::EndpointHealth;
use tether_types::Address;

use crate::{
    config::{Combine, Empty, PoolSource},
    numbering::Member,
};
use peaks::Peaks;

/// What its sources say, and what of that is believed.
///
/// - An answer is taken as it is, and one that names nobody too; an error says nothing about who serves.
/// - Where a source loses more of its endpoints at once than is believed, those are held for a while; where it loses them
///   in small steps, all those that are lost after as many as are believed. Never more are held than served.
#[derive(Debug)]
pub(crate) struct Sourced {
    combine: Combine,
    believed_loss: f64,
    hold: Duration,
    empty: Empty,
    sources: Vec<Source>,
    /// Whose answer counts, of several of which the first counts.
    chosen: Option<usize>,
    /// Endpoints that no source names any more, until when, with what was known of them.
    held: BTreeMap<Address, (Member, Tick)>,
    serving: Targets,
    /// How many served, for as long as an endpoint would be held.
    peaks: Peaks,
}

#[derive(Debug, Default)]
struct Source {
    answer: Option<Targets>,
    /// Since when it fails, and why.
    failing: Option<(Tick, String)>,
}

/// What comes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that anybody has to be told.
    None,
    /// Who serves.
    Members,
    /// So many are held that are not named any more.
    Held(usize),
}

impl Sourced {
    pub(crate) fn new(terms: &PoolSource) -> Self {
        Self {
            combine: terms.combine,
            believed_loss: terms.believed_loss,
            hold: terms.hold,
            empty: terms.empty,
            sources: terms.all().map(|_| Source::default()).collect(),
            chosen: None,
            held: BTreeMap::new(),
            serving: Targets::new(),
            peaks: Peaks::default(),
        }
    }

    /// A source said something.
    pub(crate) fn on_word(
        &mut self,
        source: usize,
        word: Result<Answer, String>,
        now: Tick,
    ) -> Change {
        let Some(known) = self.sources.get_mut(source) else {
            return Change::None;
        };
        match word {
            Ok(answer) => {
                known.answer = Some(answer.targets);
                known.failing = None;
            }
            Err(why) => match &mut known.failing {
                Some((_, before)) => *before = why,
                None => known.failing = Some((now, why)),
            },
        }
        let named = match self.combine {
            Combine::First => self.first(),
            Combine::Union => self.union(),
        };
        named.map_or(Change::None, |named| self.believe(named, now))
    }

    /// The answer of the first source that does not fail; while all of them do, nothing changes.
    fn first(&mut self) -> Option<Targets> {
        let answers = |source: &Source| source.failing.is_none() && source.answer.is_some();
        self.chosen = self.sources.iter().position(answers).or(self.chosen);
        self.sources[self.chosen?].answer.clone()
    }

    /// What all of them say together, once each has answered or failed: half of them would look like a loss.
    fn union(&self) -> Option<Targets> {
        let heard = |source: &Source| source.failing.is_some() || source.answer.is_some();
        if !self.sources.iter().all(heard) {
            return None;
        }
        let mut answers = self
            .sources
            .iter()
            .filter_map(|source| source.answer.as_ref());
        let mut named = answers.next()?.clone();
        for answer in answers {
            for (address, traits) in answer {
                // What the first one says of an address counts.
                named
                    .entry(address.clone())
                    .or_insert_with(|| traits.clone());
            }
        }
        Some(named)
    }

    fn believe(&mut self, named: Targets, now: Tick) -> Change {
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

    /// Whether anybody has said who serves.
    pub(crate) fn is_heard(&self) -> bool {
        match self.combine {
            Combine::First => self.chosen.is_some(),
            Combine::Union => self.union().is_some(),
        }
    }

    /// Whether that is what counts, and no source that is preferred may still say something else.
    pub(crate) fn is_settled(&self) -> bool {
        let decides = |source: &&Source| source.failing.is_none();
        let first = self.sources.iter().find(decides);
        let awaits =
            self.combine == Combine::First && first.is_some_and(|source| source.answer.is_none());
        self.is_heard() && !awaits
    }

    /// Lets go of what was held for long enough. True where that changed who serves.
    pub(crate) fn check(&mut self, now: Tick) -> bool {
        let before = self.held.len();
        self.held.retain(|_, (_, until)| *until > now);
        before != self.held.len()
    }

    /// When to call [`Sourced::check`].
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.held.values().map(|(_, until)| *until).min()
    }

    /// Who serves.
    pub(crate) fn members(&self) -> BTreeMap<Address, Member> {
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

    /// Since when what is told may be out of date, and why: a source fails whose answer counts.
    pub(crate) fn failing(&self) -> Option<(Tick, &str)> {
        let counts = |index: &usize| match self.combine {
            Combine::First => self.chosen.is_none_or(|chosen| chosen == *index),
            Combine::Union => true,
        };
        let sources = self.sources.iter().enumerate();
        let failing = sources.filter(|(index, _)| counts(index));
        let failing = failing.filter_map(|(_, source)| source.failing.as_ref());
        failing
            .min_by_key(|(since, _)| *since)
            .map(|(since, why)| (*since, why.as_str()))
    }
}

/// What part of all that is.
pub(crate) fn share(some: usize, all: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    match all {
        0 => 0.0,
        all => number(some) / number(all),
    }
}
