//! Where tokens come from: the seam between the keeper, which decides when, and the endpoint, which is asked.
//!
//! A source does one call and says what came of it. It neither retries nor remembers.

mod answer;
mod classic;
mod client;
mod stable;
#[cfg(test)]
mod tests;
mod ticket;

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

pub use classic::Classic;
pub use client::{ClientError, TokenClient};
pub use stable::Stable;
pub use ticket::TicketSource;

use super::{AccountSettings, Kind};
use crate::{
    base::Secret,
    wechat::{
        codes::{self, Class},
        ticket as tickets,
    },
};

/// A future that a trait object can return.
pub type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// One token endpoint for one account. Calls are bounded in time by the implementation, and once more by the keeper.
pub trait TokenSource: Send + Sync + 'static {
    /// Asks for a token.
    fn fetch(&self, mode: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// Asks WeChat what it thinks of a token, by a cheap call that needs one.
    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe>;
}

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As usual.
    Normal,
    /// With `force_refresh`, where the endpoint knows it: the previous token dies.
    Forced,
}

/// A token as the endpoint gave it.
#[derive(Debug)]
pub struct Fetched {
    /// 1 to 2048 bytes without control characters.
    pub token: Secret,
    /// 1 to 7200 s, counted from when the call was sent.
    pub expires_in: Duration,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The token is good.
    Fine,
    /// WeChat calls it stale.
    Stale,
    /// No answer, or one that says nothing about the token.
    Unknown,
}

/// Why there is no token. Holds no text of others: no URL, no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// WeChat answered with an `errcode`.
    #[error("errcode {code}: {advice}", advice = codes::token_code(*code).advice)]
    Refused {
        /// WeChat's code.
        code: i64,
        /// The calling address as WeChat saw it, where it says so (40164, 60020).
        ip: Option<IpAddr>,
    },
    /// WeChat gave no ticket.
    #[error("errcode {code}: {advice}", advice = tickets::refusal(*code).1)]
    NoTicket {
        /// WeChat's code.
        code: i64,
    },
    /// There was no access token to ask for a ticket with.
    #[error("there is no access token to ask with: see the account's own error")]
    NoToken,
    /// Nothing was sent: name resolution, connection or TLS failed at every base URL.
    #[error("no connection to the token endpoint: check DNS, the way out of this network and upstream.ca_file")]
    Connect,
    /// The answer did not come in time.
    #[error("the token endpoint did not answer in time: check the network, or raise token.fetch_timeout")]
    Timeout,
    /// The connection ended before the answer did.
    #[error("the connection to the token endpoint broke before the answer was complete")]
    Broken,
    /// Another HTTP status than 200, without an `errcode`.
    #[error("the token endpoint answered with HTTP status {0}: check what stands between wxgate and WeChat")]
    Status(u16),
    /// A redirect, which is never followed.
    #[error(
        "the token endpoint answered with a redirect: check the account's api and what stands between wxgate and WeChat"
    )]
    Redirect,
    /// An answer without a usable token; the text says what was wrong with it.
    #[error("the token endpoint gave an unusable answer ({0}): check what stands between wxgate and WeChat")]
    Malformed(&'static str),
    /// The source itself failed.
    #[error("the token source failed: report this as a bug of wxgate")]
    Panicked,
}

impl FetchError {
    /// For metrics; bounded.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } | Self::NoTicket { code } => codes::label(*code),
            Self::NoToken => "no_token",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status(_) => "status",
            Self::Redirect => "redirect",
            Self::Malformed(_) => "malformed",
            Self::Panicked => "panic",
        }
    }

    /// Whether WeChat may have handed out a token that never arrived, so that the current one may be on its way out.
    pub fn is_lost_answer(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::NoTicket { .. } | Self::NoToken | Self::Connect)
    }

    /// The class of a refusal; `None` for everything that is not WeChat's word.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Refused { code, .. } => Some(codes::token_code(*code).class),
            Self::NoTicket { code } => Some(tickets::refusal(*code).0),
            _ => None,
        }
    }

    /// Whether trying again soon may help without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.class(), None | Some(Class::Busy))
    }
}

/// The source that the account's settings name: one of the two endpoints of the WeChat platform. The configuration lets
/// no account of another platform come here.
pub fn for_account(account: &AccountSettings, client: TokenClient) -> Arc<dyn TokenSource> {
    match account.kind {
        Kind::Stable => Arc::new(Stable::new(account, client)),
        Kind::Classic => Arc::new(Classic::new(account, client)),
    }
}
