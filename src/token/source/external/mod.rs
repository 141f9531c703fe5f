//! External token providers: another central server keeps the token, and wxgate only reads it
//! there.
//!
//! `redis` and `http` reach the server, `value` finds the token in the stored text. A source reads
//! once; the refresher decides when to read again.

mod http;
mod php;
mod redis;
#[cfg(test)]
mod tests;
mod value;

use std::{sync::Arc, time::Duration};

pub use self::http::ExternalHttpSettings;
pub(crate) use self::{http::Header, redis::ExternalRedisSettings};
use super::{FetchError, TokenClient, TokenSource};
use crate::net::connect_error::{ConnectError, TcpFailure, TlsFailure};

/// Address of an external token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalSettings {
    /// Key in Redis or Valkey.
    Redis(ExternalRedisSettings),
    /// HTTP endpoint.
    Http(ExternalHttpSettings),
}

/// Error of reading an external token. Holds no text of the server, which may hold the token or a
/// password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// No connection.
    #[error("no connection to the server that keeps the token: {}", unreachable(*.0))]
    Unreachable(ConnectError),
    /// No answer in time.
    #[error(
        "the server that keeps the token did not answer in time: check whether it runs, or raise token.fetch_timeout"
    )]
    Timeout,
    /// The connection ended before the answer was complete.
    #[error(
        "the connection to the server that keeps the token broke: check the account's token.url and the server"
    )]
    Broken,
    /// The server refuses the login, or lacks the rights for it.
    #[error(
        "the server that keeps the token does not let wxgate read it: check what the account's token.url and \
         token.header show, and the rights there"
    )]
    Denied,
    /// The server refuses the database that the URL names.
    #[error(
        "the server that keeps the token refuses SELECT for the database that token.url names: give the user +select in \
         its ACL, or name a database that the server has"
    )]
    Database,
    /// Nothing is stored at this address.
    #[error(
        "the other server keeps no token there: check token.key or token.url, and the program that should keep it"
    )]
    Missing,
    /// The stored token has expired by its own expiry.
    #[error(
        "the token that the other server keeps is over: check the program that should renew it"
    )]
    Ended,
    /// HTTP status other than 200.
    #[error(
        "the server that keeps the token answered with HTTP status {0}: check the account's token.url and the server"
    )]
    Status(u16),
    /// Stored data without a token; the text says what is missing.
    #[error(
        "what the other server keeps there is no token ({0}): docs/coexistence.md shows what wxgate can read"
    )]
    Shape(&'static str),
}

/// Reason why the settings of an external token are not usable. Repeats nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExternalSettingsError {
    /// URL of Redis in no usable form.
    #[error(
        "expected redis://, rediss:// (TLS) or unix:, as in \"redis://:password@host:6379/0\" or \
         \"unix:/run/redis.sock?db=0\""
    )]
    RedisForm,
    /// URL of Redis that asks for TLS without verification.
    #[error("certificates are always verified: remove \"#insecure\"")]
    Unverified,
    /// URL of an HTTP endpoint in no usable form, or without TLS to another machine.
    #[error("expected an https:// URL; http:// only to this machine")]
    HttpForm,
    /// Name that no header can have.
    #[error("the key is no name of a header")]
    HeaderName,
    /// Value that no header can have.
    #[error("the value holds characters that no header may have")]
    HeaderValue,
}

/// Life of a token without a known expiry. The token is read again each minute, so an outage of the
/// server of this length goes unnoticed.
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// Longest lifetime that WeChat documents.
const MAX_LIFE: Duration = Duration::from_secs(7200);

impl ExternalError {
    /// Label for metrics, from a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable(_) => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Denied => "denied",
            Self::Database => "database",
            Self::Missing => "missing",
            Self::Ended => "ended",
            Self::Status(_) => "status",
            Self::Shape(_) => "malformed",
        }
    }

    /// True for faults of the network or a busy server, false for faults of the stored data.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout | Self::Broken => true,
            Self::Status(status) => status >= 500 || status == 429,
            Self::Denied | Self::Database | Self::Missing | Self::Ended | Self::Shape(_) => false,
        }
    }
}

/// Sentence on a connection to the server that keeps a token, which is no host of WeChat's and is
/// reached directly.
fn unreachable(cause: ConnectError) -> &'static str {
    match cause {
        ConnectError::Host(TcpFailure::UnknownName) => {
            "its host name does not resolve; check the account's token.url and the DNS servers of this machine"
        }
        ConnectError::Host(TcpFailure::DnsSilent) => {
            "DNS does not answer; check the DNS servers of this machine (/etc/resolv.conf)"
        }
        ConnectError::Host(TcpFailure::TimedOut | TcpFailure::NoRoute) => {
            "it cannot be reached; check the account's token.url, the firewall and the routes"
        }
        ConnectError::Host(_) | ConnectError::Proxy(_) | ConnectError::Tunnel(_) => {
            "it refuses the connection; check the account's token.url, and whether it runs"
        }
        ConnectError::Tls(TlsFailure::Untrusted) => {
            "its certificate comes from an authority that is not trusted here; put the root into upstream.ca_file"
        }
        ConnectError::Tls(TlsFailure::Expired | TlsFailure::NotYetValid) => {
            "its certificate is not valid today; have it renewed, and check the clock of this machine"
        }
        ConnectError::Tls(TlsFailure::WrongName) => {
            "its certificate is for another name; check the host in the account's token.url"
        }
        ConnectError::Tls(_) => {
            "there is no TLS session with it; check the account's token.url and the server's certificate"
        }
    }
}

/// Makes the source for these settings. It connects directly, without the egress proxy, but with
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

/// Shortest of the known rests of a token's life, [`DEFAULT_LIFE`] without any, at most two hours.
fn life(known: [Option<Duration>; 2]) -> Result<Duration, ExternalError> {
    let life = known.into_iter().flatten().min().unwrap_or(DEFAULT_LIFE);
    if life < Duration::from_secs(1) {
        Err(ExternalError::Ended)
    } else {
        Ok(life.min(MAX_LIFE))
    }
}

/// Turns an error of the HTTP client, which is worded for WeChat's endpoints, into an external
/// error.
fn translated(error: FetchError) -> FetchError {
    match error {
        FetchError::Connect(cause) => ExternalError::Unreachable(cause).into(),
        FetchError::Timeout => ExternalError::Timeout.into(),
        FetchError::Broken => ExternalError::Broken.into(),
        FetchError::Malformed(what) => ExternalError::Shape(what).into(),
        other => other,
    }
}
