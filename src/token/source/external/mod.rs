//! Tokens that another central server keeps: read there, never fetched from WeChat, never written.
//!
//! How to reach the server is said by `redis` and `http`, what it holds by `value`. A source reads
//! once and says what it found; when to read again is the refresher's business.

mod http;
mod php;
mod redis;
#[cfg(test)]
mod tests;
mod value;

use std::{sync::Arc, time::Duration};

pub use self::{
    http::{ExternalHttpSettings, Header},
    redis::ExternalRedisSettings,
};
use super::{FetchError, TokenClient, TokenSource};

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalSettings {
    /// In Redis or Valkey.
    Redis(ExternalRedisSettings),
    /// Behind an HTTP endpoint.
    Http(ExternalHttpSettings),
}

/// Why there is no token. Holds no text of others: what a server says may hold the token or a
/// password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// No connection.
    #[error(
        "no connection to the server that keeps the token: check the account's token.url, and whether it runs"
    )]
    Unreachable,
    /// No answer in time.
    #[error(
        "the server that keeps the token did not answer in time: check whether it runs, or raise token.fetch_timeout"
    )]
    Timeout,
    /// The connection ended before the answer did.
    #[error(
        "the connection to the server that keeps the token broke: check the account's token.url and the server"
    )]
    Broken,
    /// It knows wxgate not, or not well enough.
    #[error(
        "the server that keeps the token does not let wxgate read it: check what the account's token.url and \
         token.header show, and the rights there"
    )]
    Denied,
    /// There is nothing at this place.
    #[error(
        "the other server keeps no token there: check token.key or token.url, and the program that should keep it"
    )]
    Missing,
    /// There is one, and by its own account it is over.
    #[error(
        "the token that the other server keeps is over: check the program that should renew it"
    )]
    Ended,
    /// Another HTTP status than 200.
    #[error(
        "the server that keeps the token answered with HTTP status {0}: check the account's token.url and the server"
    )]
    Status(u16),
    /// Something that holds no token; the text says what is missing.
    #[error(
        "what the other server keeps there is no token ({0}): docs/coexistence.md shows what wxgate can read"
    )]
    Shape(&'static str),
}

/// Believed of a token whose life nobody tells. It is read again each minute, so this much of an
/// outage passes unseen.
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// The longest lifetime that WeChat documents.
const MAX_LIFE: Duration = Duration::from_secs(7200);

impl ExternalError {
    /// For metrics; bounded.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Ended => "ended",
            Self::Status(_) => "status",
            Self::Shape(_) => "malformed",
        }
    }

    /// Whether it is the network's or a busy server's fault, not what is kept there.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable | Self::Timeout | Self::Broken => true,
            Self::Status(status) => status >= 500 || status == 429,
            Self::Denied | Self::Missing | Self::Ended | Self::Shape(_) => false,
        }
    }
}

/// The source for these settings. It goes there directly, not by the way out to WeChat, but with
/// the same trusted roots.
pub(super) fn source(settings: &ExternalSettings, client: TokenClient) -> Arc<dyn TokenSource> {
    match settings {
        ExternalSettings::Redis(settings) => {
            Arc::new(redis::RedisTokenSource::new(settings.clone(), client))
        }
        ExternalSettings::Http(settings) => {
            Arc::new(http::HttpTokenSource::new(settings.clone(), client))
        }
    }
}

/// The shortest of what was told; at most two hours.
fn life(told: [Option<Duration>; 2]) -> Result<Duration, ExternalError> {
    let life = told.into_iter().flatten().min().unwrap_or(DEFAULT_LIFE);
    if life < Duration::from_secs(1) {
        Err(ExternalError::Ended)
    } else {
        Ok(life.min(MAX_LIFE))
    }
}

/// A failure of the HTTP client, which speaks of WeChat's endpoints.
fn translated(error: FetchError) -> FetchError {
    match error {
        FetchError::Connect => ExternalError::Unreachable.into(),
        FetchError::Timeout => ExternalError::Timeout.into(),
        FetchError::Broken => ExternalError::Broken.into(),
        FetchError::Malformed(what) => ExternalError::Shape(what).into(),
        other => other,
    }
}
