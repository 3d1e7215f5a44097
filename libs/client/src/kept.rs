//! A lease that is kept in the background, and what is known of it.

use std::time::Duration;

use tether_clock::HolderClock;
use tether_lease::{Holder, Standing, Terms};
use tether_types::Reason;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Problem,
    keepalive::{Beats, KeepAlive, Lease},
    standing,
};

/// Beats are not sent without a pause, whatever the arbiter says.
const BEAT_MIN_MS: u64 = 10;

/// Why a lease is no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another one of the same name took over.
    #[error("another process took over under the same name: {0}")]
    Fenced(String),
    /// The lease ran out before the arbiter could be reached.
    #[error("the lease ran out: the arbiter could not be reached in time ({0})")]
    Expired(String),
    /// The arbiter does not know it any more.
    #[error("the arbiter ended it: {0}")]
    Ended(String),
}

/// Dropping it stops the beats.
#[derive(Debug)]
pub(crate) struct Kept {
    clock: HolderClock,
    holder: watch::Receiver<Holder>,
    lost: watch::Receiver<Option<Lost>>,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    held: watch::Sender<bool>,
    _beats: AbortOnDropHandle<()>,
    _standing: AbortOnDropHandle<()>,
}

impl Kept {
    pub(crate) fn keep(
        lease: impl Lease,
        holder: Holder,
        clock: HolderClock,
        beat_ms: u64,
        beats: Beats,
    ) -> Self {
        let (told, lost) = watch::channel(None);
        let (told_holder, known) = watch::channel(holder.clone());
        let (told_standing, standing) = watch::channel(Standing::Valid);
        let stop = CancellationToken::new();
        let (hold, held) = watch::channel(false);
        let telling = standing::tell(clock.clone(), known.clone(), told_standing);
        let beats = KeepAlive {
            lease,
            holder,
            clock: clock.clone(),
            interval: Duration::from_millis(beat_ms.max(BEAT_MIN_MS)),
            stop: stop.clone(),
            held,
            beats,
            told: told_holder,
        };
        let beats = async move {
            if let Some(why) = beats.run().await {
                tracing::warn!(%why, "Lease lost");
                told.send_replace(Some(why));
            }
        };
        Self {
            clock,
            holder: known,
            lost,
            standing,
            stop,
            held: hold,
            _beats: AbortOnDropHandle::new(tokio::spawn(beats)),
            _standing: AbortOnDropHandle::new(tokio::spawn(telling)),
        }
    }

    /// The clock its holder counts by.
    pub(crate) fn clock(&self) -> HolderClock {
        self.clock.clone()
    }

    /// What is known of the lease, as it changes.
    pub(crate) fn holder(&self) -> watch::Receiver<Holder> {
        self.holder.clone()
    }

    /// Why it is lost, once it is.
    pub(crate) fn told_lost(&self) -> watch::Receiver<Option<Lost>> {
        self.lost.clone()
    }

    /// How it stands, and each change of that.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Comes back when it is lost, with the reason.
    pub(crate) async fn lost(&self) -> Lost {
        let closed = || Lost::Ended("closed".to_owned());
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(closed),
            // The beats ended without a word: it was given back.
            Err(_) => closed(),
        }
    }

    /// Has beats held back, or let go again.
    pub(crate) fn hold_back(&self, held: bool) {
        let change = |before: &mut bool| std::mem::replace(before, held) != held;
        self.held.send_if_modified(change);
    }

    /// No further beat.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

/// The terms of a lease that was granted for so long.
///
/// # Errors
/// When nobody could hold it.
pub(crate) fn terms(ttl_ms: u64) -> Result<Terms, Problem> {
    Terms::usual(Duration::from_millis(ttl_ms)).map_err(|error| Problem {
        reason: Some(Reason::ConfigInvalid),
        code: tonic::Code::Internal,
        text: format!("the arbiter granted a lease nobody could hold: {error}"),
        retry_after: None,
        facts: Vec::new(),
    })
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
