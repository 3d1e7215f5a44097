//! Which nodes and owners a group of arbiters has: all of them so far, and on the wire from the beginning, so that
//! nobody who came before there are more groups is ever led by the wrong one.

use tether_types::Reason;

use crate::Failure;

/// The only shard there is: all nodes and all owners, with arbiters of whom one leads.
pub const SHARD: u32 = 0;

/// Whether this arbiter has the shard that an agent or an owner asks for.
///
/// # Errors
/// When it has not: says which it has, and what to do.
pub fn admit_shard(asked: u32) -> Result<(), Failure> {
    if asked == SHARD {
        return Ok(());
    }
    let text = format!(
        "shard {asked} was asked for, and this arbiter has shard {SHARD}, which is all there is in this version: leave `shard` at {SHARD}, or give the address of an arbiter that has shard {asked}"
    );
    Err(Failure::new(Reason::ConfigInvalid, text).fact("shard", SHARD))
}

/// Whether an arbiter answers for the shard that was asked for.
///
/// # Errors
/// When it does not: its leases are none.
pub fn expect_shard(told: u32) -> Result<(), Failure> {
    if told == SHARD {
        return Ok(());
    }
    let text = format!(
        "the arbiter answers for shard {told}, and shard {SHARD} was asked for: give the addresses of that one's arbiters, in `connect.arbiter` of agents and gateways"
    );
    Err(Failure::new(Reason::ConfigInvalid, text).fact("shard", told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_is_not_there_is_refused_by_either_side_with_what_to_do() {
        assert!(admit_shard(SHARD).is_ok() && expect_shard(SHARD).is_ok());

        for refused in [admit_shard(3), expect_shard(3)] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.reason(), Reason::ConfigInvalid);
            let text = refused.to_string();
            assert!(text.contains("shard 3") && text.contains("give"), "{text}");
        }
    }
}
