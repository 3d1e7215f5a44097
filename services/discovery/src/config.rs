//! The part of the configuration that discovery owns: `[discovery]`.

mod xds;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tether_discovery_backends as backends;
use tether_kit::config::dotted;
use tether_types::PoolName;

use crate::dns_out::DnsOut;

pub use xds::Xds;

/// `[discovery]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many changes are remembered for watchers that come back, at most; fewer where they tell more than this and four times the table.
    pub history: usize,
    /// How often a quiet stream gives a sign of life.
    #[serde(with = "tether_kit::config::duration")]
    pub sign_of_life: Duration,
    /// How it answers DNS itself.
    pub dns: DnsOut,
    /// Pools that no agent runs, by name.
    pub pools: BTreeMap<String, PoolSource>,
    /// The same endpoints for Envoy and for gRPC clients without a proxy.
    pub xds: Xds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            history: 8192,
            sign_of_life: Duration::from_secs(5),
            dns: DnsOut::default(),
            pools: BTreeMap::new(),
            xds: Xds::default(),
        }
    }
}

/// What of `[discovery]` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` cannot be used: {why}")]
pub struct Unusable {
    /// The key, as it is written in the file.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

impl Config {
    /// Whether it can be used, without any IO.
    ///
    /// # Errors
    /// Names the first key that cannot.
    pub fn check(&self) -> Result<(), Unusable> {
        if let Some((key, why)) = self.dns.wrong() {
            let key = dotted(&["discovery", "dns", key]);
            return Err(Unusable { key, why });
        }
        for (name, pool) in &self.pools {
            let path = |key: &[&str]| dotted(&[&["discovery", "pools", name], key].concat());
            if let Err(error) = PoolName::new(name) {
                let (key, why) = (path(&[]), error.to_string());
                return Err(Unusable { key, why });
            }
            if let Some((key, why)) = pool.wrong() {
                let key = path(&[key]);
                return Err(Unusable { key, why });
            }
            if let Some((key, why)) = self.dns.is_asked_by(pool) {
                let key = path(&[key]);
                return Err(Unusable { key, why });
            }
            if let Some((key, why)) = pool.health.as_ref().and_then(Health::wrong) {
                let key = path(&["health", key]);
                return Err(Unusable { key, why });
            }
        }
        self.xds.check()
    }
}

/// `[discovery.pools.NAME]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSource {
    /// Where its addresses come from, such as `static://host:port,host:port` or `dns://name:port`.
    pub source: String,
    /// More than one of them, in order of preference; instead of `source`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// What is made of several sources.
    pub combine: Combine,
    /// Share of its endpoints, 0 to 1, that may be lost at once and is believed; of a larger loss, all are held for
    /// `hold`. 1 believes any.
    pub believed_loss: f64,
    /// How long endpoints are held that a source names no more, of too many at once.
    #[serde(with = "tether_kit::config::duration")]
    pub hold: Duration,
    /// What an answer that names nobody means.
    pub empty: Empty,
    /// How each endpoint is asked whether it serves; not at all when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// `[discovery.pools.NAME.health]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// The service that grpc.health.v1 is asked for; the server when empty.
    pub service: String,
    /// What GET asks for.
    pub path: String,
    /// How often; each time a tenth more or less.
    #[serde(with = "tether_kit::config::duration")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(with = "tether_kit::config::duration")]
    pub timeout: Duration,
    /// So many bad answers in a row take an endpoint out of service.
    pub failures: u32,
    /// So many good ones bring it back.
    pub passes: u32,
    /// A header of the answer, for all but `tcp`, that says who answers: where that changes, another worker
    /// serves at the same address.
    pub identity_header: String,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// grpc.health.v1 Check.
    #[default]
    Grpc,
    /// grpc.health.v1 Watch: it tells of each change by itself.
    Watch,
    /// Whether it takes a connection.
    Tcp,
    /// Whether GET is answered with 200 to 399.
    Http,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            check: Check::default(),
            service: String::new(),
            path: "/".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            failures: 3,
            passes: 1,
            identity_header: String::new(),
        }
    }
}

impl Health {
    fn wrong(&self) -> Option<(&'static str, String)> {
        let is_header = |name: &str| http::HeaderName::try_from(name).is_ok();
        if self.interval.is_zero() {
            Some(("interval", "it would ask without a pause".to_owned()))
        } else if self.timeout.is_zero() {
            Some(("timeout", "no answer comes at once".to_owned()))
        } else if self.failures == 0 {
            Some((
                "failures",
                "it would be out of service without a bad answer".to_owned(),
            ))
        } else if self.passes == 0 {
            Some((
                "passes",
                "it would be in service without a good answer".to_owned(),
            ))
        } else if !self.identity_header.is_empty() && !is_header(&self.identity_header) {
            Some(("identity_header", "it is no name of a header".to_owned()))
        } else if !self.identity_header.is_empty() && self.check == Check::Tcp {
            let why = "a connection has no headers: check `grpc`, `watch` or `http`".to_owned();
            Some(("identity_header", why))
        } else {
            None
        }
    }
}

/// What is made of several sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// The answer of the first one, in their order, that answers.
    #[default]
    First,
    /// The answers of all together; of one that fails, its last one.
    Union,
}

/// What an answer that names nobody means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Empty {
    /// That nobody serves: somebody has scaled it down to nothing.
    #[default]
    Believe,
    /// The same as any other loss of too many at once.
    Hold,
}

impl Default for PoolSource {
    fn default() -> Self {
        Self {
            source: String::new(),
            sources: Vec::new(),
            combine: Combine::default(),
            believed_loss: 0.5,
            hold: Duration::from_secs(60),
            empty: Empty::default(),
            health: None,
        }
    }
}

impl PoolSource {
    /// What of it cannot be used, by the key that says it.
    fn wrong(&self) -> Option<(&'static str, String)> {
        if self.all().next().is_none() {
            let why = "there is none; an example is `static://10.0.0.4:50051`";
            return Some(("source", why.to_owned()));
        }
        if !self.source.is_empty() && !self.sources.is_empty() {
            let why = "there is `source` too: write all of them here";
            return Some(("sources", why.to_owned()));
        }
        if !(0.0..=1.0).contains(&self.believed_loss) {
            let why = "it is a share of the endpoints, from 0 to 1".to_owned();
            return Some(("believed_loss", why));
        }
        let refused = self.all().find_map(|source| backends::open(source).err());
        refused.map(|error| (self.key(), error.to_string()))
    }

    /// The key that names its sources.
    pub(crate) fn key(&self) -> &'static str {
        match self.source.is_empty() {
            true => "sources",
            false => "source",
        }
    }

    /// Its sources, in order of preference.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        let one = Some(self.source.as_str()).filter(|one| !one.is_empty());
        one.into_iter()
            .chain(self.sources.iter().map(String::as_str))
    }
}
