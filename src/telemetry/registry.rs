//! Metric registry and its text form, and with it the log of recent events.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

use super::{events::EventLog, process::ProcessCollector};

/// Content type of [`MetricsRegistry::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Registry of all metrics of a process, with its recent events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct MetricsRegistry {
    registry: Arc<Mutex<Registry>>,
    events: EventLog,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        let mut registry = Registry::default();
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("wxgate_build", "The running version", build);
        registry.register_collector(Box::new(ProcessCollector::new()));
        Self {
            registry: Arc::new(Mutex::new(registry)),
            events: EventLog::default(),
        }
    }
}

impl MetricsRegistry {
    /// Passes the registry to a module that registers its metrics.
    pub(crate) fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the log of recent events.
    pub(crate) fn events(&self) -> EventLog {
        self.events.clone()
    }

    /// Returns all metrics as OpenMetrics text.
    pub(crate) fn render(&self) -> String {
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = text::encode(&mut page, &registry);
        page
    }
}
