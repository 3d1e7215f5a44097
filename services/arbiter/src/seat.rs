//! Whom calls find here: the leader's ledger, or nobody.

use std::sync::Arc;

use tether_proto::{Failure, NotLeader};
use tether_types::Address;
use tokio::sync::watch;

use crate::shared::Shared;

/// The one place where calls learn whether this arbiter leads.
#[derive(Debug)]
pub(crate) struct Seat {
    taken: watch::Sender<Option<Arc<Shared>>>,
    /// For health: whether it is taken.
    serving: watch::Sender<bool>,
    /// For those who start and end processes: whether it is taken, or this arbiter stands by and sees who leads.
    ready: watch::Sender<bool>,
    /// Who leads instead, as far as the store says.
    leader: watch::Sender<Option<Address>>,
}

impl Seat {
    /// Nobody leads here yet.
    pub(crate) fn empty() -> Self {
        Self {
            taken: watch::Sender::new(None),
            serving: watch::Sender::new(false),
            ready: watch::Sender::new(false),
            leader: watch::Sender::new(None),
        }
    }

    /// This arbiter leads.
    pub(crate) fn take(&self, shared: Arc<Shared>) {
        self.leader.send_replace(None);
        self.taken.send_replace(Some(shared));
        self.serving.send_replace(true);
        self.ready.send_replace(true);
    }

    /// It does not any more.
    pub(crate) fn leave(&self) {
        self.serving.send_replace(false);
        self.taken.send_replace(None);
    }

    /// Whether this arbiter, which does not lead, sees who does.
    pub(crate) fn stand_by(&self, sees: bool) {
        self.ready
            .send_if_modified(|ready| std::mem::replace(ready, sees) != sees);
    }

    /// Another one leads.
    pub(crate) fn point_to(&self, leader: Option<Address>) {
        self.leader.send_replace(leader);
    }

    /// The ledger at work.
    ///
    /// # Errors
    /// When another arbiter is to be asked, with its address where that is known.
    pub(crate) fn shared(&self) -> Result<Arc<Shared>, Failure> {
        let taken = self.taken.borrow().clone();
        taken.ok_or_else(|| {
            let leader = self.leader.borrow().clone();
            NotLeader { leader }.into()
        })
    }

    /// Whether it is taken, as it changes.
    pub(crate) fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Whether it is taken, or stands by as it should, as it changes.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }
}
