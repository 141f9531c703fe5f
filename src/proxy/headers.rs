//! Which headers pass, in each direction.
//!
//! Pure functions on header maps. Framing (`Content-Length`, `Transfer-Encoding`) is never copied:
//! it is stated anew from the body that is really sent.

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use memchr::memmem;
use percent_encoding::{percent_decode, percent_decode_str};
use smallvec::SmallVec;

/// Which of the headers that wxgate itself reads a request has. Found in one walk, because looking
/// for a header that is not there costs as much as finding it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Present(u8);

/// Headers that are read only when they are there.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Read {
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
    /// A name that others take for one of ours, or for framing, since CGI turns hyphens into
    /// underscores. A key under such a name would not be recognised here and travel on to WeChat.
    LookAlike = 32,
    /// `Accept-Encoding`.
    AcceptEncoding = 64,
}

impl Present {
    /// Walks through the names.
    pub fn in_request(headers: &HeaderMap) -> Self {
        let mut present = 0;
        for name in headers.keys() {
            let read = match name.as_str() {
                "x-request-id" => Read::RequestId,
                "expect" => Read::Expect,
                "cdn-loop" => Read::CdnLoop,
                "x-wxgate-key" | "authorization" => Read::Credential,
                "x-wxgate-account" => Read::Account,
                "accept-encoding" => Read::AcceptEncoding,
                other if is_look_alike(other) => Read::LookAlike,
                _ => continue,
            };
            present |= read as u8;
        }
        Self(present)
    }

    /// Whether there is such a header.
    pub fn has(self, read: Read) -> bool {
        self.0 & read as u8 != 0
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

/// Prepares the caller's headers for WeChat: hop-by-hop headers, what `Connection` names,
/// forwarding headers and the caller's credentials go; `Accept-Encoding` is set. `Host` stays for
/// the upstream to put its own in its place.
///
/// Gzip is asked for only when the caller takes it, and nothing else ever: an encoding that cannot
/// be looked into would hide a stale answer.
pub fn to_upstream(headers: &mut HeaderMap, present: Present) {
    let gzip = present.has(Read::AcceptEncoding) && accepts_gzip(headers);
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

/// Prepares WeChat's headers for the caller: hop-by-hop headers and ours go. `Content-Length`
/// stays, because it still describes the body.
pub fn to_client(headers: &mut HeaderMap) {
    remove(headers, |name| {
        is_hop_by_hop(name) || *name == header::TRANSFER_ENCODING || is_ours(name)
    });
    // A walk over the few headers of an answer costs less than a look for one that is hardly ever
    // there.
    let location = headers.iter().find(|(name, _)| **name == header::LOCATION);
    if let Some((_, location)) = location
        && let Some(clean) = without_token(location)
    {
        headers.insert(header::LOCATION, clean);
    }
}

/// Takes out the headers that would show the caller the token, in any percent-encoding: servers
/// echo what they were asked. `token` is the value as it stood in the query.
pub fn hide_token(headers: &mut HeaderMap, token: &str) {
    const ECHOES: [HeaderName; 5] = [
        header::LOCATION,
        header::CONTENT_LOCATION,
        header::LINK,
        header::REFRESH,
        header::SET_COOKIE,
    ];
    let showing = |headers: &HeaderMap| {
        let mut lines = headers.iter().filter(|(name, _)| ECHOES.contains(name));
        lines
            .find(|(_, value)| shows(value.as_bytes(), token))
            .map(|(name, _)| name.clone())
    };
    while let Some(name) = showing(headers) {
        headers.remove(name);
    }
}

/// Whether the token is in it, encoded up to twice more than it was sent.
fn shows(value: &[u8], token: &str) -> bool {
    let token: Vec<u8> = percent_decode_str(token).collect();
    let mut text = value.to_vec();
    for _ in 0..3 {
        text = percent_decode(&text).collect();
        if memmem::find(&text, &token).is_some() {
            return true;
        }
    }
    false
}

/// Whether gzip may be answered: named with a weight above zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value.split(',').any(|coding| {
                let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
                let refused = parameters.split_once('=').is_some_and(|(q, weight)| {
                    q.trim().eq_ignore_ascii_case("q")
                        && weight.trim().bytes().all(|b| matches!(b, b'0' | b'.'))
                });
                name.trim().eq_ignore_ascii_case("gzip") && !refused
            })
        })
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let mut names = SmallVec::<[HeaderName; 4]>::new();
    for (name, value) in &*headers {
        if goes(name) {
            names.push(name.clone());
        }
        // What nearly everybody says there names no header of the message.
        if *name == header::CONNECTION && !is_one_of(value.as_bytes(), &PERSISTENCE) {
            names.extend(named_by_connection(value));
        }
    }
    for name in names {
        headers.remove(name);
    }
}

/// What `Connection` names is hop-by-hop as well, save what frames or routes the message.
fn named_by_connection(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let tokens = value
        .as_bytes()
        .split(|b| *b == b',')
        .map(<[u8]>::trim_ascii);
    let named = tokens.filter_map(|token| HeaderName::from_bytes(token).ok());
    named.filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
}

/// What `Connection` says of the connection itself.
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

/// A redirect may echo the request target; the token in it is not for the caller.
fn without_token(location: &HeaderValue) -> Option<HeaderValue> {
    let text = location.to_str().ok()?;
    let (base, query) = text.split_once('?')?;
    let (query, fragment) = query
        .split_once('#')
        .map_or((query, None), |(q, f)| (q, Some(f)));
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.to_ascii_lowercase().contains("access_token"))
        .collect();
    let mut clean = base.to_owned();
    if !kept.is_empty() {
        clean.push('?');
        clean.push_str(&kept.join("&"));
    }
    if let Some(fragment) = fragment {
        clean.push('#');
        clean.push_str(fragment);
    }
    HeaderValue::from_str(&clean).ok()
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
        let present = Present::in_request(&headers);
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
            let present = Present::in_request(&headers);
            to_upstream(&mut headers, present);
            assert_eq!(
                headers.get("accept-encoding").map(|v| v.to_str().unwrap()),
                ours,
                "{theirs}"
            );
        }
    }

    #[test]
    fn no_header_shows_the_token_however_it_is_encoded() {
        for value in [
            "https://h/p?ACCESS%5FTOKEN=8_a%2Fb-c",
            "/8_a/b-c",
            "https://h/?to=https%3A%2F%2Fh%2F%3Faccess_token%3D8_a%252Fb-c",
            "/%38_a%2fb%2Dc",
        ] {
            let mut headers = map(&[("location", value), ("set-cookie", value), ("x-other", "1")]);
            hide_token(&mut headers, "8_a%2Fb-c");
            assert_eq!(
                headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
                ["x-other"],
                "{value}"
            );
        }
        let mut headers = map(&[("location", "/8_a%2Fb-d"), ("set-cookie", "a=b")]);
        hide_token(&mut headers, "8_a%2Fb-c");
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn the_answer_loses_hops_ours_and_a_token_in_a_redirect() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-wxgate-error", "forged"),
            ("content-length", "2"),
            ("location", "https://h/p?access_token=T&a=1#f"),
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
