//! Filters for headers, in both directions.
//!
//! Pure functions on header maps. Framing (`Content-Length`, `Transfer-Encoding`) of a request is
//! never copied: hyper states it anew from the body that is really sent.

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use smallvec::SmallVec;

/// Kinds of headers in a request, of those that wxgate itself reads. Found in one walk, because
/// looking for an absent header costs as much as finding it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PresentHeaders(u8);

/// Kinds of headers that are read only when present.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum HeaderKind {
    /// `X-Request-Id`.
    RequestId = 1,
    /// `Expect`.
    Expect = 2,
    /// `CDN-Loop`.
    CdnLoop = 4,
    /// `X-Wxgate-Key`, `Authorization` or `Proxy-Authorization`.
    Credential = 8,
    /// `X-Wxgate-Account`.
    Account = 16,
    /// A name that other servers take for a header of wxgate's or for framing, since CGI turns
    /// hyphens into underscores. A key under such a name would be overlooked here and sent to
    /// WeChat.
    LookAlike = 32,
    /// `Accept-Encoding`.
    AcceptEncoding = 64,
}

impl PresentHeaders {
    /// Finds the kinds in a request.
    pub fn in_request(headers: &HeaderMap) -> Self {
        let mut present = 0;
        for name in headers.keys() {
            let kind = match name.as_str() {
                "x-request-id" => HeaderKind::RequestId,
                "expect" => HeaderKind::Expect,
                "cdn-loop" => HeaderKind::CdnLoop,
                "x-wxgate-key" | "authorization" | "proxy-authorization" => HeaderKind::Credential,
                "x-wxgate-account" => HeaderKind::Account,
                "accept-encoding" => HeaderKind::AcceptEncoding,
                other if is_look_alike(other) => HeaderKind::LookAlike,
                _ => continue,
            };
            present |= kind as u8;
        }
        Self(present)
    }

    /// Returns true if there is a header of this kind.
    pub fn has(self, kind: HeaderKind) -> bool {
        self.0 & kind as u8 != 0
    }
}

fn is_look_alike(name: &str) -> bool {
    // Names are short: a plain loop is over before a prepared search has begun.
    if !name.bytes().any(|byte| byte == b'_') {
        return false;
    }
    let meant = name.replace('_', "-");
    (meant.starts_with("x-wxgate-") && !name.starts_with("x-wxgate-"))
        || matches!(&*meant, "content-length" | "transfer-encoding")
}

/// Prepares the caller's headers for WeChat: keeps those that WeChat can use and those that
/// `upstream.headers` names (`extra`), and sets `Accept-Encoding`. Headers that `Connection` names go
/// in any case. `Host` stays; the upstream overwrites its value.
///
/// Only gzip is asked for, and only when the caller accepts it: in any other encoding the code of a
/// refused token could not be found.
pub fn to_upstream(headers: &mut HeaderMap, present: PresentHeaders, extra: &[HeaderName]) {
    let gzip = present.has(HeaderKind::AcceptEncoding) && accepts_gzip(headers);
    remove(headers, |name| {
        let passes = is_for_wechat(name.as_str())
            || extra.contains(name)
            // Stays to be overwritten, which costs less than to remove and to add it.
            || (gzip && *name == header::ACCEPT_ENCODING);
        !passes
    });
    if gzip {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

/// Returns true for headers of callers that WeChat can use, and for those whose value wxgate
/// replaces or completes (`Host`, `CDN-Loop`). All others would tell WeChat about the inside:
/// cookies, referrers, traces, addresses, credentials.
fn is_for_wechat(name: &str) -> bool {
    // The first byte decides, so that most names are compared with one text.
    match name.as_bytes().first() {
        Some(b'a') => {
            name == "accept" || (name.starts_with("accept-") && name != "accept-encoding")
        }
        // The length is stated anew from the body that is sent.
        Some(b'c') => {
            (name.starts_with("content-") && name != "content-length") || name == "cdn-loop"
        }
        Some(b'h') => name == "host",
        Some(b'i') => name.starts_with("if-"),
        Some(b'r') => name == "range",
        Some(b'u') => name == "user-agent",
        Some(b'w') => name.starts_with("wechatmp-"),
        _ => false,
    }
}

/// Returns the reason why a header of callers may not be named in `upstream.headers`; `name` in
/// lower case.
pub(crate) fn never_passes(name: &str) -> Option<&'static str> {
    // CGI reads underscores as hyphens, and so do some servers behind it.
    let name = name.replace('_', "-");
    match &*name {
        "host" | "content-length" | "transfer-encoding" | "expect" | "accept-encoding"
        | "cdn-loop" => Some("wxgate writes this header itself: leave it out"),
        "authorization" | "cookie" => {
            Some("holds credentials of callers, which must not reach WeChat: leave it out")
        }
        name if name.starts_with("x-wxgate-") => {
            Some("is between callers and wxgate alone: leave it out")
        }
        name if is_hop_by_hop(name) => {
            Some("belongs to one connection and cannot be passed on: leave it out")
        }
        _ => None,
    }
}

/// Prepares WeChat's headers for the caller: removes hop-by-hop headers and those that only wxgate
/// may set. `Content-Length` stays, because the body is unchanged.
pub fn to_client(headers: &mut HeaderMap) {
    remove(headers, |name| {
        is_hop_by_hop(name.as_str()) || *name == header::TRANSFER_ENCODING || is_ours(name)
    });
}

/// Returns true if the caller accepts gzip: named, with a weight above zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(is_gzip)
}

/// Returns true for `gzip` unless its weight is zero.
fn is_gzip(coding: &str) -> bool {
    let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
    let is_refused = parameters.split_once('=').is_some_and(|(q, weight)| {
        q.trim().eq_ignore_ascii_case("q")
            && weight.trim().bytes().all(|b| matches!(b, b'0' | b'.'))
    });
    name.trim().eq_ignore_ascii_case("gzip") && !is_refused
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let mut names = SmallVec::<[HeaderName; 4]>::new();
    for (name, value) in &*headers {
        if goes(name) {
            names.push(name.clone());
        }
        // `keep-alive` and `close`, by far the most frequent values, name no header.
        if *name == header::CONNECTION && !is_one_of(value.as_bytes(), &PERSISTENCE) {
            names.extend(named_by_connection(value));
        }
    }
    for name in names {
        headers.remove(name);
    }
}

/// Returns the headers that `Connection` names, which are hop-by-hop as well, save those that frame
/// or route the message.
fn named_by_connection(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let tokens = value
        .as_bytes()
        .split(|b| *b == b',')
        .map(<[u8]>::trim_ascii);
    let named = tokens.filter_map(|token| HeaderName::from_bytes(token).ok());
    named.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
}

/// Values of `Connection` that name no header.
const PERSISTENCE: [&[u8]; 2] = [b"keep-alive", b"close"];

fn is_one_of(text: &[u8], list: &[&[u8]]) -> bool {
    list.iter().any(|known| text.eq_ignore_ascii_case(known))
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "upgrade"
    )
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-wxgate-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn sent(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = map(pairs);
        let present = PresentHeaders::in_request(&headers);
        to_upstream(&mut headers, present, &[HeaderName::from_static("x-named")]);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_headers_that_wechat_can_use_reach_it() {
        let lines = sent(&[
            ("host", "wxgate.internal"),
            (
                "connection",
                "close, x-hop, if-match, content-type-x, host, content-length",
            ),
            ("x-hop", "1"),
            ("if-match", "named by connection"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=a"),
            ("via", "1.1 a"),
            ("authorization", "Bearer k"),
            ("x-wxgate-key", "k"),
            ("cookie", "a=b"),
            ("referer", "http://inside/"),
            ("traceparent", "00-1-2-01"),
            ("x-request-id", "r"),
            ("accept_encoding", "br"),
            ("range-x", "1"),
            ("user-agent-x", "1"),
            ("x-named", "passes"),
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("accept", "*/*"),
            ("accept-language", "zh"),
            ("if-none-match", "e"),
            ("range", "bytes=0-1"),
            ("user-agent", "shop/1"),
            ("cdn-loop", "other"),
            ("wechatmp-signature", "s"),
        ]);
        assert_eq!(
            lines,
            [
                "accept-language: zh",
                "accept: */*",
                "cdn-loop: other",
                "content-encoding: gzip",
                "content-type: application/json",
                "host: wxgate.internal",
                "if-none-match: e",
                "range: bytes=0-1",
                "user-agent: shop/1",
                "wechatmp-signature: s",
                "x-named: passes",
            ]
        );
    }

    #[test]
    fn headers_that_never_pass_cannot_be_named() {
        for name in [
            "host",
            "content-length",
            "content_length",
            "transfer-encoding",
            "te",
            "connection",
            "proxy-authorization",
            "authorization",
            "cookie",
            "x-wxgate-key",
            "x_wxgate_anything",
            "cdn-loop",
            "accept-encoding",
            "expect",
        ] {
            assert!(never_passes(name).is_some(), "{name}");
        }
        for name in ["x-request-id", "traceparent", "user-agent", "x-tenant_id"] {
            assert_eq!(never_passes(name), None, "{name}");
        }
    }

    #[test]
    fn gzip_is_asked_for_only_when_the_caller_takes_it() {
        for (theirs, ours) in [
            ("gzip, br", Some("gzip")),
            ("br;q=1.0, GZIP;q=0.5", Some("gzip")),
            ("br", None),
            ("gzip;q=0", None),
            ("identity, gzip; q=0.000", None),
        ] {
            let mut headers = map(&[("accept-encoding", theirs)]);
            let present = PresentHeaders::in_request(&headers);
            to_upstream(&mut headers, present, &[]);
            assert_eq!(
                headers.get("accept-encoding").map(|v| v.to_str().unwrap()),
                ours,
                "{theirs}"
            );
        }
    }

    #[test]
    fn the_answer_loses_hops_and_ours() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-wxgate-error", "forged"),
            ("content-length", "2"),
            ("location", "https://h/p?a=1#f"),
            ("logicret", "40164"),
        ]);
        to_client(&mut headers);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "content-length: 2",
                "location: https://h/p?a=1#f",
                "logicret: 40164"
            ]
        );
    }
}
