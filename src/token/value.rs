//! Token as requests see it: immutable, with its generation and its expiry on the monotonic clock.
//!
//! Provider and acceptance of the token are left to `source` and `refresher`.

use std::{fmt, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::base::Secret;

/// Number of a token within its account. Grows by one with each different token and never goes
/// back, over restarts too as long as the store keeps the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Token of one account. `Debug` does not show the text of the token.
#[derive(Debug)]
pub struct Token {
    generation: Generation,
    secret: Secret,
    query: Secret,
    fingerprint: String,
    sent: Instant,
    expires: Instant,
}

/// Characters to encode in a query value: all but the unreserved ones of RFC 3986.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

impl Token {
    /// Makes a token that was asked for at `sent` and is valid until `expires`.
    pub fn new(generation: Generation, secret: Secret, sent: Instant, expires: Instant) -> Self {
        let query = Secret::new(utf8_percent_encode(secret.expose(), QUERY_VALUE).to_string());
        let fingerprint = secret.fingerprint();
        Self {
            generation,
            secret,
            query,
            fingerprint,
            sent,
            expires,
        }
    }

    /// Copy with another expiry, from WeChat's latest answer.
    pub(crate) fn extended(&self, sent: Instant, expires: Instant) -> Self {
        Self::new(
            self.generation,
            self.secret.clone(),
            // The age of a token counts from the first call that gave it.
            sent.min(self.sent),
            expires,
        )
    }

    /// Copy under another generation.
    pub(crate) fn renumbered(&self, generation: Generation) -> Self {
        Self::new(generation, self.secret.clone(), self.sent, self.expires)
    }

    /// Generation of the token.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Percent-encoded token for the query parameter `access_token`. Reveals the secret.
    pub fn query_value(&self) -> &str {
        self.query.expose()
    }

    /// Token as WeChat gave it.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns true if `text` is the token. Compares in constant time.
    pub fn matches(&self, text: &str) -> bool {
        self.secret.matches(text)
    }

    /// Rest of the token's life; zero once it has expired.
    pub fn expires_in(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }

    /// Rest of the token's life as of `now`; zero once it has expired.
    pub(crate) fn left_at(&self, now: Instant) -> Duration {
        self.expires.saturating_duration_since(now)
    }

    /// First eight hex digits of the token's SHA-256.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// True until the token expires.
    pub fn is_alive(&self) -> bool {
        Instant::now() < self.expires
    }

    /// Time at which the call that brought the token was sent.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// Time at which the token expires, counted from the moment the call was sent.
    pub fn expires(&self) -> Instant {
        self.expires
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn odd_bytes_are_encoded_for_the_query_and_nothing_is_printed() {
        let now = Instant::now();
        let token = Token::new(
            Generation(3),
            Secret::new("7_a b&c%d=é"),
            now,
            now + Duration::from_secs(10),
        );
        assert_eq!(token.query_value(), "7_a%20b%26c%25d%3D%C3%A9");
        assert!(!format!("{token:?}").contains("7_a"));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(token.expires_in(), Duration::from_secs(6));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(!token.is_alive() && token.expires_in().is_zero());
    }
}
