//! Request heads: parsed for the sandbox, kept byte for byte for the recorder.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Serialize;

/// Request head: method, target and header fields.
#[derive(Debug, Clone)]
pub(super) struct RequestHead {
    method: Bytes,
    path: Bytes,
    query: Option<Bytes>,
    /// Header fields in their original order and spelling.
    pub(super) fields: Vec<(Bytes, Bytes)>,
    pub(super) framing: Framing,
    http_1_0: bool,
}

/// Framing of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "framing", content = "length")]
pub enum Framing {
    /// No body: neither length nor chunks.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`, which WeChat answers with 412.
    Chunked,
}

/// Error of an unparsable head. WeChat's front server answers 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Maximum number of header fields.
const MAX_FIELDS: usize = 128;

impl RequestHead {
    /// Parses a head; returns it with its length, or `None` if more bytes are needed.
    pub(super) fn parse(buffer: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(end) = request.parse(buffer).map_err(|_| Malformed)? else {
            return Ok(None);
        };
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(Malformed);
        };
        let target = origin_form(target);
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        // One copy per head, so that the recorder does not keep whole read buffers alive.
        let own = Bytes::copy_from_slice(&buffer[..end]);
        let at = |part: &[u8]| {
            let start = part.as_ptr().addr() - buffer.as_ptr().addr();
            own.slice(start..start + part.len())
        };
        let fields: Vec<_> = request
            .headers
            .iter()
            .map(|f| (at(f.name.as_bytes()), at(f.value)))
            .collect();
        let framing = framing(&fields)?;
        let head = Self {
            method: at(method.as_bytes()),
            path: at(path.as_bytes()),
            query: query.map(|query| at(query.as_bytes())),
            fields,
            framing,
            http_1_0: version == 0,
        };
        Ok(Some((head, end)))
    }

    pub(super) fn method(&self) -> &str {
        text(&self.method)
    }

    pub(super) fn path(&self) -> &str {
        text(&self.path)
    }

    /// Returns the query without the question mark, undecoded.
    pub(super) fn query(&self) -> Option<&str> {
        self.query.as_deref().map(text)
    }

    /// Returns the decoded values of the query parameters with this decoded name.
    pub(super) fn params<'h>(&'h self, name: &'h str) -> impl Iterator<Item = Cow<'h, str>> {
        let pairs = self
            .query()
            .unwrap_or("")
            .split('&')
            .filter(|pair| !pair.is_empty());
        pairs.filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
    }

    /// Returns the first non-empty query parameter of this name.
    pub(super) fn param(&self, name: &str) -> Option<String> {
        self.params(name)
            .map(Cow::into_owned)
            .find(|value| !value.is_empty())
    }

    /// Returns the first header field of this name, in any case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| text(value))
    }

    /// Returns true if the client waits for `100 Continue` before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.field("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    /// Returns true if the client wants to reuse the connection.
    pub(super) fn keeps_alive(&self) -> bool {
        let connection = self.field("connection").unwrap_or("").to_ascii_lowercase();
        let says = |word: &str| connection.split(',').any(|part| part.trim() == word);
        if self.http_1_0 {
            says("keep-alive")
        } else {
            !says("close")
        }
    }
}

/// Reduces a target in absolute form to its path: `http://api.weixin.qq.com/x` becomes `/x`.
fn origin_form(target: &str) -> &str {
    let Some((_, rest)) = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'))
    else {
        return target;
    };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}

fn framing(fields: &[(Bytes, Bytes)]) -> Result<Framing, Malformed> {
    let mut framing = Framing::None;
    for (name, value) in fields {
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // Takes precedence over `Content-Length` (RFC 9112, 6.3).
            return Ok(Framing::Chunked);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = text(value).trim().parse().map_err(|_| Malformed)?;
            if !matches!(framing, Framing::None) && framing != Framing::Length(length) {
                return Err(Malformed);
            }
            framing = Framing::Length(length);
        }
    }
    Ok(framing)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("\u{fffd}")
}

fn decode(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        Cow::Owned(
            percent_decode_str(&text.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned(),
        )
    } else {
        percent_decode_str(text).decode_utf8_lossy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RequestHead {
        RequestHead::parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn names_and_values_of_the_query_are_compared_decoded() {
        let head = parse(
            "GET /a?%61ccess_token=x%2Fy&b=1+2&access_token=&access_token=z HTTP/1.1\r\n\r\n",
        );
        assert_eq!(
            head.params("access_token").collect::<Vec<_>>(),
            ["x/y", "", "z"]
        );
        assert_eq!(head.param("b").as_deref(), Some("1 2"));
        assert_eq!(
            head.query(),
            Some("%61ccess_token=x%2Fy&b=1+2&access_token=&access_token=z")
        );
    }

    #[test]
    fn a_head_keeps_its_spelling_and_says_where_the_body_ends() {
        let head = parse(
            "POST http://h/p HTTP/1.1\r\nX-Two: 2\r\ncontent-LENGTH: 7\r\nExpect: 100-Continue\r\n\r\n",
        );
        assert_eq!(
            (head.path(), head.framing, head.expects_continue()),
            ("/p", Framing::Length(7), true)
        );
        assert_eq!(head.fields[0], (Bytes::from("X-Two"), Bytes::from("2")));
        assert_eq!(
            parse("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").framing,
            Framing::Chunked
        );
    }

    #[test]
    fn contradicting_lengths_and_half_heads_are_told_apart() {
        let twice = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
        assert!(RequestHead::parse(twice).is_err());
        assert!(matches!(
            RequestHead::parse(b"GET / HTTP/1.1\r\nHost: "),
            Ok(None)
        ));
    }

    #[test]
    fn connections_end_when_the_client_says_so() {
        assert!(parse("GET / HTTP/1.1\r\n\r\n").keeps_alive());
        assert!(!parse("GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n").keeps_alive());
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").keeps_alive());
    }
}
