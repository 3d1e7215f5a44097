//! How old the knowledge of a pool is.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_types::PoolName;

/// A discovery that serves gives a sign of life each few seconds.
const SILENT: Duration = Duration::from_secs(15);

/// How old discovery's own knowledge is, as it says.
#[derive(Debug, Clone, Default)]
pub struct Ages {
    /// Of all pools but those below; zero while its store answers.
    pub store: Duration,
    /// Of pools with sources of their own of which one is away.
    pub pools: BTreeMap<PoolName, Duration>,
}

/// When discovery last spoke, and how old its knowledge was then.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) at: Tick,
    pub(crate) ages: Ages,
}

impl Heard {
    /// Until when what discovery says of a pool stands for its workers.
    pub(crate) fn vouches_for(&self, pool: &PoolName) -> Tick {
        let old = self.ages.pools.get(pool).copied();
        (self.at + SILENT).saturating_sub(old.unwrap_or(self.ages.store))
    }

    /// Where what is known of a pool may be out of date, how old it is.
    pub(crate) fn age_of(&self, pool: &PoolName, now: Tick) -> Option<Duration> {
        let silence = now.since(self.at);
        let told = self.ages.pools.get(pool).copied();
        let told = told.unwrap_or(self.ages.store);
        (!told.is_zero() || silence > SILENT).then_some(told + silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knowledge_is_old_where_a_source_the_store_or_discovery_itself_is_away() {
        let seconds = Duration::from_secs;
        let at = |count| Tick::ZERO + seconds(count);
        let name = |name: &str| PoolName::new(name).unwrap();
        let mut heard = Heard {
            at: at(100),
            ages: Ages::default(),
        };
        assert_eq!(heard.age_of(&name("a"), at(115)), None);
        assert_eq!(heard.age_of(&name("a"), at(116)), Some(seconds(16)));

        heard.ages.pools.insert(name("a"), seconds(7));
        assert_eq!(heard.age_of(&name("a"), at(101)), Some(seconds(8)));
        assert_eq!(heard.age_of(&name("b"), at(101)), None);
        heard.ages.store = seconds(60);
        assert_eq!(heard.age_of(&name("a"), at(100)), Some(seconds(7)));
        assert_eq!(heard.age_of(&name("b"), at(100)), Some(seconds(60)));
    }
}
