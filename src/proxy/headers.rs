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
    /// `X-Wxgate-Key` or `Authorization`.
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
                "x-wxgate-key" | "authorization" => HeaderKind::Credential,
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

/// Prepares the caller's headers for WeChat: removes hop-by-hop headers, those that `Connection`
/// names, forwarding headers and the caller's credentials, and sets `Accept-Encoding`. `Host` stays;
/// the upstream overwrites its value.
///
/// Only gzip is asked for, and only when the caller accepts it: in any other encoding the code of a
/// refused token could not be found.
pub fn to_upstream(headers: &mut HeaderMap, present: PresentHeaders) {
    let gzip = present.has(HeaderKind::AcceptEncoding) && accepts_gzip(headers);
    remove(headers, |name| {
        is_hop_by_hop(name)
            || is_framing(name)
            || is_private_to_caller(name)
            || *name == header::ACCEPT_ENCODING
    });
    if gzip {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

/// Prepares WeChat's headers for the caller: removes hop-by-hop headers and those that only wxgate
/// may set. `Content-Length` stays, because the body is unchanged.
pub fn to_client(headers: &mut HeaderMap) {
    remove(headers, |name| {
        is_hop_by_hop(name) || *name == header::TRANSFER_ENCODING || is_ours(name)
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

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
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

fn is_framing(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-length" | "transfer-encoding" | "expect"
    )
}

fn is_private_to_caller(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "authorization" | "forwarded" | "via" | "x-real-ip"
    ) || is_ours(name)
        || name.as_str().starts_with("x-forwarded-")
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
        to_upstream(&mut headers, present);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn nothing_private_or_hop_by_hop_reaches_wechat() {
        let lines = sent(&[
            ("host", "wxgate.internal"),
            ("connection", "close, x-internal, content-type-x, host"),
            ("x-internal", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "a"),
            ("forwarded", "for=a"),
            ("via", "1.1 a"),
            ("x-real-ip", "10.0.0.1"),
            ("authorization", "Bearer k"),
            ("x-wxgate-key", "k"),
            ("x-wxgate-account", "shop"),
            ("content-type", "application/json"),
            ("wechatmp-signature", "s"),
        ]);
        let host = "host: wxgate.internal";
        assert_eq!(
            lines,
            [
                "content-type: application/json",
                host,
                "wechatmp-signature: s"
            ],
            "its value is replaced"
        );
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
            to_upstream(&mut headers, present);
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
