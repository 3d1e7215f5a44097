//! The state of the world: a client says all that it wants, and is told all of it where a kind is told as a whole
//! ([`Kind::is_whole`]), else what has changed.

use std::collections::BTreeMap;

use crate::{
    Catalog, Heard, Kind, Stream, TooManyNames,
    flow::{Answer, Flow},
    resource::Version,
    stream::{Nonces, kind_of},
    wanted::{WILDCARD, Wanted},
    wire::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
};

/// A stream of the state of the world.
#[derive(Debug, Default)]
pub struct Sotw {
    only: Option<Kind>,
    parts: [Part; Kind::ALL.len()],
    nonces: Nonces,
}

/// What concerns one kind.
#[derive(Debug, Default)]
struct Part {
    wanted: Wanted,
    /// Whether anything was wanted yet; none before the first request.
    asked: Option<Asked>,
    told: BTreeMap<String, Version>,
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

impl Sotw {
    /// A stream of one kind, or of all.
    pub fn new(only: Option<Kind>) -> Self {
        Self {
            only,
            ..Self::default()
        }
    }
}

impl Stream for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn on_request(&mut self, request: DiscoveryRequest) -> Result<Heard, TooManyNames> {
        let Some(kind) = kind_of(self.only, &request.type_url) else {
            let type_url = request.type_url;
            return Ok(Heard::Unknown { type_url });
        };
        let part = &mut self.parts[kind.index()];
        let nonce = &request.response_nonce;
        let answer = part.flow.on_answer(nonce, request.error_detail.as_ref());
        if answer == Answer::Late {
            return Ok(Heard::Fine);
        }
        part.want(kind, &request)?;
        Ok(match answer {
            Answer::Refused(why) => Heard::Refused { kind, why },
            Answer::None | Answer::Taken | Answer::Late => Heard::Fine,
        })
    }

    fn next(&mut self, catalog: &Catalog) -> Option<DiscoveryResponse> {
        Kind::ALL.into_iter().find_map(|kind| {
            if kind == Kind::Endpoints && !self.parts[Kind::Cluster.index()].flow.is_free() {
                // Its clusters may be about to change (X4).
                return None;
            }
            let part = &mut self.parts[kind.index()];
            let (response, new) = part.next(kind, catalog)?;
            let nonce = self.nonces.next();
            part.flow.send(nonce.clone());
            if kind == Kind::Cluster {
                self.parts[Kind::Endpoints.index()].forget(&new);
            }
            Some(DiscoveryResponse { nonce, ..response })
        })
    }
}

impl Part {
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
        // A name that is wanted again is told again.
        self.told.retain(|name, _| wanted.has(kind, name));
        self.wanted = wanted;
        self.seen = None;
        Ok(())
    }

    /// The response, and the names in it that the client did not know.
    fn next(&mut self, kind: Kind, catalog: &Catalog) -> Option<(DiscoveryResponse, Vec<String>)> {
        let now = Some(catalog.revision());
        if self.asked.is_none() || !self.flow.is_free() || self.seen == now {
            return None;
        }
        self.seen = now;
        let there: Vec<_> = self.wanted.of(kind, catalog).collect();
        let version = Version::of_all(there.iter().map(|(name, it)| (*name, it.version)));
        let told = |name: &str| self.told.get(name).copied();
        let news: Vec<_> = there
            .iter()
            .filter(|(name, it)| told(name) != Some(it.version))
            .collect();
        let gone = self.told.len() + news.iter().filter(|(name, _)| told(name).is_none()).count()
            > there.len();
        let nothing = news.is_empty() && !(gone && kind.is_whole());
        let known = self.has.take() == Some(version);
        let new = news.iter().filter(|(name, _)| told(name).is_none());
        let new: Vec<String> = new.map(|(name, _)| (*name).to_owned()).collect();
        let told = match kind.is_whole() {
            true => there.iter().map(|(_, it)| it.any.clone()).collect(),
            false => news.iter().map(|(_, it)| it.any.clone()).collect(),
        };
        let all = there
            .iter()
            .map(|(name, it)| ((*name).to_owned(), it.version));
        self.told = all.collect();
        if known || nothing && !self.due {
            self.due = false;
            return None;
        }
        self.due = false;
        let response = DiscoveryResponse {
            version_info: version.text(),
            resources: told,
            type_url: kind.type_url().to_owned(),
            nonce: String::new(),
        };
        Some((response, new))
    }

    /// These are to be told anew, where they are wanted.
    fn forget(&mut self, names: &[String]) {
        for name in names {
            if self.told.remove(name).is_some() {
                self.seen = None;
            }
        }
    }
}
