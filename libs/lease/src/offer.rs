//! A contested slot goes to somebody who hears, or stays free.

use std::time::Duration;

use tether_clock::Tick;
use tether_types::Epoch;

use crate::{Grantor, Terms};

/// A slot that is kept for one candidate for a moment.
///
/// A candidate that can send but not hear would be granted a contested slot, never learn of it, and keep it
/// from all others for a whole term, again and again. So it is made an offer first, and is granted the
/// lease only when it accepts. It has no permission before the grant, so a lapsed offer is waited for by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offer {
    epoch: Epoch,
    until: Tick,
}

impl Offer {
    /// How long an offer stands.
    pub const VALID: Duration = Duration::from_secs(2);

    /// Offers the slot under `epoch`, which was never offered or granted before.
    pub fn new(epoch: Epoch, now: Tick) -> Self {
        Self {
            epoch,
            until: now + Self::VALID,
        }
    }

    /// The epoch that is offered.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it still stands at `now`; if not, the slot may be offered to another.
    pub fn stands(&self, now: Tick) -> bool {
        now < self.until
    }

    /// When to look at [`Offer::stands`] again.
    pub const fn next_deadline(&self) -> Tick {
        self.until
    }

    /// Grants the lease to the candidate that accepted `epoch` in a message received at `received`; none
    /// when that is not what is offered, or no more (L6). The holder counts from when it sent that message.
    pub fn accept(&self, epoch: Epoch, terms: Terms, received: Tick) -> Option<Grantor> {
        let accepted = epoch == self.epoch && self.stands(received);
        accepted.then(|| Grantor::grant(terms, received))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tenure;

    fn at(millis: u64) -> Tick {
        Tick::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn an_offer_becomes_a_lease_only_by_its_acceptance_in_time() {
        let terms = Terms::usual(Duration::from_secs(20)).unwrap();
        let offer = Offer::new(Epoch(7), at(1_000));

        assert!(offer.accept(Epoch(6), terms, at(1_500)).is_none());
        assert!(offer.accept(Epoch(7), terms, at(3_000)).is_none());
        assert!(!offer.stands(offer.next_deadline()));
        let mut lease = offer.accept(Epoch(7), terms, at(2_999)).unwrap();
        assert_eq!(lease.check(at(2_999) + terms.ttl()), Tenure::Held);
    }
}
