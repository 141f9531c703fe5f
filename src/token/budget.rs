//! Limits for calls of WeChat: daily budgets, which are stored, and a token bucket, which is not.
//!
//! Counts only. Days are Beijing days (UTC+8), since WeChat's quotas start anew at midnight there.

use std::{cmp::Ordering, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Fetches of a classic token per day that WeChat allows an ordinary account (API_Call_Limits
/// page).
pub(crate) const CLASSIC_PER_DAY: u32 = 2000;
/// Forced refreshes per day that wxgate does on its own.
pub(crate) const FORCED_PER_DAY: u32 = 6;
/// Forced refreshes per day that WeChat allows (getStableAccessToken page); the bound for
/// operators.
pub(crate) const FORCED_PER_DAY_OPERATOR: u32 = 20;
/// Forced refreshes per day of a node that cannot tell the other nodes. With the six that all nodes
/// know of, fourteen such nodes stay within WeChat's twenty.
pub(crate) const FORCED_PER_DAY_ALONE: u32 = 1;
/// Pause between two forced refreshes that wxgate does on its own. WeChat ignores a second forced
/// refresh within 30 s.
pub(crate) const FORCED_APART: Duration = Duration::from_secs(60);
/// Pause between two forced refreshes that an operator orders.
pub(crate) const FORCED_APART_OPERATOR: Duration = Duration::from_secs(30);

const DAY_MS: u64 = 86_400_000;
const BEIJING_MS: u64 = 8 * 3_600_000;

/// Calls spent today. Part of the stored record; times are wall time in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DailyBudget {
    /// Beijing day, counted from 1970.
    day: u64,
    classic: u32,
    forced: u32,
    last_forced_ms: u64,
}

/// Kind of a daily budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BudgetKind {
    /// Fetches of a classic token, each of which replaces the previous token.
    Classic,
    /// Forced refreshes of a stable token.
    Forced,
}

/// Error of an exhausted limit, with the time until the next call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted(pub Duration);

/// Cause of a forced refresh, which decides its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forcer {
    /// Rejection of the token: six a day, 60 s apart.
    Refresher,
    /// Order of an operator: up to WeChat's own twenty a day, 30 s apart.
    Operator,
    /// Rejection of the token on a node that cannot tell the other nodes: one a day.
    Alone,
}

impl BudgetKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Classic, Self::Forced];

    /// Word for metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Forced => "forced",
        }
    }
}

impl DailyBudget {
    /// Spends one classic fetch.
    ///
    /// # Errors
    /// The day's budget is spent.
    pub fn spend_classic(&mut self, now_ms: u64) -> Result<(), Exhausted> {
        self.roll(now_ms);
        if self.classic >= CLASSIC_PER_DAY {
            return Err(Exhausted(until_midnight(now_ms)));
        }
        self.classic += 1;
        Ok(())
    }

    /// Spends one forced refresh.
    ///
    /// # Errors
    /// The day's budget is spent, or the last forced refresh is too recent.
    pub fn spend_forced(&mut self, now_ms: u64, forcer: Forcer) -> Result<(), Exhausted> {
        let (limit, apart) = match forcer {
            Forcer::Refresher => (FORCED_PER_DAY, FORCED_APART),
            Forcer::Operator => (FORCED_PER_DAY_OPERATOR, FORCED_APART_OPERATOR),
            Forcer::Alone => (FORCED_PER_DAY_ALONE, FORCED_APART),
        };
        self.roll(now_ms);
        if self.forced >= limit {
            return Err(Exhausted(until_midnight(now_ms)));
        }
        // `roll` has made sure that the last forced refresh is not in the future.
        let since = Duration::from_millis(now_ms - self.last_forced_ms);
        if self.last_forced_ms > 0 && since < apart {
            return Err(Exhausted(apart.saturating_sub(since)));
        }
        self.forced += 1;
        self.last_forced_ms = now_ms;
        Ok(())
    }

    /// Classic fetches left today.
    pub fn classic_left(&self, now_ms: u64) -> u32 {
        let mut today = *self;
        today.roll(now_ms);
        CLASSIC_PER_DAY.saturating_sub(today.classic)
    }

    /// Forced refreshes left today for wxgate itself; operators have more.
    pub fn forced_left(&self, now_ms: u64) -> u32 {
        let mut today = *self;
        today.roll(now_ms);
        FORCED_PER_DAY.saturating_sub(today.forced)
    }

    /// Merges the counts of two nodes: the larger counts of the same day, else those of the later
    /// day.
    #[must_use]
    pub fn or_more_spent(self, other: Self) -> Self {
        match self.day.cmp(&other.day) {
            Ordering::Less => other,
            Ordering::Greater => self,
            Ordering::Equal => Self {
                day: self.day,
                classic: self.classic.max(other.classic),
                forced: self.forced.max(other.forced),
                last_forced_ms: self.last_forced_ms.max(other.last_forced_ms),
            },
        }
    }

    /// Starts a new day if `now_ms` is in one. A stored day far ahead comes from a wrong clock: its
    /// counts hold for today, so that a jump of the clock gives at most one budget more.
    fn roll(&mut self, now_ms: u64) {
        let today = now_ms.saturating_add(BEIJING_MS) / DAY_MS;
        if today > self.day {
            (self.classic, self.forced) = (0, 0);
        }
        if today > self.day || self.day > today + 1 {
            self.day = today;
        }
        self.last_forced_ms = self.last_forced_ms.min(now_ms);
    }
}

fn until_midnight(now_ms: u64) -> Duration {
    Duration::from_millis(DAY_MS - now_ms.saturating_add(BEIJING_MS) % DAY_MS)
}

/// Token bucket for the replacement of rejected tokens: ten at once, then one a minute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// Time at which the bucket is full again. The content follows from that one number.
    full_at: Instant,
}

impl Bucket {
    /// Content of a full bucket.
    pub(crate) const SIZE: u32 = 10;
    /// Time after which the bucket holds one more.
    pub(crate) const REFILL: Duration = Duration::from_secs(60);

    /// Full bucket.
    pub(crate) fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one from the bucket.
    ///
    /// # Errors
    /// The bucket is empty.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Exhausted> {
        let owed = self.full_at.saturating_duration_since(now);
        let room = Self::REFILL * (Self::SIZE - 1);
        if owed > room {
            return Err(Exhausted(owed.saturating_sub(room)));
        }
        self.full_at = now + owed + Self::REFILL;
        Ok(())
    }

    /// Returns one that was taken and not needed.
    pub(crate) fn put_back(&mut self, now: Instant) {
        let owed = self.full_at.saturating_duration_since(now);
        self.full_at = now + owed.saturating_sub(Self::REFILL);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: u64 = 20_000 * DAY_MS + 4 * 3_600_000;

    #[test]
    fn the_day_ends_at_midnight_in_beijing() {
        let mut budget = DailyBudget::default();
        for _ in 0..CLASSIC_PER_DAY {
            budget.spend_classic(NOON).unwrap();
        }
        assert_eq!(
            budget.spend_classic(NOON),
            Err(Exhausted(Duration::from_secs(12 * 3600)))
        );
        assert_eq!(budget.classic_left(NOON + 12 * 3_600_000 - 1), 0);
        assert_eq!(budget.classic_left(NOON + 12 * 3_600_000), CLASSIC_PER_DAY);
    }

    #[test]
    fn forced_refreshes_are_few_and_apart() {
        let mut budget = DailyBudget::default();
        budget.spend_forced(NOON, Forcer::Refresher).unwrap();
        assert_eq!(
            budget.spend_forced(NOON + 10_000, Forcer::Refresher),
            Err(Exhausted(Duration::from_secs(50)))
        );
        assert_eq!(
            budget.spend_forced(NOON + 10_000, Forcer::Operator),
            Err(Exhausted(Duration::from_secs(20)))
        );
        for n in 1..6 {
            budget
                .spend_forced(NOON + n * 60_000, Forcer::Refresher)
                .unwrap();
        }
        assert!(
            budget
                .spend_forced(NOON + 3_600_000, Forcer::Refresher)
                .is_err()
        );
        for n in 0..14 {
            budget
                .spend_forced(NOON + 4_000_000 + n * 60_000, Forcer::Operator)
                .unwrap();
        }
        assert!(
            budget
                .spend_forced(NOON + 10_000_000, Forcer::Operator)
                .is_err(),
            "more than WeChat's own twenty"
        );
    }

    #[test]
    fn a_clock_that_jumps_ahead_and_back_gives_one_budget_more_and_locks_nobody_out() {
        let mut budget = DailyBudget::default();
        budget.spend_forced(NOON, Forcer::Refresher).unwrap();
        budget
            .spend_forced(NOON + 3650 * DAY_MS, Forcer::Refresher)
            .unwrap();
        assert_eq!(budget.forced_left(NOON + 60_000), FORCED_PER_DAY - 1);
        assert_eq!(
            budget.forced_left(NOON + DAY_MS),
            FORCED_PER_DAY - 1,
            "kept for the day of the first look"
        );
        budget
            .spend_forced(NOON + 120_000, Forcer::Refresher)
            .unwrap_err();
        budget
            .spend_forced(NOON + 180_000, Forcer::Refresher)
            .unwrap();
        assert_eq!(budget.forced_left(NOON + DAY_MS), FORCED_PER_DAY);
    }

    proptest! {
        #[test]
        fn no_wall_time_panics_and_no_day_sees_more_than_its_share(times in prop::collection::vec(any::<u64>(), 1..40)) {
            let mut budget = DailyBudget::default();
            for now in times {
                let _ = budget.spend_forced(now, Forcer::Operator);
                let _ = budget.spend_classic(now);
                prop_assert!(budget.forced <= FORCED_PER_DAY_OPERATOR && budget.classic <= CLASSIC_PER_DAY);
            }
        }

        #[test]
        fn a_bucket_gives_ten_at_once_and_one_a_minute(steps in prop::collection::vec(0_u64..30_000, 1..400)) {
            let start = Instant::now();
            let mut bucket = Bucket::full(start);
            let (mut at, mut taken) = (0, 0_u64);
            for step in steps {
                at += step;
                taken += u64::from(bucket.take(start + Duration::from_millis(at)).is_ok());
                prop_assert!(taken <= 10 + at / 60_000);
            }
        }
    }
}
