//! Metrics of reloads of the configuration, under the names that Prometheus uses for its own.

use std::time::SystemTime;

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

/// Result of the latest reload, and time of the latest one that succeeded. The start counts as a
/// reload. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReloadMetrics {
    successful: Gauge,
    succeeded_at: Gauge,
}

impl ReloadMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "wxgate_config_last_reload_successful",
            "1 if the configuration that was loaded last is in force, else 0",
            metrics.successful.clone(),
        );
        registry.register(
            "wxgate_config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration in force was loaded",
            metrics.succeeded_at.clone(),
        );
        metrics.record(true);
        metrics
    }

    /// Notes the result of a reload.
    pub(crate) fn record(&self, succeeded: bool) {
        self.successful.set(i64::from(succeeded));
        if succeeded {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let now = now.unwrap_or_default().as_secs();
            self.succeeded_at
                .set(i64::try_from(now).unwrap_or(i64::MAX));
        }
    }
}
