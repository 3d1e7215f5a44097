//! Which owners have a session, as gateways are told it: only what is written, and at once.

use std::{collections::BTreeMap, sync::Arc};

use tether_proto::gateway::{OwnerEpoch, WatchOwnersResponse};
use tether_types::{Epoch, OwnerName};
use tokio::sync::watch;

/// Owners and the epochs of their sessions.
pub(crate) type Known = Arc<BTreeMap<OwnerName, Epoch>>;

/// What is told, shared between the service and those who watch.
#[derive(Debug)]
pub(crate) struct Owners(watch::Sender<Known>);

impl Owners {
    pub(crate) fn new(sessions: impl Iterator<Item = (OwnerName, Epoch)>) -> Self {
        Self(watch::Sender::new(Arc::new(sessions.collect())))
    }

    /// A session was opened, and fences those before.
    pub(crate) fn opened(&self, owner: &OwnerName, epoch: Epoch) {
        self.0.send_modify(|known| {
            let known = Arc::make_mut(known).entry(owner.clone()).or_default();
            *known = epoch.max(*known);
        });
    }

    /// Sessions are over.
    pub(crate) fn ended<'a>(&self, ended: impl Iterator<Item = (&'a OwnerName, Epoch)>) {
        let mut ended = ended.peekable();
        if ended.peek().is_none() {
            return;
        }
        self.0.send_modify(|known| {
            let known = Arc::make_mut(known);
            for (owner, epoch) in ended {
                if known.get(owner) == Some(&epoch) {
                    known.remove(owner);
                }
            }
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }
}

/// What somebody has to be told who was told `before`; all of it where that is nothing.
pub(crate) fn news(before: Option<&Known>, now: &Known, seq: u64) -> WatchOwnersResponse {
    let differs = |(owner, epoch): &(&OwnerName, &Epoch)| {
        before.is_none_or(|before| before.get(*owner) != Some(*epoch))
    };
    let gone = before.into_iter().flat_map(|before| before.keys());
    WatchOwnersResponse {
        seq,
        snapshot: before.is_none(),
        owners: now
            .iter()
            .filter(differs)
            .map(|(owner, epoch)| OwnerEpoch {
                owner: owner.to_string(),
                epoch: epoch.0,
            })
            .collect(),
        gone: gone
            .filter(|owner| !now.contains_key(*owner))
            .map(ToString::to_string)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> OwnerName {
        name.parse().unwrap()
    }

    #[test]
    fn all_is_told_first_and_then_what_changed_and_an_old_end_ends_no_later_session() {
        let sessions = [(owner("a"), Epoch(3)), (owner("b"), Epoch(4))];
        let owners = Owners::new(sessions.into_iter());
        let mut watch = owners.watch();
        let first = watch.borrow_and_update().clone();
        let told = news(None, &first, 1);
        assert!(told.snapshot && told.owners.len() == 2);

        owners.opened(&owner("a"), Epoch(9));
        let (a, b) = (owner("a"), owner("b"));
        owners.ended([(&a, Epoch(3)), (&b, Epoch(4))].into_iter());

        let now = watch.borrow_and_update().clone();
        let told = news(Some(&first), &now, 2);
        let epochs: Vec<_> = told
            .owners
            .iter()
            .map(|it| (&*it.owner, it.epoch))
            .collect();
        assert_eq!((epochs, told.gone), (vec![("a", 9)], vec!["b".to_owned()]));
        assert!(!told.snapshot && news(Some(&now), &now, 3).owners.is_empty());
    }
}
