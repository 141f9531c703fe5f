//! The border between the wall clock, which stores and people use, and the monotonic one, which
//! everything else uses.
//!
//! Wall time may jump in either direction at any moment; nothing here fails when it does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(test)]
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// Monotonic clock.
    pub now: Instant,
    /// Wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// Source of wall time.
#[derive(Debug, Clone, Copy, Default)]
pub struct WallClock {
    anchor: Option<(Instant, u64)>,
    /// By how many milliseconds a test has moved it.
    #[cfg(test)]
    moved: Option<&'static AtomicI64>,
}

impl WallClock {
    /// The system's wall clock, read anew each time.
    pub const fn system() -> Self {
        Self {
            anchor: None,
            #[cfg(test)]
            moved: None,
        }
    }

    /// A wall clock that stands at `unix_ms` now and runs with the monotonic clock, paused time
    /// included.
    pub fn starting_at(unix_ms: u64) -> Self {
        Self {
            anchor: Some((Instant::now(), unix_ms)),
            #[cfg(test)]
            moved: None,
        }
    }

    /// As [`WallClock::starting_at`], with a hand that moves it by so many milliseconds.
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

    /// Milliseconds since 1970; 0 for a clock that stands before that.
    pub fn now_ms(&self) -> u64 {
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

    /// This moment on both clocks.
    pub fn time(&self) -> ClockReading {
        ClockReading {
            now: Instant::now(),
            wall_ms: self.now_ms(),
        }
    }

    /// The wall time of an instant, as far as today's clock can tell.
    pub fn to_unix_ms(self, instant: Instant) -> u64 {
        self.time().to_unix_ms(instant)
    }
}

impl ClockReading {
    /// Wall time of an instant, counted from this moment.
    pub fn to_unix_ms(self, instant: Instant) -> u64 {
        self.wall_ms
            .saturating_add(millis(instant.saturating_duration_since(self.now)))
            .saturating_sub(millis(self.now.saturating_duration_since(instant)))
    }
}

/// The whole milliseconds of a duration.
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
