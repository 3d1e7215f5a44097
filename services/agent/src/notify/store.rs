//! Descriptors that workers gave away to have them back in their next incarnation, as with `FDSTORE=1`.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{FileType, fstat};
use tether_types::{PoolName, Slot};

/// Most descriptors kept for one slot.
const SLOT_MAX: usize = 64;

/// Most descriptors kept by one process, so that slots nobody fills again cannot use up all there are.
const ALL_MAX: usize = 1024;

/// The name of a descriptor that got none.
const UNNAMED: &str = "stored";

/// A descriptor and its name in LISTEN_FDNAMES.
pub(crate) type Named = (String, OwnedFd);

type Kept = BTreeMap<(PathBuf, PoolName, Slot), Vec<Named>>;

/// One for all agents of the process: between two incarnations nothing of a worker lives that could hold
/// its descriptors.
static KEPT: Mutex<Kept> = Mutex::new(Kept::new());

/// What is kept for the workers of one agent. It ends with the agent: its successor has none of it.
#[derive(Debug, Clone)]
pub(crate) struct FdStore {
    workers: Arc<Path>,
}

impl FdStore {
    /// That of the agent with this directory of workers.
    pub(crate) fn of(workers: &Path) -> Self {
        Self {
            workers: workers.into(),
        }
    }

    /// Keeps descriptors of a slot, up to a bound; tells how many it did not keep. A socket that is kept
    /// under this name already is closed.
    pub(crate) fn keep(
        &self,
        pool: &PoolName,
        slot: Slot,
        name: Option<&str>,
        descriptors: Vec<OwnedFd>,
    ) -> usize {
        let name = name.unwrap_or(UNNAMED);
        let mut kept = lock();
        let mut all: usize = kept.values().map(Vec::len).sum();
        let of_slot = kept.entry(self.key(pool, slot)).or_default();
        let mut refused = 0;
        for descriptor in descriptors {
            let again = |(other, before): &Named| other == name && is_same(before, &descriptor);
            if of_slot.iter().any(again) {
                continue;
            }
            if of_slot.len() >= SLOT_MAX || all >= ALL_MAX {
                refused += 1;
                continue;
            }
            all += 1;
            of_slot.push((name.to_owned(), descriptor));
        }
        refused
    }

    /// Closes what is kept of a slot under a name.
    pub(crate) fn remove(&self, pool: &PoolName, slot: Slot, name: Option<&str>) {
        let name = name.unwrap_or(UNNAMED);
        if let Some(kept) = lock().get_mut(&self.key(pool, slot)) {
            kept.retain(|(other, _)| other != name);
        }
    }

    /// Hands over all that is kept of a slot, in the order it came: for its next incarnation, or to be
    /// closed.
    pub(crate) fn take(&self, pool: &PoolName, slot: Slot) -> Vec<Named> {
        lock().remove(&self.key(pool, slot)).unwrap_or_default()
    }

    fn key(&self, pool: &PoolName, slot: Slot) -> (PathBuf, PoolName, Slot) {
        (self.workers.to_path_buf(), pool.clone(), slot)
    }
}

fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether both are the same socket. Only of sockets does the inode tell: event descriptors share one, and
/// a file may be open twice in different ways.
fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    let (Ok(one), Ok(other)) = (fstat(one), fstat(other)) else {
        return false;
    };
    FileType::from_raw_mode(one.st_mode) == FileType::Socket
        && (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn what_is_kept_of_a_slot_comes_back_once_by_name_and_in_order() {
        let (pool, dir) = (
            PoolName::new("digits").unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let store = FdStore::of(dir.path());
        let (one, mut far) = UnixStream::pair().unwrap();
        let again = OwnedFd::from(one.try_clone().unwrap());
        let (two, _far) = UnixStream::pair().unwrap();

        assert_eq!(store.keep(&pool, 0, Some("a"), vec![one.into(), again]), 0);
        assert_eq!(store.keep(&pool, 0, None, vec![two.into()]), 0);
        assert!(store.take(&pool, 1).is_empty());
        assert!(FdStore::of(Path::new("/other")).take(&pool, 0).is_empty());
        store.remove(&pool, 0, Some("b"));
        let taken = store.take(&pool, 0);
        let names: Vec<_> = taken.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "stored"]);
        assert!(store.take(&pool, 0).is_empty());

        let mut taken = taken.into_iter();
        let (name, one) = taken.next().unwrap();
        store.keep(&pool, 0, Some(&name), vec![one]);
        store.remove(&pool, 0, Some("a"));
        // All copies are closed: the other end sees the end.
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn no_more_are_kept_than_a_slot_may_have() {
        let (pool, dir) = (
            PoolName::new("digits").unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let store = FdStore::of(dir.path());
        let many = (0..SLOT_MAX + 3).map(|_| UnixStream::pair().unwrap().0.into());

        let refused = store.keep(&pool, 0, None, many.collect());

        assert_eq!(refused, 3);
        assert_eq!(store.take(&pool, 0).len(), SLOT_MAX);
    }
}
