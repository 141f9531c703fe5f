//! Recorder of requests, deliveries and totals.
//!
//! Requests and deliveries are kept in bounded rings and only if the settings ask for it; totals
//! are always counted. A request is recorded before its answer is written.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    clock::Millis,
    record::{Counters, DeliveredMessage, PathCount, RecordedRequest},
    request::RequestHead,
    state::TokenState,
};

/// Index of a number in [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Total {
    Requests,
    Executed,
    Stale,
    Connections,
    Open,
    FailedHandshakes,
    Classic,
    Stable,
    Forced,
    Wecom,
    Tickets,
    Deliveries,
    Chunked,
    Malformed,
}

/// Request as stored; converted to [`RecordedRequest`] on demand only.
#[derive(Debug)]
pub(super) struct RequestEntry {
    pub(super) head: RequestHead,
    pub(super) at: Millis,
    pub(super) connection: u64,
    pub(super) tls: bool,
    pub(super) body_length: u64,
    pub(super) body_sha256: String,
    pub(super) body: Bytes,
    pub(super) complete: bool,
    pub(super) account: Option<String>,
    pub(super) token_params: usize,
    pub(super) status: u16,
    pub(super) fault: Option<&'static str>,
    pub(super) verdict: Verdict,
}

/// Facts about a request that the totals depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    pub(super) token: TokenState,
    pub(super) errcode: Option<i64>,
    pub(super) executed: bool,
}

/// Recorder of a sandbox, shared by all connections.
#[derive(Debug)]
pub(super) struct Recorder {
    /// True to keep requests and deliveries.
    pub(super) on: bool,
    capacity: usize,
    totals: [AtomicU64; COUNTS],
    state: Mutex<RecorderState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct RecorderState {
    entries: VecDeque<(u64, RequestEntry)>,
    last_id: u64,
    body_bytes: usize,
    deliveries: VecDeque<DeliveredMessage>,
    paths: HashMap<String, PathCount>,
}

/// Bytes of a request body that are kept.
pub(super) const MAX_RECORDED_BODY: usize = 64 << 10;
/// Bytes of all request bodies together that are kept.
const MAX_RECORDED_BODIES: usize = 64 << 20;
/// Number of different paths that are counted.
const MAX_PATHS: usize = 1000;
const COUNTS: usize = Total::Malformed as usize + 1;

impl Recorder {
    pub(super) fn new(on: bool, capacity: usize) -> Self {
        Self {
            on,
            capacity: capacity.max(1),
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn count(&self, total: Total) -> u64 {
        // Relaxed: totals are independent numbers; readers who wait are woken through `changed`.
        self.totals[total as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn open_connection(&self) -> OpenConnection<'_> {
        self.count(Total::Open);
        self.changed.notify_waiters();
        OpenConnection(self)
    }

    /// Counts an answered request, and keeps it if the recorder is on.
    pub(super) fn add(&self, verdict: Verdict, entry: impl FnOnce() -> RequestEntry) {
        self.count(Total::Requests);
        if verdict.executed {
            self.count(Total::Executed);
        }
        let refused = matches!(verdict.errcode, Some(40001 | 40014 | 42001));
        if refused && verdict.token != TokenState::None {
            self.count(Total::Stale);
        }
        if self.on {
            self.state().add(entry(), self.capacity);
        }
        self.changed.notify_waiters();
    }

    pub(super) fn deliver(&self, delivery: impl FnOnce(u64) -> DeliveredMessage) -> u64 {
        let id = self.count(Total::Deliveries);
        if self.on {
            let mut state = self.state();
            state.deliveries.push_back(delivery(id));
            if state.deliveries.len() > self.capacity {
                state.deliveries.pop_front();
            }
        }
        id
    }

    pub(super) fn counters(&self) -> Counters {
        let get = |total: Total| self.totals[total as usize].load(Ordering::Relaxed);
        Counters {
            requests: get(Total::Requests),
            executed: get(Total::Executed),
            stale: get(Total::Stale),
            connections: get(Total::Connections),
            open_connections: get(Total::Open),
            failed_handshakes: get(Total::FailedHandshakes),
            classic_fetches: get(Total::Classic),
            stable_fetches: get(Total::Stable),
            forced_fetches: get(Total::Forced),
            wecom_fetches: get(Total::Wecom),
            ticket_fetches: get(Total::Tickets),
            deliveries: get(Total::Deliveries),
            chunked: get(Total::Chunked),
            malformed: get(Total::Malformed),
        }
    }

    pub(super) fn records(&self, wanted: impl Fn(&str) -> bool) -> Vec<RecordedRequest> {
        let state = self.state();
        state
            .entries
            .iter()
            .filter(|(_, e)| wanted(e.head.path()))
            .map(|(id, e)| e.record(*id))
            .collect()
    }

    pub(super) fn deliveries(&self) -> Vec<DeliveredMessage> {
        self.state().deliveries.iter().cloned().collect()
    }

    pub(super) fn paths(&self) -> HashMap<String, PathCount> {
        self.state().paths.clone()
    }

    pub(super) fn path(&self, path: &str) -> PathCount {
        self.state().paths.get(path).copied().unwrap_or_default()
    }

    /// Clears everything except the numbers of connections.
    pub(super) fn clear(&self) {
        // The numbers go on, so that a number is never given to two requests.
        let last_id = self.state().last_id;
        *self.state() = RecorderState {
            last_id,
            ..RecorderState::default()
        };
        for (index, total) in self.totals.iter().enumerate() {
            if index != Total::Open as usize && index != Total::Connections as usize {
                total.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Returns the notifier of new records.
    pub(super) fn changes(&self) -> &Notify {
        &self.changed
    }

    fn state(&self) -> MutexGuard<'_, RecorderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard that counts a connection while it is open.
#[derive(Debug)]
pub(super) struct OpenConnection<'r>(&'r Recorder);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.totals[Total::Open as usize].fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }
}

impl RecorderState {
    fn add(&mut self, entry: RequestEntry, capacity: usize) {
        self.last_id += 1;
        if let Some(count) = self.count_of(entry.head.path()) {
            count.requests += 1;
            count.executed += u64::from(entry.verdict.executed);
        }
        self.body_bytes += entry.body.len();
        self.entries.push_back((self.last_id, entry));
        while self.entries.len() > capacity || self.body_bytes > MAX_RECORDED_BODIES {
            let Some((_, oldest)) = self.entries.pop_front() else {
                break;
            };
            // `add` counted exactly these bytes, so the subtraction cannot underflow.
            self.body_bytes -= oldest.body.len();
        }
    }

    fn count_of(&mut self, path: &str) -> Option<&mut PathCount> {
        if !self.paths.contains_key(path) {
            // Paths come from clients; without a bound a scanner would fill the memory.
            if self.paths.len() >= MAX_PATHS {
                return None;
            }
            self.paths.insert(path.to_owned(), PathCount::default());
        }
        self.paths.get_mut(path)
    }
}

impl RequestEntry {
    fn record(&self, id: u64) -> RecordedRequest {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        RecordedRequest {
            id,
            at_ms: self.at,
            connection: self.connection,
            tls: self.tls,
            method: self.head.method().to_owned(),
            path: self.head.path().to_owned(),
            query: self.head.query().map(str::to_owned),
            headers: self
                .head
                .fields
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            framing: self.head.framing,
            body_length: self.body_length,
            body_sha256: self.body_sha256.clone(),
            body: self.body.clone(),
            complete: self.complete,
            account: self.account.clone(),
            token: self.verdict.token,
            token_params: self.token_params,
            status: self.status,
            errcode: self.verdict.errcode,
            fault: self.fault,
            executed: self.verdict.executed,
        }
    }
}
