//! Inspection of an answer's body: complete or not, and the error code in it.
//!
//! A body of up to 64 KiB is read to its end before its head goes on, so that a broken body can
//! still become an error. Only a body that can be a small JSON object is searched for a code. A
//! longer body is streamed, and so is one without a length that pauses. The bytes are delivered as
//! they came. `retry` decides about the meaning of a code.

use std::{
    io::Read as _,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use hyper::{
    HeaderMap, Method,
    body::{Body, Frame, SizeHint},
    header,
    http::response::Parts,
};
use tokio::time::Instant;

use super::upstream::AnswerBody;
use crate::wechat::{
    codes,
    verdict::{self, Code, WINDOW},
};

/// Longest body that is complete before its head goes on, in bytes.
const MAX_HELD: usize = 64 * 1024;
/// Longest time for which a body without a length is held back, unless it may hold a code: it may
/// be a stream of events.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// Body of an answer on its way to the caller.
pub(crate) enum InspectedBody {
    /// A body that was read to its end.
    Whole(Bytes),
    /// The beginning of a body, and the rest, which is still to come.
    Begun(Bytes, AnswerBody),
}

/// Inspects the body of an answer. A body is held back for `patience` at most; a complete one gets
/// a length.
///
/// # Errors
/// When the body breaks off while it is held back: the caller has nothing of it yet.
pub(crate) async fn look(
    method: &Method,
    head: &mut Parts,
    mut body: AnswerBody,
    patience: Duration,
) -> hyper::Result<(InspectedBody, Option<i64>)> {
    let length = body.size_hint().exact();
    if *method == Method::HEAD
        || body.is_end_stream()
        || length.is_some_and(|length| length > MAX_HELD as u64)
    {
        return Ok((InspectedBody::Begun(Bytes::new(), body), None));
    }
    let coding = Coding::of(&head.headers);
    let mut may_hold_code = head.status.is_success()
        && coding != Coding::Opaque
        && length.is_none_or(|length| length <= WINDOW as u64);
    let mut waiting_since = None;
    let mut seen = Bytes::new();
    loop {
        let limit = if length.is_some() || may_hold_code {
            patience
        } else {
            MAX_PAUSE.min(patience)
        };
        let deadline = || *waiting_since.get_or_insert_with(Instant::now) + limit;
        let is_over = match body.frame_before(deadline).await {
            // Too slow to hold back any longer: the caller gets the bytes as they come.
            None => return Ok((InspectedBody::Begun(seen, body), None)),
            Some(None) => {
                // The body is complete, so a chunked answer gets a length.
                head.headers.remove(header::TRANSFER_ENCODING);
                head.headers
                    .insert(header::CONTENT_LENGTH, seen.len().into());
                true
            }
            Some(Some(frame)) => {
                if let Ok(data) = frame?.into_data() {
                    seen = append(seen, data);
                }
                body.is_end_stream()
            }
        };
        may_hold_code = may_hold_code
            && seen.len() <= WINDOW
            && (coding != Coding::Plain || verdict::may_be_object(&seen) != Some(false));
        if is_over {
            let errcode = may_hold_code
                .then(|| judge(&head.headers, coding, &seen))
                .flatten();
            return Ok((InspectedBody::Whole(seen), errcode));
        }
        if seen.len() > MAX_HELD {
            return Ok((InspectedBody::Begun(seen, body), None));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Gzip,
    Opaque,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(header::CONTENT_ENCODING) {
            None => Self::Plain,
            Some(value) => match value.as_bytes().trim_ascii() {
                b"" | b"identity" => Self::Plain,
                b"gzip" | b"x-gzip" => Self::Gzip,
                _ => Self::Opaque,
            },
        }
    }
}

fn append(seen: Bytes, data: Bytes) -> Bytes {
    if seen.is_empty() {
        return data;
    }
    let mut both = BytesMut::from(seen);
    both.extend_from_slice(&data);
    both.freeze()
}

/// Returns the code in an answer that is no file: `media/get` may deliver a JSON document that a
/// user uploaded.
fn judge(headers: &HeaderMap, coding: Coding, body: &[u8]) -> Option<i64> {
    // The header last, since few answers hold a code at all.
    read(coding, body).filter(|_| !is_file(headers))
}

fn is_file(headers: &HeaderMap) -> bool {
    const ATTACHMENT: &[u8] = b"attachment";
    headers
        .get_all(header::CONTENT_DISPOSITION)
        .iter()
        .any(|value| {
            value
                .as_bytes()
                .trim_ascii_start()
                .get(..ATTACHMENT.len())
                .is_some_and(|kind| kind.eq_ignore_ascii_case(ATTACHMENT))
        })
}

/// Returns the code in a complete body that is not compressed.
pub(crate) fn code_in(body: &[u8]) -> Option<i64> {
    (body.len() <= WINDOW)
        .then(|| read(Coding::Plain, body))
        .flatten()
}

/// Returns the code in a complete body. A body that is labelled gzip and is not is read as it is.
fn read(coding: Coding, body: &[u8]) -> Option<i64> {
    let decoded = match coding {
        Coding::Gzip => gunzip(body)?,
        Coding::Plain | Coding::Opaque => None,
    };
    match verdict::code(decoded.as_deref().unwrap_or(body))? {
        // As `ret`, the numbers of refused tokens mean something else.
        Code::Ret(code) if codes::says_something_of_tokens(code) => None,
        Code::Errcode(code) | Code::Ret(code) => Some(code),
    }
}

/// Decompresses up to [`WINDOW`] bytes: `None` if there are more, `Some(None)` if the body is no gzip.
#[allow(
    clippy::option_option,
    reason = "two different ways to have nothing decoded"
)]
fn gunzip(body: &[u8]) -> Option<Option<Vec<u8>>> {
    let mut decoded = Vec::new();
    match GzDecoder::new(body)
        .take(WINDOW as u64 + 1)
        .read_to_end(&mut decoded)
    {
        Ok(_) if decoded.len() > WINDOW => None,
        Ok(_) => Some(Some(decoded)),
        Err(_) => Some(None),
    }
}

impl Body for InspectedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(mem::take(bytes))))),
            Self::Begun(seen, _) if !seen.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(mem::take(seen)))))
            }
            Self::Begun(_, rest) => Pin::new(rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Begun(seen, rest) => seen.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Begun(seen, rest) => {
                let mut hint = rest.size_hint();
                let seen = seen.len() as u64;
                // The upper bound first: the lower one must never pass it.
                if let Some(upper) = hint.upper() {
                    hint.set_upper(upper + seen);
                }
                hint.set_lower(hint.lower() + seen);
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_ret_is_passed_on_unless_it_would_be_judged() {
        let code = |body: &[u8]| read(Coding::Plain, body);
        assert_eq!(code(br#"{"base_resp":{"ret":45009}}"#), Some(45009));
        assert_eq!(code(br#"{"ret":2009}"#), Some(2009));
        for judged in [40001, 40014, 42001, 41001, 40164, 45035, 60020, 61004] {
            let body = format!(r#"{{"ret":{judged}}}"#);
            assert_eq!(code(body.as_bytes()), None, "{judged}");
        }
    }

    #[test]
    fn a_file_is_told_by_its_disposition() {
        let is_file = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_DISPOSITION, value.parse().unwrap());
            super::is_file(&headers)
        };
        assert!(is_file("attachment; filename=\"a.json\""));
        assert!(is_file(" Attachment") && is_file("attachment"));
        assert!(!is_file("inline") && !is_file("") && !is_file("attach"));
        assert!(!super::is_file(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_read_within_the_window_only() {
        let error = br#"{"errcode":42001,"errmsg":"access_token expired"}"#;
        assert_eq!(read(Coding::Gzip, &gzip(error)), Some(42001));
        assert_eq!(
            read(Coding::Gzip, error),
            Some(42001),
            "labelled gzip and is not"
        );
        let mut padded = error.to_vec();
        padded.resize(WINDOW, b' ');
        assert_eq!(read(Coding::Gzip, &gzip(&padded)), Some(42001));
        padded.resize(WINDOW + 1, b' ');
        assert_eq!(read(Coding::Gzip, &gzip(&padded)), None);
        assert_eq!(
            read(Coding::Gzip, &gzip(&vec![b' '; 4 << 20])),
            None,
            "a bomb stops at the window"
        );
        assert_eq!(read(Coding::Gzip, &gzip(error)[..20]), None, "cut short");
    }
}
