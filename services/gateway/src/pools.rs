//! What is known of single pools, as the configuration tells it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tether_endpoints::Adaptive;
use tether_types::PoolName;

/// Stands for all pools that have no rules of their own.
const OTHERS: &str = "*";

/// How the gateway treats a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolRule {
    /// Whether to find how many calls its workers can take at once, where neither they nor their template say: by the time
    /// that answers take to begin.
    pub adaptive: bool,
    /// To which size the arbiter is asked to raise it where its size is 0 and there is a call for it; 0 for never.
    pub wake: u32,
}

/// The rules of pools, by name; `*` has those of all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, PoolRule>",
    into = "BTreeMap<String, PoolRule>"
)]
pub struct Pools {
    others: Option<PoolRule>,
    named: BTreeMap<PoolName, PoolRule>,
}

impl Pools {
    pub(crate) fn rule(&self, pool: &PoolName) -> PoolRule {
        let named = self.named.get(pool).copied();
        named.or(self.others).unwrap_or_default()
    }

    pub(crate) fn adaptive(&self) -> Adaptive {
        let named = self.named.iter();
        Adaptive {
            others: self.others.is_some_and(|rule| rule.adaptive),
            pools: named
                .map(|(name, rule)| (name.clone(), rule.adaptive))
                .collect(),
        }
    }
}

impl TryFrom<BTreeMap<String, PoolRule>> for Pools {
    type Error = String;

    fn try_from(mut written: BTreeMap<String, PoolRule>) -> Result<Self, String> {
        let others = written.remove(OTHERS);
        let mut named = BTreeMap::new();
        for (name, rule) in written {
            let name = PoolName::new(name.as_str())
                .map_err(|why| format!("`{}` is no pool: {why}", name.escape_debug()))?;
            named.insert(name, rule);
        }
        Ok(Self { others, named })
    }
}

impl From<Pools> for BTreeMap<String, PoolRule> {
    fn from(rules: Pools) -> Self {
        let named = rules.named.into_iter();
        let named = named.map(|(name, rule)| (name.as_str().to_owned(), rule));
        let others = rules.others.map(|rule| (OTHERS.to_owned(), rule));
        named.chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_its_own_rules_or_those_of_all_others() {
        let text = "['*']\nadaptive = true\n[digits]\nwake = 2";
        let pools: Pools = toml::from_str(text).unwrap();
        let adaptive = pools.adaptive();

        assert!(adaptive.others);
        assert_eq!(
            adaptive.pools.into_iter().collect::<Vec<_>>(),
            [(PoolName::new("digits").unwrap(), false)]
        );
        let named = |name| pools.rule(&PoolName::new(name).unwrap()).wake;
        assert_eq!((named("digits"), named("others")), (2, 0));
        let again = toml::to_string(&pools).unwrap();
        assert_eq!(toml::from_str::<Pools>(&again).unwrap(), pools);
        assert_eq!(Pools::default().adaptive(), Adaptive::default());
    }

    #[test]
    fn what_is_no_pool_is_refused_by_name() {
        let refused = toml::from_str::<Pools>("['a b']\nadaptive = true").unwrap_err();
        assert!(
            refused.to_string().contains("`a b` is no pool"),
            "{refused}"
        );
    }
}
