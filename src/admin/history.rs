//! History of calls, latency and error codes for the plots of the console.
//!
//! Sampled from the metrics by the thread of the admin listener, so that requests pay nothing for
//! it. The metrics are read in their text form, which is the part of them that users know too.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::telemetry::registry::MetricsRegistry;

/// Ring of samples. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<Sample>>>);

/// Calls between two looks at the metrics.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Sample {
    /// Unix time of the end in milliseconds.
    pub(super) at: u64,
    pub(super) seconds: f64,
    pub(super) calls: u64,
    pub(super) failed: u64,
    pub(super) denied: u64,
    /// Latency in milliseconds; `null` without calls, and for a single account.
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) p99: Option<f64>,
    /// Answers of WeChat by `errcode`, successes left out.
    pub(super) errcodes: BTreeMap<String, u64>,
    #[serde(skip)]
    accounts: HashMap<String, AccountCounts>,
}

/// Counters at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    accounts: HashMap<String, AccountCounts>,
    denied: u64,
    /// Cumulative counts by upper bound in seconds, in the order of the bounds.
    latency: Vec<(f64, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct AccountCounts {
    calls: u64,
    failed: u64,
    errcodes: BTreeMap<String, u64>,
}

/// Line of the text form of metrics.
pub(super) struct MetricLine<'t> {
    pub(super) name: &'t str,
    labels: Vec<(&'t str, Cow<'t, str>)>,
    pub(super) value: f64,
}

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(5);
/// The pause is at least this many times what a sample took: with very many accounts samples become
/// rarer instead of dear.
const PAUSE_FACTOR: u32 = 200;
/// Samples that are kept: half an hour.
const MAX_SAMPLES: usize = 360;
/// Accounts in a sample, those with the most calls.
const MAX_ACCOUNTS: usize = 200;
/// Metrics that are read; all others are passed over unparsed.
const WANTED: [&str; 4] = [
    "wxgate_requests_total",
    "wxgate_denied_total",
    "wxgate_upstream_errcode_total",
    "wxgate_request_duration_seconds_bucket",
];

impl History {
    /// Takes samples without end.
    pub(super) async fn sample(self, metrics: MetricsRegistry) {
        let mut before = (Instant::now(), Totals::read(&metrics.render()));
        let mut pause = EVERY;
        loop {
            sleep(pause).await;
            let started = Instant::now();
            let now = (Instant::now(), Totals::read(&metrics.render()));
            self.push(Sample::between(&before.1, &now.1, now.0 - before.0));
            before = now;
            pause = EVERY.max(started.elapsed() * PAUSE_FACTOR);
        }
    }

    /// Samples of the node, or of one account, oldest first.
    pub(super) fn samples(&self, account: Option<&str>) -> Vec<Sample> {
        let samples = self.lock();
        let Some(account) = account else {
            return samples.iter().cloned().collect();
        };
        samples
            .iter()
            .map(|sample| sample.of_account(account))
            .collect()
    }

    fn push(&self, sample: Sample) {
        let mut samples = self.lock();
        if samples.len() >= MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn between(before: &Totals, now: &Totals, took: Duration) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut sample = Self {
            at: u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            seconds: took.as_secs_f64(),
            denied: now.denied.saturating_sub(before.denied),
            ..Self::default()
        };
        let nothing = AccountCounts::default();
        let mut accounts = Vec::new();
        for (name, counts) in &now.accounts {
            let delta = counts.since(before.accounts.get(name).unwrap_or(&nothing));
            if delta == nothing {
                continue;
            }
            sample.calls += delta.calls;
            sample.failed += delta.failed;
            for (code, count) in &delta.errcodes {
                *sample.errcodes.entry(code.clone()).or_default() += count;
            }
            accounts.push((name.clone(), delta));
        }
        accounts.sort_unstable_by_key(|(_, delta)| Reverse(delta.calls));
        accounts.truncate(MAX_ACCOUNTS);
        sample.accounts = accounts.into_iter().collect();
        let latency = latency_since(&before.latency, &now.latency);
        sample.p50 = quantile(&latency, 0.50);
        sample.p95 = quantile(&latency, 0.95);
        sample.p99 = quantile(&latency, 0.99);
        sample
    }

    fn of_account(&self, account: &str) -> Self {
        let counts = self.accounts.get(account).cloned().unwrap_or_default();
        Self {
            at: self.at,
            seconds: self.seconds,
            calls: counts.calls,
            failed: counts.failed,
            errcodes: counts.errcodes,
            ..Self::default()
        }
    }
}

impl Totals {
    fn read(text: &str) -> Self {
        let mut totals = Self::default();
        for line in lines(text, &WANTED) {
            totals.add(&line);
        }
        totals
    }

    fn add(&mut self, line: &MetricLine<'_>) {
        let count = line.count();
        let account = line.label("account").unwrap_or_default();
        match line.name {
            "wxgate_requests_total" => {
                let counts = self.accounts.entry(account.to_owned()).or_default();
                counts.calls += count;
                if line.label("outcome") != Some("ok") {
                    counts.failed += count;
                }
            }
            "wxgate_upstream_errcode_total" => {
                let code = line.label("errcode").unwrap_or_default();
                if code != "0" {
                    let counts = self.accounts.entry(account.to_owned()).or_default();
                    *counts.errcodes.entry(code.to_owned()).or_default() += count;
                }
            }
            "wxgate_denied_total" => self.denied += count,
            _ => {
                let bound = match line.label("le") {
                    Some("+Inf") | None => f64::INFINITY,
                    Some(bound) => bound.parse().unwrap_or(f64::INFINITY),
                };
                self.add_latency(bound, count);
            }
        }
    }

    /// Adds a bucket to that of the same bound: labels other than the bound do not matter here.
    fn add_latency(&mut self, bound: f64, count: u64) {
        let same = |(other, _): &&mut (f64, u64)| other.total_cmp(&bound).is_eq();
        match self.latency.iter_mut().find(same) {
            Some((_, sum)) => *sum += count,
            None => self.latency.push((bound, count)),
        }
    }
}

impl AccountCounts {
    fn since(&self, before: &Self) -> Self {
        let errcodes = self.errcodes.iter().filter_map(|(code, count)| {
            let count = count.saturating_sub(before.errcodes.get(code).copied().unwrap_or(0));
            (count > 0).then(|| (code.clone(), count))
        });
        Self {
            calls: self.calls.saturating_sub(before.calls),
            failed: self.failed.saturating_sub(before.failed),
            errcodes: errcodes.collect(),
        }
    }
}

impl MetricLine<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map(|(_, value)| &**value)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole, and negative or huge ones saturate"
    )]
    pub(super) fn count(&self) -> u64 {
        self.value as u64
    }
}

/// Lines of the metrics with these names.
pub(super) fn lines<'t>(text: &'t str, wanted: &'t [&str]) -> impl Iterator<Item = MetricLine<'t>> {
    text.lines().filter_map(move |line| {
        let end = line.find(['{', ' '])?;
        let name = &line[..end];
        if !wanted.contains(&name) {
            return None;
        }
        let (labels, value) = match line[end..].strip_prefix('{') {
            Some(rest) => read_labels(rest)?,
            None => (Vec::new(), &line[end..]),
        };
        let value = value.split_ascii_whitespace().next()?.parse().ok()?;
        Some(MetricLine {
            name,
            labels,
            value,
        })
    })
}

/// Labels behind the opening brace, and the text behind the closing one.
#[expect(clippy::type_complexity, reason = "a pair of local use")]
fn read_labels(mut rest: &str) -> Option<(Vec<(&str, Cow<'_, str>)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = quoted.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?;
        labels.push((name, unescaped(&quoted[..end])));
        rest = &quoted[end + 1..];
    }
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => {}
            },
            _ => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Cumulative counts of the time between two moments.
fn latency_since(before: &[(f64, u64)], now: &[(f64, u64)]) -> Vec<(f64, u64)> {
    let earlier = before.iter().map(|(_, count)| *count);
    let earlier = earlier.chain(std::iter::repeat(0));
    now.iter()
        .zip(earlier)
        .map(|((bound, count), before)| (*bound, count.saturating_sub(before)))
        .collect()
}

/// Quantile in milliseconds, interpolated within its bucket; `None` without calls.
#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn quantile(buckets: &[(f64, u64)], quantile: f64) -> Option<f64> {
    let total = buckets.last()?.1;
    if total == 0 {
        return None;
    }
    let rank = total as f64 * quantile;
    let (mut lower, mut below) = (0.0, 0);
    for (bound, count) in buckets {
        if *count as f64 >= rank {
            if bound.is_infinite() {
                return Some(lower * 1000.0);
            }
            let share = (rank - below as f64) / (count - below).max(1) as f64;
            return Some((lower + (bound - lower) * share) * 1000.0);
        }
        (lower, below) = (*bound, *count);
    }
    Some(lower * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE wxgate_requests counter\n\
        wxgate_requests_total{account=\"shop\",client=\"a\",outcome=\"ok\"} 10\n\
        wxgate_upstream_errcode_total{account=\"shop\",errcode=\"0\"} 10\n\
        wxgate_request_duration_seconds_bucket{le=\"0.01\"} 10\n\
        wxgate_request_duration_seconds_bucket{le=\"0.1\"} 10\n\
        wxgate_request_duration_seconds_bucket{le=\"+Inf\"} 10\n";
    const NOW: &str = "wxgate_requests_total{account=\"shop\",client=\"a\",outcome=\"ok\"} 14\n\
        wxgate_requests_total{account=\"shop\",client=\"a \\\"b\\\"} \\\\\",outcome=\"path_denied\"} 2\n\
        wxgate_requests_total{account=\"crm\",client=\"a\",outcome=\"ok\"} 4\n\
        wxgate_upstream_errcode_total{account=\"shop\",errcode=\"0\"} 13\n\
        wxgate_upstream_errcode_total{account=\"shop\",errcode=\"45009\"} 1\n\
        wxgate_denied_total{client=\"a\",reason=\"path_denied\",mode=\"enforce\"} 2\n\
        wxgate_request_duration_seconds_bucket{le=\"0.01\",x=\"1\"} 10\n\
        wxgate_request_duration_seconds_bucket{le=\"0.1\",x=\"1\"} 16\n\
        wxgate_request_duration_seconds_bucket{le=\"+Inf\",x=\"1\"} 16\n\
        wxgate_request_duration_seconds_bucket{le=\"0.01\",x=\"2\"} 0\n\
        wxgate_request_duration_seconds_bucket{le=\"0.1\",x=\"2\"} 4\n\
        wxgate_request_duration_seconds_bucket{le=\"+Inf\",x=\"2\"} 4\n\
        wxgate_inflight_requests 3\n# EOF\n";

    #[test]
    fn a_sample_is_the_difference_of_two_looks_at_the_metrics() {
        let (before, now) = (Totals::read(BEFORE), Totals::read(NOW));
        let sample = Sample::between(&before, &now, Duration::from_secs(5));
        assert_eq!((sample.calls, sample.failed, sample.denied), (10, 2, 2));
        assert_eq!(sample.errcodes, BTreeMap::from([("45009".to_owned(), 1)]));
        assert!(sample.p50.is_some_and(|ms| (ms - 55.0).abs() < 0.01));
        let shop = sample.of_account("shop");
        assert_eq!((shop.calls, shop.failed, shop.p50), (6, 2, None));
        assert_eq!(sample.of_account("nobody").calls, 0);
    }

    #[test]
    fn quoted_labels_are_read_as_they_were_written() {
        let client = lines(NOW, &WANTED).find(|line| line.label("outcome") == Some("path_denied"));
        assert_eq!(client.unwrap().label("client"), Some("a \"b\"} \\"));
        for broken in [
            "wxgate_requests_total{",
            "wxgate_requests_total{a=\"",
            "wxgate_requests_total{a=\"b\\\"",
            "wxgate_requests_total",
            "wxgate_requests_total x",
        ] {
            assert_eq!(lines(broken, &WANTED).count(), 0, "{broken}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_history_is_bounded() {
        let history = History::default();
        for _ in 0..MAX_SAMPLES + 9 {
            history.push(Sample::default());
        }
        assert_eq!(history.samples(None).len(), MAX_SAMPLES);
    }
}
