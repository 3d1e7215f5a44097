//! Waits for locks that workers hold, many of them with one thread.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tether_sys::{Bell, HOLDS_AT_ONCE, Hold, wait_any};
use tokio::sync::oneshot;

/// All that are waited for.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<Vec<Arc<Group>>>);

/// Those that one thread waits for.
#[derive(Debug, Default)]
struct Group {
    bell: Bell,
    held: Mutex<Vec<(Arc<Hold>, oneshot::Sender<()>)>>,
}

impl Holds {
    /// Tells when this is let go of; an error where that will not be known, as the kernel is too old or has no thread
    /// to spare.
    pub(crate) fn watch(&self, hold: Hold) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |group: &&Arc<Group>| group.lock().len() < HOLDS_AT_ONCE;
        let group = match groups.iter().find(room) {
            Some(group) => Arc::clone(group),
            None => {
                let group = Arc::new(Group::default());
                let waits = Arc::clone(&group);
                let thread = thread::Builder::new().name("holds".to_owned());
                if thread.spawn(move || waits.run()).is_err() {
                    return told;
                }
                groups.push(Arc::clone(&group));
                group
            }
        };
        group.lock().push((Arc::new(hold), tell));
        group.bell.ring();
        told
    }
}

impl Group {
    fn run(&self) {
        loop {
            let rung = self.bell.rung();
            let held = self.settle();
            if let Err(error) = wait_any(held.iter().map(|hold| &**hold), &self.bell, rung) {
                tracing::info!(%error, "The kernel cannot wait for the locks that workers hold: their deaths are seen a little later");
                // Who was to be told hears that nobody will.
                self.lock().clear();
                return;
            }
        }
    }

    /// Tells of those that were let go of, and answers the others.
    fn settle(&self) -> Vec<Arc<Hold>> {
        let mut held = self.lock();
        let all = std::mem::take(&mut *held);
        for (hold, tell) in all.into_iter().filter(|(_, tell)| !tell.is_closed()) {
            if hold.is_let_go() {
                let _ = tell.send(());
            } else {
                held.push((hold, tell));
            }
        }
        held.iter().map(|(hold, _)| Arc::clone(hold)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<Hold>, oneshot::Sender<()>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
