//! Which entries of sources are left out, for whoever asks who serves.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tether_discovery_backends::Answer;
use tether_proto::discovery::LeftOut;
use tether_types::PoolName;

/// By pool, and by the source's place in the list of them.
type Known = BTreeMap<(PoolName, usize), LeftOut>;

/// What sources said last, of which a part could not be taken.
#[derive(Debug, Default)]
pub(crate) struct LeftOuts(Mutex<Known>);

impl LeftOuts {
    /// A source answered. What of it is left out, where that is other than before.
    pub(crate) fn on_answer(
        &self,
        pool: &PoolName,
        (index, source): (usize, &str),
        answer: &Answer,
    ) -> Option<LeftOut> {
        // Options name files with secrets, and say nothing of where an entry is to be mended.
        let source = source.split('?').next().unwrap_or_default();
        let left_out = LeftOut {
            pool: pool.to_string(),
            source: source.to_owned(),
            count: u64::try_from(answer.left_out).unwrap_or(u64::MAX),
            reasons: answer.reasons.clone(),
        };
        let mut known = self.known();
        let place = (pool.clone(), index);
        let before = match left_out.count {
            0 => known.remove(&place),
            _ => known.insert(place, left_out.clone()),
        };
        let is_same = before.map_or(left_out.count == 0, |before| before == left_out);
        (!is_same).then_some(left_out)
    }

    /// Of one pool, or of all.
    pub(crate) fn of(&self, pool: Option<&PoolName>) -> Vec<LeftOut> {
        let known = self.known();
        let wanted = |name: &PoolName| pool.is_none_or(|pool| pool == name);
        let wanted = known.iter().filter(|((name, _), _)| wanted(name));
        wanted.map(|(_, left_out)| left_out.clone()).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_known_of_each_source_until_it_is_mended_and_is_news_once() {
        let left_outs = LeftOuts::default();
        let pool = PoolName::new("rank").unwrap();
        let mut bad = Answer::default();
        bad.leave_out("port 0".to_owned());
        let first = (0, "file:///list?poll=1s");
        let second = (1, "file:///list");
        assert_eq!(left_outs.on_answer(&pool, first, &Answer::default()), None);

        let news = left_outs.on_answer(&pool, first, &bad).unwrap();
        assert_eq!((news.source.as_str(), news.count), ("file:///list", 1));
        assert_eq!(news.reasons, ["port 0"]);
        assert_eq!(left_outs.on_answer(&pool, first, &bad), None);
        assert!(left_outs.on_answer(&pool, second, &bad).is_some());
        assert_eq!(left_outs.of(None).len(), 2);
        assert_eq!(left_outs.of(Some(&PoolName::new("other").unwrap())), []);

        let news = left_outs.on_answer(&pool, first, &Answer::default());
        assert_eq!(news.unwrap().count, 0);
        assert_eq!(left_outs.of(Some(&pool)).len(), 1);
    }
}
