//! Reproducible random numbers: a stream for the plan of a run, and a stream for the jitter of
//! refreshers. Not for secrets.

use std::{cell::Cell, ops::Range, time::Duration};

/// Random number generator SplitMix64.
#[derive(Clone)]
pub(super) struct Dice(u64);

thread_local! {
    static JITTER: Cell<u64> = const { Cell::new(0) };
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x9E37_79B9_7F4A_7C15)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// True with a probability of that many per cent.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.within(0..100) < chance
    }

    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        let at = self.within(0..among.len() as u64);
        &among[usize::try_from(at).unwrap()]
    }

    /// Makes a generator that does not depend on later numbers of this one.
    pub(super) fn split(&mut self) -> Self {
        Self(self.next())
    }
}

/// Restarts the stream of [`jitter`] for this thread.
pub(super) fn seed_jitter(seed: u64) {
    JITTER.set(seed);
}

/// Random number between 0 and 1. All hosts of one simulation run on one thread.
pub(super) fn jitter() -> f64 {
    let mut dice = Dice(JITTER.get());
    let thrown = dice.next() >> 11;
    JITTER.set(dice.0);
    f64::from(u32::try_from(thrown & 0xFFFF_FFFF).unwrap()) / f64::from(u32::MAX)
}
