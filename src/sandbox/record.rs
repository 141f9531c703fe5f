//! Contents of the recorder as tests and the remote control see them.

use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::{request::Framing, state::TokenState};

/// Recorded request with its answer's status.
#[derive(Debug, Clone, Serialize)]
pub struct RecordedRequest {
    /// Number, counted from 1.
    pub id: u64,
    /// Milliseconds of sandbox time since the start.
    pub at_ms: u64,
    /// Number of the connection, counted from 1 over all listeners.
    pub connection: u64,
    /// True if the request came over TLS.
    pub tls: bool,
    /// Method of the request.
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
pub struct DeliveredMessage {
    /// Msgid of the message.
    pub id: u64,
    /// Milliseconds of sandbox time since the start.
    pub at_ms: u64,
    /// Appid of the sender.
    pub account: String,
    /// Openid or userid of the receiver.
    pub openid: String,
    /// Type of the message: `text`, `image`, `template`, …
    pub kind: String,
    /// Text of the message, or the JSON of any other type.
    pub content: String,
}

/// Totals since the start or the last clearing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests to API paths.
    pub requests: u64,
    /// Number of executed requests.
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
    /// Number of requests.
    pub requests: u64,
    /// Number of executed requests.
    pub executed: u64,
}

impl RecordedRequest {
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
