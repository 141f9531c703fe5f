//! Warning of the end of a token that cannot be renewed: due once half of the life that was left at
//! the first failure is over.

use std::time::Duration;

use tokio::time::Instant;

/// State since the last success, which sets it back to `Quiet`.
#[derive(Debug, Clone, Copy)]
pub(super) enum ExpiryWarning {
    /// No failure.
    Quiet,
    /// Failing; due at that moment.
    Due(Instant),
    Given,
}

impl ExpiryWarning {
    /// Notes a failure at `now`, with so much of the token's life left. True once, when the warning
    /// is due.
    pub(super) fn is_due(&mut self, now: Instant, left: Duration) -> bool {
        match *self {
            Self::Quiet if !left.is_zero() => *self = Self::Due(now + left / 2),
            Self::Due(at) if now >= at => {
                *self = Self::Given;
                return true;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_when_half_of_the_remaining_life_is_over() {
        let start = Instant::now();
        let mut warning = ExpiryWarning::Quiet;
        let due: Vec<u64> = (0..300)
            .step_by(10)
            .filter(|s| {
                warning.is_due(
                    start + Duration::from_secs(*s),
                    Duration::from_secs(300 - s),
                )
            })
            .collect();
        assert_eq!(due, [150]);
    }

    #[test]
    fn without_a_token_there_is_nothing_to_run_out() {
        let start = Instant::now();
        let mut warning = ExpiryWarning::Quiet;
        assert!((0..300).all(|s| !warning.is_due(start + Duration::from_secs(s), Duration::ZERO)));
    }
}
