//! One arbiter among several on one store: waits for its turn, leads, and lets go.
//!
//! [`tether_lease::Candidate`] decides; here is what it asks for. Renewals are sent whether or not the
//! ones before were answered, so that one slow commit does not depose a leader.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use prost::Message as _;
use tether_clock::{Clock, Tick};
use tether_lease::{Candidate, LeaderTerms, Move, Reign, Seen};
use tether_store::{Batch, Changes, Entry, Error, Store, Txn};
use tether_types::Address;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{effects::keys, mandate::Mandate, origins::Origins, record::LeaderRecord, seat::Seat};

/// How long one who stops takes to let go of the keys at most; after that the others wait.
const RESIGNATION: Duration = Duration::from_secs(1);

/// One arbiter's part in it.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) store: Arc<dyn Store>,
    /// The holder's, whoever waits too: a candidate whose clock ran ahead finds its campaign refused where
    /// the leader renewed meanwhile, and a leader that slept knows it.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seat: Arc<Seat>,
    pub(crate) origins: Origins,
    pub(crate) terms: LeaderTerms,
    /// Where others reach this arbiter.
    pub(crate) address: Option<Address>,
}

/// An arbiter that does not lead.
struct Standby<'a> {
    election: &'a Election,
    /// Which process this is: no other ever wrote this word.
    me: String,
    candidate: Candidate,
    seen: Seen,
    watch: Option<Changes>,
    warned: bool,
}

impl Election {
    /// Takes part until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // The hashers' keys are random and fresh, which is all a name for this process needs to be.
        let word = || RandomState::new().hash_one(std::process::id());
        let mut standby = Standby {
            me: format!("{:016x}{:016x}", word(), word()),
            candidate: Candidate::new(self.terms),
            election: &self,
            seen: Seen::default(),
            watch: None,
            warned: false,
        };
        while let Some(Some(reign)) = stop.run_until_cancelled(standby.win()).await {
            tracing::info!(reign = reign.number, "This arbiter leads");
            let mandate = Arc::new(Mandate::of(reign, Arc::clone(&self.clock)));
            let renewing = async {
                standby.renew(&mandate, &stop).await;
                mandate.end();
                self.seat.leave();
            };
            tokio::join!(renewing, self.rule(&mandate, &stop));
            let resigned = standby.candidate.resign();
            if let Some(reign) = resigned.filter(|_| stop.is_cancelled()) {
                self.resign(reign).await;
            }
            tracing::info!(reign = reign.number, "This arbiter leads no more");
        }
    }

    /// Takes up what is in the store, then decides until the mandate is over.
    async fn rule(&self, mandate: &Arc<Mandate>, stop: &CancellationToken) {
        let shared = loop {
            // Read after the reign began: nothing of an earlier one can be written any more.
            match self.origins.shared(&self.store, mandate).await {
                Ok(shared) => break Arc::new(shared),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "Cannot take up what is in the store");
                }
            }
            let pause = sleep(self.terms.renew());
            if mandate.over().run_until_cancelled(pause).await.is_none() {
                return;
            }
        };
        self.seat.take(Arc::clone(&shared));
        shared.keep_time(stop.clone()).await;
    }

    /// Deletes both keys, so that another need not wait.
    async fn resign(&self, reign: u64) {
        let txn = Txn::new().unchanged(keys::REIGN, reign);
        let txn = txn.delete(keys::REIGN).delete(keys::RENEWAL);
        match tokio::time::timeout(RESIGNATION, self.store.commit(txn)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "Could not resign; another waits for its term")
            }
            Err(_) => tracing::warn!("Could not resign in time; another waits for its term"),
        }
    }

    fn until(&self, at: Tick) -> Instant {
        Instant::now() + at.since(self.clock.now())
    }
}

impl Standby<'_> {
    /// Waits until this arbiter leads. Never without an answer.
    async fn win(&mut self) -> Option<Reign> {
        loop {
            let now = self.election.clock.now();
            if let Some(reign) = self.candidate.leads(now) {
                self.watch = None;
                self.warned = false;
                return Some(reign);
            }
            match self.candidate.next(now) {
                Move::Look => self.look().await,
                Move::Campaign { attempt, over } => self.campaign(attempt, over).await,
                Move::Wait(until) => self.follow(until).await,
                // Only who leads is asked for it, and has left above.
                Move::Renew { .. } => {}
            }
        }
    }

    async fn look(&mut self) {
        let store = &self.election.store;
        match store.list(keys::LEADER).await {
            Ok(listing) => {
                self.seen = Seen::default();
                for entry in &listing.entries {
                    self.take_in(entry);
                }
                if self.seen.reign == 0 {
                    self.election.seat.point_to(None);
                }
                self.watch = Some(store.watch(keys::LEADER, listing.revision));
                self.election.seat.stand_by(true);
                self.candidate.on_seen(self.seen, self.election.clock.now());
                self.warned = false;
            }
            Err(error) => {
                self.election.seat.stand_by(false);
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(%error, "Cannot see who leads");
                }
                sleep(self.election.terms.renew()).await;
            }
        }
    }

    fn take_in(&mut self, entry: &Entry) {
        match entry.key.as_str() {
            keys::REIGN => {
                let record = LeaderRecord::decode(&*entry.value).unwrap_or_default();
                let own = record.candidate == self.me;
                self.seen.reign = entry.mod_revision;
                self.seen.own = own.then_some(record.attempt);
                let leader = record.address.parse().ok();
                self.election.seat.point_to(leader.filter(|_| !own));
            }
            keys::RENEWAL => self.seen.renewal = entry.mod_revision,
            _ => {}
        }
    }

    async fn campaign(&mut self, attempt: u64, over: Seen) {
        let address = self.election.address.as_ref();
        let record = LeaderRecord {
            candidate: self.me.clone(),
            attempt,
            address: address.map(ToString::to_string).unwrap_or_default(),
        };
        let txn = Txn::new()
            .unchanged(keys::REIGN, over.reign)
            .unchanged(keys::RENEWAL, over.renewal)
            .put(keys::REIGN, record.encode_to_vec())
            .put(keys::RENEWAL, Vec::new());
        let committed = self.election.store.commit(txn).await;
        match committed {
            Ok(reign) => self
                .candidate
                .on_won(attempt, reign, self.election.clock.now()),
            Err(Error::Conflict { .. }) => self.candidate.on_lost(attempt),
            Err(error) => tracing::warn!(%error, "It is not known yet whether this arbiter leads"),
        }
    }

    /// Watches the keys until something changes, or until then.
    async fn follow(&mut self, until: Tick) {
        let Some(watch) = &mut self.watch else {
            return self.look().await;
        };
        let sleep = tokio::time::sleep_until(self.election.until(until));
        tokio::select! {
            () = sleep => {}
            change = watch.next() => match change {
                Some(Ok(batch)) => {
                    self.on_change(&batch);
                    self.candidate.on_seen(self.seen, self.election.clock.now());
                }
                Some(Err(_)) | None => self.watch = None,
            },
        }
    }

    fn on_change(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match &change.value {
                Some(value) => self.take_in(&Entry {
                    key: change.key.clone(),
                    value: value.clone(),
                    mod_revision: batch.revision,
                }),
                None if change.key == keys::REIGN => {
                    (self.seen.reign, self.seen.own) = (0, None);
                    self.election.seat.point_to(None);
                }
                None => self.seen.renewal = 0,
            }
        }
    }

    /// Renews until this arbiter leads no more, or stops.
    async fn renew(&mut self, mandate: &Mandate, stop: &CancellationToken) {
        let Election { clock, store, .. } = self.election;
        let mut under_way = FuturesUnordered::new();
        let mut late = false;
        loop {
            let now = clock.now();
            let until = match self.candidate.next(now) {
                Move::Renew { reign } => {
                    let txn = Txn::new().unchanged(keys::REIGN, reign);
                    let commit = store.commit(txn.put(keys::RENEWAL, Vec::new()));
                    under_way.push(async move { (reign, now, commit.await) });
                    continue;
                }
                Move::Wait(until) => until,
                Move::Look | Move::Campaign { .. } => {
                    return tracing::warn!("No renewal was committed in time");
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(self.election.until(until)) => {}
                Some((reign, sent, committed)) = under_way.next() => match committed {
                    Ok(_) => {
                        let now = clock.now();
                        self.candidate.on_renewed(reign, sent, now);
                        if let Some(reign) = self.candidate.leads(now) {
                            mandate.extend(reign.until);
                        }
                        late = false;
                    }
                    Err(Error::Conflict { .. }) => {
                        self.candidate.on_deposed(reign);
                        return tracing::warn!(reign, "Deposed: another arbiter leads");
                    }
                    Err(error) => if !std::mem::replace(&mut late, true) {
                        tracing::warn!(%error, "A renewal may be lost");
                    },
                },
                // A guarded write was refused.
                () = mandate.over().cancelled() => return,
                () = stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
