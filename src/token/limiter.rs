//! Limiter of the refreshes that follow a rejection, by the acceptance of the last token.
//!
//! State of one account without a clock: every event comes with its time.

use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Bucket, Exhausted};
use crate::base::backoff::Backoff;

/// Limiter of one account. A token that WeChat accepted at least once is replaced at once, and so is
/// the first one. Any other token that was never accepted waits for a back-off of 30 s, doubling to
/// 5 min, since age cannot be the cause of its rejection. A [`Bucket`] limits all.
#[derive(Debug)]
pub(crate) struct RefreshLimiter {
    accepted: bool,
    /// Refreshes in a row whose token was not accepted.
    rejections: u32,
    /// Start of the back-off.
    since: Instant,
    bucket: Bucket,
    /// Set if another server keeps the token: a read there costs no call of WeChat.
    external: bool,
    /// Set if the last read of that server brought no other token.
    found_nothing: bool,
}

/// Way in which a token came to replace another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenewedBy {
    /// There was no token before.
    Start,
    /// WeChat rejected the token before.
    Rejection,
    /// The schedule, an operator, another node or another AppSecret.
    Other,
}

/// Reason against a refresh now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshDenied {
    /// The current token was never accepted, and its back-off is not over.
    Backoff,
    /// The bucket is empty.
    Bucket,
}

const BACKOFF: Backoff = Backoff {
    min: Duration::from_secs(30),
    max: Duration::from_secs(300),
};
/// Pause between two reads of another server that has no other token.
const REREAD_PAUSE: Duration = Duration::from_secs(3);

impl RefreshLimiter {
    /// Limiter for tokens that wxgate fetches itself.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            accepted: false,
            rejections: 0,
            since: now,
            bucket: Bucket::full(now),
            external: false,
            found_nothing: false,
        }
    }

    /// Limiter for a token that another server keeps: no bucket, and one read every three seconds
    /// while that server has no other token, so that a dead server costs no read per request.
    pub(crate) fn external(now: Instant) -> Self {
        Self {
            external: true,
            ..Self::new(now)
        }
    }

    /// Notes that WeChat accepted the current token.
    pub(crate) fn accept(&mut self) {
        self.accepted = true;
        self.rejections = 0;
    }

    /// Notes that another token replaced the current one at `now`.
    pub(crate) fn renewed(&mut self, now: Instant, by: RenewedBy) {
        self.rejections = match by {
            // Somebody may have ended it before its first call: that is worth one more fetch.
            RenewedBy::Start => 0,
            RenewedBy::Rejection if !self.accepted => self.rejections.saturating_add(1),
            // Nodes whose tokens are always refused must not go on replacing each other's.
            RenewedBy::Rejection | RenewedBy::Other => 1,
        };
        self.accepted = false;
        self.found_nothing = false;
        self.since = now;
    }

    /// Notes that a refresh brought no other token.
    pub(crate) fn unchanged(&mut self, now: Instant) {
        self.renewed(now, RenewedBy::Rejection);
        self.found_nothing = true;
    }

    /// Returns the last admission, which was not needed: another node had refreshed already.
    pub(crate) fn put_back(&mut self, now: Instant) {
        self.bucket.put_back(now);
    }

    /// Ends the back-off, on the order of an operator.
    pub(crate) fn reset(&mut self) {
        self.rejections = 0;
        self.found_nothing = false;
    }

    /// Admits one refresh. With `suspect` the back-off does not count, the bucket does.
    ///
    /// # Errors
    /// The reason against a refresh now.
    pub(crate) fn admit(&mut self, now: Instant, suspect: bool) -> Result<(), RefreshDenied> {
        if self.external {
            if self.found_nothing && now < self.since + REREAD_PAUSE {
                return Err(RefreshDenied::Backoff);
            }
            return Ok(());
        }
        let pause = if self.accepted || suspect || self.rejections == 0 {
            Duration::ZERO
        } else {
            BACKOFF.plain(self.rejections)
        };
        if now < self.since + pause {
            return Err(RefreshDenied::Backoff);
        }
        self.bucket
            .take(now)
            .map_err(|Exhausted(_)| RefreshDenied::Bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn five_honest_revocations_in_two_seconds_pass() {
        let start = Instant::now();
        let mut limiter = RefreshLimiter::new(start);
        for n in 0..5 {
            limiter.accept();
            let now = start + Duration::from_millis(n * 400);
            assert_eq!(limiter.admit(now, false), Ok(()));
            limiter.renewed(now, RenewedBy::Rejection);
        }
    }

    #[test]
    fn a_token_that_was_never_accepted_waits_longer_each_time() {
        let start = Instant::now();
        let mut limiter = RefreshLimiter::new(start);
        limiter.renewed(start, RenewedBy::Start);
        let mut replaced = Vec::new();
        for second in 0..1200 {
            if limiter.admit(start + secs(second), false).is_ok() {
                limiter.renewed(start + secs(second), RenewedBy::Rejection);
                replaced.push(second);
            }
        }
        assert_eq!(
            replaced,
            [0, 30, 90, 210, 450, 750, 1050],
            "the first one at once"
        );
    }

    #[test]
    fn another_server_is_looked_at_whenever_it_may_have_news_and_every_three_seconds_when_it_has_none()
     {
        let now = Instant::now();
        let mut limiter = RefreshLimiter::external(now);
        for _ in 0..100 {
            assert_eq!(limiter.admit(now, false), Ok(()));
            limiter.renewed(now, RenewedBy::Rejection);
        }
        limiter.unchanged(now);
        limiter.accept();
        assert_eq!(
            limiter.admit(now + secs(2), true),
            Err(RefreshDenied::Backoff)
        );
        assert_eq!(limiter.admit(now + secs(3), false), Ok(()));
        limiter.unchanged(now);
        limiter.reset();
        assert_eq!(limiter.admit(now, false), Ok(()), "an operator has spoken");
    }

    #[test]
    fn a_suspect_token_passes_the_back_off_but_not_the_bucket() {
        let now = Instant::now();
        let mut limiter = RefreshLimiter::new(now);
        limiter.renewed(now, RenewedBy::Other);
        assert_eq!(limiter.admit(now, false), Err(RefreshDenied::Backoff));
        for _ in 0..Bucket::SIZE {
            assert_eq!(limiter.admit(now, true), Ok(()));
        }
        assert_eq!(limiter.admit(now, true), Err(RefreshDenied::Bucket));
    }
}
