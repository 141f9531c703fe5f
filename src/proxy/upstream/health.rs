//! Reachability of an API host, as the connection attempts of all workers tell it.
//!
//! A host is down once an attempt has failed and none has succeeded since that one began. Calls
//! then pass the host over while another one is left, and an attempt in the background every few
//! seconds decides about its return. Requests and answers say nothing here.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::dial_error::DialError;

/// Between the end of one probe of a host that is down and the begin of the next.
const PROBE_PAUSE: Duration = Duration::from_secs(5);

/// State of an API host. Shared by all workers and accounts.
#[derive(Debug)]
pub(super) struct HostHealth {
    /// Read for every request of an account with several hosts; all else only around attempts.
    down: AtomicBool,
    latest_success: Mutex<Option<Instant>>,
    /// The latest failure of a host that is down; each one wakes the calls that may move on.
    failures: watch::Sender<Option<DialError>>,
    epoch: Instant,
    /// Milliseconds since `epoch`.
    next_probe: AtomicU64,
    /// Nanoseconds from `epoch` to the latest use by any worker, as its housekeeping told it.
    latest_use: AtomicU64,
}

impl HostHealth {
    pub(super) fn new() -> Self {
        Self {
            down: AtomicBool::new(false),
            latest_success: Mutex::default(),
            failures: watch::Sender::new(None),
            epoch: Instant::now(),
            next_probe: AtomicU64::new(0),
            latest_use: AtomicU64::new(0),
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Acquire)
    }

    /// Notes a connection. Returns true for the one that ends the time of a host that was down.
    pub(super) fn succeed(&self) -> bool {
        let mut latest_success = self.lock();
        *latest_success = Some(Instant::now());
        // Under the lock, or a failure that is noted at this moment would be overwritten.
        self.down.swap(false, Release)
    }

    /// Notes a failed attempt that began at that moment.
    pub(super) fn fail(&self, began: Instant, error: &DialError) -> AttemptFailure {
        let latest_success = self.lock();
        if latest_success.is_some_and(|at| at >= began) {
            return AttemptFailure::Alone;
        }
        self.next_probe
            .store(self.millis(Instant::now() + PROBE_PAUSE), Relaxed);
        let was_down = self.down.swap(true, Release);
        drop(latest_success);
        self.failures.send_replace(Some(error.clone()));
        if was_down {
            AttemptFailure::StillDown
        } else {
            AttemptFailure::NowDown
        }
    }

    /// Returns true to one caller once a probe is due. A probe takes at most `timeout`.
    pub(super) fn take_probe(&self, timeout: Duration) -> bool {
        let now = Instant::now();
        let due = self.next_probe.load(Relaxed);
        // Should the probe be lost with its worker, another one follows all the same.
        let next = self.millis(now + timeout + PROBE_PAUSE);
        due <= self.millis(now)
            && self
                .next_probe
                .compare_exchange(due, next, Relaxed, Relaxed)
                .is_ok()
    }

    /// Notes the latest use of the host by a worker. Returns true if no other worker has told of a
    /// later one.
    pub(super) fn is_latest_use(&self, at: Instant) -> bool {
        let since = at.saturating_duration_since(self.epoch).as_nanos();
        let at = u64::try_from(since).unwrap_or(u64::MAX);
        self.latest_use.fetch_max(at, Relaxed) <= at
    }

    /// The failures from now on.
    pub(super) fn failures(&self) -> HostFailures {
        HostFailures(self.failures.subscribe())
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.latest_success
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The meaning of a failed attempt for its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptFailure {
    /// Another attempt has succeeded meanwhile: the host can be reached.
    Alone,
    NowDown,
    StillDown,
}

/// Subscription to the failures of a host that is down.
pub(super) struct HostFailures(watch::Receiver<Option<DialError>>);

impl HostFailures {
    /// Waits for the next failure of a host that is down by then.
    pub(super) async fn next(&mut self) -> DialError {
        loop {
            if self.0.changed().await.is_err() {
                // The host cannot go while a pool holds it.
                std::future::pending::<()>().await;
            }
            if let Some(error) = self.0.borrow_and_update().clone() {
                return error;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> DialError {
        DialError::Connect {
            host: "a".into(),
            reason: "refused".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_down_only_while_no_attempt_succeeds() {
        let health = HostHealth::new();
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.succeed(), "it was not down");
        assert_eq!(health.fail(began, &refused()), AttemptFailure::Alone);
        assert!(!health.is_down());
        tokio::time::advance(Duration::from_secs(1)).await;
        let began = Instant::now();
        assert_eq!(health.fail(began, &refused()), AttemptFailure::NowDown);
        assert_eq!(health.fail(began, &refused()), AttemptFailure::StillDown);
        assert!(health.is_down());
        assert!(health.succeed());
        assert!(!health.is_down());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_and_seconds_apart() {
        let health = HostHealth::new();
        let timeout = Duration::from_secs(3);
        health.fail(Instant::now(), &refused());
        assert!(!health.take_probe(timeout));
        tokio::time::advance(PROBE_PAUSE).await;
        assert!(health.take_probe(timeout));
        assert!(!health.take_probe(timeout), "one is under way");
        tokio::time::advance(timeout).await;
        health.fail(Instant::now(), &refused());
        tokio::time::advance(PROBE_PAUSE / 2).await;
        assert!(!health.take_probe(timeout));
        tokio::time::advance(PROBE_PAUSE / 2).await;
        assert!(health.take_probe(timeout));
    }
}
