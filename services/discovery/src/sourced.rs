//! Who serves a pool that no agent runs, from what its sources say. Pure.

mod peaks;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn sourced(sources: usize, change: impl FnOnce(&mut PoolSource)) -> Sourced {
        let mut terms = PoolSource {
            sources: vec!["static://10.0.0.1:1".to_owned(); sources],
            ..PoolSource::default()
        };
        change(&mut terms);
        Sourced::new(&terms)
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO + Duration::from_secs(seconds)
    }

    fn says(hosts: std::ops::Range<u8>) -> Result<Answer, String> {
        let addresses = hosts.map(|host| format!("10.0.0.{host}:1").parse().unwrap());
        Answer::of(addresses)
    }

    fn count(sourced: &Sourced) -> (usize, usize) {
        let members = sourced.members();
        let held = members
            .values()
            .filter(|member| member.health == EndpointHealth::Held);
        (members.len(), held.count())
    }

    #[test]
    fn an_error_keeps_what_was_said_and_tells_since_when_and_nobody_is_an_answer() {
        let mut sourced = sourced(1, |_| {});
        assert_eq!(sourced.on_word(0, says(1..9), at(1)), Change::Members);
        assert_eq!(
            sourced.on_word(0, Err("away".to_owned()), at(2)),
            Change::None
        );
        sourced.on_word(0, Err("still away".to_owned()), at(7));
        assert_eq!(sourced.failing(), Some((at(2), "still away")));
        assert_eq!(count(&sourced), (8, 0));

        assert_eq!(sourced.on_word(0, says(1..1), at(8)), Change::Members);
        assert_eq!((count(&sourced), sourced.failing()), ((0, 0), None));
    }

    #[test]
    fn of_a_loss_of_most_all_are_held_for_a_while_and_come_back_as_they_were() {
        let mut sourced = sourced(1, |_| {});
        sourced.on_word(0, says(1..11), at(1));
        assert_eq!(
            sourced.on_word(0, says(1..6), at(2)),
            Change::Members,
            "half of them"
        );
        assert_eq!(sourced.on_word(0, says(1..2), at(3)), Change::Held(4));
        assert_eq!(count(&sourced), (5, 4));
        // One of the lost is back, and another answer says the same as before.
        sourced.on_word(0, says(1..3), at(10));
        assert_eq!(count(&sourced), (5, 3));
        assert_eq!(sourced.on_word(0, says(1..3), at(11)), Change::None);

        assert_eq!(sourced.next_deadline(), Some(at(63)));
        assert!(!sourced.check(at(62)) && sourced.check(at(63)));
        assert_eq!((count(&sourced), sourced.next_deadline()), ((2, 0), None));
    }

    #[test]
    fn a_loss_in_small_steps_is_held_from_where_it_is_too_much_and_a_replacement_in_steps_is_none()
    {
        let mut steps = sourced(1, |_| {});
        steps.on_word(0, says(1..11), at(1));
        for (left, change) in [
            (9, Change::Members),
            (5, Change::Members),
            (4, Change::Held(1)),
            (1, Change::Held(3)),
        ] {
            let now = at(12 - u64::from(left));
            assert_eq!(steps.on_word(0, says(1..left + 1), now), change, "{left}");
        }
        assert_eq!(count(&steps), (5, 4), "half of them");
        // One more is no loss, and after a while few are all there are.
        assert_eq!(steps.on_word(0, says(1..3), at(12)), Change::Members);
        assert!(steps.check(at(71)));
        assert_eq!(steps.on_word(0, says(1..2), at(72)), Change::Members);
        assert_eq!(count(&steps), (1, 0));

        let mut rolling = sourced(1, |_| {});
        rolling.on_word(0, says(1..11), at(1));
        for first in 2..30 {
            let change = rolling.on_word(0, says(first..first + 10), at(2));
            assert_eq!(change, Change::Members, "{first}");
        }

        let mut nothing = sourced(1, |_| {});
        for count in (0..11).rev() {
            nothing.on_word(0, says(1..count + 1), at(1));
        }
        assert_eq!(count(&nothing), (0, 0), "that nobody serves is believed");
    }

    #[test]
    fn a_source_that_names_others_each_time_has_no_more_of_them_held_than_it_names() {
        let mut sourced = sourced(1, |_| {});
        for first in 0..20 {
            sourced.on_word(0, says(first * 10..first * 10 + 10), at(first.into()));
        }
        assert_eq!(count(&sourced), (20, 10));
        let last = "10.0.0.189:1".parse().unwrap();
        assert!(
            sourced.members().contains_key(&last),
            "those that served last"
        );
    }

    #[test]
    fn an_answer_of_nobody_is_held_too_where_that_is_asked_for() {
        let mut sourced = sourced(1, |terms| terms.empty = Empty::Hold);
        sourced.on_word(0, says(1..5), at(1));
        assert_eq!(sourced.on_word(0, says(1..1), at(2)), Change::Held(4));
        assert_eq!(count(&sourced), (4, 4));
    }

    #[test]
    fn the_first_source_that_answers_counts() {
        let mut sourced = sourced(3, |terms| terms.believed_loss = 1.0);
        sourced.on_word(0, Err("away".to_owned()), at(1));
        assert_eq!(sourced.failing(), Some((at(1), "away")));
        assert_eq!(sourced.on_word(2, says(20..22), at(2)), Change::Members);
        assert_eq!(sourced.failing(), None, "what counts is in order");
        assert_eq!(sourced.on_word(1, says(10..14), at(3)), Change::Members);
        assert_eq!(sourced.on_word(2, says(20..29), at(4)), Change::None);
        assert_eq!(count(&sourced), (4, 0));

        // Where all fail, the last one chosen goes on to count.
        sourced.on_word(2, Err("away".to_owned()), at(5));
        sourced.on_word(1, Err("gone".to_owned()), at(6));
        assert_eq!(sourced.failing(), Some((at(6), "gone")));
        assert_eq!(count(&sourced), (4, 0));
    }

    #[test]
    fn what_is_said_first_is_settled_once_no_preferred_source_may_say_something_else() {
        let mut first = sourced(3, |_| {});
        first.on_word(1, says(10..14), at(1));
        assert!(
            first.is_heard() && !first.is_settled(),
            "the first one is awaited"
        );
        first.on_word(0, Err("away".to_owned()), at(2));
        assert!(first.is_settled());

        let mut failing = sourced(2, |_| {});
        failing.on_word(0, Err("away".to_owned()), at(1));
        assert!(!failing.is_heard() && !failing.is_settled());
        failing.on_word(1, Err("away".to_owned()), at(2));
        assert!(!failing.is_settled(), "nobody has said anything");
        failing.on_word(1, says(1..1), at(3));
        assert!(failing.is_settled(), "that nobody serves is something");

        let mut union = sourced(2, |terms| terms.combine = Combine::Union);
        union.on_word(0, says(1..4), at(1));
        assert!(!union.is_settled());
        union.on_word(1, Err("away".to_owned()), at(2));
        assert!(union.is_settled());
    }

    #[test]
    fn a_union_waits_for_all_and_of_one_that_fails_the_last_answer_counts() {
        let mut sourced = sourced(2, |terms| terms.combine = Combine::Union);
        assert_eq!(sourced.on_word(0, says(1..4), at(1)), Change::None);
        assert_eq!(sourced.on_word(1, says(3..6), at(2)), Change::Members);
        assert_eq!(count(&sourced), (5, 0));
        sourced.on_word(0, Err("away".to_owned()), at(3));
        sourced.on_word(1, says(4..8), at(4));
        assert_eq!(count(&sourced), (7, 0));
        assert_eq!(sourced.failing(), Some((at(3), "away")));
    }
}
