//! Inspection of an answer's body: complete or not, the error code in it, and credentials.
//!
//! A body of up to 64 KiB is read to its end before its head goes on, so that a broken body can
//! still become an error. Only a body that can be a small JSON object is searched, for a code and
//! for the account's credentials, which are masked. A longer body is streamed, and so is one without
//! a length that pauses. All other bytes are delivered as they came. `retry` decides about the
//! meaning of a code.

use std::{
    io::Read as _,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flate2::bufread::GzDecoder;
use hyper::{
    HeaderMap, Method,
    body::{Body, Frame, SizeHint},
    header::{self, HeaderName},
    http::response::Parts,
};
use tokio::time::Instant;

use super::{
    mask::CredentialMask,
    upstream::{AnswerBody, ExchangeError},
};
use crate::wechat::verdict::{self, Finding, WINDOW};

/// Longest body that is complete before its head goes on, in bytes.
const MAX_HELD: usize = 64 * 1024;
/// Longest body that [`look_at_all`] masks, in bytes, unpacked too.
const MAX_MASKED: usize = 1024 * 1024;
/// Longest time for which a body without a length is held back, unless it is searched: it may be a
/// stream of events.
const MAX_PAUSE: Duration = Duration::from_millis(250);
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
/// Headers that are wrong for other bytes than those that WeChat sent.
const DIGESTS: [HeaderName; 5] = [
    header::ETAG,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// Body of an answer on its way to the caller.
pub(crate) enum InspectedBody {
    /// A body that was read to its end.
    Whole(Bytes),
    /// The beginning of a body, and the rest, which is still to come.
    Begun(Bytes, AnswerBody),
}

/// Result of [`look_at_all`].
pub(crate) enum Masking {
    /// The body is complete, and masked.
    Complete(InspectedBody, Option<Finding>),
    /// The body cannot be masked, for this reason.
    Impossible(InspectedBody, &'static str),
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
    mask: CredentialMask<'_>,
) -> Result<(InspectedBody, Option<Finding>), ExchangeError> {
    let length = body.size_hint().exact();
    if *method == Method::HEAD
        || body.is_end_stream()
        || length.is_some_and(|length| length > MAX_HELD as u64)
    {
        return Ok((InspectedBody::Begun(Bytes::new(), body), None));
    }
    let coding = Coding::of(&head.headers);
    let mut is_searched =
        coding != Coding::Opaque && length.is_none_or(|length| length <= WINDOW as u64);
    let mut waiting_since = None;
    let mut seen = Bytes::new();
    loop {
        let limit = if length.is_some() || is_searched {
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
                set_length(head, seen.len());
                true
            }
            Some(Some(frame)) => {
                if let Ok(data) = frame?.into_data() {
                    seen = append(seen, data);
                }
                body.is_end_stream()
            }
        };
        is_searched = is_searched
            && seen.len() <= WINDOW
            && (coding != Coding::Plain || verdict::may_be_object(&seen) != Some(false));
        if is_over {
            return Ok(if is_searched {
                search(head, coding, seen, mask)
            } else {
                (InspectedBody::Whole(seen), None)
            });
        }
        if seen.len() > MAX_HELD {
            return Ok((InspectedBody::Begun(seen, body), None));
        }
    }
}

/// Reads a body of up to 1 MiB to its end, whatever it is, and masks it: the answer to a call that
/// repeats another call.
///
/// # Errors
/// When the body breaks off.
pub(crate) async fn look_at_all(
    head: &mut Parts,
    mut body: AnswerBody,
    patience: Duration,
    mask: CredentialMask<'_>,
) -> Result<Masking, ExchangeError> {
    let coding = Coding::of(&head.headers);
    let until = Instant::now() + patience;
    let is_too_long = |length: u64| length > MAX_MASKED as u64;
    let mut seen = Bytes::new();
    let reason = loop {
        if is_too_long((seen.len() as u64).max(body.size_hint().lower())) {
            break "is longer than 1 MiB";
        }
        if body.is_end_stream() {
            return Ok(mask_all(head, coding, seen, mask));
        }
        match body.frame_before(|| until).await {
            None => break "did not come within upstream.response_timeout",
            Some(None) => return Ok(mask_all(head, coding, seen, mask)),
            Some(Some(frame)) => {
                if let Ok(data) = frame?.into_data() {
                    seen = append(seen, data);
                }
            }
        }
    };
    Ok(Masking::Impossible(
        InspectedBody::Begun(seen, body),
        reason,
    ))
}

/// Masks a complete body.
fn mask_all(head: &mut Parts, coding: Coding, seen: Bytes, mask: CredentialMask<'_>) -> Masking {
    set_length(head, seen.len());
    let unpacked = match coding {
        Coding::Opaque => Unpacked::Unknown,
        Coding::Gzip => gunzip(&seen, MAX_MASKED),
        Coding::Plain => Unpacked::NotPacked,
    };
    let text = match &unpacked {
        Unpacked::Whole(text) => text.as_slice(),
        Unpacked::NotPacked => &seen,
        Unpacked::TooLong => {
            return Masking::Impossible(InspectedBody::Whole(seen), "is longer than 1 MiB");
        }
        Unpacked::Unknown => {
            return Masking::Impossible(InspectedBody::Whole(seen), "is packed in an unknown way");
        }
    };
    let finding = verdict::find(text);
    let masked = mask.masked(text);
    let body = replace(head, &unpacked, seen, masked);
    Masking::Complete(body, finding)
}

/// Searches a complete body, within the window, for a code and for credentials. Not a file:
/// `media/get` may deliver a JSON document that a user uploaded.
fn search(
    head: &mut Parts,
    coding: Coding,
    seen: Bytes,
    mask: CredentialMask<'_>,
) -> (InspectedBody, Option<Finding>) {
    let unpacked = match coding {
        Coding::Gzip => gunzip(&seen, WINDOW),
        Coding::Plain | Coding::Opaque => Unpacked::NotPacked,
    };
    let text = match &unpacked {
        Unpacked::Whole(text) => text.as_slice(),
        Unpacked::NotPacked | Unpacked::Unknown => &seen,
        Unpacked::TooLong => return (InspectedBody::Whole(seen), None),
    };
    let finding = verdict::find(text).filter(|_| head.status.is_success());
    let masked = mask.masked(text);
    // The header last, since few answers hold a code or a credential at all.
    if (finding.is_some() || masked.is_some()) && is_file(&head.headers) {
        return (InspectedBody::Whole(seen), None);
    }
    (replace(head, &unpacked, seen, masked), finding)
}

/// Returns the body that goes on: the masked one if there is one, with headers that fit it.
fn replace(
    head: &mut Parts,
    unpacked: &Unpacked,
    seen: Bytes,
    masked: Option<Vec<u8>>,
) -> InspectedBody {
    let Some(masked) = masked else {
        return InspectedBody::Whole(seen);
    };
    if matches!(unpacked, Unpacked::Whole(_)) {
        head.headers.remove(header::CONTENT_ENCODING);
    }
    for name in DIGESTS {
        head.headers.remove(name);
    }
    set_length(head, masked.len());
    InspectedBody::Whole(masked.into())
}

/// Gives a complete body its length.
fn set_length(head: &mut Parts, length: usize) {
    head.headers.remove(header::TRANSFER_ENCODING);
    head.headers.insert(header::CONTENT_LENGTH, length.into());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Gzip,
    Opaque,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Self {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        match (codings.next(), codings.next()) {
            (None, _) => Self::Plain,
            (Some(value), None) => match value.as_bytes().trim_ascii() {
                b"" | b"identity" => Self::Plain,
                b"gzip" | b"x-gzip" => Self::Gzip,
                _ => Self::Opaque,
            },
            (Some(_), Some(_)) => Self::Opaque,
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

/// Text of a body.
#[derive(Debug, PartialEq, Eq)]
enum Unpacked {
    Whole(Vec<u8>),
    TooLong,
    /// The body is the text.
    NotPacked,
    /// The body cannot be read.
    Unknown,
}

/// Decompresses up to `limit` bytes. A body that is labelled gzip and is not is its own text.
fn gunzip(body: &[u8], limit: usize) -> Unpacked {
    if !body.starts_with(GZIP_MAGIC) {
        return Unpacked::NotPacked;
    }
    let (mut decoded, mut rest) = (Vec::new(), body);
    // A second member would hide what it holds.
    while rest.starts_with(GZIP_MAGIC) {
        let room = (limit - decoded.len()) as u64 + 1;
        let mut member = GzDecoder::new(rest).take(room);
        if member.read_to_end(&mut decoded).is_err() {
            return Unpacked::Unknown;
        }
        if decoded.len() > limit {
            return Unpacked::TooLong;
        }
        rest = member.into_inner().into_inner();
    }
    Unpacked::Whole(decoded)
}

impl Body for InspectedBody {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
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
        let unpacked = |body: &[u8]| gunzip(body, WINDOW);
        let error = br#"{"errcode":42001,"errmsg":"access_token expired"}"#;
        let whole = |text: &[u8]| Unpacked::Whole(text.to_vec());
        assert_eq!(unpacked(&gzip(error)), whole(error));
        assert_eq!(unpacked(error), Unpacked::NotPacked);
        let mut padded = error.to_vec();
        padded.resize(WINDOW, b' ');
        assert_eq!(unpacked(&gzip(&padded)), whole(&padded));
        padded.resize(WINDOW + 1, b' ');
        assert_eq!(unpacked(&gzip(&padded)), Unpacked::TooLong);
        let bomb = gzip(&vec![b' '; 4 << 20]);
        assert_eq!(unpacked(&bomb), Unpacked::TooLong, "stops at the window");
        assert_eq!(unpacked(&gzip(error)[..20]), Unpacked::Unknown, "cut short");
    }

    #[test]
    fn every_member_of_a_gzip_body_is_read() {
        let members = [gzip(b"{\"a\":"), gzip(b""), gzip(b"1}")].concat();
        assert_eq!(gunzip(&members, 7), Unpacked::Whole(b"{\"a\":1}".to_vec()));
        assert_eq!(gunzip(&members, 6), Unpacked::TooLong);
        let garbage = [gzip(b"{}"), b"garbage".to_vec()].concat();
        assert_eq!(gunzip(&garbage, 7), Unpacked::Whole(b"{}".to_vec()));
    }
}
