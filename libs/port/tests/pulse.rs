//! The rule by which a session is renewed, over random beats.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tether_clock::Tick;
use tether_port::Pulse;

fn at(millis: u64) -> Tick {
    Tick::ZERO + Duration::from_millis(millis)
}

proptest! {
    /// V1, V2, and what they are for: whatever is renewed last is over at the timeout, or where the lease is as long, a
    /// twentieth of it later.
    #[test]
    fn a_session_is_over_in_time_after_the_last_beat(
        timeout in 100_u64..60_000,
        ttl in 100_u64..60_000,
        mut beats in vec(0_u64..100_000, 0..20),
    ) {
        let millis = Duration::from_millis;
        let mut pulse = Pulse::new(millis(timeout), millis(ttl));
        prop_assert!(pulse.check(at(1_000_000)), "V1");
        beats.sort_unstable();
        for &beat in &beats {
            pulse.on_beat(at(beat));
            prop_assert!(pulse.check(at(beat)), "V2");
        }
        if let Some(&last) = beats.last() {
            let held = pulse.next_deadline().unwrap();
            prop_assert!(!pulse.check(held), "V2");
            let over = held + millis(ttl);
            let least = (millis(timeout) / 20).min(millis(500));
            prop_assert_eq!(over, at(last) + millis(timeout).max(millis(ttl) + least));
        }
    }
}
