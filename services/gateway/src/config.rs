//! The part of the configuration that the gateway owns.

mod control;

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tether_breaker::{CODES, Codes, RetryTerms, Terms};
use tether_endpoints::{Keeping, Outlook};
use tether_kit::{config::duration, tls::ClientFiles};

use crate::{bounds, methods::Methods, pool_breaker::PoolBreaker, pools::Pools, wire::Engine};

pub use control::{Control, control_of};

/// How a gateway behaves. Every duration carries its unit: `"30s"`, `"500ms"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest message a client may send to a worker, in bytes.
    pub max_message_bytes: u32,
    /// How many bytes may wait, in all calls, for clients and workers that do not read them; beyond that calls of those
    /// are ended.
    pub max_unread_bytes: usize,
    /// Who reads and writes HTTP/2: `own`, our own engine, or `h2`, the library, which is older and costs more.
    pub engine: Engine,
    /// Threads that serve connections, each with connections of its own to every worker; 0 means one for each processor.
    pub threads: usize,
    /// How long connecting to a worker, the arbiter or discovery may take.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How many workers are tried for a call that none of them has received.
    pub max_attempts: NonZeroU32,
    /// How long a failed call waits to be told why its worker died.
    #[serde(with = "duration")]
    pub death_wait: Duration,
    /// How long calls under way may take to end once the gateway is told to stop.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// How long before it takes no new calls the gateway says that it is about to: NOT_SERVING, and to those who watch.
    #[serde(with = "duration")]
    pub drain_notice: Duration,
    /// How long beyond `drain` calls in the name of a session may go on while that holds.
    #[serde(with = "duration")]
    pub session_drain: Duration,
    /// The socket at which this process hands over to its successor, and takes over from its predecessor: a new process
    /// with the same path goes on with the listening sockets of the old one, which lets its calls finish. Of
    /// `tether-gateway` alone.
    pub handover: Option<PathBuf>,
    /// How old the arbiter's word on sessions may be for calls that carry an epoch.
    #[serde(with = "duration")]
    pub fence_max_age: Duration,
    /// What becomes of such calls when it is older.
    pub when_fence_is_stale: WhenStale,
    /// Whether agents that cannot reach an arbiter themselves may send their heartbeats through this gateway.
    /// Whoever reaches it can then speak for a node.
    pub relay_nodes: bool,
    /// Where this gateway is: workers of the same zone are preferred; empty where that does not matter.
    pub zone: String,
    /// How calls wait for a worker that is free.
    pub queue: Queue,
    /// How long the share of calls grows of a worker that has just become ready; 0 gives it all of it at once.
    #[serde(with = "duration")]
    pub slow_start: Duration,
    /// When a worker that fails calls is left alone.
    pub breaker: Breaker,
    /// When a pool as a whole is left alone, whose workers fail calls although some of them are.
    pub pool_breaker: PoolBreaker,
    /// How long it is remembered which worker served the calls of a key.
    pub affinity: Keys,
    /// How single pools are treated.
    pub pools: Pools,
    /// Where orders of people on call are taken.
    pub control: Control,
    /// How many calls may be made again that a worker may have seen.
    pub retries: Retries,
    /// What may be done with calls of single methods.
    pub methods: Methods,
    /// Whom the gateway trusts, and what it shows, where workers speak TLS (protocol `grpcs`); none of those is called
    /// where this is not set.
    pub worker_tls: Option<ClientFiles>,
}

/// How calls wait while every worker of their pool serves as many as it can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// How many calls of one pool may wait; 0 refuses all that no worker can take at once.
    pub max_calls: usize,
    /// How long one waits, unless its deadline is sooner.
    #[serde(with = "duration")]
    pub max_wait: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_calls: 1_000,
            max_wait: Duration::from_secs(30),
        }
    }
}

/// Of which affinity keys it is remembered which worker has their state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// How long, from the last call that was given to a worker.
    #[serde(with = "duration")]
    pub keep_for: Duration,
    /// How many of one pool; beyond that the one that was used least recently is forgotten.
    pub max_keys: NonZeroUsize,
}

impl Default for Keys {
    fn default() -> Self {
        let keeping = Keeping::default();
        Self {
            keep_for: keeping.keep_for,
            max_keys: NonZeroUsize::new(keeping.most).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// How many calls of a pool may be made again in ten seconds, of those whose methods are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// For a hundred of them.
    pub percent: u32,
    /// And for each second.
    pub per_second: u32,
}

impl Default for Retries {
    fn default() -> Self {
        let RetryTerms {
            percent,
            per_second,
        } = RetryTerms::default();
        Self {
            percent,
            per_second,
        }
    }
}

impl Config {
    /// How workers are chosen and judged.
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook {
            keeping: Keeping {
                keep_for: self.affinity.keep_for,
                most: self.affinity.max_keys.get(),
            },
            pool_terms: self.pool_breaker.terms(),
            slow_start: self.slow_start,
            ..self.breaker.outlook()
        }
    }
}

impl Retries {
    pub(crate) const fn terms(&self) -> RetryTerms {
        RetryTerms {
            percent: self.percent,
            per_second: self.per_second,
        }
    }
}

/// What becomes of calls in the name of a session of which nobody can say whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenStale {
    /// They are refused: two who act for one owner would be worse.
    Refuse,
    /// They go on: workers see to it themselves.
    Allow,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_message_bytes: 100 * 1024 * 1024,
            max_unread_bytes: 256 * 1024 * 1024,
            engine: Engine::default(),
            threads: 0,
            connect_timeout: Duration::from_secs(2),
            max_attempts: NonZeroU32::MIN.saturating_add(2),
            death_wait: Duration::from_millis(500),
            drain: Duration::from_secs(10),
            drain_notice: Duration::from_millis(100),
            session_drain: Duration::ZERO,
            handover: None,
            fence_max_age: Duration::from_secs(2),
            when_fence_is_stale: WhenStale::Refuse,
            relay_nodes: false,
            zone: String::new(),
            queue: Queue::default(),
            slow_start: Duration::ZERO,
            breaker: Breaker::default(),
            pool_breaker: PoolBreaker::default(),
            affinity: Keys::default(),
            pools: Pools::default(),
            control: Control::default(),
            retries: Retries::default(),
            methods: Methods::default(),
            worker_tls: None,
        }
    }
}

/// The circuit breaker that every worker incarnation gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failure_threshold: NonZeroU32,
    /// How long it stays open at first; doubles each time a probe fails.
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "bounds::some_time"
    )]
    pub open_for: Duration,
    /// The longest it stays open.
    #[serde(with = "duration")]
    pub max_open_for: Duration,
    /// Calls tried at once when the open time is over.
    pub half_open_probes: NonZeroU32,
    /// How many of a worker's last calls are looked at; 0 looks at none.
    pub window: u32,
    /// How many there have to be before their shares count.
    pub min_calls: u32,
    /// How many of a hundred of them have to fail; 0 for never.
    #[serde(deserialize_with = "bounds::percent")]
    pub failure_percent: u32,
    /// A call whose answer takes this long to begin is slow; 0 for never.
    #[serde(with = "duration")]
    pub slow_after: Duration,
    /// How many of a hundred have to be slow; 0 for never.
    #[serde(deserialize_with = "bounds::percent")]
    pub slow_percent: u32,
    /// How many of a hundred workers of a pool may be left alone at a time; one always may.
    #[serde(deserialize_with = "bounds::percent")]
    pub most_ejected_percent: u32,
    /// The gRPC codes that count as failures of the worker.
    #[serde(deserialize_with = "known_codes")]
    pub codes: Vec<String>,
}

/// Reads names of codes, none of which may be the caller's doing.
fn known_codes<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    match Codes::of(names.iter().map(String::as_str)) {
        Ok(_) => Ok(names),
        Err(other) => {
            let known = CODES.map(|(name, _)| name).join(", ");
            Err(serde::de::Error::custom(format!(
                "`{other}` cannot count against a worker, only {known} can"
            )))
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        let terms = Terms::default();
        let at_least_one = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        Self {
            failure_threshold: at_least_one(terms.failure_threshold),
            open_for: terms.open_for,
            max_open_for: terms.max_open_for,
            half_open_probes: at_least_one(terms.half_open_probes),
            window: terms.window,
            min_calls: terms.min_calls,
            failure_percent: terms.failure_percent,
            slow_after: Duration::ZERO,
            slow_percent: terms.slow_percent,
            most_ejected_percent: Outlook::default().most_ejected_percent,
            codes: Codes::default().names().map(str::to_owned).collect(),
        }
    }
}

impl Breaker {
    fn outlook(&self) -> Outlook {
        let terms = Terms {
            failure_threshold: self.failure_threshold.get(),
            open_for: self.open_for,
            max_open_for: self.max_open_for.max(self.open_for),
            half_open_probes: self.half_open_probes.get(),
            window: self.window,
            min_calls: self.min_calls,
            failure_percent: self.failure_percent,
            slow_percent: self.slow_percent,
        };
        Outlook {
            terms,
            // They were looked at when they were read.
            codes: Codes::of(self.codes.iter().map(String::as_str)).unwrap_or_default(),
            slow_after: (!self.slow_after.is_zero()).then_some(self.slow_after),
            most_ejected_percent: self.most_ejected_percent,
            ..Outlook::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_back_as_it_was_written() {
        let config = Config::default();
        let text = toml::to_string(&config).unwrap();

        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
        let whole = "worker_tls = { ca = '/ca.pem' }\n[methods.'/a.B/*']\nidempotent = true\n[retries]\npercent = 5";
        let whole: Config = toml::from_str(whole).unwrap();
        let text = toml::to_string(&whole).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), whole);
    }

    #[test]
    fn a_typo_and_a_missing_unit_are_refused_by_name() {
        let refused = |text: &str| toml::from_str::<Config>(text).unwrap_err().to_string();

        assert!(refused("drian = \"5s\"").contains("unknown field `drian`"));
        assert!(refused("drain = \"5\"").contains("`5` has no unit"));
        assert!(refused("max_attempts = 0").contains("nonzero"));
        assert!(refused("affinity.max_keys = 0").contains("nonzero"));
        for key in [
            "breaker.failure_percent",
            "breaker.slow_percent",
            "breaker.most_ejected_percent",
            "pool_breaker.failure_percent",
        ] {
            assert!(refused(&format!("{key} = 101")).contains("at most 100"));
            assert!(toml::from_str::<Config>(&format!("{key} = 100")).is_ok());
        }
        for key in ["breaker.open_for", "pool_breaker.open_for"] {
            assert!(refused(&format!("{key} = '0s'")).contains("longer than 0"));
        }
        let codes = refused("[breaker]\ncodes = [\"INTERNAL\", \"NOT_FOUND\"]");
        assert!(
            codes.contains("`NOT_FOUND` cannot count against a worker"),
            "{codes}"
        );
    }
}
