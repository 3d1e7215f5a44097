//! A share in a stream: when the last is dropped, what is left of the stream is given up.

use std::sync::{Arc, MutexGuard};

use tether_http2::Key;

use crate::shared::{Core, Shared};

#[derive(Debug)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
    pub(crate) key: Key,
    /// Whether what comes is for whoever holds it.
    reads: bool,
    /// How many bytes were taken, of which the other side is still to hear.
    pub(crate) untold: usize,
}

impl Handle {
    /// One of those that the stream was made with.
    pub(crate) fn new(shared: &Arc<Shared>, key: Key, reads: bool) -> Self {
        Self {
            shared: Arc::clone(shared),
            key,
            reads,
            untold: 0,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.shared.lock()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        if self.reads {
            core.leave_reader(self.key, self.untold);
        }
        core.leave(self.key);
    }
}
