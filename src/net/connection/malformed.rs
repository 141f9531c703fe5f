//! What hyper refuses before there is a request that a handler could answer or log.

use hyper::http::uri::PathAndQuery;

/// Reason why the bytes of a client are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The request line holds bytes that may not stand there as they are.
    RequestLine,
    /// A header line is none, or the version is unknown.
    Header,
    /// The head is too long, or has too many lines.
    HeadTooLarge,
    /// HTTP/2 without TLS.
    Http2,
    /// A TLS handshake on a plain listener.
    Tls,
    /// The PROXY protocol, version 1 or 2.
    ProxyProtocol,
}

/// Begin of a TLS record that holds a handshake.
pub(in crate::net) const TLS_HANDSHAKE: &[u8] = &[0x16, 3];
/// Signature of version 2 of the PROXY protocol.
pub(in crate::net) const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Begin of version 1 of the PROXY protocol.
pub(in crate::net) const PROXY_V1: &[u8] = b"PROXY ";

impl Malformed {
    /// All reasons.
    pub(crate) const ALL: [Self; 6] = [
        Self::RequestLine,
        Self::Header,
        Self::HeadTooLarge,
        Self::Http2,
        Self::Tls,
        Self::ProxyProtocol,
    ];

    /// Finds the reason in the error and in the bytes from the begin of the request on. Leading
    /// line ends may be missing.
    pub(super) fn of(error: &hyper::Error, bytes: &[u8]) -> Self {
        if error.is_parse_too_large() {
            return Self::HeadTooLarge;
        }
        if error.is_parse_version_h2() {
            return Self::Http2;
        }
        Self::in_bytes(bytes)
    }

    fn in_bytes(bytes: &[u8]) -> Self {
        let without_line_ends = bytes.trim_ascii_start();
        let is_v2 = |signature: &[u8]| bytes.starts_with(signature);
        if bytes.starts_with(TLS_HANDSHAKE) {
            Self::Tls
        } else if bytes.starts_with(PROXY_V1) || is_v2(PROXY_V2) || is_v2(&PROXY_V2[4..]) {
            Self::ProxyProtocol
        } else if is_request_line(without_line_ends) {
            Self::Header
        } else {
            Self::RequestLine
        }
    }

    /// The word for metrics and log.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::RequestLine => "request_line",
            Self::Header => "header",
            Self::HeadTooLarge => "head_too_large",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::ProxyProtocol => "proxy_protocol",
        }
    }

    /// Says to the operator what the client does wrong.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::RequestLine => {
                "the request line holds bytes that must be percent-encoded, such as raw GBK, quotes, blanks, < or >"
            }
            Self::Header => "a header line, or the version of HTTP, cannot be read",
            Self::HeadTooLarge => "the head is larger than 64 KiB, or has more than 100 lines",
            Self::Http2 => "it speaks HTTP/2, and wxgate HTTP/1.1",
            Self::Tls => "it speaks https:// to a plain port: use http://, or set server.tls",
            Self::ProxyProtocol => {
                "it speaks the PROXY protocol, which wxgate does not read: switch it off there, and use \
                 X-Forwarded-For with server.trusted_proxies"
            }
        }
    }
}

/// True if the first line is a request line as hyper takes it.
fn is_request_line(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let mut parts = line.trim_ascii_end().split(|byte| *byte == b' ');
    let (Some(_method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let target = std::str::from_utf8(target).is_ok_and(|target| {
        target == "*" || hyper::Uri::try_from(target).is_ok() || is_origin_form(target)
    });
    target && version.starts_with(b"HTTP/")
}

fn is_origin_form(target: &str) -> bool {
    target.starts_with('/') && PathAndQuery::try_from(target).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_a_client_speaks() {
        for (bytes, expected) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], Malformed::Tls),
            (
                b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
                Malformed::ProxyProtocol,
            ),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", Malformed::ProxyProtocol),
            (b"\0\r\nQUIT\n\x21\x11", Malformed::ProxyProtocol),
            (b"GET /a?b=\xd6\xd0 HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET /a?b=\"c\" HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET /a<b> HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET /a b HTTP/1.1\r\n", Malformed::RequestLine),
            (b"\0\0\0", Malformed::RequestLine),
            (b"", Malformed::RequestLine),
            (b"GET /a HTTP/1.1\r\nno field\r\n", Malformed::Header),
            (b"\r\nGET /a HTTP/9.9\r\n", Malformed::Header),
        ] {
            assert_eq!(Malformed::in_bytes(bytes), expected, "{bytes:?}");
        }
    }
}
