//! Clock and random source of the sandbox.
//!
//! The clock runs with tokio's and can be advanced, so that tests age a token by two hours without
//! waiting. The random source has a seed, so that runs can be repeated. Neither is fit for anything
//! but a fake.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Milliseconds of sandbox time since the start.
pub(super) type Millis = u64;

/// Clock that can be advanced.
#[derive(Debug)]
pub(super) struct SandboxClock {
    origin: Instant,
    unix_origin: u64,
    ahead: AtomicU64,
}

/// Repeatable random source; not for cryptography.
#[derive(Debug)]
pub(super) struct RandomSource(AtomicU64);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl SandboxClock {
    /// Starts the clock at zero. The wall clock is read once, for the Unix times that WeChat shows.
    pub(super) fn start() -> Self {
        let unix_origin = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Self {
            origin: Instant::now(),
            unix_origin,
            ahead: AtomicU64::new(0),
        }
    }

    pub(super) fn now(&self) -> Millis {
        millis(self.origin.elapsed()) + self.ahead.load(Ordering::Relaxed)
    }

    pub(super) fn unix(&self) -> u64 {
        self.unix_origin + self.now() / 1000
    }

    pub(super) fn advance(&self, by: Duration) {
        // Relaxed: no other data depends on the order.
        self.ahead.fetch_add(millis(by), Ordering::Relaxed);
    }
}

/// Converts a duration to whole milliseconds; saturates.
pub(super) fn millis(duration: Duration) -> Millis {
    // Half of the range, so that sums of two do not overflow.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 1)
}

impl RandomSource {
    pub(super) fn new(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap_or(0x5eed));
        Self(AtomicU64::new(seed))
    }

    /// Returns the next 64 bits (splitmix64).
    pub(super) fn next(&self) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mix(state)
    }

    /// Returns a random text of letters, digits, `-` and `_`.
    pub(super) fn text(&self, length: usize) -> String {
        let mut text = String::with_capacity(length);
        while text.len() < length {
            let mut bits = self.next();
            // Ten characters of six bits from each 64 bits.
            for _ in 0..10.min(length - text.len()) {
                text.push(char::from(ALPHABET[(bits & 63) as usize]));
                bits >>= 6;
            }
        }
        text
    }

    /// Returns a request id in WeChat's form: three groups of eight hex digits, the first of them
    /// the Unix time.
    pub(super) fn rid(&self, unix: u64) -> String {
        let bits = self.next();
        let mut rid = String::with_capacity(26);
        let _ = write!(
            rid,
            "{:08x}-{:08x}-{:08x}",
            unix & 0xffff_ffff,
            bits >> 32,
            bits & 0xffff_ffff
        );
        rid
    }
}

/// Mixes the bits: the finishing step of splitmix64.
pub(super) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_can_be_pushed_ahead() {
        let clock = SandboxClock::start();
        let unix = clock.unix();
        clock.advance(Duration::from_secs(7200));
        assert_eq!((clock.now(), clock.unix()), (7_200_000, unix + 7200));
    }

    #[test]
    fn a_request_id_begins_with_the_unix_time() {
        let rid = RandomSource::new(Some(1)).rid(0x6aac_005a);
        let groups: Vec<_> = rid.split('-').collect();
        assert_eq!((groups.len(), groups[0]), (3, "6aac005a"));
        assert!(
            groups
                .iter()
                .all(|g| g.len() == 8 && g.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        assert_eq!(
            RandomSource::new(Some(7)).text(137),
            RandomSource::new(Some(7)).text(137)
        );
        assert_ne!(
            RandomSource::new(None).text(40),
            RandomSource::new(None).text(40)
        );
    }
}
