//! The state of the world: a client says all that it wants, and is told all of it where a kind is told as a whole
//! ([`Kind::is_whole`]), else what has changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Catalog, Kind, Stream, TooManyNames,
    flow::{Answer, Flow},
    resource::{Resource, Version},
    wanted::{WILDCARD, Wanted},
    wire::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
};

/// A stream of the state of the world.
pub type Sotw = Stream<Part>;

/// What concerns one kind.
#[derive(Debug, Default)]
pub struct Part {
    wanted: Wanted,
    /// Whether anything was wanted yet; none before the first request.
    asked: Option<Asked>,
    told: BTreeMap<String, Version>,
    /// Names that the response under way told and that were given up since: it brings them to a client that wants them
    /// again, when they may be gone.
    left: BTreeSet<String>,
    /// A response is due even if it is empty.
    due: bool,
    /// The revision of the catalog of which everything was told; none after a request that changed what is wanted.
    seen: Option<u64>,
    /// What the client has of an earlier stream, until that was compared with what there is.
    has: Option<Version>,
    flow: Flow,
}

/// How a client has asked so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Without a name, which is all of a kind that has a wildcard.
    WithoutNames,
    /// By name: from then on no name is nothing.
    ByName,
}

impl crate::stream::Part for Part {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn type_url(request: &DiscoveryRequest) -> &str {
        &request.type_url
    }

    fn on_request(
        &mut self,
        kind: Kind,
        request: &DiscoveryRequest,
    ) -> Result<Answer, TooManyNames> {
        let nonce = &request.response_nonce;
        let answer = self.flow.on_answer(nonce, request.error_detail.as_ref());
        match answer {
            // What it wants comes again, but what it had given up is gone there.
            Answer::Late if !self.wanted.is_all() => {
                self.give_up(|name| request.resource_names.iter().any(|wanted| wanted == name));
            }
            Answer::Late => {}
            Answer::None | Answer::Taken | Answer::Refused(_) => self.want(kind, request)?,
        }
        if self.flow.is_free() {
            self.left.clear();
        }
        Ok(answer)
    }

    fn is_free(&self) -> bool {
        self.flow.is_free()
    }

    fn next(
        &mut self,
        kind: Kind,
        catalog: &Catalog,
        nonce: u64,
    ) -> Option<(DiscoveryResponse, Vec<String>)> {
        let now = Some(catalog.revision());
        if self.asked.is_none() || !self.flow.is_free() || self.seen == now {
            return None;
        }
        self.seen = now;
        let there: BTreeMap<&str, &Resource> = self.wanted.of(kind, catalog).collect();
        let version = Version::of_all(there.iter().map(|(name, it)| (*name, it.version)));
        let told = there
            .iter()
            .map(|(name, it)| ((*name).to_owned(), it.version));
        let before = std::mem::replace(&mut self.told, told.collect());
        let due = std::mem::take(&mut self.due);
        if self.has.take() == Some(version) {
            return None;
        }
        let is_news = |(name, it): &(&&str, &&Resource)| before.get(**name) != Some(&it.version);
        let is_whole = kind.is_whole();
        let gone = before.keys().any(|name| !there.contains_key(name.as_str()));
        let changed = is_whole && gone || there.iter().any(|it| is_news(&it));
        if !(due || changed) {
            return None;
        }
        let resources = there.iter().filter(|it| is_whole || is_news(it));
        let new = there.keys().filter(|name| !before.contains_key(**name));
        let response = DiscoveryResponse {
            version_info: version.text(),
            resources: resources.map(|(_, it)| it.any.clone()).collect(),
            type_url: kind.type_url().to_owned(),
            nonce: self.flow.send(nonce),
        };
        Some((response, new.map(|name| (*name).to_owned()).collect()))
    }

    fn forget(&mut self, names: &[String]) {
        for name in names {
            if self.told.remove(name).is_some() {
                self.seen = None;
            }
        }
    }
}

impl Part {
    /// Of the names that were told only these are still wanted: another one that is wanted again is told again.
    fn give_up(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let left = self.told.extract_if(.., |name, _| !is_wanted(name));
        self.left.extend(left.map(|(name, _)| name));
        self.seen = None;
    }

    fn want(&mut self, kind: Kind, request: &DiscoveryRequest) -> Result<(), TooManyNames> {
        let first = self.asked.is_none();
        let mut wanted = Wanted::default();
        for name in &request.resource_names {
            wanted.add(name)?;
        }
        if !request.resource_names.is_empty() {
            self.asked = Some(Asked::ByName);
        } else if self.asked != Some(Asked::ByName) {
            self.asked = Some(Asked::WithoutNames);
            if kind.has_wildcard() {
                wanted.add(WILDCARD)?;
            }
        }
        if first {
            self.due = kind.is_whole();
            // The version is of the kind and not of the names: of a client that has left some out in between, only
            // one that always wants all is sure to have what it says.
            let sure = wanted.is_all() && !request.version_info.is_empty();
            self.has = sure.then(|| Version::read(&request.version_info));
        }
        self.give_up(|name| wanted.has(kind, name));
        // Of a kind that is told as a whole it is also told that one is gone.
        self.due |= kind.is_whole() && self.left.iter().any(|name| wanted.has(kind, name));
        self.wanted = wanted;
        self.seen = None;
        Ok(())
    }
}
