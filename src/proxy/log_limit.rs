//! Limit for log lines that every call could write.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Allows one line a minute, over all workers.
#[derive(Debug)]
pub(crate) struct LogLimit {
    since: Instant,
    /// Second since `since` from which the next line is allowed.
    next: AtomicU64,
    /// Lines that were not written since the last one.
    left_out: AtomicU64,
}

const EVERY: Duration = Duration::from_secs(60);

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            next: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }
}

impl LogLimit {
    /// Returns true if a line may be written now, and takes the minute.
    pub(crate) fn allows(&self) -> bool {
        self.admit().is_some()
    }

    /// Like [`LogLimit::allows`]; returns how many lines were left out since the last one.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = self.since.elapsed().as_secs();
        let next = self.next.load(Relaxed);
        // Of several workers at the same moment, one exchange succeeds.
        let is_due = now >= next
            && self
                .next
                .compare_exchange(next, now + EVERY.as_secs(), Relaxed, Relaxed)
                .is_ok();
        if is_due {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_minute_is_allowed() {
        let limit = LogLimit::default();
        assert!(limit.allows() && !limit.allows());
        tokio::time::advance(EVERY).await;
        assert!(limit.allows() && !limit.allows() && !limit.allows());
        tokio::time::advance(EVERY).await;
        assert_eq!((limit.admit(), limit.admit()), (Some(2), None));
    }
}
