//! Who serves a pool that no agent runs, from what its sources say. Pure.

mod believed;
mod peaks;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use tether_clock::Tick;
use tether_discovery_backends::{Answer, Targets};
use tether_types::Address;

use crate::{
    config::{Combine, PoolSource},
    numbering::Member,
};
use believed::Believed;

/// What its sources say, and what of that is believed.
///
/// - An answer is taken as it is, and one that names nobody too; an error says nothing about who serves.
/// - Where a source loses more of its endpoints at once than is believed, those are held for a while; where it loses them
///   in small steps, all those that are lost after as many as are believed. Never more are held than served.
/// - Where the first source that answers counts, each is measured by what it said itself before: that another one counts
///   is no loss.
#[derive(Debug)]
pub(crate) struct Sourced {
    combine: Combine,
    sources: Vec<Source>,
    /// Of each source where the first counts; else one of all together.
    lists: Vec<Believed>,
    /// Whose answer counts, of several of which the first counts.
    chosen: Option<usize>,
}

#[derive(Debug, Default)]
struct Source {
    answer: Option<Targets>,
    /// Whether each answer is told: what is known is as old as the last one.
    tells_each: bool,
    answered: Option<Tick>,
    /// Since when what it said may be out of date, and why.
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
        let sources = terms.all().map(|source| Source {
            tells_each: tether_discovery_backends::tells_each_answer(source),
            ..Source::default()
        });
        let sources: Vec<_> = sources.collect();
        let lists = match terms.combine {
            Combine::First => sources.len(),
            Combine::Union => 1,
        };
        Self {
            combine: terms.combine,
            sources,
            lists: (0..lists).map(|_| Believed::new(terms)).collect(),
            chosen: None,
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
        let has_answered = word.is_ok();
        match word {
            Ok(answer) => {
                known.answer = Some(answer.targets);
                known.answered = Some(now);
                known.failing = None;
            }
            Err(why) => match &mut known.failing {
                Some((_, before)) => *before = why,
                None => {
                    let last = known.answered.filter(|_| known.tells_each);
                    known.failing = Some((last.unwrap_or(now), why));
                }
            },
        }
        match self.combine {
            Combine::First => self.on_one(source, has_answered, now),
            Combine::Union => self.on_all(now),
        }
    }

    /// The first source that does not fail counts; while all of them do, nothing changes.
    fn on_one(&mut self, source: usize, has_answered: bool, now: Tick) -> Change {
        let answer = self.sources[source].answer.as_ref();
        let change = match answer.filter(|_| has_answered) {
            Some(named) => self.lists[source].on_named(named.clone(), now),
            None => Change::None,
        };
        let answers = |source: &Source| source.failing.is_none() && source.answer.is_some();
        let before = self.chosen;
        self.chosen = self.sources.iter().position(answers).or(before);
        match self.chosen == Some(source) {
            true if change != Change::None => change,
            _ if self.chosen != before => Change::Members,
            _ => Change::None,
        }
    }

    fn on_all(&mut self, now: Tick) -> Change {
        match (self.union(), self.lists.first_mut()) {
            (Some(named), Some(list)) => list.on_named(named, now),
            _ => Change::None,
        }
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
        let counting = self.counting();
        let mut changed = false;
        for (index, list) in self.lists.iter_mut().enumerate() {
            changed |= list.check(now) && counting == Some(index);
        }
        changed
    }

    /// When to call [`Sourced::check`].
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.lists.iter().filter_map(Believed::next_deadline).min()
    }

    /// Who serves.
    pub(crate) fn members(&self) -> BTreeMap<Address, Member> {
        let list = self.counting().and_then(|list| self.lists.get(list));
        list.map(Believed::members).unwrap_or_default()
    }

    /// Which list counts.
    fn counting(&self) -> Option<usize> {
        match self.combine {
            Combine::First => self.chosen,
            Combine::Union => Some(0),
        }
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
