//! Connections that end before there is a request: counted, and told in the log once a minute for
//! each reason. They have no line in the access log.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::log_limit::LogLimit;
use crate::net::{address::Peer, connection::Malformed, handshake::HandshakeFailure};

/// Refused TLS handshakes, and bytes that are no request.
#[derive(Debug)]
pub(super) struct Refusals {
    handshakes: Vec<Refusal<HandshakeFailure>>,
    requests: Vec<Refusal<Malformed>>,
}

/// Count and log limit of one reason.
#[derive(Debug)]
struct Refusal<R> {
    reason: R,
    count: Counter,
    log: LogLimit,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl Refusals {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let (handshakes, requests) = (Family::default(), Family::default());
        registry.register(
            "wxgate_tls_handshakes_refused",
            "TLS handshakes with callers that failed",
            handshakes.clone(),
        );
        registry.register(
            "wxgate_malformed_requests",
            "Requests that are no HTTP/1.1 and were refused before they could be logged",
            requests.clone(),
        );
        Self {
            handshakes: all(&handshakes, HandshakeFailure::ALL, HandshakeFailure::slug),
            requests: all(&requests, Malformed::ALL, Malformed::slug),
        }
    }

    /// Counts and logs a TLS handshake that failed.
    pub(super) fn handshake(&self, peer: Peer, failure: HandshakeFailure) {
        if let Some(again) = count(&self.handshakes, failure) {
            let (reason, advice) = (failure.slug(), failure.advice());
            tracing::warn!(%peer, reason, again, "TLS handshake with a client failed: {advice}");
        }
    }

    /// Counts and logs bytes that are no request.
    pub(super) fn request(&self, peer: Peer, malformed: Malformed) {
        if let Some(again) = count(&self.requests, malformed) {
            let (reason, advice) = (malformed.slug(), malformed.advice());
            tracing::warn!(%peer, reason, again, "a client sends no HTTP/1.1 request: {advice}");
        }
    }
}

/// Makes the counters of all reasons, which start at zero: a counter that begins at one shows no
/// increase.
fn all<R: Copy, const N: usize>(
    family: &Family<ReasonLabels, Counter>,
    reasons: [R; N],
    slug: fn(R) -> &'static str,
) -> Vec<Refusal<R>> {
    let refusal = |reason| Refusal {
        reason,
        count: family.get_or_create_owned(&ReasonLabels {
            reason: slug(reason),
        }),
        log: LogLimit::default(),
    };
    reasons.map(refusal).into()
}

/// Counts a refusal. Returns the number of earlier ones without a line if this one may have a line.
fn count<R: Copy + PartialEq>(refusals: &[Refusal<R>], reason: R) -> Option<u64> {
    let refusal = refusals.iter().find(|known| known.reason == reason)?;
    refusal.count.inc();
    refusal.log.admit()
}
