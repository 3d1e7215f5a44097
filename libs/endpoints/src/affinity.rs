//! Rendezvous hashing: each slot bids for a key, and the highest bidder that can serve gets it.
//!
//! A bid depends on the key and the slot alone, so a slot that comes or goes moves only the keys
//! it wins or loses, and every gateway agrees without talking to the others.

use tether_types::Slot;

/// What `slot` bids for `key`. Must never change: gateways of two versions serve side by side.
pub(crate) fn bid(key: &[u8], slot: Slot) -> u64 {
    // FNV-1a over the key, then the finaliser of SplitMix64, because FNV alone leaves the bids of
    // neighbouring slots in order for every key.
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut mixed = hash ^ (u64::from(slot) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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
