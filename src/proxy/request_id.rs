//! The name of a request in the answer and in the logs of both sides.
//!
//! Kept where it stands: every request has one, and text on the heap would cost more than the rest of it.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id of a caller that is taken over, in bytes.
const LONGEST: usize = 64;

/// Letters, digits, `-`, `_` and `.`.
#[derive(Clone, Copy)]
pub(super) struct RequestId {
    text: [u8; LONGEST],
    len: u8,
}

impl RequestId {
    /// The caller's own, if it is one: it ties the caller's log to ours.
    pub(super) fn adopted(headers: &HeaderMap) -> Option<Self> {
        let id = headers.get(X_REQUEST_ID).map(HeaderValue::as_bytes)?;
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (!id.is_empty() && id.len() <= LONGEST && id.iter().all(is_plain)).then(|| Self::of(id))
    }

    /// A number as sixteen digits. By hand, since nearly every request gets one: formatting costs ten times as much.
    pub(super) fn numbered(number: u64) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (pair, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        Self::of(&text)
    }

    /// At most [`LONGEST`] bytes of `id`.
    fn of(id: &[u8]) -> Self {
        let len = id.len().min(LONGEST);
        let mut text = [0; LONGEST];
        text[..len].copy_from_slice(&id[..len]);
        Self { text, len: u8::try_from(len).unwrap_or_default() }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_callers_are_taken_over_when_they_are_plain() {
        let adopted = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            RequestId::adopted(&headers).map(|id| id.as_str().to_owned())
        };
        let longest = "a".repeat(LONGEST);
        for id in ["a", "4bf92f35-77b3_4da6.x", &longest] {
            assert_eq!(adopted(id).as_deref(), Some(id));
        }
        for id in ["", "a b", "a\"b", "\u{e9}", &format!("{longest}a")] {
            assert_eq!(adopted(id), None, "{id}");
        }
        assert_eq!(RequestId::adopted(&HeaderMap::new()).map(|id| id.len), None);
        assert_eq!(RequestId::numbered(0x0123_4567_89ab_cdef).as_str(), "0123456789abcdef");
    }
}
