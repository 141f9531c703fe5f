//! Probes on the data listener: liveness and readiness below `/-/`, and the paths at which probes,
//! scrapers and browsers look that meant the admin listener.
//!
//! None of them needs a key, and none reaches WeChat.

use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};

use super::exchange::Exchange;
use crate::{
    proxy::{error::ProxyError, path::SplitPath},
    service::readiness::Required,
};

/// Paths of probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbePath {
    /// `/-/livez`.
    Live,
    /// `/-/readyz`.
    Ready,
    /// A path of the admin listener, of a browser or of a monitor.
    Elsewhere,
}

/// Outcome of an answered probe in metrics and log, apart from `ok`, so that probes do not dilute
/// the rate of failed calls.
pub(super) const OUTCOME: &str = "probe";

/// Paths that are looked for on every HTTP server besides the root, and never WeChat's.
const ELSEWHERE: [&str; 6] = [
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/favicon.ico",
    "/robots.txt",
];
/// Length of the longest path of a probe.
const MAX_LEN: usize = "/favicon.ico".len();

impl ProbePath {
    /// Recognises the path of a probe, in any case.
    pub(super) fn of(path: &SplitPath<'_>) -> Option<Self> {
        let rest = path.unchecked();
        // Nearly every call of the API has a longer path.
        if rest.len() > MAX_LEN {
            return None;
        }
        let is = |probe: &str| rest.eq_ignore_ascii_case(probe);
        if is("/-/livez") {
            Some(Self::Live)
        } else if is("/-/readyz") {
            Some(Self::Ready)
        } else {
            // An account prefix with nothing behind it is a malformed call, not the root.
            let is_root = rest == "/" && path.prefix.is_none();
            (is_root || ELSEWHERE.into_iter().any(is)).then_some(Self::Elsewhere)
        }
    }
}

/// Answers a probe.
pub(super) fn answer(
    exchange: &Exchange<'_>,
    probe: ProbePath,
) -> Result<Response<Bytes>, ProxyError> {
    if probe == ProbePath::Elsewhere {
        return Err(ProxyError::ProbeElsewhere);
    }
    if !matches!(*exchange.method, Method::GET | Method::HEAD) {
        return Err(ProxyError::NotFound);
    }
    if exchange.uri.query().is_some_and(|query| !query.is_empty()) {
        return Err(ProxyError::BadRequest(
            "this probe takes no parameters; /readyz on the admin listener does",
        ));
    }
    if probe == ProbePath::Live {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        return Ok(response(StatusCode::OK, text, Bytes::from_static(b"ok\n")));
    }
    Ok(readiness(exchange))
}

fn readiness(exchange: &Exchange<'_>) -> Response<Bytes> {
    let accounts: Vec<_> = exchange
        .config
        .accounts
        .iter()
        .map(|account| (account.name.clone(), account.refresher.status()))
        .collect();
    let worker = exchange.worker;
    let is_leaving = worker.drain.is_out_of_service();
    let readiness = worker
        .proxy
        .health
        .judge(&accounts, Required::One, is_leaving)
        .anonymous();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let json = HeaderValue::from_static("application/json");
    // Cannot fail: there are no maps in it.
    let body = serde_json::to_vec(&readiness).unwrap_or_default();
    response(status, json, body.into())
}

fn response(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_recognised_in_any_case_and_calls_are_none() {
        for path in [
            "/",
            "//",
            "/LiveZ",
            "//healthz",
            "/@shop/metrics",
            "/Favicon.ICO",
            "/robots.txt",
        ] {
            let probe = ProbePath::of(&SplitPath::new(path));
            assert_eq!(probe, Some(ProbePath::Elsewhere), "{path}");
        }
        let probe = |path| ProbePath::of(&SplitPath::new(path));
        assert_eq!(probe("/-/LIVEZ"), Some(ProbePath::Live));
        assert_eq!(probe("//-/readyz"), Some(ProbePath::Ready));
        for path in [
            "/sns/auth",
            "/metrics/x",
            "/-/live",
            "/livez.",
            "/-",
            "*",
            "",
            "/@shop",
            "/@shop/",
            "/healthz/",
        ] {
            assert_eq!(probe(path), None, "{path}");
        }
    }
}
