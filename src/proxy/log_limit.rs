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
}

const EVERY: Duration = Duration::from_secs(60);

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            next: AtomicU64::new(0),
        }
    }
}

impl LogLimit {
    /// Returns true if a line may be written now, and takes the minute.
    pub(crate) fn allows(&self) -> bool {
        let now = self.since.elapsed().as_secs();
        let next = self.next.load(Relaxed);
        // Of several workers at the same moment, one exchange succeeds.
        now >= next
            && self
                .next
                .compare_exchange(next, now + EVERY.as_secs(), Relaxed, Relaxed)
                .is_ok()
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
        assert!(limit.allows() && !limit.allows());
    }
}
