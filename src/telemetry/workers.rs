//! Set of worker threads and listeners that do not answer the watchdog.
//!
//! State only: the watchdog in `proxy` probes and writes here, readiness in `admin` reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::time::Instant;

/// Set of stuck worker threads and listeners. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct StuckWorkers {
    since: Arc<Mutex<BTreeMap<String, Instant>>>,
    count: Gauge,
}

impl StuckWorkers {
    /// Creates an empty set, with its size as a metric of the registry.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let stuck = Self::default();
        registry.register(
            "wxgate_stuck_workers",
            "Worker threads and listeners that do not answer the watchdog",
            stuck.count.clone(),
        );
        stuck
    }

    /// Adds a worker that has not answered since `since`.
    pub(crate) fn insert(&self, name: &str, since: Instant) {
        let mut stuck = self.lock();
        // A repeated report keeps the first time.
        stuck.entry(name.to_owned()).or_insert(since);
        self.count
            .set(i64::try_from(stuck.len()).unwrap_or(i64::MAX));
    }

    /// Removes a worker that answers again. Returns the time without an answer.
    pub(crate) fn remove(&self, name: &str) -> Option<Duration> {
        let mut stuck = self.lock();
        let since = stuck.remove(name)?;
        self.count
            .set(i64::try_from(stuck.len()).unwrap_or(i64::MAX));
        Some(since.elapsed())
    }

    /// Returns the names, each with the time without an answer.
    pub(crate) fn list(&self) -> Vec<(String, Duration)> {
        self.lock()
            .iter()
            .map(|(name, since)| (name.clone(), since.elapsed()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
