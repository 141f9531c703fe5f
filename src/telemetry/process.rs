//! Metrics of the process, read when they are asked for, under the names that Prometheus's own
//! clients use. Where the system has no `/proc`, only the start is told.

use std::{fmt, fs, path::Path, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use rustix::process::{Resource, getrlimit};

/// Source of the metrics of the process.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    /// Begin of the process, to within the time that it takes to start; Unix time.
    started: f64,
}

/// Clock ticks per second in `/proc`, which Linux shows as 100 on every platform in use.
const TICKS: f64 = 100.0;

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            started: now.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        gauge(
            "process_start_time_seconds",
            "Unix time at which the process started",
            Some(self.started),
        )?;
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            resident_memory(),
        )?;
        gauge("process_open_fds", "Open file descriptors", open_fds())?;
        let max_fds = getrlimit(Resource::Nofile).current;
        gauge(
            "process_max_fds",
            "Limit of open file descriptors",
            max_fds.map(as_float),
        )?;
        let Some(seconds) = cpu_seconds() else {
            return Ok(());
        };
        let metric = encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time, user and system",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(seconds).encode(metric)
    }
}

fn resident_memory() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn open_fds() -> Option<f64> {
    let entries = fs::read_dir(Path::new("/proc/self/fd")).ok()?;
    // One of them is that of this look.
    Some(as_float(entries.count().saturating_sub(1) as u64))
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    // `utime` and `stime` are fields 14 and 15; the first one here is field 3.
    let mut ticks = fields.split_whitespace().skip(11);
    let user: f64 = ticks.next()?.parse().ok()?;
    let system: f64 = ticks.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counts of descriptors are small, and unlimited is a round number"
)]
fn as_float(count: u64) -> f64 {
    count as f64
}
