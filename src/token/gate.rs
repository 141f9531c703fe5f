//! Whether a rejected token may be replaced now: what WeChat thought of the last one decides.
//!
//! Pure state of one account; its owner tells it what happened and when.

use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Bucket, Exhausted};
use crate::base::backoff::Backoff;

/// A token that was accepted at least once is replaced at once; one that never was waits out a
/// back-off of 30 s, doubling to 5 min, since its refusal has another cause than age. Over both
/// stands a bucket of ten and one a minute.
#[derive(Debug)]
pub(crate) struct Gate {
    accepted: bool,
    futile: u32,
    since: Instant,
    bucket: Bucket,
    /// Another server keeps the token: looking there again costs WeChat nothing.
    elsewhere: bool,
    /// The last look there brought nothing new.
    in_vain: bool,
}

/// Why not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The current token was never accepted and is too young to be blamed again.
    Backoff,
    /// The bucket is empty.
    Bucket,
}

const BACKOFF: Backoff = Backoff {
    min: Duration::from_secs(30),
    max: Duration::from_secs(300),
};
/// Between two looks at another server that has nothing new.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

impl Gate {
    /// For tokens that wxgate fetches itself.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            accepted: false,
            futile: 0,
            since: now,
            bucket: Bucket::full(now),
            elsewhere: false,
            in_vain: false,
        }
    }

    /// For a token that another server keeps: no budget, and a look at most every three seconds
    /// while it has nothing new, so that a server that has died costs no look per call.
    pub(crate) fn elsewhere(now: Instant) -> Self {
        Self {
            elsewhere: true,
            ..Self::new(now)
        }
    }

    /// WeChat took the current token for good.
    pub(crate) fn accept(&mut self) {
        self.accepted = true;
        self.futile = 0;
    }

    /// Whether it did so since the last change.
    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Another token took its place at `now`, after a rejection or in its time.
    pub(crate) fn renewed(&mut self, now: Instant, after_rejection: bool) {
        self.futile = if after_rejection && !self.accepted {
            self.futile.saturating_add(1)
        } else {
            1
        };
        self.accepted = false;
        self.in_vain = false;
        self.since = now;
    }

    /// An attempt to replace it changed nothing.
    pub(crate) fn fruitless(&mut self, now: Instant) {
        self.renewed(now, true);
        self.in_vain = true;
    }

    /// What was asked for last was not needed: another node had done it already.
    pub(crate) fn not_needed(&mut self, now: Instant) {
        self.bucket.put_back(now);
    }

    /// Forgets the back-off, because an operator asked for it.
    pub(crate) fn reset(&mut self) {
        self.futile = 0;
        self.in_vain = false;
    }

    /// Asks for one replacement. `suspect` passes the back-off, not the bucket.
    pub(crate) fn ask(&mut self, now: Instant, suspect: bool) -> Result<(), Denied> {
        if self.elsewhere {
            let too_soon = self.in_vain && now < self.since + LOOK_AGAIN;
            return if too_soon {
                Err(Denied::Backoff)
            } else {
                Ok(())
            };
        }
        let pause = if self.accepted || suspect || self.futile == 0 {
            Duration::ZERO
        } else {
            BACKOFF.plain(self.futile)
        };
        if now < self.since + pause {
            return Err(Denied::Backoff);
        }
        self.bucket.take(now).map_err(|Exhausted(_)| Denied::Bucket)
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
        let mut gate = Gate::new(start);
        for n in 0..5 {
            gate.accept();
            let now = start + Duration::from_millis(n * 400);
            assert_eq!(gate.ask(now, false), Ok(()));
            gate.renewed(now, true);
        }
    }

    #[test]
    fn a_token_that_was_never_accepted_waits_longer_each_time() {
        let start = Instant::now();
        let mut gate = Gate::new(start);
        gate.renewed(start, false);
        let mut replaced = Vec::new();
        for second in 0..1200 {
            if gate.ask(start + secs(second), false).is_ok() {
                gate.renewed(start + secs(second), true);
                replaced.push(second);
            }
        }
        assert_eq!(replaced, [30, 90, 210, 450, 750, 1050]);
    }

    #[test]
    fn another_server_is_looked_at_whenever_it_may_have_news_and_every_three_seconds_when_it_has_none()
     {
        let now = Instant::now();
        let mut gate = Gate::elsewhere(now);
        for _ in 0..100 {
            assert_eq!(gate.ask(now, false), Ok(()));
            gate.renewed(now, true);
        }
        gate.fruitless(now);
        gate.accept();
        assert_eq!(gate.ask(now + secs(2), true), Err(Denied::Backoff));
        assert_eq!(gate.ask(now + secs(3), false), Ok(()));
        gate.fruitless(now);
        gate.reset();
        assert_eq!(gate.ask(now, false), Ok(()), "an operator has spoken");
    }

    #[test]
    fn a_suspect_token_passes_the_back_off_but_not_the_bucket() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.renewed(now, false);
        assert_eq!(gate.ask(now, false), Err(Denied::Backoff));
        for _ in 0..Bucket::SIZE {
            assert_eq!(gate.ask(now, true), Ok(()));
        }
        assert_eq!(gate.ask(now, true), Err(Denied::Bucket));
    }
}
