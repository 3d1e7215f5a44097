//! Calls that gateways have counted, added up for each worker.
//!
//! Each life of a gateway tells its own count, whole: told twice it is the same count, and those of several
//! gateways, or of one before and after its restart, add up. Nothing of it is written. Another arbiter is
//! told again by every gateway that still has its count; what a gateway that is gone had counted is lost
//! then, and a worker serves that much more.

use std::collections::BTreeMap;

use tether_clock::Tick;
use tether_proto::Failure;
use tether_types::{Reason, WorkerId};

use super::Ledger;

/// Lives of gateways that are told apart for one worker. Of more the smallest counts are left out: a sum
/// that is too small costs nothing but a later replacement, and a worker that sees gateways start all day
/// must not make the arbiter grow (A4).
const LIVES_MAX: usize = 256;

/// Calls that one incarnation has served, by the gateway's life that counted them.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<String, u64>);

impl Calls {
    /// A life of a gateway has counted so many so far.
    fn on_count(&mut self, gateway: &str, calls: u64) {
        match self.0.get_mut(gateway) {
            // A lower one is an earlier one that comes late (A7).
            Some(known) => *known = calls.max(*known),
            None => drop(self.0.insert(gateway.to_owned(), calls)),
        }
        if self.0.len() > LIVES_MAX
            && let Some(smallest) = self.0.iter().min_by_key(|(_, calls)| **calls)
        {
            let smallest = smallest.0.clone();
            self.0.remove(&smallest);
        }
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.0
            .values()
            .fold(0, |sum, calls| sum.saturating_add(*calls))
    }
}

impl Ledger {
    /// What a life of a gateway has counted. Of a worker that does not live it means nothing any more.
    ///
    /// # Errors
    /// While a node of before was not heard: its workers are not known, and a count that is told once must
    /// not be lost for it.
    pub(crate) fn on_calls(
        &mut self,
        gateway: &str,
        counts: &[(WorkerId, u64)],
        now: Tick,
    ) -> Result<(), Failure> {
        let unknown = |(id, _): &(WorkerId, u64)| self.is_blocked(&id.pool, id.slot);
        if self.awaits_word() || counts.iter().any(unknown) {
            let text =
                "the arbiter has not heard every node since it started: tell the counts again";
            return Err(Failure::new(Reason::AgentUnreachable, text));
        }
        for (id, calls) in counts {
            let Some(place) = self.place(&id.pool, id.slot) else {
                continue;
            };
            let live = place.live.as_mut();
            let Some(live) = live.filter(|live| live.incarnation == id.incarnation) else {
                continue;
            };
            let counted = &mut live.rare().calls;
            counted.on_count(gateway, *calls);
            place.machine.on_calls(counted.total());
            self.settle_place(&id.pool, id.slot, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A7: reports come twice, late and out of order, and the sum is what the gateways counted.
        #[test]
        fn counts_add_up_over_gateways_and_never_over_reports(
            reports in vec((0..4_usize, 0..100_u64), 0..60),
        ) {
            let mut calls = Calls::default();
            let mut counted = [0; 4];
            for (gateway, count) in reports {
                let before = calls.total();

                calls.on_count(&gateway.to_string(), count);
                calls.on_count(&gateway.to_string(), count);

                counted[gateway] = count.max(counted[gateway]);
                prop_assert_eq!(calls.total(), counted.iter().sum::<u64>());
                prop_assert!(calls.total() >= before);
            }
        }
    }

    #[test]
    fn a_gateway_that_starts_all_day_makes_nothing_grow() {
        let mut calls = Calls::default();
        calls.on_count("lasting", 1_000);

        for life in 0..10_000 {
            calls.on_count(&life.to_string(), 1);
        }

        assert_eq!(calls.0.len(), LIVES_MAX);
        assert_eq!(calls.total(), 1_000 + LIVES_MAX as u64 - 1);
        calls.on_count("lasting", 1_001);
        assert_eq!(
            calls.total(),
            1_001 + LIVES_MAX as u64 - 1,
            "and none is counted twice"
        );
    }
}
