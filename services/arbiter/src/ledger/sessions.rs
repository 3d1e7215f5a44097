//! Owner sessions: granted, kept alive, taken over, lost.

use std::time::Duration;

use tether_clock::Tick;
use tether_history::Freed;
use tether_lease::{Beat, Fence, Grantor, Tenure, Terms};
use tether_lifecycle::{LifecyclePolicy, Loss, OnOwnerLoss};
use tether_proto::{Failure, session as wire, worker::EventKind};
use tether_types::{DeathCause, Epoch, Orderer, OwnerName, PoolName, ProcessIdentity, Reason};

use super::{
    Ledger, Timed,
    epochs::{note_session, note_session_over},
    millis,
};
use crate::{effects::keys, record::OwnerRecord};

/// Whoever beats does so this many times within a lease, unless a pool wants more.
const BEATS_PER_TTL: u32 = 6;

/// No policy asks for more beats than this.
const BEAT_MIN: Duration = Duration::from_millis(50);

/// One life of an owner's connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) epoch: Epoch,
    pub(super) process: Option<ProcessIdentity>,
    lease: Grantor,
    /// The last beat that extended the lease.
    pub(super) contact: Tick,
    /// Whether the warning at half time was given since then.
    warned: bool,
    /// When its opening, and its last word, changed what nodes are told, see [`Ledger::stamp`].
    pub(super) opened: u64,
    pub(super) word: u64,
    /// For when the wheel has its look at it; never for none.
    armed: Tick,
}

/// What a new session gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) ttl_ms: u64,
    pub(crate) beat_ms: u64,
    pub(crate) pools: Vec<String>,
}

/// The answer to a beat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionAck {
    pub(crate) ttl_ms: u64,
    pub(crate) beat_ms: u64,
}

impl Session {
    fn new(epoch: Epoch, process: Option<ProcessIdentity>, terms: Terms, now: Tick) -> Self {
        Self {
            epoch,
            process,
            lease: Grantor::grant(terms, now),
            contact: now,
            warned: false,
            opened: 0,
            word: 0,
            armed: Tick::NEVER,
        }
    }

    fn warn_at(&self) -> Tick {
        self.contact + self.lease.terms().ttl() / 2
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        let end = self.lease.next_deadline()?;
        Some(if self.warned {
            end
        } else {
            end.min(self.warn_at())
        })
    }
}

impl Ledger {
    /// The lease terms an owner gets who wishes for `ttl`.
    ///
    /// # Errors
    /// When nobody could hold such a lease.
    pub(crate) fn session_terms(&self, ttl: Duration) -> Result<Terms, Failure> {
        wished_terms("session", ttl, self.terms.session)
    }

    /// Opens a session whose record was committed as revision `epoch`, and fences the one before.
    pub(crate) fn open_session(
        &mut self,
        owner: &OwnerName,
        epoch: Epoch,
        process: Option<ProcessIdentity>,
        terms: Terms,
        now: Tick,
    ) -> Granted {
        if let Some(earlier) = self.sessions.remove(owner) {
            note_session_over(owner, earlier.epoch, Freed::TakenOver);
            let text = format!(
                "epoch {} of owner `{owner}` is fenced: a later session (epoch {epoch}) took over; two processes must not use one owner name at the same time",
                earlier.epoch
            );
            self.effects.ended.push((
                owner.clone(),
                earlier.epoch,
                Failure::new(Reason::LeaseFenced, text),
            ));
            // What was tied to the earlier process does not pass on to another.
            if process.is_none() || process != earlier.process {
                self.end_pools(
                    owner,
                    now,
                    |policy| policy.on_owner_exit,
                    DeathCause::OwnerGone,
                    Some(0),
                );
            }
        }
        self.enter_session(owner.clone(), Session::new(epoch, process, terms, now));
        for pool in self.pools.values_mut().filter(|pool| pool.owner() == owner) {
            if pool.on_owner_back(now) {
                pool.write(&mut self.effects);
            }
        }
        self.tell_nodes_of(owner);
        self.place_waiting(now);
        self.effects.owner_event(
            EventKind::SessionOpened,
            owner,
            format!("session of `{owner}` opened, epoch {epoch}"),
        );
        Granted {
            ttl_ms: millis(terms.ttl()),
            beat_ms: millis(self.session_beat(owner)),
            pools: self
                .pools
                .values()
                .filter(|pool| pool.owner() == owner && !pool.is_ending())
                .map(|pool| pool.name().to_string())
                .collect(),
        }
    }

    pub(super) fn restore_session(
        &mut self,
        owner: OwnerName,
        revision: u64,
        record: &OwnerRecord,
        now: Tick,
    ) {
        let terms =
            Terms::usual(Duration::from_millis(record.ttl_ms)).unwrap_or(self.terms.session);
        let process = record.process.as_ref().map(ProcessIdentity::from);
        self.enter_session(owner, Session::new(Epoch(revision), process, terms, now));
    }

    fn enter_session(&mut self, owner: OwnerName, mut session: Session) {
        self.stamp += 1;
        (session.opened, session.word) = (self.stamp, self.stamp);
        note_session(&owner, session.epoch, &session.lease, session.contact);
        self.sessions.insert(owner.clone(), session);
        self.watch_session(owner);
    }

    /// Has a session looked at in time.
    fn watch_session(&mut self, owner: OwnerName) {
        if let Some(session) = self.sessions.get_mut(&owner)
            && let Some(next) = session.next_deadline()
            && next < session.armed
        {
            session.armed = self.wheel.arm(Timed::Session(owner), next);
        }
    }

    /// A beat of an owner.
    ///
    /// # Errors
    /// When the session is not this owner's any more.
    pub(crate) fn beat_session(
        &mut self,
        owner: &OwnerName,
        epoch: Epoch,
        seq: u64,
        ack_seen: u64,
        now: Tick,
    ) -> Result<SessionAck, Failure> {
        let beat = self.session_beat(owner);
        let stamp = self.stamp + 1;
        let session = self.live_session(owner, epoch)?;
        let mut back = false;
        let ttl_ms = match session.lease.on_beat(seq, ack_seen, now) {
            Beat::Extended => {
                back = now.since(session.contact) > beat * 2;
                session.contact = now;
                session.word = stamp;
                session.warned = false;
                note_session(owner, epoch, &session.lease, now);
                millis(session.lease.terms().ttl())
            }
            Beat::Unproven | Beat::Stale => 0,
            Beat::Ended => {
                return Err(Failure::new(
                    Reason::LeaseExpired,
                    format!(
                        "the lease of owner `{owner}`, epoch {epoch}, ran out before this beat came: open a new session"
                    ),
                ));
            }
        };
        self.stamp = stamp;
        self.watch_session(owner.clone());
        if back {
            // Its workers may have no more than a moment left, as far as their nodes know.
            self.tell_nodes_of(owner);
        }
        Ok(SessionAck {
            ttl_ms,
            beat_ms: millis(beat),
        })
    }

    /// The session, if it is this epoch's.
    pub(crate) fn live_session(
        &mut self,
        owner: &OwnerName,
        epoch: Epoch,
    ) -> Result<&mut Session, Failure> {
        if let Some(session) = self.sessions.get(owner) {
            Fence::at(session.epoch).admit(epoch).map_err(|fenced| {
                Failure::new(Reason::LeaseFenced, format!("owner `{owner}`: {fenced}"))
            })?;
        }
        match self.sessions.get_mut(owner) {
            Some(session) if session.epoch == epoch => Ok(session),
            _ => Err(Failure::new(
                Reason::UnknownSession,
                format!(
                    "owner `{owner}` has no session with epoch {epoch}: it was closed or ran out; open a new one"
                ),
            )),
        }
    }

    /// Whether somebody may change `pool` in the name of this owner's session; an operator, who has none,
    /// always may.
    ///
    /// # Errors
    /// When the session is not the owner's latest, or the pool is another's.
    pub(crate) fn may_act(&mut self, owner: &str, epoch: u64, pool: &str) -> Result<(), Failure> {
        if epoch == 0 {
            return Ok(());
        }
        let owner = OwnerName::new(owner)
            .map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))?;
        self.live_session(&owner, Epoch(epoch))?;
        let named = PoolName::new(pool)
            .ok()
            .and_then(|pool| self.pools.get(&pool));
        match named {
            Some(named) if *named.owner() != owner => {
                let text = format!(
                    "pool `{pool}` belongs to owner `{}`, not to `{owner}`",
                    named.owner()
                );
                Err(Failure::new(Reason::NotOwner, text))
            }
            _ => Ok(()),
        }
    }

    /// How often an owner is to beat: as often as the most demanding of its pools says.
    pub(crate) fn session_beat(&self, owner: &OwnerName) -> Duration {
        let ttl = self.sessions.get(owner).map_or_else(
            || self.terms.session.ttl(),
            |session| session.lease.terms().ttl(),
        );
        let pools = self.pools.values().filter(|pool| pool.owner() == owner);
        pools
            .map(|pool| pool.policy().heartbeat_interval)
            .chain([usual_beat(ttl)])
            .min()
            .unwrap_or(ttl)
            .max(BEAT_MIN)
    }

    /// The owner says goodbye.
    ///
    /// # Errors
    /// When the session is not its any more.
    pub(crate) fn close_session(
        &mut self,
        owner: &OwnerName,
        epoch: Epoch,
        now: Tick,
    ) -> Result<(), Failure> {
        self.live_session(owner, epoch)?;
        self.lose_owner(owner, Loss::OwnerLeft, now);
        Ok(())
    }

    /// An agent saw the owner's process end.
    pub(super) fn owner_exited(&mut self, owner: &OwnerName, epoch: Epoch, now: Tick) {
        if self.live_session(owner, epoch).is_ok() {
            self.lose_owner(owner, Loss::OwnerExited, now);
        }
    }

    /// The look at a session that was armed for `at`.
    pub(super) fn check_session(&mut self, owner: OwnerName, at: Tick, now: Tick) {
        let session = self.sessions.get_mut(&owner);
        let Some(session) = session.filter(|session| session.armed == at) else {
            return;
        };
        session.armed = Tick::NEVER;
        if session.lease.check(now) == Tenure::Free {
            return self.lose_owner(&owner, Loss::OwnerSilent, now);
        }
        if !session.warned && now >= session.warn_at() {
            session.warned = true;
            let text = format!(
                "no beat of `{owner}` for {:.1?}, half of its lease",
                now.since(session.contact)
            );
            self.effects
                .owner_event(EventKind::LeaseWarning, &owner, text);
        }
        self.watch_session(owner);
    }

    fn lose_owner(&mut self, owner: &OwnerName, loss: Loss, now: Tick) {
        let Some(session) = self.sessions.remove(owner) else {
            return;
        };
        self.effects.delete(keys::owner(owner));
        let why = match loss {
            Loss::OwnerLeft => Freed::Returned,
            Loss::OwnerExited => Freed::Proof,
            _ => Freed::Expired,
        };
        note_session_over(owner, session.epoch, why);
        let (kind, text, reason) = match loss {
            Loss::OwnerLeft => (
                EventKind::SessionClosed,
                format!("`{owner}` closed its session"),
                Reason::UnknownSession,
            ),
            Loss::OwnerExited => (
                EventKind::SessionLost,
                format!("the process of `{owner}` ended"),
                Reason::LeaseExpired,
            ),
            _ => (
                EventKind::SessionLost,
                format!("no beat of `{owner}` within its lease"),
                Reason::LeaseExpired,
            ),
        };
        self.effects.owner_event(kind, owner, text.clone());
        self.effects
            .ended
            .push((owner.clone(), session.epoch, Failure::new(reason, text)));

        // A goodbye counts as the last word; silence began with the last beat.
        let contact = if loss == Loss::OwnerLeft {
            now
        } else {
            session.contact
        };
        self.stamp += 1;
        for pool in self.pools.values_mut().filter(|pool| pool.owner() == owner) {
            pool.on_owner_lost(loss, contact);
            pool.stamp = self.stamp;
            pool.write(&mut self.effects);
        }
        self.tell_nodes_of(owner);
        match loss {
            Loss::OwnerLeft => self.end_pools(
                owner,
                now,
                |policy| policy.on_owner_goodbye,
                DeathCause::Ordered(Orderer::Owner),
                None,
            ),
            Loss::OwnerExited => {
                self.end_pools(
                    owner,
                    now,
                    |policy| policy.on_owner_exit,
                    DeathCause::OwnerGone,
                    Some(0),
                );
            }
            _ => self.end_pools(
                owner,
                now,
                |policy| policy.on_owner_silent,
                DeathCause::OwnerGone,
                Some(0),
            ),
        }
    }

    /// Ends those pools of an owner whose policy answers its loss with death.
    fn end_pools(
        &mut self,
        owner: &OwnerName,
        now: Tick,
        answer: impl Fn(&LifecyclePolicy) -> OnOwnerLoss,
        cause: DeathCause,
        grace_ms: Option<u64>,
    ) {
        let kills = |policy: &LifecyclePolicy| answer(policy) == OnOwnerLoss::Kill;
        let mut ended = Vec::new();
        for pool in self.pools.values_mut() {
            pool.give_up_next(|next| next.owner == *owner && kills(&next.resolved.policy));
            if pool.owner() == owner && kills(pool.policy()) {
                ended.push(pool.name().clone());
            }
        }
        self.end_pools_in_order(&ended, cause, grace_ms, now);
    }

    /// Owners with a session, and its epoch.
    pub(crate) fn epochs(&self) -> impl Iterator<Item = (OwnerName, Epoch)> {
        let sessions = self.sessions.iter();
        sessions.map(|(owner, session)| (owner.clone(), session.epoch))
    }

    /// The sessions that live.
    pub(crate) fn list_sessions(&self, now: Tick) -> Vec<wire::Session> {
        let session = |(owner, session): (&OwnerName, &Session)| wire::Session {
            owner: owner.to_string(),
            epoch: session.epoch.0,
            remaining_ms: millis(session.lease.remaining(now)),
        };
        self.sessions.iter().map(session).collect()
    }
}

/// The terms of a lease of `ttl`, or the usual ones where none is wished for.
pub(super) fn wished_terms(whose: &str, ttl: Duration, usual: Terms) -> Result<Terms, Failure> {
    if ttl.is_zero() {
        return Ok(usual);
    }
    Terms::usual(ttl).map_err(|error| {
        let text = format!("a {whose} cannot have this `ttl`: {error}");
        Failure::new(Reason::ConfigInvalid, text)
    })
}

/// How often to beat within a lease, where nothing wants more.
pub(super) fn usual_beat(ttl: Duration) -> Duration {
    (ttl / BEATS_PER_TTL).max(BEAT_MIN)
}
