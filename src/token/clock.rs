//! Conversion between the wall clock, which stores and people use, and the monotonic clock, which
//! all other code uses.
//!
//! Wall time may jump in either direction at any moment; no function here fails when it does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(test)]
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

/// Reading of both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// Time on the monotonic clock.
    pub now: Instant,
    /// Time on the wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// Source of wall time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WallClock {
    /// Wall time in milliseconds at an instant; `None` for the clock of the system.
    anchor: Option<(Instant, u64)>,
    /// Milliseconds by which a test has moved the clock.
    #[cfg(test)]
    moved: Option<&'static AtomicI64>,
}

impl WallClock {
    /// Wall clock of the system, read anew each time.
    pub(crate) const fn system() -> Self {
        Self {
            anchor: None,
            #[cfg(test)]
            moved: None,
        }
    }

    /// Wall clock that shows `unix_ms` now and runs with the monotonic clock, paused time included.
    #[cfg(test)]
    pub(crate) fn starting_at(unix_ms: u64) -> Self {
        Self {
            anchor: Some((Instant::now(), unix_ms)),
            #[cfg(test)]
            moved: None,
        }
    }

    /// As [`WallClock::starting_at`], with an atomic that moves the clock by that many
    /// milliseconds.
    #[cfg(test)]
    pub(crate) fn movable(unix_ms: u64) -> (Self, &'static AtomicI64) {
        let hand: &AtomicI64 = Box::leak(Box::default());
        (
            Self {
                moved: Some(hand),
                ..Self::starting_at(unix_ms)
            },
            hand,
        )
    }

    /// Milliseconds since 1970; 0 if the clock is set to an earlier time.
    pub(crate) fn now_ms(&self) -> u64 {
        let told = match self.anchor {
            Some((instant, unix_ms)) => unix_ms.saturating_add(millis(instant.elapsed())),
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, millis),
        };
        #[cfg(test)]
        let told =
            told.saturating_add_signed(self.moved.map_or(0, |hand| hand.load(Ordering::Relaxed)));
        told
    }

    /// Reads both clocks.
    pub(crate) fn time(&self) -> ClockReading {
        ClockReading {
            now: Instant::now(),
            wall_ms: self.now_ms(),
        }
    }

    /// Wall time of an instant, counted from the present reading of the clock.
    pub(crate) fn to_unix_ms(self, instant: Instant) -> u64 {
        self.time().to_unix_ms(instant)
    }
}

impl ClockReading {
    /// Wall time of an instant, counted from this reading.
    pub fn to_unix_ms(self, instant: Instant) -> u64 {
        self.wall_ms
            .saturating_add(millis(instant.saturating_duration_since(self.now)))
            .saturating_sub(millis(self.now.saturating_duration_since(instant)))
    }
}

/// Whole milliseconds of a duration.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_anchored_clock_runs_with_paused_time() {
        let clock = WallClock::starting_at(1_000_000);
        let later = Instant::now() + Duration::from_secs(7);
        assert_eq!(clock.to_unix_ms(later), 1_007_000);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(
            (clock.now_ms(), clock.to_unix_ms(later)),
            (1_010_000, 1_007_000)
        );
    }
}
