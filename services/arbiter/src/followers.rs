//! Who follows which jobs: each is woken by what it follows alone, and looks for itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::effects::Followed;

/// Everybody who follows, by what.
#[derive(Debug, Default)]
pub(crate) struct Followers(Mutex<BTreeMap<Followed, watch::Sender<()>>>);

impl Followers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Followed, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has somebody follow.
    pub(crate) fn follow(self: &Arc<Self>, what: Followed) -> Follower {
        let changes = self.all().entry(what.clone()).or_default().subscribe();
        Follower {
            changes,
            what,
            followers: Arc::clone(self),
        }
    }

    /// All of this changed.
    pub(crate) fn wake<'a>(&self, changed: impl Iterator<Item = &'a Followed>) {
        let mut changed = changed.peekable();
        if changed.peek().is_none() {
            return;
        }
        let all = self.all();
        for sender in changed.filter_map(|what| all.get(what)) {
            sender.send_replace(());
        }
    }
}

/// One who follows.
#[derive(Debug)]
pub(crate) struct Follower {
    changes: watch::Receiver<()>,
    what: Followed,
    followers: Arc<Followers>,
}

impl Follower {
    /// Waits until something changed since it was last waited for.
    pub(crate) async fn changed(&mut self) {
        // Its sender is there for as long as this is.
        let _ = self.changes.changed().await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut all = self.followers.all();
        let last = |sender: &watch::Sender<()>| sender.receiver_count() == 1;
        if all.get(&self.what).is_some_and(last) {
            all.remove(&self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_is_woken_by_what_it_follows_and_nothing_is_kept_of_those_who_left() {
        let followers = Arc::new(Followers::default());
        let key = |name: &str| Followed::Key("p".parse().unwrap(), name.to_owned());
        let mut first = followers.follow(key("a"));
        let second = followers.follow(key("a"));
        let mut other = followers.follow(key("b"));

        followers.wake([key("a"), key("c")].iter());

        first.changed().await;
        assert!(!first.changes.has_changed().unwrap());
        assert!(second.changes.has_changed().unwrap());
        assert!(!other.changes.has_changed().unwrap());
        drop((first, second));
        assert_eq!(followers.all().len(), 1);
        followers.wake([key("b")].iter());
        other.changed().await;
        drop(other);
        assert!(followers.all().is_empty());
    }
}
