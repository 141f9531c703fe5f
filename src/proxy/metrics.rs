//! Metrics of the data path.
//!
//! Labels are bounded: accounts come from the configuration, outcomes and results from closed sets,
//! error codes from a table. Counters that a request touches are looked up once per account.

use std::{
    sync::{Arc, OnceLock, atomic::AtomicI64},
    time::{Duration, SystemTime},
};

use dashmap::DashMap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rustc_hash::FxBuildHasher;

use super::latency::LatencyHistogram;
use crate::{
    base::AccountName,
    telemetry::events::{Event, EventLog, Level},
    wechat::codes,
};

/// Label of requests that no account was found for.
const NO_ACCOUNT: &str = "-";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    account: String,
    client: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    account: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DenialLabels {
    client: String,
    reason: &'static str,
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrcodeLabels {
    account: String,
    errcode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplayLabels {
    account: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ForeignTokenLabels {
    account: String,
    treatment: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SigningLabels {
    account: String,
    result: &'static str,
}

/// Metric families, registered once.
#[derive(Debug, Clone)]
pub(crate) struct ProxyMetrics {
    requests: Family<RequestLabels, Counter>,
    denials: Family<DenialLabels, Counter>,
    endings: Family<EndingLabels, Counter>,
    duration: Histogram,
    errcodes: Family<ErrcodeLabels, Counter>,
    stale: Family<ErrcodeLabels, Counter>,
    replays: Family<ReplayLabels, Counter>,
    foreign_tokens: Family<ForeignTokenLabels, Counter>,
    signing: Family<SigningLabels, Counter>,
    upstream: Family<AccountLabels, LatencyHistogram>,
    /// End of the listeners' certificate, Unix time; `None` without TLS.
    certificate_end: Option<Gauge>,
    pub(crate) in_flight: Gauge<i64, AtomicI64>,
    events: EventLog,
}

impl ProxyMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            denials: Family::default(),
            endings: Family::default(),
            duration: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
            errcodes: Family::default(),
            stale: Family::default(),
            replays: Family::default(),
            foreign_tokens: Family::default(),
            signing: Family::default(),
            upstream: Family::default(),
            certificate_end: None,
            in_flight: Gauge::default(),
            events: EventLog::default(),
        };
        registry.register(
            "wxgate_requests",
            "Requests by outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "wxgate_denied",
            "Calls that a client was denied, or would have been if it were not on trial",
            metrics.denials.clone(),
        );
        registry.register(
            "wxgate_connections_ended",
            "Connections of callers that a limit ended",
            metrics.endings.clone(),
        );
        registry.register(
            "wxgate_request_duration_seconds",
            "Time from the request's head to the answer's head",
            metrics.duration.clone(),
        );
        registry.register(
            "wxgate_upstream_errcode",
            "Answers of WeChat by errcode",
            metrics.errcodes.clone(),
        );
        registry.register(
            "wxgate_stale",
            "Answers that refused the token",
            metrics.stale.clone(),
        );
        registry.register(
            "wxgate_replay",
            "What became of requests whose token was refused",
            metrics.replays.clone(),
        );
        registry.register(
            "wxgate_foreign_token",
            "Calls with an access_token that no account here has",
            metrics.foreign_tokens.clone(),
        );
        registry.register(
            "wxgate_api_signing",
            "Calls below signing.paths by what became of their signature",
            metrics.signing.clone(),
        );
        registry.register(
            "wxgate_upstream_duration_seconds",
            "Time from the begin of an attempt until WeChat's answer is there",
            metrics.upstream.clone(),
        );
        registry.register(
            "wxgate_inflight_requests",
            "Requests under way",
            metrics.in_flight.clone(),
        );
        metrics
    }

    /// Records refused tokens, replays and denials in this log, too.
    #[must_use]
    pub(crate) fn with_events(self, events: EventLog) -> Self {
        Self { events, ..self }
    }

    /// Adds the end of the listeners' certificate. Without TLS there is no such series: any value
    /// would set off an alarm.
    #[must_use]
    pub(crate) fn with_certificate(mut self, registry: &mut Registry) -> Self {
        let gauge = Gauge::default();
        registry.register(
            "wxgate_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of server.tls ends",
            gauge.clone(),
        );
        self.certificate_end = Some(gauge);
        self
    }

    /// Sets the end of the listeners' certificate; leaves it as it is if there is none to be read.
    pub(crate) fn set_certificate_end(&self, end: Option<SystemTime>) {
        let seconds = end.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let (Some(gauge), Some(seconds)) = (&self.certificate_end, seconds) {
            gauge.set(i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Makes the counters of one account.
    pub(crate) fn for_account(&self, account: &AccountName) -> AccountMetrics {
        self.labelled(account.as_str())
    }

    /// Makes the counters of requests that belong to no account.
    pub(crate) fn for_none(&self) -> AccountMetrics {
        self.labelled(NO_ACCOUNT)
    }

    /// Counts a call that was denied, or would have been.
    pub(crate) fn denied(&self, client: &str, reason: &'static str, mode: &'static str) {
        self.denials
            .get_or_create(&DenialLabels {
                client: client.to_owned(),
                reason,
                mode,
            })
            .inc();
    }

    /// Records an event of a request that is on its slow path.
    pub(crate) fn event(&self, event: Event) {
        self.events.record_unless_busy(event);
    }

    /// Counts a connection of a caller that a limit ended.
    pub(crate) fn connection_ended(&self, reason: &'static str) {
        self.endings.get_or_create(&EndingLabels { reason }).inc();
    }

    fn labelled(&self, account: &str) -> AccountMetrics {
        AccountMetrics {
            ok: Arc::default(),
            errcodes: Arc::default(),
            upstream: Arc::default(),
            account: account.into(),
            families: self.clone(),
        }
    }
}

/// The counters of one account.
#[derive(Debug, Clone)]
pub(crate) struct AccountMetrics {
    /// Successful requests by client. A family wants owned labels for each look-up, so the counters
    /// are kept.
    ok: Arc<DashMap<String, Counter, FxBuildHasher>>,
    /// Error codes by label, kept too: business errors are frequent.
    errcodes: Arc<DashMap<&'static str, Counter, FxBuildHasher>>,
    /// Made by the first call: an idle account has no series.
    upstream: Arc<OnceLock<LatencyHistogram>>,
    account: Arc<str>,
    families: ProxyMetrics,
}

impl AccountMetrics {
    /// Counts a finished request.
    pub(crate) fn finished(&self, client: &str, outcome: &'static str, seconds: f64) {
        self.families.duration.observe(seconds);
        let is_ok = outcome == "ok";
        if let Some(counter) = self.ok.get(client).filter(|_| is_ok) {
            counter.inc();
            return;
        }
        let labels = RequestLabels {
            account: self.account.to_string(),
            client: client.to_owned(),
            outcome,
        };
        let counter = self.families.requests.get_or_create_owned(&labels);
        counter.inc();
        if is_ok {
            self.ok.insert(client.to_owned(), counter);
        }
    }

    /// Counts the time that WeChat took for an answer.
    pub(crate) fn upstream_answered(&self, took: Duration) {
        let histogram = self.upstream.get_or_init(|| {
            self.families.upstream.get_or_create_owned(&AccountLabels {
                account: self.account.to_string(),
            })
        });
        histogram.observe(took);
    }

    /// Counts an answer of WeChat with this code.
    pub(crate) fn errcode(&self, errcode: i64) {
        let label = codes::label(errcode);
        if let Some(counter) = self.errcodes.get(label) {
            counter.inc();
            return;
        }
        let counter = self
            .families
            .errcodes
            .get_or_create_owned(&self.errcode_labels(errcode));
        counter.inc();
        self.errcodes.insert(label, counter);
    }

    /// Counts a refusal of the token with this code.
    pub(crate) fn stale(&self, errcode: i64) {
        self.families
            .stale
            .get_or_create(&self.errcode_labels(errcode))
            .inc();
        let event = Event::new("stale", Level::Info).account(&self.account);
        self.families.event(event.number("errcode", errcode));
    }

    fn errcode_labels(&self, errcode: i64) -> ErrcodeLabels {
        ErrcodeLabels {
            account: self.account.to_string(),
            errcode: codes::label(errcode),
        }
    }

    /// Counts a call with a foreign token, by the treatment of it.
    pub(crate) fn foreign_token(&self, treatment: &'static str) {
        let labels = ForeignTokenLabels {
            account: self.account.to_string(),
            treatment,
        };
        self.families.foreign_tokens.get_or_create(&labels).inc();
    }

    /// Counts a call below `signing.paths`: `signed`, `refused` and `unverified` by the answer of
    /// each attempt; `by_caller`, `unsigned_method` and `unsigned_type` for calls that wxgate does
    /// not sign.
    pub(crate) fn signing(&self, result: &'static str) {
        let labels = SigningLabels {
            account: self.account.to_string(),
            result,
        };
        self.families.signing.get_or_create(&labels).inc();
    }

    /// Counts the end of a request whose token was refused: `cured`, `stale_again`, `failed`, or the
    /// reason why the request was not sent again.
    pub(crate) fn replay(&self, result: &'static str) {
        let labels = ReplayLabels {
            account: self.account.to_string(),
            result,
        };
        self.families.replays.get_or_create(&labels).inc();
        let level = match result {
            "cured" => Level::Info,
            _ => Level::Warning,
        };
        let event = Event::new("replayed", level).account(&self.account);
        self.families.event(event.text("result", result));
    }
}
