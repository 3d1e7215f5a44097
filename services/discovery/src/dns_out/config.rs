//! `[discovery.dns]`

use std::time::Duration;

use hickory_server::proto::rr::Name;
use serde::{Deserialize, Serialize};
use tether_kit::listen;
use tether_types::Address;

use super::zone::Zone;
use crate::config::PoolSource;

/// What is said for longer than this is no word on who serves now.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// How discovery answers DNS itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsOut {
    /// Where it does, over UDP and TCP, such as `127.0.0.1:5353`; nowhere when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Whether other machines may be able to reach that address.
    pub insecure: bool,
    /// The zone that all names end with.
    pub zone: String,
    /// What stands between a pool and the zone.
    pub namespace: String,
    /// How long an answer holds, in whole seconds.
    #[serde(with = "tether_kit::config::duration")]
    pub ttl: Duration,
}

impl Default for DnsOut {
    fn default() -> Self {
        Self {
            listen: None,
            insecure: false,
            zone: "tether".to_owned(),
            namespace: "default".to_owned(),
            ttl: Duration::from_secs(1),
        }
    }
}

impl DnsOut {
    /// What of it cannot be used, by the key that says it.
    pub(crate) fn wrong(&self) -> Option<(&'static str, String)> {
        let at = self
            .host_and_port()
            .map(|_| ())
            .map_err(|why| ("listen", why));
        at.and_then(|()| self.zone().map(|_| ())).err()
    }

    /// Why a pool cannot have such a source, by its key: whoever it once named would be named for ever.
    pub(crate) fn is_asked_by(&self, pool: &PoolSource) -> Option<(&'static str, String)> {
        let own = self.listen.as_deref()?;
        let is_own = |server: &str| server == own || own == format!("{server}:53");
        let asks = |source: &&str| {
            let asked = source.strip_prefix("dns://");
            asked.is_some_and(|asked| asked.split(['/', '?', '&', '=', ',']).any(is_own))
        };
        let source = pool.all().find(asks)?;
        let why = format!(
            "`{source}` asks the DNS of this discovery itself, at `{own}`, for what it was told by it; name another server"
        );
        Some((pool.key(), why))
    }

    /// Where to listen.
    pub(super) fn host_and_port(&self) -> Result<Option<(String, u16)>, String> {
        let Some(text) = &self.listen else {
            return Ok(None);
        };
        let address: Address = text.parse().map_err(|error| format!("{error}"))?;
        let allowed = listen::check(&address, self.insecure);
        allowed.map_err(|error| error.to_string())?;
        match address {
            Address::Unix(_) => Err("nobody asks DNS through a unix socket".to_owned()),
            Address::Tcp { host, port } => Ok(Some((host, port))),
        }
    }

    pub(super) fn zone(&self) -> Result<Zone, (&'static str, String)> {
        let mut origin = name(&self.zone).map_err(|why| ("zone", why))?;
        origin.set_fqdn(true);
        let namespace = name(&self.namespace).map_err(|why| ("namespace", why))?;
        let namespace = namespace.append_domain(&origin);
        let namespace = namespace.map_err(|error| ("namespace", error.to_string()))?;
        if self.ttl.subsec_nanos() > 0 || self.ttl > TTL_MAX {
            let why = format!("it is a number of whole seconds, at most {TTL_MAX:?}");
            return Err(("ttl", why));
        }
        let ttl = u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX);
        Ok(Zone::new(origin, namespace, ttl))
    }
}

/// A name that is not the root.
fn name(text: &str) -> Result<Name, String> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let text = text.trim_end_matches('.');
    if text.is_empty() || text.contains(odd) {
        return Err("it is a name of letters, digits and `-`, with dots between".to_owned());
    }
    Name::from_ascii(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_asks_the_answers_to_it_is_refused() {
        let asks = |listen: &str, source: &str| {
            let dns = DnsOut {
                listen: Some(listen.to_owned()),
                ..DnsOut::default()
            };
            let pool = PoolSource {
                source: source.to_owned(),
                ..PoolSource::default()
            };
            dns.is_asked_by(&pool)
        };
        let srv = "dns://a.default.tether?srv=1&servers=10.0.0.9";
        for (listen, source) in [
            ("127.0.0.1:5353", "dns://127.0.0.1:5353/a.default.tether:1"),
            ("127.0.0.1:5353", &format!("{srv},127.0.0.1:5353&floor=2s")),
            ("10.0.0.9:53", srv),
        ] {
            let (key, why) = asks(listen, source).unwrap();
            assert!(key == "source" && why.contains(listen), "{why}");
        }
        for source in [srv, "dns://127.0.0.1:53530/a:1", "file:///127.0.0.1:5353"] {
            assert_eq!(asks("127.0.0.1:5353", source), None, "{source}");
        }
    }

    #[test]
    fn what_cannot_be_answered_for_is_refused_by_its_key() {
        assert_eq!(DnsOut::default().wrong(), None);
        let change = |change: &dyn Fn(&mut DnsOut)| {
            let mut config = DnsOut::default();
            change(&mut config);
            config.wrong().map(|(key, _)| key)
        };
        assert_eq!(
            change(&|dns| dns.listen = Some("127.0.0.1:5353".to_owned())),
            None
        );
        assert_eq!(change(&|dns| dns.zone = "a.b.".to_owned()), None);
        for listen in ["here", "unix:/a", "0.0.0.0:53"] {
            let key = change(&|dns| dns.listen = Some(listen.to_owned()));
            assert_eq!(key, Some("listen"), "{listen}");
        }
        assert_eq!(change(&|dns| dns.zone = ".".to_owned()), Some("zone"));
        assert_eq!(
            change(&|dns| dns.namespace = "a..b".to_owned()),
            Some("namespace")
        );
        assert_eq!(
            change(&|dns| dns.namespace = "a b".to_owned()),
            Some("namespace")
        );
        assert_eq!(
            change(&|dns| dns.ttl = Duration::from_millis(500)),
            Some("ttl")
        );
        assert_eq!(change(&|dns| dns.ttl = TTL_MAX * 2), Some("ttl"));
    }
}
