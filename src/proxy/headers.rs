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

/// Headers of a request to WeChat, written for each attempt anew: those of the caller that WeChat can
/// use, those that `upstream.headers` names (`extra`), and wxgate's own. `Host` and the length of the
/// body are written by the upstream.
#[derive(Debug)]
pub struct RequestHeaders<'r> {
    caller: &'r HeaderMap,
    extra: &'r [HeaderName],
    loop_mark: &'r HeaderValue,
    /// Only gzip is asked for, and only when the caller accepts it: in any other encoding the code
    /// of a refused token could not be found.
    gzip: bool,
    /// Names in the caller's `Connection`.
    hops: SmallVec<[HeaderName; 2]>,
    /// Headers of a signed body, in place of the caller's about its own.
    signed: Option<SignedHeaders>,
}

/// Headers of the body of a signed call.
pub(crate) type SignedHeaders = [(&'static str, String); 4];

impl<'r> RequestHeaders<'r> {
    /// Takes the headers of a caller.
    pub fn new(
        caller: &'r HeaderMap,
        present: PresentHeaders,
        extra: &'r [HeaderName],
        loop_mark: &'r HeaderValue,
    ) -> Self {
        let connection = caller.get_all(header::CONNECTION).iter();
        Self {
            caller,
            extra,
            loop_mark,
            gzip: present.has(HeaderKind::AcceptEncoding) && accepts_gzip(caller),
            hops: connection
                .flat_map(|value| named_by_connection(value.as_bytes()))
                .collect(),
            signed: None,
        }
    }

    /// Returns the first of the caller's values of a header that passes, by its name in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&HeaderValue> {
        let mut passing = self.passing();
        passing.find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Sets the headers of a signed body. gzip is not asked for then: the signature is over the
    /// bytes of the envelope.
    pub(crate) fn sign(&mut self, headers: SignedHeaders) {
        self.signed = Some(headers);
        self.gzip = false;
    }

    /// Appends the lines of the headers.
    pub fn write(&self, head: &mut Vec<u8>) {
        for (name, value) in self.passing() {
            let is_replaced = self.signed.is_some()
                && (name.as_str().starts_with("wechatmp-") || is_about_body(name));
            if !is_replaced {
                write_header(head, name.as_str(), value.as_bytes());
            }
        }
        for (name, value) in self.signed.iter().flatten() {
            write_header(head, name, value.as_bytes());
        }
        if self.gzip {
            head.extend_from_slice(b"accept-encoding: gzip\r\n");
        }
        write_header(head, "cdn-loop", self.loop_mark.as_bytes());
    }

    fn passing(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.caller.iter().filter(|(name, _)| {
            (is_for_wechat(name.as_str()) || self.extra.contains(name)) && !self.hops.contains(name)
        })
    }
}

/// Appends the line of a header.
fn write_header(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

fn is_about_body(name: &HeaderName) -> bool {
    *name == header::CONTENT_TYPE || *name == header::CONTENT_ENCODING
}

/// Returns true for headers of callers that WeChat can use, and for `CDN-Loop`, to which wxgate adds
/// itself. All others would tell WeChat about the inside: cookies, referrers, traces, addresses,
/// credentials.
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

/// Returns true for headers of WeChat that go on to the caller: neither hop-by-hop nor such as only
/// wxgate may set. `Content-Length` goes on, because the body is unchanged.
pub(crate) fn passes_to_client(name: &HeaderName) -> bool {
    !(is_hop_by_hop(name.as_str()) || *name == header::TRANSFER_ENCODING || is_ours(name))
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

/// Returns the headers that `Connection` names, which are hop-by-hop as well, save those that frame
/// or route the message.
pub(crate) fn named_by_connection(value: &[u8]) -> impl Iterator<Item = HeaderName> {
    // `keep-alive` and `close`, by far the most frequent values, name no header.
    let is_plain = PERSISTENCE
        .iter()
        .any(|known| value.eq_ignore_ascii_case(known));
    let value = if is_plain { b"" } else { value };
    let tokens = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    let named = tokens.filter_map(|token| HeaderName::from_bytes(token).ok());
    named.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
}

/// Values of `Connection` that name no header.
const PERSISTENCE: [&[u8]; 2] = [b"keep-alive", b"close"];

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

    /// The lines that are sent, in alphabetical order.
    fn sent(pairs: &[(&'static str, &'static str)], signed: Option<SignedHeaders>) -> Vec<String> {
        let caller = map(pairs);
        let (present, mark) = (
            PresentHeaders::in_request(&caller),
            HeaderValue::from_static("wxgate"),
        );
        let extra = [HeaderName::from_static("x-named")];
        let mut headers = RequestHeaders::new(&caller, present, &extra, &mark);
        if let Some(signed) = signed {
            headers.sign(signed);
        }
        let mut head = Vec::new();
        headers.write(&mut head);
        let text = String::from_utf8(head).unwrap();
        let mut lines: Vec<_> = text.split_terminator("\r\n").map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_headers_that_wechat_can_use_reach_it() {
        let lines = sent(
            &[
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
            ],
            None,
        );
        assert_eq!(
            lines,
            [
                "accept-language: zh",
                "accept: */*",
                "cdn-loop: other",
                "cdn-loop: wxgate",
                "content-encoding: gzip",
                "content-type: application/json",
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
            let lines = sent(&[("accept-encoding", theirs)], None);
            let asked = lines
                .iter()
                .find_map(|line| line.strip_prefix("accept-encoding: "));
            assert_eq!(asked, ours, "{theirs}");
        }
    }

    #[test]
    fn a_signed_body_has_headers_of_its_own() {
        let signed = [
            ("content-type", "application/json".to_owned()),
            ("wechatmp-appid", "wx1".to_owned()),
            ("wechatmp-timestamp", "1".to_owned()),
            ("wechatmp-signature", "ours".to_owned()),
        ];
        let caller = [
            ("accept-encoding", "gzip"),
            ("content-encoding", "gzip"),
            ("content-type", "text/plain"),
            ("wechatmp-signature", "theirs"),
            ("wechatmp-other", "theirs"),
            ("accept", "*/*"),
        ];
        assert_eq!(
            sent(&caller, Some(signed)),
            [
                "accept: */*",
                "cdn-loop: wxgate",
                "content-type: application/json",
                "wechatmp-appid: wx1",
                "wechatmp-signature: ours",
                "wechatmp-timestamp: 1",
            ]
        );
    }
}
