//! Histogram of times that costs a request two additions: no lock, which all workers would contend
//! for, and no search.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Counts of times by their length. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LatencyHistogram(Arc<LatencyCounts>);

#[derive(Debug, Default)]
struct LatencyCounts {
    /// One count for each bound, and one for longer times.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

/// Upper bounds in microseconds.
const BOUNDS: [u64; 9] = [
    10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];

impl LatencyHistogram {
    pub(super) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Few comparisons without a branch are faster than a search.
        let bucket = BOUNDS.iter().filter(|bound| micros > **bound).count();
        if let Some(count) = self.0.buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.0.sum_micros.fetch_add(micros, Relaxed);
    }
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for LatencyHistogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        let bounds = BOUNDS.iter().map(|micros| seconds(*micros));
        let counts = self.0.buckets.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        // From the same look as the buckets, so that they always fit.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.0.sum_micros.load(Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn times_are_counted_up_to_their_bound() {
        let histogram = LatencyHistogram::default();
        for micros in [0, 10_000, 10_001, 2_500_000, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut registry = Registry::default();
        registry.register("took", "", histogram);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        for line in [
            "took_sum 62.520001",
            "took_count 5",
            "took_bucket{le=\"0.01\"} 2",
            "took_bucket{le=\"0.025\"} 3",
            "took_bucket{le=\"1.0\"} 3",
            "took_bucket{le=\"2.5\"} 4",
            "took_bucket{le=\"10.0\"} 4",
            "took_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
    }
}
