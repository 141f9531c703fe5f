//! Delays between attempts: doubling between two bounds, spread by jitter.
//!
//! [`Backoff::jittered`] takes the random number as an argument, so that tests can choose it;
//! production code passes [`random_fraction`].

use std::time::Duration;

/// Bounds of a delay that doubles from `min` to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Delay after the first failure.
    pub min: Duration,
    /// Longest delay.
    pub max: Duration,
}

impl Backoff {
    /// Returns the delay after `failures` failures in a row, counted from one, without jitter.
    pub(crate) fn plain(&self, failures: u32) -> Duration {
        // A shift by 32 or more has no result; any large factor will do, given the clamp.
        let doubled = self.min.saturating_mul(
            1_u32
                .checked_shl(failures.saturating_sub(1))
                .unwrap_or(u32::MAX),
        );
        doubled.clamp(self.min, self.max)
    }

    /// Returns a delay between half and all of [`Backoff::plain`]; `jitter` is taken from
    /// `0.0..=1.0`.
    pub(crate) fn jittered(&self, failures: u32, jitter: f64) -> Duration {
        // At least half, so that jitter never turns a back-off into a retry at once.
        self.plain(failures)
            .mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// Returns a random number between 0 and 1, or 0.5 if the system has no randomness.
pub(crate) fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const B: Backoff = Backoff {
        min: Duration::from_secs(1),
        max: Duration::from_secs(60),
    };

    #[test]
    fn doubles_up_to_the_bound() {
        let secs: Vec<u64> = (1..=8).map(|n| B.plain(n).as_secs()).collect();
        assert_eq!(secs, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_half_the_least_and_the_most(failures in any::<u32>(), jitter in any::<f64>()) {
            let jitter = if jitter.is_nan() { 0.0 } else { jitter };
            let delay = B.jittered(failures, jitter);
            prop_assert!(delay >= B.min / 2 && delay <= B.max, "{delay:?}");
        }
    }
}
