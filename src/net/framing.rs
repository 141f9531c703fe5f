//! Watches the bytes of a connection for requests that say twice how long they are.
//!
//! hyper drops a `Content-Length` beside `Transfer-Encoding` and merges equal ones before anybody
//! can see them; a proxy in front of us may have believed the other one. This file follows heads
//! and bodies by their line ends only, so that such a request can be refused. It parses nothing
//! else: what is no HTTP is left to hyper.

use memchr::memchr;

/// Longer lines are cut off: no framing field needs as much, and hyper refuses the head.
const MAX_LINE: usize = 1024;

/// Follows one connection.
#[derive(Debug, Default)]
pub(super) struct FramingWatch {
    place: Place,
    /// The begin of a line whose end has not come yet.
    line: Vec<u8>,
    fields: Fields,
    heads: u64,
    odd: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
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

/// What a head says about the length of its body.
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
                Place::Body(left) => self.skip(left, bytes, Place::Body, Place::RequestLine),
                Place::Chunk(left) => self.skip(left, bytes, Place::Chunk, Place::ChunkEnd),
                Place::Fields if self.line.is_empty() => match skip_other_fields(bytes) {
                    behind if behind.len() < bytes.len() => behind,
                    _ => self.take_line(bytes),
                },
                _ => self.take_line(bytes),
            };
        }
        self.odd
    }

    /// Whether the bytes end where a request ends, and none of them was odd.
    pub(in crate::net) fn is_between_requests(&self) -> bool {
        self.place == Place::RequestLine && self.line.is_empty() && self.odd.is_none()
    }

    /// Whether the bytes end with a request behind which the client will say no more.
    pub(in crate::net) fn is_over(&self) -> bool {
        self.is_between_requests() && self.fields.is_last
    }

    fn skip<'b>(
        &mut self,
        left: u64,
        bytes: &'b [u8],
        still: fn(u64) -> Place,
        then: Place,
    ) -> &'b [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - here as u64;
        self.place = if left == 0 { then } else { still(left) };
        &bytes[here..]
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Some(end) = memchr(b'\n', bytes) else {
            let room = MAX_LINE.saturating_sub(self.line.len()).min(bytes.len());
            self.line.extend_from_slice(&bytes[..room]);
            return &[];
        };
        if self.line.is_empty() {
            self.end_of_line(&bytes[..end]);
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end.min(MAX_LINE)]);
            self.end_of_line(&line);
        }
        &bytes[end + 1..]
    }

    fn end_of_line(&mut self, line: &[u8]) {
        let bare = line.strip_suffix(b"\r");
        // In heads a lone line feed is an end as well; in chunks it is not.
        let text = bare.unwrap_or(line);
        self.place = match (self.place, bare) {
            (Place::RequestLine, _) if text.is_empty() => Place::RequestLine,
            (Place::RequestLine, _) => {
                self.fields = Fields {
                    is_plain: true,
                    ..Fields::default()
                };
                Place::Fields
            }
            (Place::Fields, _) if text.is_empty() => self.end_of_head(),
            (Place::Fields, _) => {
                self.fields.add(text);
                Place::Fields
            }
            (Place::ChunkSize, Some(text)) => {
                chunk_size(text).map_or(Place::Lost, |size| match size {
                    0 => Place::Trailers,
                    size => Place::Chunk(size),
                })
            }
            (Place::ChunkEnd, Some([])) => Place::ChunkSize,
            (Place::Trailers, Some([])) => Place::RequestLine,
            (Place::Trailers, Some(_)) => Place::Trailers,
            _ => Place::Lost,
        };
        if self.place == Place::Lost {
            // hyper refuses such a body too; should it ever not, no request behind it is served.
            self.odd = Some(self.heads + 1);
        }
    }

    fn end_of_head(&mut self) -> Place {
        self.heads += 1;
        let fields = &self.fields;
        if !fields.is_plain || fields.lengths + fields.codings > 1 {
            self.odd = Some(self.heads);
        }
        if fields.codings > 0 {
            Place::ChunkSize
        } else if fields.length > 0 {
            Place::Body(fields.length)
        } else {
            Place::RequestLine
        }
    }
}

impl Fields {
    fn add(&mut self, line: &[u8]) {
        if !line.first().is_some_and(|first| is_telling(*first)) {
            return;
        }
        let Some(colon) = memchr(b':', line) else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            match std::str::from_utf8(value)
                .ok()
                .and_then(|digits| digits.parse().ok())
            {
                Some(length) => self.length = length,
                None => self.is_plain = false,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            self.is_plain &= value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.is_last |= value.eq_ignore_ascii_case(b"close");
        }
    }
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

/// Whether one of the names that are looked for begins like this.
fn is_telling(first: u8) -> bool {
    matches!(first, b'c' | b'C' | b't' | b'T')
}

/// The size in front of an extension, if any.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
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
        ] {
            assert_eq!(
                odd(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n")),
                Some(1),
                "{fields}"
            );
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
