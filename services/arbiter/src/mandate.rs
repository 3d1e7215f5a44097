//! How long an arbiter may decide: for ever where nobody else can, else for as long as its reign.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tether_clock::{Clock, Tick};
use tether_lease::Reign;
use tether_proto::{Failure, NotLeader};
use tether_store::{Error, Txn};
use tokio_util::sync::CancellationToken;

use crate::effects::keys;

/// Looked at before each decision, and carried along by each write.
#[derive(Debug)]
pub(crate) struct Mandate {
    /// What every write is guarded by; none where there is nobody else.
    reign: Option<u64>,
    /// In nanoseconds, by its clock; none counts where there is nobody else.
    until: AtomicU64,
    clock: Option<Arc<dyn Clock>>,
    over: CancellationToken,
}

impl Mandate {
    /// Of an arbiter that is alone on its store.
    pub(crate) fn unlimited() -> Self {
        Self::new(None, Tick::NEVER, None)
    }

    /// Of an arbiter that was elected; the clock by which it leads.
    pub(crate) fn of(reign: Reign, clock: Arc<dyn Clock>) -> Self {
        Self::new(Some(reign.number), reign.until, Some(clock))
    }

    fn new(reign: Option<u64>, until: Tick, clock: Option<Arc<dyn Clock>>) -> Self {
        Self {
            reign,
            until: AtomicU64::new(until.as_nanos()),
            clock,
            over: CancellationToken::new(),
        }
    }

    /// A renewal was committed.
    pub(crate) fn extend(&self, until: Tick) {
        if !self.over.is_cancelled() {
            self.until.fetch_max(until.as_nanos(), Ordering::SeqCst);
        }
    }

    /// Another arbiter leads, or may: nothing is decided any more, and all streams end.
    pub(crate) fn end(&self) {
        self.over.cancel();
        self.until.store(0, Ordering::SeqCst);
    }

    /// Whether anything may be decided now.
    ///
    /// # Errors
    /// When it may not.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let now = self.clock.as_ref().map_or(Tick::ZERO, |clock| clock.now());
        match now.as_nanos() < self.until.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(NotLeader { leader: None }.into()),
        }
    }

    /// The same commit, refused where another reign has begun.
    pub(crate) fn guard(&self, txn: Txn) -> Txn {
        match self.reign {
            Some(reign) => txn.unchanged(keys::REIGN, reign),
            None => txn,
        }
    }

    /// Whether a commit without a write is worth the asking.
    pub(crate) fn is_guarded(&self) -> bool {
        self.reign.is_some()
    }

    /// What a failed commit means: where its guard did not hold, the end.
    pub(crate) fn failed(&self, error: Error) -> Failure {
        match (self.reign, &error) {
            (Some(_), Error::Conflict { key }) if key == keys::REIGN => {
                tracing::warn!("Deposed: a write was refused because another arbiter leads");
                self.end();
                NotLeader { leader: None }.into()
            }
            // Its time ran out meanwhile: whoever asks again is to ask another.
            (Some(_), _) if self.check().is_err() => NotLeader { leader: None }.into(),
            _ => crate::shared::store_failed(error),
        }
    }

    /// Ends when this arbiter stops, or leads no more.
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.over
    }
}
