//! What the answers of endpoints that are asked come to. Pure.

use std::collections::BTreeMap;

use tether_proto::common::EndpointHealth;
use tether_types::Address;

use crate::{config::Health, numbering::Member};

/// What is known of each endpoint of a pool.
#[derive(Debug)]
pub(crate) struct Verdicts {
    failures: u32,
    passes: u32,
    known: BTreeMap<Address, Verdict>,
}

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// That it serves, and who it is where that was asked.
    Serves(Option<String>),
    /// That it does not, by itself: that decides.
    Refuses(String),
    /// Nothing, or nothing good: that may have been by chance.
    Nothing(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Verdict {
    /// Nothing before the first answer, which decides by itself.
    passes: Option<bool>,
    /// Answers in a row that say otherwise.
    against: u32,
    /// Who it is, by its source and by its own word.
    named: String,
    identity: String,
}

impl Verdicts {
    pub(crate) fn new(terms: &Health) -> Self {
        Self {
            failures: terms.failures,
            passes: terms.passes,
            known: BTreeMap::new(),
        }
    }

    /// Of these it is known what they answer, and of no others. Tells which have another identity than before: nothing
    /// that was answered there counts for them.
    pub(crate) fn on_members(&mut self, members: &BTreeMap<Address, Member>) -> Vec<Address> {
        let mut before = std::mem::take(&mut self.known);
        let mut others = Vec::new();
        for (address, member) in members {
            let named = &member.traits.identity;
            let known = before.remove(address);
            let is_another = known.as_ref().is_some_and(|known| known.named != *named);
            let verdict = known.filter(|_| !is_another).unwrap_or_else(|| Verdict {
                named: named.clone(),
                ..Verdict::default()
            });
            self.known.insert(address.clone(), verdict);
            others.extend(is_another.then(|| address.clone()));
        }
        others
    }

    /// An endpoint answered. True where that changes what is told of it.
    pub(crate) fn on_word(&mut self, address: &Address, word: &Word) -> bool {
        let Some(verdict) = self.known.get_mut(address) else {
            // Of one that serves no more it comes too late.
            return false;
        };
        let before = (verdict.passes, verdict.identity.clone());
        let passes = matches!(word, Word::Serves(_));
        if let Word::Serves(Some(identity)) = word {
            verdict.identity.clone_from(identity);
        }
        if verdict.passes == Some(passes) {
            verdict.against = 0;
        } else {
            verdict.against += 1;
            let needed = match (verdict.passes, passes) {
                (None, _) => 1,
                (Some(_), true) => self.passes,
                (Some(_), false) if matches!(word, Word::Refuses(_)) => 1,
                (Some(_), false) => self.failures,
            };
            if verdict.against >= needed {
                (verdict.passes, verdict.against) = (Some(passes), 0);
            }
        }
        before != (verdict.passes, verdict.identity.clone())
    }

    /// Whether each of these was asked.
    pub(crate) fn all_known<'a>(&self, mut addresses: impl Iterator<Item = &'a Address>) -> bool {
        let known = |address| self.known.get(address);
        addresses.all(|address| known(address).is_some_and(|known| known.passes.is_some()))
    }

    /// Those that serve, of these. Where more than `believed_loss` of them fail, the way there is more likely at
    /// fault than they are: then all are told, with a mark.
    pub(crate) fn judge(
        &self,
        mut members: BTreeMap<Address, Member>,
        believed_loss: f64,
    ) -> BTreeMap<Address, Member> {
        let verdict = |address: &Address| self.known.get(address);
        let fails =
            |address: &Address| verdict(address).is_some_and(|known| known.passes == Some(false));
        let failing = members.keys().filter(|address| fails(address)).count();
        let panics = crate::sourced::share(failing, members.len()) > believed_loss;
        members.retain(|address, member| {
            let Some(known) = verdict(address) else {
                member.health = EndpointHealth::Unchecked;
                return true;
            };
            member.traits.identity = both(&member.traits.identity, &known.identity);
            match known.passes {
                None => member.health = EndpointHealth::Unchecked,
                // One that is held is as good as its answer.
                Some(true) => member.health = EndpointHealth::Passing,
                Some(false) => {
                    let held = member.health == EndpointHealth::Held;
                    member.health = EndpointHealth::Failing;
                    return panics && !held;
                }
            }
            true
        });
        members
    }
}

/// Who serves, by what the source says and by what it says itself: it is another one where either changes.
fn both(named: &str, own: &str) -> String {
    match (named, own) {
        (one, "") | ("", one) => one.to_owned(),
        (named, own) => format!("{named}/{own}"),
    }
}

#[cfg(test)]
mod tests {
    use tether_discovery_backends::Traits;

    use super::*;

    fn address(port: u16) -> Address {
        let host = "10.0.0.1".to_owned();
        Address::Tcp { host, port }
    }

    fn members(ports: std::ops::Range<u16>) -> BTreeMap<Address, Member> {
        let member = Member {
            traits: Traits::default(),
            health: EndpointHealth::Unspecified,
        };
        ports.map(|port| (address(port), member.clone())).collect()
    }

    fn verdicts(of: u16) -> Verdicts {
        let mut verdicts = Verdicts::new(&Health {
            failures: 3,
            passes: 2,
            ..Health::default()
        });
        verdicts.on_members(&members(1..of + 1));
        verdicts
    }

    fn health(verdicts: &Verdicts, port: u16, of: u16) -> Option<EndpointHealth> {
        let judged = verdicts.judge(members(1..of + 1), 0.5);
        judged.get(&address(port)).map(|member| member.health)
    }

    fn good() -> Word {
        Word::Serves(None)
    }

    fn bad() -> Word {
        Word::Nothing("no answer".to_owned())
    }

    #[test]
    fn who_says_that_it_does_not_serve_is_believed_at_once() {
        let mut verdicts = verdicts(4);
        verdicts.on_word(&address(1), &good());
        assert!(verdicts.on_word(&address(1), &Word::Refuses("NOT_SERVING".to_owned())));
        assert_eq!(health(&verdicts, 1, 4), None);
    }

    #[test]
    fn the_first_answer_decides_and_then_so_many_in_a_row() {
        let mut verdicts = verdicts(4);
        assert_eq!(health(&verdicts, 1, 4), Some(EndpointHealth::Unchecked));
        assert!(verdicts.on_word(&address(1), &good()));
        assert_eq!(health(&verdicts, 1, 4), Some(EndpointHealth::Passing));
        for answers in [[false, false, true], [false, true, false]] {
            for answer in answers {
                let word = if answer { good() } else { bad() };
                assert!(
                    !verdicts.on_word(&address(1), &word),
                    "none of them three in a row"
                );
            }
        }
        assert!(!verdicts.on_word(&address(1), &bad()));
        assert!(verdicts.on_word(&address(1), &bad()));
        assert_eq!(health(&verdicts, 1, 4), None);
        assert!(!verdicts.on_word(&address(1), &good()));
        assert!(verdicts.on_word(&address(1), &good()));
        assert_eq!(health(&verdicts, 1, 4), Some(EndpointHealth::Passing));
    }

    #[test]
    fn where_most_fail_all_are_told_with_a_mark_but_those_that_are_only_held() {
        let mut verdicts = verdicts(4);
        verdicts.on_word(&address(1), &bad());
        verdicts.on_word(&address(2), &bad());
        assert_eq!(health(&verdicts, 1, 4), None, "half of them");
        verdicts.on_word(&address(3), &bad());
        assert_eq!(health(&verdicts, 1, 4), Some(EndpointHealth::Failing));

        let mut held = members(1..5);
        held.get_mut(&address(1)).unwrap().health = EndpointHealth::Held;
        let judged = verdicts.judge(held, 0.5);
        assert!(!judged.contains_key(&address(1)) && judged.len() == 3);
    }

    #[test]
    fn another_identity_at_an_address_is_told_and_who_is_gone_is_forgotten() {
        let mut verdicts = verdicts(2);
        let is = |name: &str| Word::Serves(Some(name.to_owned()));
        assert!(verdicts.on_word(&address(1), &is("a")));
        assert!(!verdicts.on_word(&address(1), &is("a")));
        assert!(verdicts.on_word(&address(1), &is("b")));
        let judged = verdicts.judge(members(1..2), 0.5);
        assert_eq!(judged[&address(1)].traits.identity, "b");

        assert!(verdicts.all_known([address(1)].iter()));
        verdicts.on_members(&members(2..3));
        assert!(
            !verdicts.on_word(&address(1), &is("a")),
            "it comes too late"
        );
        verdicts.on_members(&members(1..3));
        assert!(!verdicts.all_known([address(1)].iter()));
    }

    #[test]
    fn who_is_another_by_its_source_has_answered_nothing_yet_whatever_the_header_says() {
        let pods = |first: &str| {
            let mut pods = members(1..3);
            pods.get_mut(&address(1)).unwrap().traits.identity = first.to_owned();
            pods
        };
        let mut verdicts = verdicts(3);
        verdicts.on_members(&pods("pod-1"));
        let version = Word::Serves(Some("v1".to_owned()));
        verdicts.on_word(&address(1), &version);
        verdicts.on_word(&address(2), &version);
        let identity = |verdicts: &Verdicts, first: &str, port| {
            let judged = verdicts.judge(pods(first), 0.5);
            let member = &judged[&address(port)];
            (member.traits.identity.clone(), member.health)
        };
        let passing = EndpointHealth::Passing;
        assert_eq!(
            identity(&verdicts, "pod-1", 1),
            ("pod-1/v1".to_owned(), passing)
        );
        assert!(verdicts.on_members(&pods("pod-1")).is_empty());

        assert_eq!(verdicts.on_members(&pods("pod-2")), [address(1)]);
        let unchecked = EndpointHealth::Unchecked;
        assert_eq!(
            identity(&verdicts, "pod-2", 1),
            ("pod-2".to_owned(), unchecked)
        );
        assert_eq!(identity(&verdicts, "pod-2", 2), ("v1".to_owned(), passing));
        verdicts.on_word(&address(1), &version);
        assert_eq!(
            identity(&verdicts, "pod-2", 1),
            ("pod-2/v1".to_owned(), passing)
        );
    }
}
