//! When failing to renew a token becomes worth waking somebody: half of its remaining life without
//! success.
//!
//! Pure; it says when to speak, not what.

use std::time::Duration;

use tokio::time::Instant;

/// Told of every failure; set back by a success.
#[derive(Debug, Clone, Copy)]
pub(super) enum Alarm {
    /// No failure since the last success.
    Quiet,
    /// Failing; rings at that moment.
    Set(Instant),
    /// Has rung.
    Rung,
}

impl Alarm {
    /// Another failure at `now`, with so much of the token's life left. True once, when it is time
    /// to speak up.
    pub(super) fn rings(&mut self, now: Instant, left: Duration) -> bool {
        match *self {
            Self::Quiet if !left.is_zero() => *self = Self::Set(now + left / 2),
            Self::Set(at) if now >= at => {
                *self = Self::Rung;
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
    fn it_rings_once_when_half_of_the_remaining_life_is_over() {
        let start = Instant::now();
        let mut alarm = Alarm::Quiet;
        let rung: Vec<u64> = (0..300)
            .step_by(10)
            .filter(|s| {
                alarm.rings(
                    start + Duration::from_secs(*s),
                    Duration::from_secs(300 - s),
                )
            })
            .collect();
        assert_eq!(rung, [150]);
    }

    #[test]
    fn without_a_token_there_is_nothing_to_run_out() {
        let start = Instant::now();
        let mut alarm = Alarm::Quiet;
        assert!((0..300).all(|s| !alarm.rings(start + Duration::from_secs(s), Duration::ZERO)));
    }
}
