//! What is known of single methods, as the configuration tells it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tether_endpoints::Target;
use tether_kit::config::duration;
use tether_types::PoolName;

use crate::affinity::AffinityRule;

/// What the gateway may do with calls of a method.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodRule {
    /// Whether a call may be made twice and does no harm by it: one that was sent may then be made again elsewhere.
    pub idempotent: bool,
    /// When a call without an answer is made a second time at another worker, for the first answer to count; 0 for never.
    #[serde(with = "duration")]
    pub hedge_after: Duration,
    /// What calls that go to the same worker have in common, where their metadata names none.
    pub affinity: Option<AffinityRule>,
    /// The largest message a client may send, in bytes, in the place of `gateway.max_message_bytes`.
    pub max_message_bytes: Option<u32>,
}

/// The rules of all methods. For a call the most specific one holds, whole: one of its pool before one of all pools, its
/// method's before its service's, and that before the one of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, MethodRule>",
    into = "BTreeMap<String, MethodRule>"
)]
pub struct Methods(Vec<(Pattern, Arc<MethodRule>)>);

/// Of which calls a rule is: `/digits.Digits/Classify`, `/digits.Digits/*` or `/*`, of one pool with its name before that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    pool: Option<PoolName>,
    /// With the last slash, where it is of all that follow.
    path: String,
    is_exact: bool,
}

impl MethodRule {
    /// By what a call with this target is tied to a worker, where it does not say so itself.
    pub(crate) fn tie(&self, target: &Target) -> Option<&AffinityRule> {
        let affinity = self.affinity.as_ref();
        affinity.filter(|_| *target == Target::Any)
    }
}

impl Methods {
    /// The rule that holds for a call.
    pub(crate) fn rule(&self, pool: &PoolName, path: &str) -> Option<&Arc<MethodRule>> {
        let mut rules = self.0.iter();
        let (_, rule) = rules.find(|(pattern, _)| pattern.is_of(pool, path))?;
        Some(rule)
    }
}

impl Pattern {
    /// Reads a key of the table; `None` where it is none.
    fn parse(key: &str) -> Option<Self> {
        let (pool, path) = key.split_at(key.find('/')?);
        let pool = match pool {
            "" => None,
            name => Some(PoolName::new(name).ok()?),
        };
        let (path, is_exact) = match path.strip_suffix('*') {
            Some(prefix) => (prefix, false),
            None => (path, true),
        };
        let names: Vec<&str> = path.split('/').skip(1).collect();
        let is_well = match (names.as_slice(), is_exact) {
            ([service, method], true) => !service.is_empty() && !method.is_empty(),
            ([service, ""], false) => !service.is_empty(),
            ([""], false) => true,
            _ => false,
        };
        (is_well && !path.contains('*')).then(|| Self {
            pool,
            path: path.to_owned(),
            is_exact,
        })
    }

    fn is_of(&self, pool: &PoolName, path: &str) -> bool {
        self.pool.as_ref().is_none_or(|of| of == pool)
            && match self.is_exact {
                true => path == self.path,
                false => path.starts_with(&self.path),
            }
    }

    fn key(&self) -> String {
        let pool = self.pool.as_ref().map_or("", PoolName::as_str);
        let all = if self.is_exact { "" } else { "*" };
        format!("{pool}{}{all}", self.path)
    }
}

impl TryFrom<BTreeMap<String, MethodRule>> for Methods {
    type Error = String;

    fn try_from(written: BTreeMap<String, MethodRule>) -> Result<Self, String> {
        let mut rules = Vec::with_capacity(written.len());
        for (key, rule) in written {
            let pattern = Pattern::parse(&key).ok_or_else(|| {
                format!(
                    "`{}` is no method: write `/package.Service/Method`, `/package.Service/*` or `/*`, with a pool's name before it where it is of that pool alone",
                    key.escape_debug()
                )
            })?;
            if !rule.hedge_after.is_zero() && !rule.idempotent {
                return Err(format!(
                    "`{key}` has `hedge_after`, which makes calls twice: set `idempotent = true` beside it where that does no harm"
                ));
            }
            rules.push((pattern, Arc::new(rule)));
        }
        // The first that fits is the most specific one.
        rules.sort_by_key(|(pattern, _)| {
            (
                pattern.pool.is_none(),
                !pattern.is_exact,
                std::cmp::Reverse(pattern.path.len()),
            )
        });
        Ok(Self(rules))
    }
}

impl From<Methods> for BTreeMap<String, MethodRule> {
    fn from(rules: Methods) -> Self {
        let rules = rules.0.into_iter();
        rules
            .map(|(pattern, rule)| (pattern.key(), Arc::unwrap_or_clone(rule)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Methods, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string())
    }

    #[test]
    fn the_most_specific_rule_holds() {
        let methods = read(
            "['/*']\nmax_message_bytes = 1
            ['/a.B/*']\nmax_message_bytes = 2
            ['/a.B/C']\nmax_message_bytes = 3
            ['digits/*']\nmax_message_bytes = 4
            ['digits/a.B/*']\nmax_message_bytes = 5
            ['digits/a.B/C']\nmax_message_bytes = 6",
        )
        .unwrap();
        let limit = |pool: &str, path| {
            let rule = methods.rule(&PoolName::new(pool).unwrap(), path);
            rule.unwrap().max_message_bytes.unwrap()
        };

        assert_eq!(
            [
                limit("x", "/o.O/C"),
                limit("x", "/a.B/D"),
                limit("x", "/a.B/C")
            ],
            [1, 2, 3]
        );
        let of_pool = ["/o.O/C", "/a.B/D", "/a.B/C"].map(|path| limit("digits", path));
        assert_eq!(of_pool, [4, 5, 6]);
        assert_eq!(limit("x", "/a.BC/C"), 1);
    }

    #[test]
    fn a_method_without_a_rule_has_none() {
        let methods = read("['/a.B/*']\nidempotent = true").unwrap();
        let pool = PoolName::new("digits").unwrap();

        assert!(methods.rule(&pool, "/a.B/C").unwrap().idempotent);
        assert_eq!(methods.rule(&pool, "/a.C/C"), None);
        assert_eq!(Methods::default().rule(&pool, "/a.B/C"), None);
    }

    #[test]
    fn rules_read_back_as_they_were_written() {
        let methods = read(
            "['/a.B/*']\nidempotent = true\nhedge_after = '50ms'\naffinity = { metadata = 'x-session' }
            ['digits/a.B/C']\naffinity = { field = 1, mode = 'strict_queue' }",
        )
        .unwrap();
        let text = toml::to_string(&methods).unwrap();

        assert_eq!(read(&text).unwrap(), methods, "{text}");
    }

    #[test]
    fn what_is_no_method_and_what_would_do_harm_is_refused_by_its_key() {
        for key in [
            "",
            "a",
            "a.B/C",
            "/",
            "/a",
            "/a/",
            "//C",
            "/a/b/c",
            "/a*",
            "/a/b*",
            "/*/b",
            "A B/a.B/C",
        ] {
            let refused = read(&format!("['{key}']\nidempotent = true")).unwrap_err();
            assert!(
                refused.contains(&format!("`{key}` is no method")),
                "{refused}"
            );
        }
        let hedged = read("['/a.B/C']\nhedge_after = '1s'").unwrap_err();
        assert!(hedged.contains("`/a.B/C` has `hedge_after`"), "{hedged}");
        assert!(
            read("['/a.B/C']\nidempotant = true")
                .unwrap_err()
                .contains("unknown field")
        );
    }
}
