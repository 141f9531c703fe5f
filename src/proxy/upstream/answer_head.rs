//! The head of an answer: status, headers for the caller, and where the body ends.
//!
//! Pure. Interim answers are skipped. What parsers read in different ways is no answer: two
//! different lengths, or a length beside `Transfer-Encoding`. Nor is a body in a transfer coding
//! other than chunks, which nobody asked for: a stale answer or a credential could not be found in
//! it.

use std::mem::MaybeUninit;

use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use smallvec::SmallVec;

use super::{
    super::headers,
    answer_decoder::{AnswerDecoder, Chunks},
};

/// Most headers of an answer.
const MAX_HEADERS: usize = 100;
/// Headers that every answer gets here. Without room for them the map would be made anew for each.
const ADDED_HEADERS: usize = 3;

/// Head of an answer.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) status: StatusCode,
    /// Those that go on to the caller.
    pub(super) headers: HeaderMap,
    pub(super) decoder: AnswerDecoder,
    /// The connection stays open behind the answer.
    pub(super) keeps_open: bool,
}

/// Reason why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadError {
    NotHttp,
    /// HTTP that cannot be passed on, for this reason.
    Unusable(&'static str),
}

/// Reads the head at the beginning of these bytes. Returns it once it is complete, and the number of
/// bytes that are done with: those of the head, and of interim answers before it.
pub(super) fn parse(
    bytes: &[u8],
    method: &Method,
) -> Result<(usize, Option<AnswerHead>), HeadError> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        // An empty line can only be left over from the answer before. To wait for the end of an
        // answer that will not be one would cost a look at all of it for each byte.
        if rest.first() != Some(&b'H') {
            return Err(HeadError::NotHttp);
        }
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut answer, rest, &mut fields)
            .map_err(|_| HeadError::NotHttp)?;
        let httparse::Status::Complete(length) = parsed else {
            break;
        };
        done += length;
        let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(HeadError::NotHttp)?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(HeadError::Unusable("101 was not asked for"));
        }
        if !status.is_informational() {
            let is_http_11 = answer.version == Some(1);
            let head = read(status, is_http_11, answer.headers, method)?;
            return Ok((done, Some(head)));
        }
    }
    Ok((done, None))
}

/// Headers about the connection, which do not go on.
#[derive(Default)]
struct Framing {
    /// The error: a transfer coding other than chunks.
    chunked: Option<Result<(), HeadError>>,
    /// The error: no number, or two different ones.
    length: Option<Result<u64, HeadError>>,
    says_close: bool,
    says_keep_alive: bool,
    named: SmallVec<[HeaderName; 2]>,
}

fn read(
    status: StatusCode,
    is_http_11: bool,
    fields: &[httparse::Header<'_>],
    method: &Method,
) -> Result<AnswerHead, HeadError> {
    let mut framing = Framing::default();
    let mut headers = HeaderMap::with_capacity(fields.len() + ADDED_HEADERS);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::NotHttp)?;
        framing.note(&name, field.value);
        // The length is written anew, since a caller might read several of them in its own way.
        if headers::passes_to_client(&name) && name != header::CONTENT_LENGTH {
            let value = HeaderValue::from_bytes(field.value).map_err(|_| HeadError::NotHttp)?;
            headers.append(name, value);
        }
    }
    for name in &framing.named {
        headers.remove(name);
    }
    // HTTP/1.0 knows no Transfer-Encoding.
    if framing.chunked.is_some() && !is_http_11 {
        return Err(HeadError::NotHttp);
    }
    if framing.chunked.is_some() && framing.length.is_some() {
        return Err(HeadError::Unusable(
            "both Transfer-Encoding and Content-Length",
        ));
    }
    let is_chunked = framing.chunked.transpose()?.is_some();
    let length = framing.length.transpose()?;
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let has_no_body = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let decoder = match length {
        _ if has_no_body => AnswerDecoder::Length(0),
        _ if is_chunked => AnswerDecoder::Chunked(Chunks::default()),
        Some(length) => AnswerDecoder::Length(length),
        None => AnswerDecoder::UntilClose,
    };
    Ok(AnswerHead {
        status,
        headers,
        keeps_open: !framing.says_close
            && (is_http_11 || framing.says_keep_alive)
            && decoder != AnswerDecoder::UntilClose,
        decoder,
    })
}

impl Framing {
    fn note(&mut self, name: &HeaderName, value: &[u8]) {
        match *name {
            header::CONTENT_LENGTH => {
                for text in list(value) {
                    let length = digits(text).ok_or(HeadError::NotHttp);
                    let known = self.length.unwrap_or(length);
                    let is_same = known == length;
                    self.length = Some(if is_same {
                        known
                    } else {
                        Err(HeadError::NotHttp)
                    });
                }
            }
            header::TRANSFER_ENCODING => {
                let is_right =
                    self.chunked.is_none() && value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                self.chunked = Some(is_right.then_some(()).ok_or(HeadError::Unusable(
                    "a transfer coding that was not asked for",
                )));
            }
            header::CONNECTION => {
                for option in list(value) {
                    self.says_close |= option.eq_ignore_ascii_case(b"close");
                    self.says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                self.named.extend(headers::named_by_connection(value));
            }
            _ => {}
        }
    }
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Reads a number that consists of digits only.
fn digits(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<(usize, Option<AnswerHead>), HeadError> {
        parse(text.as_bytes(), &Method::GET)
    }

    #[track_caller]
    fn whole(text: &str) -> AnswerHead {
        let (done, head) = head(text).unwrap();
        assert_eq!(done, text.len());
        head.unwrap()
    }

    #[test]
    fn the_answer_loses_hops_and_ours() {
        let head = whole(
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             X-Wxgate-Error: forged\r\nContent-Length: 2\r\nLocation: https://h/p?a=1#f\r\nLogicret: 40164\r\n\r\n",
        );
        let mut lines: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        let expected = [
            "content-length: 2",
            "location: https://h/p?a=1#f",
            "logicret: 40164",
        ];
        assert_eq!(lines, expected);
        assert!(head.keeps_open);
        assert!(
            whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .headers
                .is_empty()
        );
    }

    #[test]
    fn a_length_goes_on_as_one_number() {
        for length in ["5", "05", "5, 5", "5\r\nContent-Length: 05"] {
            let head = whole(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
            ));
            let lengths: Vec<_> = head.headers.get_all("content-length").iter().collect();
            assert_eq!(lengths, ["5"], "{length}");
            assert_eq!(head.decoder, AnswerDecoder::Length(5), "{length}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused_even_where_there_is_no_body() {
        let coding = HeadError::Unusable("a transfer coding that was not asked for");
        let both = HeadError::Unusable("both Transfer-Encoding and Content-Length");
        for (fields, error) in [
            ("Content-Length: 5, 6", HeadError::NotHttp),
            ("Content-Length: 5\r\nContent-Length: 6", HeadError::NotHttp),
            ("Content-Length: ", HeadError::NotHttp),
            ("Content-Length: +5", HeadError::NotHttp),
            ("Content-Length: 0x5", HeadError::NotHttp),
            ("Content-Length: 18446744073709551616", HeadError::NotHttp),
            ("Content-Length: 5,", HeadError::NotHttp),
            ("Transfer-Encoding: gzip", coding),
            ("Transfer-Encoding: gzip, chunked", coding),
            ("Transfer-Encoding: chunked, gzip", coding),
            ("Transfer-Encoding: chunked, chunked", coding),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                coding,
            ),
            ("Transfer-Encoding: ", coding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5", both),
            ("Content-Length: x\r\nTransfer-Encoding: gzip", both),
            ("X: a\r\n b", HeadError::NotHttp),
            ("Content-Length : 5", HeadError::NotHttp),
            ("Content-Length\t: 5", HeadError::NotHttp),
            ("X: a\rContent-Length: 5", HeadError::NotHttp),
        ] {
            for line in ["200 OK", "204 No Content", "304 Not Modified"] {
                let text = format!("HTTP/1.1 {line}\r\n{fields}\r\n\r\n");
                for method in [Method::GET, Method::HEAD] {
                    let found = parse(text.as_bytes(), &method).unwrap_err();
                    assert_eq!(found, error, "{method} {text:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_begin_as_an_answer_is_none() {
        for text in [
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "\n",
            "<",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 099 Odd\r\n\r\n",
            "HTTP/1.1 1000 Odd\r\n\r\n",
        ] {
            assert_eq!(head(text).unwrap_err(), HeadError::NotHttp, "{text:?}");
        }
    }

    #[test]
    fn interim_answers_are_skipped_and_done_with() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
        let (done, none) = head(&format!("{interim}{interim}HTTP/1.1 2")).unwrap();
        assert!(done == 2 * interim.len() && none.is_none());
        let found = whole(&format!("{interim}HTTP/1.1 204 No Content\r\n\r\n"));
        assert_eq!(found.status, StatusCode::NO_CONTENT);
        assert_eq!(
            head("HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap_err(),
            HeadError::Unusable("101 was not asked for")
        );
    }

    #[test]
    fn a_head_says_whether_its_connection_stays() {
        for (text, stays) in [
            ("1.1 200 OK\r\nContent-Length: 0", true),
            (
                "1.1 200 OK\r\nContent-Length: 0\r\nConnection: close",
                false,
            ),
            (
                "1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\nConnection: keep-alive",
                false,
            ),
            ("1.0 200 OK\r\nContent-Length: 0", false),
            (
                "1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive",
                true,
            ),
            ("1.1 200 OK", false),
            ("1.1 204 No Content", true),
        ] {
            assert_eq!(
                whole(&format!("HTTP/{text}\r\n\r\n")).keeps_open,
                stays,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "(HTTP/1\\.[01] (1|2|3)0[0-4]( [a-zO]{0,3})?\r?\n([a-z:-]{0,12}: ?\\PC{0,6}\r?\n){0,3}(\r?\n)?){0,3}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            if let Ok((done, head)) = parse(&bytes, &Method::GET) {
                prop_assert!(done <= bytes.len());
                // Nothing that comes later changes a head that is complete.
                if head.is_some() {
                    let more = [&bytes[..], b"HTTP/1.1 200 OK\r\n\r\n"].concat();
                    prop_assert_eq!(parse(&more, &Method::GET).unwrap().0, done);
                }
            }
        }
    }
}
