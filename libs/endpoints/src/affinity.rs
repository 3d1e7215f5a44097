//! Rendezvous hashing: each slot bids for a key, and the highest bidder that can serve gets it.
//!
//! A bid depends on the key and the slot alone, so a slot that comes or goes moves only the keys
//! it wins or loses, and every gateway agrees without talking to the others.

use tether_types::{Slot, stable};

/// What `slot` bids for `key`. Must never change: gateways of two versions serve side by side.
pub(crate) fn bid(key: &[u8], slot: Slot) -> u64 {
    let hash = stable::fnv1a(key.iter().copied());
    let own = (u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Without the end the bids of neighbouring slots would be in order for every key.
    stable::finish(hash ^ own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_over_slots() {
        let mut won = [0u32; 8];
        for key in 0..8_000u32 {
            let winner = (0..8).max_by_key(|&slot| bid(&key.to_le_bytes(), slot));
            won[winner.unwrap() as usize] += 1;
        }

        assert!(
            won.iter().all(|count| (850..1150).contains(count)),
            "{won:?}"
        );
    }

    #[test]
    fn a_bid_is_the_same_in_every_version() {
        assert_eq!(bid(b"session-42", 3), 9_843_696_376_305_266_601);
    }
}
