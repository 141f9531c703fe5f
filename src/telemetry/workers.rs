//! Worker threads that have stopped answering, as the watchdog sees them.
//!
//! Only the state: the data path probes its workers and writes here, readiness reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::time::Instant;

/// Set of the parts of the data path that are stuck. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StuckWorkers {
    since: Arc<Mutex<BTreeMap<String, Instant>>>,
    count: Gauge,
}

impl StuckWorkers {
    /// An empty set whose size is a metric of the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let stuck = Self::default();
        registry.register(
            "wxgate_stuck_workers",
            "Worker threads and listeners that do not answer the watchdog",
            stuck.count.clone(),
        );
        stuck
    }

    /// Adds a part that has not answered since `since`.
    pub fn insert(&self, name: &str, since: Instant) {
        let mut stuck = self.lock();
        stuck.entry(name.to_owned()).or_insert(since);
        self.count
            .set(i64::try_from(stuck.len()).unwrap_or(i64::MAX));
    }

    /// Removes a part that answers again, and returns how long it did not.
    pub fn remove(&self, name: &str) -> Option<Duration> {
        let mut stuck = self.lock();
        let since = stuck.remove(name)?;
        self.count
            .set(i64::try_from(stuck.len()).unwrap_or(i64::MAX));
        Some(since.elapsed())
    }

    /// Names, each with the time since it was asked in vain.
    pub fn list(&self) -> Vec<(String, Duration)> {
        self.lock()
            .iter()
            .map(|(name, since)| (name.clone(), since.elapsed()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
