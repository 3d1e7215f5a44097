//! Randomness from a seed: the same in every run, on every machine.

/// Splitmix64: quick, and good for any seed.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Self(seed);
        // Seeds next to each other are to have nothing in common.
        chance.0 = chance.draw() ^ seed.rotate_left(32);
        chance
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which fits into 32 bits.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((self.draw() >> 32) * bound) >> 32
    }

    /// A span below `bound` nanoseconds, in steps of a microsecond.
    pub(crate) fn span(&mut self, bound: u64) -> u64 {
        self.below(bound / 1_000 + 1) * 1_000
    }

    /// True once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of a few.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }
}
