//! The epochs of nodes' leases: which agent holds a node's lease, told apart from all that held it before.
//!
//! An epoch is the revision of the commit that wrote the node's record, so no restart and no other arbiter repeats
//! one. A lease is granted at once, as an agent with workers must not wait for a store that fails; its epoch is told
//! as soon as it is written, on each stream until the agent has said it back. From then on whoever comes with an
//! earlier one is refused: it was followed, whatever it believes.

use tether_clock::Tick;
use tether_history::{Freed, What, lease_of_node, lease_of_owner, left, note};
use tether_lease::{Fence, Grantor};
use tether_proto::{Failure, node::Hello};
use tether_types::{Epoch, NodeName, OwnerName, Reason};

use super::Ledger;

/// Under which epoch a node's lease is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tenancy {
    /// That of the last commit; zero for none.
    epoch: Epoch,
    /// Whether another one is being written.
    is_followed: bool,
    /// Whether its agent has said it back, ever and on the stream that it has.
    is_heard: bool,
    is_said: bool,
}

impl Tenancy {
    /// As an earlier arbiter wrote it, who may have been told that it was heard.
    pub(super) fn restored(revision: u64) -> Self {
        Self {
            epoch: Epoch(revision),
            is_heard: true,
            ..Self::default()
        }
    }

    /// Another one begins, with the next commit of the node's record.
    pub(super) fn follow(&mut self) {
        (self.is_followed, self.is_heard, self.is_said) = (true, false, false);
    }

    /// Whether an agent that says `epoch` is the one that holds it.
    pub(super) fn is_of(self, epoch: u64) -> bool {
        self.epoch.0 == epoch
    }

    /// The agent that holds it has another stream, on which it does not know yet that it still does.
    pub(super) fn on_stream(&mut self, epoch: u64) {
        self.on_heard(epoch);
        self.is_said = false;
    }

    /// The agent of this stream says that it has heard an epoch.
    pub(super) fn on_heard(&mut self, epoch: u64) {
        let is_said = epoch != 0 && self.is_of(epoch) && !self.is_followed;
        self.is_heard |= is_said;
        self.is_said |= is_said;
    }

    /// What there is to be told; zero for nothing.
    pub(super) fn to_tell(self) -> u64 {
        match self.is_said || self.is_followed {
            true => 0,
            false => self.epoch.0,
        }
    }

    fn admit(self, epoch: u64) -> Result<(), String> {
        if epoch == 0 || !self.is_heard {
            return Ok(());
        }
        let fenced = Fence::at(self.epoch).admit(Epoch(epoch));
        fenced.map_err(|fenced| fenced.to_string())
    }

    /// For a history: what was granted, once its epoch is known.
    pub(super) fn note_granted(self, name: &NodeName, lease: &Grantor, now: Tick) {
        if self.epoch.0 != 0 && !self.is_followed {
            note_granted(|| lease_of_node(name), self.epoch, lease, now);
        }
    }

    /// For a history: it is nobody's from here on.
    pub(super) fn note_freed(self, name: &NodeName, why: Freed) {
        if self.epoch.0 != 0 && !self.is_followed {
            note_freed(|| lease_of_node(name), self.epoch, why);
        }
    }
}

/// For a history: the session of an owner was granted or extended.
pub(super) fn note_session(owner: &OwnerName, epoch: Epoch, lease: &Grantor, now: Tick) {
    note_granted(|| lease_of_owner(owner), epoch, lease, now);
}

/// For a history: it is over.
pub(super) fn note_session_over(owner: &OwnerName, epoch: Epoch, why: Freed) {
    note_freed(|| lease_of_owner(owner), epoch, why);
}

/// For a history: a lease was granted or extended.
pub(super) fn note_granted(
    name: impl FnOnce() -> String,
    epoch: Epoch,
    lease: &Grantor,
    now: Tick,
) {
    note(|| What::Granted {
        lease: name(),
        epoch: epoch.0,
        left: left(now + lease.remaining(now), now),
    });
}

/// For a history: a lease is nobody's from here on.
pub(super) fn note_freed(name: impl FnOnce() -> String, epoch: Epoch, why: Freed) {
    note(|| What::Freed {
        lease: name(),
        epoch: epoch.0,
        why,
    });
}

impl Ledger {
    /// Whether this agent may still speak for a node of which it says that it holds the lease.
    ///
    /// # Errors
    /// `LEASE_FENCED` where another one has held it since.
    pub(super) fn admit_epoch(&self, name: &NodeName, hello: &Hello) -> Result<(), Failure> {
        let Some(node) = self.nodes.get(name) else {
            return Ok(());
        };
        node.tenancy.admit(hello.epoch).map_err(|fenced| {
            let text = format!(
                "the lease of node `{name}` that this agent holds was given to another one: {fenced}; give each agent a node name and a runtime directory of its own. What this one asks for next, it asks for as one that holds nothing"
            );
            Failure::new(Reason::LeaseFenced, text)
        })
    }

    /// The record of a node was written: its lease is held under this epoch.
    pub(crate) fn on_epoch(&mut self, name: &NodeName, epoch: Epoch, now: Tick) {
        if let Some(node) = self.nodes.get_mut(name)
            && epoch > node.tenancy.epoch
        {
            // Unless that was said when the next one asked.
            node.tenancy.note_freed(name, Freed::TakenOver);
            node.tenancy = Tenancy {
                epoch,
                ..Tenancy::default()
            };
            if node.loss.is_none() {
                node.tenancy.note_granted(name, &node.lease, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tether_lifecycle::Surroundings;
    use tether_proto::node::HeartbeatRequest;

    use super::*;
    use crate::{Config, effects::Ack, effects::keys};

    const NODE: &str = "n1";

    fn name() -> NodeName {
        NodeName::new(NODE).unwrap()
    }

    fn at(millis: u64) -> Tick {
        Tick::ZERO + Duration::from_millis(1_000 + millis)
    }

    fn ledger() -> Ledger {
        let terms = Config::default().terms().unwrap();
        Ledger::new(terms, BTreeMap::new(), Surroundings::default())
    }

    fn hello(instance: &str, epoch: u64) -> Hello {
        Hello {
            instance: instance.to_owned(),
            epoch,
            ..Hello::default()
        }
    }

    /// Opens a stream, if that is allowed; tells whether the node's record is to be written.
    fn join(ledger: &mut Ledger, hello: &Hello, now: Tick) -> Result<bool, Reason> {
        let admitted = ledger.admit_node(&name(), hello, now);
        admitted.map_err(|failure| failure.reason())?;
        ledger.on_hello(&name(), hello, now);
        let writes = ledger.take_effects().writes;
        Ok(writes.contains_key(&keys::node(&name())))
    }

    /// Beats, and tells the epoch that is told with the answer.
    fn beat(ledger: &mut Ledger, seq: u64, heard: u64, now: Tick) -> u64 {
        let beat = HeartbeatRequest {
            seq,
            ack_seen: seq - 1,
            epoch: heard,
            ..HeartbeatRequest::default()
        };
        assert!(ledger.on_beat(&name(), &beat, now));
        ledger.take_effects();
        let answer = ledger.message_to(&name(), Ack::default(), Vec::new());
        answer.unwrap().epoch
    }

    #[test]
    fn an_epoch_is_told_once_it_is_written_and_until_its_agent_has_said_it_back() {
        let mut ledger = ledger();
        assert_eq!(join(&mut ledger, &hello("one", 0), at(0)), Ok(true));
        assert_eq!(beat(&mut ledger, 1, 0, at(1)), 0, "it is not written yet");
        ledger.on_epoch(&name(), Epoch(7), at(2));

        assert_eq!(beat(&mut ledger, 2, 0, at(3)), 7);
        assert_eq!(beat(&mut ledger, 3, 0, at(4)), 7, "it may not have come");
        assert_eq!(beat(&mut ledger, 4, 6, at(5)), 7, "that is another one");
        assert_eq!(beat(&mut ledger, 5, 7, at(6)), 0);
        // Its next stream goes on under it, and nothing is written.
        assert_eq!(join(&mut ledger, &hello("one", 7), at(7)), Ok(false));
        // That it still holds it is told there once more.
        assert_eq!(beat(&mut ledger, 1, 0, at(8)), 7);
        assert_eq!(beat(&mut ledger, 2, 7, at(9)), 0);
    }

    #[test]
    fn an_agent_that_comes_with_an_earlier_epoch_is_refused_once_the_later_one_was_heard() {
        let mut ledger = ledger();
        join(&mut ledger, &hello("one", 0), at(0)).unwrap();
        ledger.on_epoch(&name(), Epoch(7), at(0));
        // Another one on the same directory, as after a restart, or on a copy of the machine.
        assert_eq!(join(&mut ledger, &hello("one", 0), at(10)), Ok(true));
        ledger.on_epoch(&name(), Epoch(9), at(10));
        assert_eq!(beat(&mut ledger, 1, 0, at(11)), 9);

        let mut unheard = ledger.nodes[&name()].tenancy;
        assert_eq!(
            unheard.admit(7),
            Ok(()),
            "it may be that one, which has not heard of it"
        );
        unheard.on_heard(9);
        beat(&mut ledger, 2, 9, at(12));
        assert_eq!(
            join(&mut ledger, &hello("one", 7), at(13)),
            Err(Reason::LeaseFenced)
        );
        assert_eq!(
            join(&mut ledger, &hello("two", 7), at(13)),
            Err(Reason::LeaseFenced)
        );
        assert_eq!(
            join(&mut ledger, &hello("two", 0), at(13)),
            Err(Reason::NodeTaken)
        );
        assert_eq!(join(&mut ledger, &hello("one", 9), at(13)), Ok(false));
        assert_eq!(join(&mut ledger, &hello("one", 0), at(14)), Ok(true));
    }

    #[test]
    fn a_lease_that_was_lost_is_another_one_when_its_agent_is_back_and_so_it_is_after_a_restart() {
        let mut ledger = ledger();
        join(&mut ledger, &hello("one", 0), at(0)).unwrap();
        ledger.on_epoch(&name(), Epoch(7), at(0));
        beat(&mut ledger, 1, 7, at(1));
        let ttl = ledger.terms.node.ttl();

        assert_eq!(
            join(&mut ledger, &hello("one", 7), at(2) + ttl * 2),
            Ok(true)
        );

        let mut later = self::ledger();
        later.restore_node(name(), "one".to_owned(), 9, at(0));
        assert_eq!(
            join(&mut later, &hello("one", 7), at(1)),
            Err(Reason::LeaseFenced)
        );
        assert_eq!(join(&mut later, &hello("one", 9), at(1)), Ok(false));
    }
}
