//! The incremental form: a client says what it wants from now on or no more, and is told what has changed, and what is
//! gone.

use std::collections::BTreeMap;

use crate::{
    Catalog, Kind, Stream, TooManyNames,
    flow::{Answer, Flow},
    resource::Version,
    wanted::{WILDCARD, Wanted},
    wire::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
    },
};

/// An incremental stream.
pub type Delta = Stream<Part>;

/// What concerns one kind.
#[derive(Debug, Default)]
pub struct Part {
    asked: bool,
    wanted: Wanted,
    /// What the client knows of each name: its version, or that there is none of it.
    told: BTreeMap<String, Option<Version>>,
    /// A response is due even if it is empty.
    due: bool,
    /// The revision of the catalog of which everything was told; none after a request that changed what is wanted.
    seen: Option<u64>,
    flow: Flow,
}

impl crate::stream::Part for Part {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn type_url(request: &DeltaDiscoveryRequest) -> &str {
        &request.type_url
    }

    fn on_request(
        &mut self,
        kind: Kind,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Answer, TooManyNames> {
        // What is wanted counts whichever response this answers: it is said once.
        self.want(kind, request)?;
        let nonce = &request.response_nonce;
        Ok(self.flow.on_answer(nonce, request.error_detail.as_ref()))
    }

    fn is_free(&self) -> bool {
        self.flow.is_free()
    }

    fn next(
        &mut self,
        kind: Kind,
        catalog: &Catalog,
        nonce: u64,
    ) -> Option<(DeltaDiscoveryResponse, Vec<String>)> {
        let now = Some(catalog.revision());
        if !self.asked || !self.flow.is_free() || self.seen == now {
            return None;
        }
        self.seen = now;
        let is_told = |name: &str, what| self.told.get(name) == Some(&what);
        let there = self.wanted.of(kind, catalog);
        let news: Vec<_> = there
            .filter(|(name, it)| !is_told(name, Some(it.version)))
            .collect();
        let is_gone = |name: &&str| {
            let is_there = catalog.get(kind, name).is_some() || catalog.withholds(kind, name);
            !is_there && !is_told(name, None)
        };
        let known = self.told.keys().map(String::as_str).filter(is_gone);
        let never = |name: &&str| !self.told.contains_key(*name);
        let never = self.wanted.names().filter(is_gone).filter(never);
        let gone: Vec<String> = known.chain(never).map(str::to_owned).collect();
        let due = std::mem::take(&mut self.due);
        if news.is_empty() && gone.is_empty() && !due {
            return None;
        }
        let is_new = |name: &str| !matches!(self.told.get(name), Some(Some(_)));
        let new = news.iter().filter(|(name, _)| is_new(name));
        let new = new.map(|(name, _)| (*name).to_owned()).collect();
        let resources = news.iter().map(|(name, it)| Resource {
            version: it.version.text(),
            resource: Some(it.any.clone()),
            name: (*name).to_owned(),
        });
        let response = DeltaDiscoveryResponse {
            system_version_info: catalog.revision().to_string(),
            resources: resources.collect(),
            type_url: kind.type_url().to_owned(),
            nonce: self.flow.send(nonce),
            removed_resources: gone.clone(),
        };
        let told = news.into_iter().map(|(name, it)| (name, Some(it.version)));
        let told: Vec<_> = told.map(|(name, it)| (name.to_owned(), it)).collect();
        self.told.extend(told);
        for name in gone {
            // Of what was only wanted with all the others nothing is kept.
            match self.wanted.is_named(&name) {
                true => drop(self.told.insert(name, None)),
                false => drop(self.told.remove(&name)),
            }
        }
        Some((response, new))
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
    fn want(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) -> Result<(), TooManyNames> {
        let first = !std::mem::replace(&mut self.asked, true);
        let subscribe = &request.resource_names_subscribe;
        let unsubscribe = &request.resource_names_unsubscribe;
        for name in subscribe {
            self.wanted.add(name)?;
            // Told again, even to who has it: it may have been dropped there in between.
            self.told.remove(name);
        }
        for name in unsubscribe {
            self.wanted.drop(name);
            self.told.remove(name);
        }
        if first {
            if subscribe.is_empty() && kind.has_wildcard() {
                self.wanted.add(WILDCARD)?;
            }
            let has = &request.initial_resource_versions;
            let has = has.iter().filter(|(name, _)| self.wanted.has(kind, name));
            let has = has.map(|(name, version)| (name.clone(), Some(Version::read(version))));
            self.told.extend(has);
            // A client waits for its first response, unless it was there before.
            self.due = self.wanted.is_all() && self.told.is_empty();
        }
        if first || !subscribe.is_empty() || !unsubscribe.is_empty() {
            self.told.retain(|name, _| self.wanted.has(kind, name));
            self.seen = None;
        }
        Ok(())
    }
}
