//! D6 under random answers, losses and errors of several sources, in both ways to combine them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::btree_set, collection::vec, prelude::*, sample::select};
use tether_proto::common::EndpointHealth;

use super::*;
use crate::config::Empty;

const HOLD: Duration = Duration::from_secs(60);

/// What a source does.
#[derive(Debug, Clone)]
enum Act {
    Names(BTreeSet<u8>),
    /// It names fewer than before, by so many.
    Loses(usize),
    Fails,
}

fn acts() -> impl Strategy<Value = Vec<(usize, u64, Act)>> {
    let act = prop_oneof![
        2 => btree_set(0..24u8, 0..13).prop_map(Act::Names),
        4 => (1..7usize).prop_map(Act::Loses),
        1 => Just(Act::Fails)
    ];
    vec((0..3usize, 0..40u64, act), 1..40)
}

fn address(host: u8) -> Address {
    let host = format!("10.0.0.{host}");
    Address::Tcp { host, port: 1 }
}

/// What one list has named.
#[derive(Debug, Clone, Default)]
struct Named {
    now: BTreeSet<u8>,
    /// How many it named before, each until when that is remembered.
    counts: Vec<(usize, Tick)>,
    /// Until when one may be held that it names no more.
    gone: BTreeMap<u8, Tick>,
    most_ever: usize,
}

impl Named {
    fn on_answer(&mut self, named: BTreeSet<u8>, forgets: bool, now: Tick) {
        let gone = self.now.difference(&named);
        self.gone.extend(gone.map(|host| (*host, now + HOLD)));
        self.counts.push((self.now.len(), now + HOLD));
        if forgets && named.is_empty() {
            self.counts.clear();
            self.gone.clear();
        }
        self.most_ever = self.most_ever.max(named.len());
        self.now = named;
    }

    fn most(&self, now: Tick) -> usize {
        let counts = self.counts.iter().filter(|(_, until)| *until > now);
        let before = counts.map(|(count, _)| *count).max();
        before.unwrap_or_default().max(self.now.len())
    }
}

/// Sources as they are.
struct Model {
    combine: Combine,
    forgets: bool,
    answers: Vec<Option<BTreeSet<u8>>>,
    failing: Vec<bool>,
    lists: Vec<Named>,
    counting: Option<usize>,
}

impl Model {
    fn new(terms: &PoolSource) -> Self {
        let count = terms.all().count();
        Self {
            combine: terms.combine,
            forgets: terms.empty == Empty::Believe,
            answers: vec![None; count],
            failing: vec![false; count],
            lists: vec![Named::default(); count],
            counting: None,
        }
    }

    /// What the source says to that.
    fn act(&mut self, source: usize, act: Act, now: Tick) -> Result<Answer, String> {
        let named = match act {
            Act::Names(named) => Some(named),
            Act::Loses(count) => {
                let before = self.answers[source].iter().flatten();
                Some(before.skip(count).copied().collect())
            }
            Act::Fails => None,
        };
        self.failing[source] = named.is_none();
        if named.is_some() {
            self.answers[source].clone_from(&named);
        }
        match self.combine {
            Combine::First => {
                if let Some(named) = named.clone() {
                    self.lists[source].on_answer(named, self.forgets, now);
                }
                let answers =
                    |source: &usize| !self.failing[*source] && self.answers[*source].is_some();
                let first = (0..self.answers.len()).find(answers);
                self.counting = first.or(self.counting);
            }
            Combine::Union => {
                let mut each = self.answers.iter().zip(&self.failing);
                let all_heard = each.all(|(answer, fails)| answer.is_some() || *fails);
                if all_heard && self.answers.iter().any(Option::is_some) {
                    let all = self.answers.iter().flatten().flatten().copied();
                    self.lists[0].on_answer(all.collect(), self.forgets, now);
                    self.counting = Some(0);
                }
            }
        }
        let named = named.ok_or_else(|| "away".to_owned())?;
        Answer::of(named.into_iter().map(address))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_named_serves_and_of_those_that_are_not_enough_are_held_and_never_too_many(
        sources in 1..4usize,
        combine in select(vec![Combine::First, Combine::Union]),
        believed_loss in select(vec![0.0, 0.3, 0.5, 1.0]),
        empty in select(vec![Empty::Believe, Empty::Hold]),
        acts in acts(),
    ) {
        let terms = PoolSource {
            sources: vec!["static://10.0.0.1:1".to_owned(); sources],
            combine,
            believed_loss,
            hold: HOLD,
            empty,
            ..PoolSource::default()
        };
        let (mut sourced, mut model) = (Sourced::new(&terms), Model::new(&terms));
        let mut now = Tick::ZERO;
        let mut told = sourced.members();

        for (source, seconds, act) in acts {
            now = now + Duration::from_secs(seconds);
            let lets_go = sourced.check(now);
            prop_assert_eq!(lets_go, sourced.members() != told, "what changed is told");
            told = sourced.members();
            let source = source % sources;
            let word = model.act(source, act, now);
            let change = sourced.on_word(source, word, now);
            let members = sourced.members();
            prop_assert!(change != Change::None || members == told, "what changed is told");

            prop_assert_eq!(sourced.is_heard(), model.counting.is_some());
            let Some(list) = model.counting.map(|counting| &model.lists[counting]) else {
                prop_assert!(members.is_empty());
                continue;
            };
            for host in &list.now {
                let health = members.get(&address(*host)).map(|member| member.health);
                prop_assert_eq!(health, Some(EndpointHealth::Unspecified), "{} is named", host);
            }
            let held: Vec<u8> = (0..24)
                .filter(|host| !list.now.contains(host) && members.contains_key(&address(*host)))
                .collect();
            prop_assert_eq!(held.len() + list.now.len(), members.len());
            for host in &held {
                prop_assert_eq!(members[&address(*host)].health, EndpointHealth::Held);
                let until = list.gone.get(host);
                prop_assert!(until.is_some_and(|until| *until > now), "{} is held too long", host);
            }
            prop_assert!(held.len() <= list.most_ever);
            prop_assert!(held.is_empty() || believed_loss < 1.0);
            if !list.now.is_empty() || empty == Empty::Hold {
                // Alike for a loss at once and one in steps.
                let most = list.most(now);
                let lost = share(most.saturating_sub(members.len()), most);
                prop_assert!(lost <= believed_loss, "{} of {}", members.len(), most);
            }
            told = members;
        }
    }
}
