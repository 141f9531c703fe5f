//! Id of a request, in the answer and in the logs of both sides.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id of a caller that is adopted, in bytes.
const MAX_ADOPTED: usize = 64;

/// Id of a request: letters, digits, `-`, `_` and `.`. A header value, so that the answer needs no
/// conversion.
#[derive(Debug, Clone)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// Returns the caller's own id if it is well-formed; it ties the caller's log to ours.
    pub(super) fn adopted(headers: &HeaderMap) -> Option<Self> {
        let id = headers.get(X_REQUEST_ID)?;
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (!id.is_empty() && id.len() <= MAX_ADOPTED && id.as_bytes().iter().all(is_plain))
            .then(|| Self(id.clone()))
    }

    /// Writes a number as sixteen hex digits. By hand, since nearly every request gets one:
    /// formatting costs ten times as much.
    pub(super) fn numbered(number: u64) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (pair, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
            pair.copy_from_slice(&[
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
        Self(HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-")))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }

    /// Takes the value out and leaves the id empty.
    pub(super) fn take(&mut self) -> HeaderValue {
        std::mem::replace(&mut self.0, HeaderValue::from_static(""))
    }

    /// Copies the value, which costs an allocation, for a request that is logged after its head has
    /// gone out.
    pub(super) fn value(&self) -> HeaderValue {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_callers_are_taken_over_when_they_are_plain() {
        let adopted = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                X_REQUEST_ID,
                HeaderValue::from_bytes(id.as_bytes()).unwrap(),
            );
            RequestId::adopted(&headers).map(|id| id.as_str().to_owned())
        };
        let longest = "a".repeat(MAX_ADOPTED);
        for id in ["a", "4bf92f35-77b3_4da6.x", &longest] {
            assert_eq!(adopted(id).as_deref(), Some(id));
        }
        for id in ["", "a b", "a\"b", "\u{e9}", &format!("{longest}a")] {
            assert_eq!(adopted(id), None, "{id}");
        }
        assert!(RequestId::adopted(&HeaderMap::new()).is_none());
        let mut own = RequestId::numbered(0x0123_4567_89ab_cdef);
        assert_eq!(own.as_str(), "0123456789abcdef");
        assert_eq!(own.take(), "0123456789abcdef");
    }
}
