//! Watches the bytes of a connection for requests that say twice how long they are.
//!
//! hyper drops a `Content-Length` beside `Transfer-Encoding` and merges equal ones before the
//! handler can see them. It closes the connection behind a request with both, so nothing is
//! smuggled, but the request itself would be executed by a length that a proxy in front may not
//! have believed. This file follows heads and bodies by their line ends only, so that such a
//! request is answered 400 instead, and so that an idle connection is known to be between requests
//! before it is parked. It parses nothing else: what is no HTTP is left to hyper.

use memchr::memchr;

/// Bytes that are kept of a line. The same for a line that comes whole, so that the verdict does
/// not depend on where packets end. A longer line is refused where its content frames a body; the
/// request line and other fields may be as long as hyper allows.
const MAX_LINE: usize = 1024;

/// Follows one connection.
#[derive(Debug, Default)]
pub(super) struct FramingWatch {
    place: FramingState,
    /// The begin of a line whose end has not come yet; one byte over [`MAX_LINE`] at most, which
    /// marks it as too long.
    line: Vec<u8>,
    fields: Fields,
    heads: u64,
    odd: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    #[default]
    RequestLine,
    Fields,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Nothing behind this can be told apart any more.
    Lost,
}

/// Fields of a head that frame its body.
#[derive(Debug, Default)]
struct Fields {
    lengths: u32,
    codings: u32,
    length: u64,
    is_plain: bool,
    /// The client wants to close behind it.
    is_last: bool,
}

impl FramingWatch {
    /// Takes the next bytes. Returns the number of the first request (from 1) that must be refused,
    /// once there is one.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() && self.odd.is_none() {
            bytes = match self.place {
                FramingState::Body(left) => {
                    self.skip(left, bytes, FramingState::Body, FramingState::RequestLine)
                }
                FramingState::Chunk(left) => {
                    self.skip(left, bytes, FramingState::Chunk, FramingState::ChunkEnd)
                }
                FramingState::Fields if self.line.is_empty() => match skip_other_fields(bytes) {
                    behind if behind.len() < bytes.len() => behind,
                    _ => self.take_line(bytes),
                },
                _ => self.take_line(bytes),
            };
        }
        self.odd
    }

    /// True if the bytes end where a request ends, and none of them was odd.
    pub(in crate::net) fn is_between_requests(&self) -> bool {
        self.place == FramingState::RequestLine && self.line.is_empty() && self.odd.is_none()
    }

    /// True if the bytes end with a request behind which the client will send no more.
    pub(in crate::net) fn is_over(&self) -> bool {
        self.is_between_requests() && self.fields.is_last
    }

    fn skip<'b>(
        &mut self,
        left: u64,
        bytes: &'b [u8],
        still: fn(u64) -> FramingState,
        then: FramingState,
    ) -> &'b [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - here as u64;
        self.place = if left == 0 { then } else { still(left) };
        &bytes[here..]
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = match bytes {
            // The end of a head needs no search.
            [b'\r', b'\n', ..] => Some(1),
            _ => memchr(b'\n', bytes),
        };
        let Some(end) = end else {
            self.keep(bytes);
            return &[];
        };
        if self.line.is_empty() {
            self.end_of_line(&bytes[..end]);
        } else {
            self.keep(&bytes[..end]);
            let line = std::mem::take(&mut self.line);
            self.end_of_line(&line);
        }
        &bytes[end + 1..]
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = (MAX_LINE + 1).saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    fn end_of_line(&mut self, line: &[u8]) {
        let is_cut = line.len() > MAX_LINE;
        let line = &line[..line.len().min(MAX_LINE)];
        let bare = line.strip_suffix(b"\r");
        // In heads a lone line feed is an end as well; in chunks it is not.
        let text = bare.unwrap_or(line);
        self.place = match (self.place, bare) {
            (FramingState::RequestLine, _) if text.is_empty() => FramingState::RequestLine,
            (FramingState::RequestLine, _) => {
                self.fields = Fields {
                    is_plain: true,
                    ..Fields::default()
                };
                FramingState::Fields
            }
            (FramingState::Fields, _) if text.is_empty() => self.end_of_head(),
            (FramingState::Fields, _) => {
                self.fields.add(text, is_cut);
                FramingState::Fields
            }
            // Chunk sizes and trailers: what was cut off may have said anything.
            _ if is_cut => FramingState::Lost,
            (FramingState::ChunkSize, Some(text)) => {
                chunk_size(text).map_or(FramingState::Lost, |size| match size {
                    0 => FramingState::Trailers,
                    size => FramingState::Chunk(size),
                })
            }
            (FramingState::ChunkEnd, Some([])) => FramingState::ChunkSize,
            (FramingState::Trailers, Some([])) => FramingState::RequestLine,
            (FramingState::Trailers, Some(_)) => FramingState::Trailers,
            _ => FramingState::Lost,
        };
        if self.place == FramingState::Lost {
            // hyper refuses such a body too; should it ever not, no request behind it is served.
            self.odd = Some(self.heads + 1);
        }
    }

    fn end_of_head(&mut self) -> FramingState {
        self.heads += 1;
        let fields = &self.fields;
        if !fields.is_plain || fields.lengths + fields.codings > 1 {
            self.odd = Some(self.heads);
        }
        if fields.codings > 0 {
            FramingState::ChunkSize
        } else if fields.length > 0 {
            FramingState::Body(fields.length)
        } else {
            FramingState::RequestLine
        }
    }
}

impl Fields {
    /// Takes a line of the head. The one place that judges fields: a framing field must be spelt
    /// the one way in which every parser reads it alike, and everything else is refused.
    fn add(&mut self, line: &[u8], is_cut: bool) {
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            // A folded line continues the value above it, for those who still know folding.
            self.is_plain = false;
            return;
        }
        if !line.first().is_some_and(|first| is_telling(*first)) {
            return;
        }
        let Some(colon) = memchr(b':', line) else {
            // Without a colon it is no field, unless the colon is behind the cut.
            self.is_plain &= !is_cut;
            return;
        };
        let (spelt, value) = (&line[..colon], trim(&line[colon + 1..]));
        let name = spelt.trim_ascii_end();
        // Some parsers overlook blanks before the colon, others skip the field.
        let is_plain = spelt.len() == name.len() && !is_cut;
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            match decimal(value) {
                Some(length) if is_plain => self.length = length,
                _ => self.is_plain = false,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            self.is_plain &= is_plain && value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.is_last |= value.eq_ignore_ascii_case(b"close");
        }
    }
}

/// Strips the blanks that HTTP allows around a value.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Digits and nothing else: `str::parse` would take a sign too.
fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10, u8::is_ascii_digit)
}

fn number(digits: &[u8], radix: u32, is_digit: fn(&u8) -> bool) -> Option<u64> {
    if !digits.iter().all(is_digit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

/// Passes over whole lines of fields that say nothing about the body, which are most of a head.
fn skip_other_fields(mut bytes: &[u8]) -> &[u8] {
    while let Some(first) = bytes.first() {
        let end = if is_telling(*first) || first.is_ascii_whitespace() {
            None
        } else {
            memchr(b'\n', bytes)
        };
        let Some(end) = end else { break };
        bytes = &bytes[end + 1..];
    }
    bytes
}

/// True if the name of a framing field begins like this.
fn is_telling(first: u8) -> bool {
    matches!(first, b'c' | b'C' | b't' | b'T')
}

/// The size in front of an extension, if any.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    number(digits, 16, u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole, and byte by byte: where reads end must not matter.
    #[track_caller]
    fn odd(text: &str) -> Option<u64> {
        let whole = FramingWatch::default().feed(text.as_bytes());
        let mut watch = FramingWatch::default();
        let pieces = text
            .as_bytes()
            .chunks(1)
            .fold(None, |_, byte| watch.feed(byte));
        assert_eq!(whole, pieces, "{text:?}");
        whole
    }

    #[test]
    fn plain_requests_are_followed_from_head_to_head() {
        let get = "GET /a HTTP/1.1\r\nHost: h\r\nCookie: c\r\nTE: trailers\r\n\r\n";
        let post = "\r\nPOST /a HTTP/1.1\r\nContent-Length: 39\r\n\r\nContent-Length: 1\r\n\r\nContent-Length: 2";
        let chunked = "POST /a HTTP/1.1\nTransfer-Encoding: Chunked\n\n12;x=y\r\nContent-Length: 1\n\r\n0\r\nT: 1\r\n\r\n";
        let all = format!("{get}{post}{chunked}{post}{get}");
        assert_eq!(odd(&all), None);
        assert_eq!(
            odd(&format!(
                "{all}GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n{get}"
            )),
            Some(6)
        );
    }

    #[test]
    fn whoever_says_the_length_twice_is_found() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\nHost: h\r\nCONTENT-LENGTH: 5",
            "Content-Length: 5\r\ncontent-length:5",
            "Content-Length: 5, 5",
            "Content-Length:",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding:",
            "Content-Length: +5",
            "Content-Length: -0",
            "Content-Length: 5 5",
            "Content-Length: 0x5",
            "Content-Length: 18446744073709551621",
            "Content-Length : 5",
            "Transfer-Encoding\t: chunked",
            "Content-Length: 5\r\n 5",
            "Content-Length:\r\n\t5",
            "X: a\r\n Content-Length: 5",
            " Content-Length: 5",
        ] {
            assert_eq!(
                odd(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n")),
                Some(1),
                "{fields}"
            );
        }
    }

    #[test]
    fn a_framing_line_that_is_too_long_to_be_kept_is_refused_and_another_is_not() {
        let (zeros, blanks) = ("0".repeat(1100), " ".repeat(1100));
        let hidden = "GET /hidden HTTP/1.1\r\n\r\n";
        let length = hidden.len();
        for fields in [
            format!("Content-Length: {zeros}{length}"),
            format!("Content-Length:{blanks}{length}"),
            format!("Content-Length: {length}{blanks}"),
            format!("Content-Length{blanks}: {length}"),
            format!("Transfer-Encoding: chunked{blanks}"),
            format!("Transfer-Encoding:{blanks}chunked"),
            format!("Content-Length: {zeros}{length}\r\nContent-Length: {length}"),
        ] {
            let text = format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n{hidden}");
            assert_eq!(odd(&text), Some(1), "{fields}");
        }
        for edge in MAX_LINE - 3..MAX_LINE + 3 {
            let cookie = "c".repeat(edge - "Cookie: ".len());
            let get = format!("GET /{cookie} HTTP/1.1\r\nCookie: {cookie}\r\n\r\n");
            assert_eq!(odd(&format!("{get}{get}")), None, "{edge}");
        }
    }

    #[test]
    fn a_chunk_line_that_is_too_long_to_be_kept_is_refused() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let long = "0".repeat(1100);
        for body in [
            format!("{long}5\r\nhello\r\n0\r\n\r\n"),
            format!("5;{long}\r\nhello\r\n0\r\n\r\n"),
            format!("5\r\nhello\r\n0\r\nX: {long}\r\n\r\n"),
        ] {
            assert_eq!(odd(&format!("{head}{body}")), Some(2));
        }
    }

    #[test]
    fn nothing_behind_a_broken_body_is_served() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "z\r\n",
            "\r\n",
            "1\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "0\r\nX: a\n\r\n",
            "11111111111111111\r\n",
            "+1\r\n",
            "-0\r\n",
        ] {
            assert_eq!(odd(&format!("{head}{body}")), Some(2), "{body:?}");
        }
    }

    #[test]
    fn a_client_that_will_say_no_more_is_believed_once_its_request_is_whole() {
        let is_over = |text: &str| {
            let mut watch = FramingWatch::default();
            watch.feed(text.as_bytes());
            watch.is_over()
        };
        let post = "POST / HTTP/1.1\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n";
        assert!(is_over("GET / HTTP/1.1\r\nconnection: close\r\n\r\n"));
        assert!(is_over(&format!("{post}ab")) && !is_over(&format!("{post}a")) && !is_over(post));
        assert!(!is_over("GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n"));
        assert!(
            !is_over(&format!("{post}abGET / HTTP/1.1\r\n\r\n")),
            "it goes on all the same"
        );
    }

    #[test]
    fn long_lines_do_not_fill_the_memory() {
        let mut watch = FramingWatch::default();
        for _ in 0..1000 {
            watch.feed(&[b'a'; 1000]);
        }
        assert!(watch.line.capacity() <= 2 * MAX_LINE);
    }
}
