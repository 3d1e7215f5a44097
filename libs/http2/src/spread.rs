//! A hash for numbers of streams.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Begins each hash of a connection with a number that nobody else knows: who opens streams chooses theirs.
#[derive(Debug)]
pub(crate) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(()))
    }
}

impl BuildHasher for Seed {
    type Hasher = Spread;

    fn build_hasher(&self) -> Spread {
        Spread(self.0)
    }
}

/// A number of a stream is a hash as it is, once its bits are spread.
#[derive(Debug)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let spread = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_the_same_hash_on_one_connection_and_another_on_others() {
        let (first, second) = (Seed::default(), Seed::default());
        assert_eq!(first.hash_one(7_u32), first.hash_one(7_u32));
        let same = (0..64_u32).filter(|number| first.hash_one(number) == second.hash_one(number));
        assert!(same.count() < 2);
    }
}
