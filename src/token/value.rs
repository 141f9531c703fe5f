//! A token as requests see it: immutable, with its generation and its end on the monotonic clock.
//!
//! Knows neither where it came from nor what WeChat thinks of it by now.

use std::{fmt, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::base::Secret;

/// Counts the tokens of one account: grows by one with each different token, never back, over
/// restarts too as long as the store keeps its record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// One token of one account. Its text cannot be formatted.
#[derive(Debug)]
pub struct Token {
    generation: Generation,
    secret: Secret,
    query: Secret,
    fingerprint: String,
    sent: Instant,
    expires: Instant,
}

/// What stays as it is in a query value (RFC 3986, unreserved).
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

impl Token {
    /// A token that was asked for at `sent` and is good until `expires`.
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

    /// The same token with another end, as WeChat's latest answer gave it.
    pub(crate) fn extended(&self, sent: Instant, expires: Instant) -> Self {
        Self::new(
            self.generation,
            self.secret.clone(),
            sent.min(self.sent),
            expires,
        )
    }

    /// The same token under another number.
    pub(crate) fn renumbered(&self, generation: Generation) -> Self {
        Self::new(generation, self.secret.clone(), self.sent, self.expires)
    }

    /// Which token of the account this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The token percent-encoded, ready to stand behind `access_token=`. One of the few places that
    /// reveal a secret.
    pub fn query_value(&self) -> &str {
        self.query.expose()
    }

    /// Length of the token as WeChat gave it, in bytes.
    pub(crate) fn length(&self) -> usize {
        self.secret.expose().len()
    }

    /// The token as WeChat gave it.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Whether it is this text, in time that does not depend on where the two differ.
    pub fn matches(&self, text: &str) -> bool {
        self.secret.matches(text)
    }

    /// How long it is still good; zero when it is not any more.
    pub fn expires_in(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }

    /// Rest of its life as of `now`; zero when it has ended.
    pub(crate) fn left_at(&self, now: Instant) -> Duration {
        self.expires.saturating_duration_since(now)
    }

    /// The first eight hex digits of its SHA-256.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether it is still good.
    pub fn is_alive(&self) -> bool {
        Instant::now() < self.expires
    }

    /// When the call that brought it was sent.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// When it ends, counted from the moment the call was sent.
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
