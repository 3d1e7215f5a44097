//! Numbers at random, the same for the same seed.

/// A good enough generator, the same in every run.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// One that is repeated with its seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// More than 0 and at most 1.
    pub fn share(&mut self) -> f64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// As long as the time between things that happen at random.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.share().ln() * mean
    }

    /// One of so many.
    pub fn below(&mut self, count: usize) -> usize {
        ((1.0 - self.share()) * count as f64) as usize
    }
}
