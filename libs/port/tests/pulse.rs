//! The rule by which a session is renewed, over random beats.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tether_clock::Tick;
use tether_port::Pulse;

fn at(millis: u64) -> Tick {
    Tick::ZERO + Duration::from_millis(millis)
}

proptest! {
    /// V1, V2, and what they are for: whoever counts the timeout from the last renewal has counted it from the last beat.
    #[test]
    fn a_session_is_renewed_right_after_a_beat_and_not_later(
        timeout in 100_u64..60_000,
        mut beats in vec(0_u64..100_000, 1..20),
        asked in vec(0_u64..100_000, 0..100),
    ) {
        let mut pulse = Pulse::new(Duration::from_millis(timeout));
        prop_assert!(pulse.check(at(1_000_000)), "V1");
        beats.sort_unstable();
        let late = (Duration::from_millis(timeout) / 20).min(Duration::from_millis(500));
        for (number, &beat) in beats.iter().enumerate() {
            pulse.on_beat(at(beat));
            prop_assert!(pulse.check(at(beat)), "V2");
            let next = beats.get(number + 1).copied().unwrap_or(u64::MAX);
            for &now in asked.iter().filter(|&&now| (beat..next).contains(&now)) {
                prop_assert_eq!(pulse.check(at(now)), at(now) < at(beat) + late, "V2");
            }
        }
        let held = pulse.next_deadline().unwrap();
        prop_assert!(!pulse.check(held), "V2");
    }
}
