//! Token sources: the interface between the refresher, which decides when to ask, and the endpoints
//! that give tokens.
//!
//! A source makes one call and returns its result. Retries and state are left to the refresher.

mod answer;
mod classic;
mod client;
mod endpoint;
pub(crate) mod external;
mod stable;
#[cfg(test)]
mod tests;
mod ticket;
mod wecom;

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

pub(crate) use classic::ClassicSource;
pub(crate) use client::{ClientError, TokenClient};
pub(crate) use stable::StableSource;
pub(crate) use ticket::TicketSource;
pub(crate) use wecom::WecomSource;

use super::{AccountSettings, TokenProvider, pacer::Turn};
#[cfg(test)]
use crate::net::connect_error::TcpFailure;
use crate::{
    base::Secret,
    net::connect_error::ConnectError,
    wechat::{
        api::Platform,
        codes::{self, RefusalClass},
        ticket as tickets,
    },
};

/// Future that a method of a trait object can return: `dyn` traits know no `async fn`.
pub type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// Source of one account's token or ticket. Calls are bounded in time by the implementation, and
/// once more by the refresher.
pub trait TokenSource: Send + Sync + 'static {
    /// Asks for a token.
    fn fetch(&self, mode: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// Asks for a token because WeChat rejected `rejected`. An ordinary fetch, unless the source
    /// can pass the rejection on.
    fn fetch_past<'a>(
        &'a self,
        rejected: &'a Secret,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        let _ = rejected;
        self.fetch(FetchMode::Normal)
    }

    /// Turn among the first fetches of the API host. Always granted by default, for sources that
    /// ask no host of WeChat's.
    fn turn(&self) -> Turn {
        Turn::default()
    }

    /// Text with which WeChat explained the latest refusal, without credentials; `None` after a
    /// success, and for sources that ask somebody else.
    fn words(&self) -> Option<Arc<str>> {
        None
    }

    /// Asks WeChat if it accepts a token, by a cheap call that needs a token.
    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe>;
}

/// Mode of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchMode {
    /// Ordinary: the endpoint may give the same token again.
    Normal,
    /// With `force_refresh`, if the endpoint supports that: the previous token dies.
    Forced,
}

/// Token as the endpoint gave it.
#[derive(Debug)]
pub struct Fetched {
    /// Token of 1 to 2048 bytes without control characters.
    pub token: Secret,
    /// Lifetime of 1 to 7200 s, counted from the moment the call was sent.
    pub expires_in: Duration,
}

/// Result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// WeChat accepts the token.
    Fine,
    /// WeChat rejects the token as stale.
    Stale,
    /// No answer, or an answer that says nothing about the token.
    Unknown,
}

/// Error of a fetch. Holds no URL and no text of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// WeChat answered with an `errcode`.
    #[error("errcode {code}: {advice}", advice = codes::token_code(*platform, *code).advice)]
    Refused {
        /// Platform of the code; the same number has different meanings.
        platform: Platform,
        /// WeChat's `errcode`.
        code: i64,
        /// Source address of the call as WeChat saw it, if the code is about the address (40164,
        /// 60020).
        ip: Option<IpAddr>,
    },
    /// WeChat answered with an `errcode` to a call for a ticket.
    #[error("errcode {code}: {advice}", advice = tickets::refusal(*platform, *code).1)]
    NoTicket {
        /// Platform of the code.
        platform: Platform,
        /// WeChat's `errcode`.
        code: i64,
        /// WeChat's `errmsg`, shortened and without what may be a credential.
        said: Option<Arc<str>>,
    },
    /// There was no access token for the call for a ticket.
    #[error("there is no access token to ask with: see the account's own error")]
    NoToken,
    /// Nothing was sent: name resolution, connection or TLS failed at every base URL. The cause is
    /// that of the last one.
    #[error("no connection to the token endpoint: {0}")]
    Connect(ConnectError),
    /// No complete answer within the time limit.
    #[error(
        "the token endpoint did not answer in time: check the network, or raise token.fetch_timeout"
    )]
    Timeout,
    /// The connection ended before the answer was complete.
    #[error("the connection to the token endpoint broke before the answer was complete")]
    Broken,
    /// HTTP status other than 200, without an `errcode`.
    #[error(
        "the token endpoint answered with HTTP status {0}: check what stands between wxgate and WeChat"
    )]
    Status(u16),
    /// Redirect, which is never followed.
    #[error(
        "the token endpoint answered with a redirect: check the account's api and what stands between wxgate and WeChat"
    )]
    Redirect,
    /// Answer without a usable token; the text names the fault.
    #[error(
        "the token endpoint gave an unusable answer ({0}): check what stands between wxgate and WeChat"
    )]
    Malformed(&'static str),
    /// Placeholder that another wxgate made for its clients and that WeChat would reject.
    #[error(
        "this was answered by a wxgate, not by WeChat: set upstream.resolve if DNS points WeChat's name at a wxgate; to \
         read the token of another wxgate, use its /-/accounts/NAME/token and give the client the scope \"token\" there"
    )]
    Phantom,
    /// The server that keeps the token gave no token.
    #[error(transparent)]
    External(#[from] external::ExternalError),
    /// The source panicked.
    #[error("the token source failed: report this as a bug of wxgate")]
    Panicked,
}

impl FetchError {
    /// Any connection that could not be opened, for tests.
    #[cfg(test)]
    pub(crate) const REFUSED: Self = Self::Connect(ConnectError::Host(TcpFailure::Refused));

    /// Label for metrics, from a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } | Self::NoTicket { code, .. } => codes::label(*code),
            Self::NoToken => "no_token",
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status(_) => "status",
            Self::Redirect => "redirect",
            Self::Malformed(_) => "malformed",
            Self::Phantom => "phantom",
            Self::External(absent) => absent.label(),
            Self::Panicked => "panic",
        }
    }

    /// True if WeChat may have given a token that never arrived, so that the current token may have
    /// been replaced.
    pub fn is_lost_answer(&self) -> bool {
        !matches!(
            self,
            Self::Refused { .. }
                | Self::NoTicket { .. }
                | Self::NoToken
                | Self::Connect(_)
                | Self::Phantom
                | Self::External(_)
        )
    }

    /// Class of a refusal, or of an error that is treated like a refusal; `None` for transient
    /// errors.
    pub fn class(&self) -> Option<RefusalClass> {
        match self {
            Self::Refused { platform, code, .. } => Some(codes::token_code(*platform, *code).class),
            Self::NoTicket { platform, code, .. } => Some(tickets::refusal(*platform, *code).0),
            Self::Phantom => Some(RefusalClass::Other),
            _ => None,
        }
    }

    /// True if any other node of the account would get the same answer: the secret is wrong, the
    /// account is frozen, or its quota is used up. A refused address says nothing about other
    /// addresses, and WeCom counts calls by address.
    pub fn is_true_for_every_node(&self) -> bool {
        match self {
            Self::Refused { platform, .. } => match self.class() {
                Some(RefusalClass::Credential | RefusalClass::Frozen) => true,
                Some(RefusalClass::Quota | RefusalClass::Minute) => *platform == Platform::Wechat,
                _ => false,
            },
            _ => false,
        }
    }

    /// True if the next attempt may succeed without a change by an operator.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::External(absent) => absent.is_transient(),
            _ => matches!(self.class(), None | Some(RefusalClass::Busy)),
        }
    }
}

/// What WeChat says to a harmless call with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trial {
    Accepted,
    /// The token is dead.
    Stale {
        code: i64,
    },
    /// Refused for another reason than the token.
    Refused {
        code: i64,
        ip: Option<IpAddr>,
    },
    /// No answer, or one that no endpoint of WeChat's gives.
    Failed(FetchError),
}

/// Makes a harmless call of the account's API with a token.
pub(crate) async fn try_token(
    account: &AccountSettings,
    client: TokenClient,
    token: &Secret,
) -> Trial {
    endpoint::TokenEndpoint::new(account, client)
        .try_token(token)
        .await
}

/// Makes the source for the account's token provider.
pub(crate) fn for_account(account: &AccountSettings, client: TokenClient) -> Arc<dyn TokenSource> {
    match &account.provider {
        TokenProvider::Stable => Arc::new(StableSource::new(account, client)),
        TokenProvider::Classic => Arc::new(ClassicSource::new(account, client)),
        TokenProvider::Wecom => Arc::new(WecomSource::new(account, client)),
        TokenProvider::External(settings) => external::source(settings, client),
    }
}
