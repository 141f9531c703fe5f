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
use serde::{Serialize, Serializer};
use tokio::sync::Notify;

use super::{
    clock::Millis,
    request::{Framing, Head},
    state::TokenState,
};

/// Bytes of a request body that are kept.
pub(super) const BODY_KEPT: usize = 64 << 10;
/// Bytes of all request bodies together that are kept.
const BODIES_KEPT: usize = 64 << 20;
/// Number of different paths that are counted.
const PATHS_KEPT: usize = 1000;

/// Recorded request with its answer's status.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Number, counted from 1.
    pub id: u64,
    /// Milliseconds of sandbox time since the start.
    pub at_ms: u64,
    /// Number of the connection, counted from 1 over all listeners.
    pub connection: u64,
    /// True if the request came over TLS.
    pub tls: bool,
    /// The method.
    pub method: String,
    /// Path, byte for byte.
    pub path: String,
    /// Query, byte for byte, without the question mark.
    pub query: Option<String>,
    /// Header fields in the order and the spelling in which they came.
    pub headers: Vec<(String, String)>,
    /// Framing of the body.
    #[serde(flatten)]
    pub framing: Framing,
    /// Length of the received body in bytes.
    pub body_length: u64,
    /// SHA-256 of the received body in hex.
    pub body_sha256: String,
    /// First 64 KiB of the received body.
    #[serde(serialize_with = "lossy")]
    pub body: Bytes,
    /// True if the body arrived whole.
    pub complete: bool,
    /// Appid that token, query or body named.
    pub account: Option<String>,
    /// State of the token at that moment.
    pub token: TokenState,
    /// Number of query parameters with the decoded name `access_token`.
    pub token_params: usize,
    /// Status of the answer; 0 if none was to be sent.
    pub status: u16,
    /// Errcode of the answer; `None` if it has none.
    pub errcode: Option<i64>,
    /// Name of the fault that was applied.
    pub fault: Option<&'static str>,
    /// True if the call took effect.
    pub executed: bool,
}

/// Message that WeChat would have delivered.
#[derive(Debug, Clone, Serialize)]
pub struct Delivery {
    /// The msgid.
    pub id: u64,
    /// Milliseconds of sandbox time since the start.
    pub at_ms: u64,
    /// The sender.
    pub account: String,
    /// The receiver.
    pub openid: String,
    /// `text`, `image`, `template`, …
    pub kind: String,
    /// The text, or the JSON of anything else.
    pub content: String,
}

/// Totals since the start or the last clearing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests to API paths.
    pub requests: u64,
    /// Of those, executed.
    pub executed: u64,
    /// Of those, refused because of the token in them.
    pub stale: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub open_connections: u64,
    /// Connections whose TLS handshake failed.
    pub failed_handshakes: u64,
    /// Calls of `cgi-bin/token`.
    pub classic_fetches: u64,
    /// Calls of `cgi-bin/stable_token`, forced ones among them.
    pub stable_fetches: u64,
    /// Calls of `cgi-bin/stable_token` with `force_refresh`.
    pub forced_fetches: u64,
    /// Calls of `cgi-bin/gettoken`.
    pub wecom_fetches: u64,
    /// Calls for a ticket that were executed.
    pub ticket_fetches: u64,
    /// Messages that were delivered.
    pub deliveries: u64,
    /// Bodies in chunks, answered with 412.
    pub chunked: u64,
    /// Requests that could not be read.
    pub malformed: u64,
}

/// Number of requests to a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PathCount {
    /// Requests.
    pub requests: u64,
    /// Of those, executed.
    pub executed: u64,
}

/// Index of a number in [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
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

const COUNTS: usize = Count::Malformed as usize + 1;

/// Request as stored; converted to [`Record`] on demand only.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) head: Head,
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

/// Recorder.
#[derive(Debug)]
pub(super) struct Recorder {
    /// True to keep requests and deliveries.
    pub(super) on: bool,
    capacity: usize,
    totals: [AtomicU64; COUNTS],
    books: Mutex<Books>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Books {
    entries: VecDeque<(u64, Entry)>,
    last_id: u64,
    body_bytes: usize,
    deliveries: VecDeque<Delivery>,
    paths: HashMap<String, PathCount>,
}

impl Recorder {
    pub(super) fn new(on: bool, capacity: usize) -> Self {
        Self {
            on,
            capacity: capacity.max(1),
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
            books: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn count(&self, what: Count) -> u64 {
        self.totals[what as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn open_connection(&self) -> OpenConnection<'_> {
        self.count(Count::Open);
        self.changed.notify_waiters();
        OpenConnection(self)
    }

    /// Counts an answered request, and keeps it if the recorder is on.
    pub(super) fn add(&self, verdict: Verdict, entry: impl FnOnce() -> Entry) {
        self.count(Count::Requests);
        if verdict.executed {
            self.count(Count::Executed);
        }
        let refused = matches!(verdict.errcode, Some(40001 | 40014 | 42001));
        if refused && verdict.token != TokenState::None {
            self.count(Count::Stale);
        }
        if self.on {
            self.books().add(entry(), self.capacity);
        }
        self.changed.notify_waiters();
    }

    pub(super) fn deliver(&self, delivery: impl FnOnce(u64) -> Delivery) -> u64 {
        let id = self.count(Count::Deliveries);
        if self.on {
            let mut books = self.books();
            books.deliveries.push_back(delivery(id));
            if books.deliveries.len() > self.capacity {
                books.deliveries.pop_front();
            }
        }
        id
    }

    pub(super) fn counters(&self) -> Counters {
        let get = |what: Count| self.totals[what as usize].load(Ordering::Relaxed);
        Counters {
            requests: get(Count::Requests),
            executed: get(Count::Executed),
            stale: get(Count::Stale),
            connections: get(Count::Connections),
            open_connections: get(Count::Open),
            failed_handshakes: get(Count::FailedHandshakes),
            classic_fetches: get(Count::Classic),
            stable_fetches: get(Count::Stable),
            forced_fetches: get(Count::Forced),
            wecom_fetches: get(Count::Wecom),
            ticket_fetches: get(Count::Tickets),
            deliveries: get(Count::Deliveries),
            chunked: get(Count::Chunked),
            malformed: get(Count::Malformed),
        }
    }

    pub(super) fn records(&self, wanted: impl Fn(&str) -> bool) -> Vec<Record> {
        let books = self.books();
        books
            .entries
            .iter()
            .filter(|(_, e)| wanted(e.head.path()))
            .map(|(id, e)| e.record(*id))
            .collect()
    }

    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        self.books().deliveries.iter().cloned().collect()
    }

    pub(super) fn paths(&self) -> HashMap<String, PathCount> {
        self.books().paths.clone()
    }

    pub(super) fn path(&self, path: &str) -> PathCount {
        self.books().paths.get(path).copied().unwrap_or_default()
    }

    /// Clears everything except the numbers of connections.
    pub(super) fn clear(&self) {
        let last_id = self.books().last_id;
        *self.books() = Books {
            last_id,
            ..Books::default()
        };
        for (index, total) in self.totals.iter().enumerate() {
            if index != Count::Open as usize && index != Count::Connections as usize {
                total.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Returns the notifier of new records.
    pub(super) fn changes(&self) -> &Notify {
        &self.changed
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard that counts a connection while it is open.
#[derive(Debug)]
pub(super) struct OpenConnection<'r>(&'r Recorder);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.totals[Count::Open as usize].fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }
}

impl Books {
    fn add(&mut self, entry: Entry, capacity: usize) {
        self.last_id += 1;
        if let Some(count) = self.count_of(entry.head.path()) {
            count.requests += 1;
            count.executed += u64::from(entry.verdict.executed);
        }
        self.body_bytes += entry.body.len();
        self.entries.push_back((self.last_id, entry));
        while self.entries.len() > capacity || self.body_bytes > BODIES_KEPT {
            let Some((_, oldest)) = self.entries.pop_front() else {
                break;
            };
            self.body_bytes -= oldest.body.len();
        }
    }

    fn count_of(&mut self, path: &str) -> Option<&mut PathCount> {
        if !self.paths.contains_key(path) {
            if self.paths.len() >= PATHS_KEPT {
                return None;
            }
            self.paths.insert(path.to_owned(), PathCount::default());
        }
        self.paths.get_mut(path)
    }
}

impl Entry {
    fn record(&self, id: u64) -> Record {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Record {
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

impl Record {
    /// Returns the first header field of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

fn lossy<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}
