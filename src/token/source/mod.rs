//! Where tokens come from: the seam between the refresher, which decides when, and the endpoint,
//! which is asked.
//!
//! A source does one call and says what came of it. It neither retries nor remembers.

mod answer;
mod classic;
mod client;
mod endpoint;
pub mod external;
mod stable;
#[cfg(test)]
mod tests;
mod ticket;
mod wecom;

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

pub use classic::Classic;
pub use client::{ClientError, TokenClient};
pub use stable::Stable;
pub use ticket::TicketSource;
pub use wecom::Wecom;

use super::{AccountSettings, Origin, pacer::Turn};
use crate::{
    base::Secret,
    wechat::{
        api::Platform,
        codes::{self, RefusalClass},
        ticket as tickets,
    },
};

/// A future that a trait object can return.
pub type BoxFuture<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// One place where one account's token comes from. Calls are bounded in time by the implementation,
/// and once more by the refresher.
pub trait TokenSource: Send + Sync + 'static {
    /// Asks for a token.
    fn fetch(&self, mode: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// Asks for a token because WeChat rejected this one. An ordinary fetch, unless the source can
    /// pass that on.
    fn fetch_past<'a>(
        &'a self,
        rejected: &'a Secret,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        let _ = rejected;
        self.fetch(Mode::Normal)
    }

    /// A turn among the first fetches of the API host; one that is always granted where no host of
    /// WeChat's is asked.
    fn turn(&self) -> Turn {
        Turn::default()
    }

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
    #[error("errcode {code}: {advice}", advice = codes::token_code(*platform, *code).advice)]
    Refused {
        /// Whose code it is; the same number means different things.
        platform: Platform,
        /// WeChat's code.
        code: i64,
        /// The calling address as WeChat saw it, where it says so (40164, 60020).
        ip: Option<IpAddr>,
    },
    /// WeChat gave no ticket.
    #[error("errcode {code}: {advice}", advice = tickets::refusal(*platform, *code).1)]
    NoTicket {
        /// Whose code it is.
        platform: Platform,
        /// WeChat's code.
        code: i64,
    },
    /// There was no access token to ask for a ticket with.
    #[error("there is no access token to ask with: see the account's own error")]
    NoToken,
    /// Nothing was sent: name resolution, connection or TLS failed at every base URL.
    #[error(
        "no connection to the token endpoint: check DNS, the way out of this network and upstream.ca_file"
    )]
    Connect,
    /// The answer did not come in time.
    #[error(
        "the token endpoint did not answer in time: check the network, or raise token.fetch_timeout"
    )]
    Timeout,
    /// The connection ended before the answer did.
    #[error("the connection to the token endpoint broke before the answer was complete")]
    Broken,
    /// Another HTTP status than 200, without an `errcode`.
    #[error(
        "the token endpoint answered with HTTP status {0}: check what stands between wxgate and WeChat"
    )]
    Status(u16),
    /// A redirect, which is never followed.
    #[error(
        "the token endpoint answered with a redirect: check the account's api and what stands between wxgate and WeChat"
    )]
    Redirect,
    /// An answer without a usable token; the text says what was wrong with it.
    #[error(
        "the token endpoint gave an unusable answer ({0}): check what stands between wxgate and WeChat"
    )]
    Malformed(&'static str),
    /// A placeholder that another wxgate made for its callers, which WeChat would not take.
    #[error(
        "this was answered by a wxgate, not by WeChat: set upstream.resolve if DNS points WeChat's name at a wxgate; to \
         read the token of another wxgate, use its /-/accounts/NAME/token and give the client the scope \"token\" there"
    )]
    Phantom,
    /// The server that keeps the token gave none.
    #[error(transparent)]
    External(#[from] external::Absent),
    /// The source itself failed.
    #[error("the token source failed: report this as a bug of wxgate")]
    Panicked,
}

impl FetchError {
    /// For metrics; bounded.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused { code, .. } | Self::NoTicket { code, .. } => codes::label(*code),
            Self::NoToken => "no_token",
            Self::Connect => "connect",
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

    /// Whether WeChat may have handed out a token that never arrived, so that the current one may
    /// be on its way out.
    pub fn is_lost_answer(&self) -> bool {
        !matches!(
            self,
            Self::Refused { .. }
                | Self::NoTicket { .. }
                | Self::NoToken
                | Self::Connect
                | Self::Phantom
                | Self::External(_)
        )
    }

    /// The class of a refusal, and what is treated like one; `None` for all that may pass by
    /// itself.
    pub fn class(&self) -> Option<RefusalClass> {
        match self {
            Self::Refused { platform, code, .. } => Some(codes::token_code(*platform, *code).class),
            Self::NoTicket { platform, code } => Some(tickets::refusal(*platform, *code).0),
            Self::Phantom => Some(RefusalClass::Other),
            _ => None,
        }
    }

    /// Whether any other node of the account would get the same answer: its secret is wrong, it is
    /// frozen, or its quota is used up. A refused address says nothing about other addresses, and
    /// WeCom counts calls by address.
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

    /// Whether trying again soon may help without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::External(absent) => absent.is_transient(),
            _ => matches!(self.class(), None | Some(RefusalClass::Busy)),
        }
    }
}

/// The source that the account's settings name.
pub fn for_account(account: &AccountSettings, client: TokenClient) -> Arc<dyn TokenSource> {
    match &account.origin {
        Origin::Stable => Arc::new(Stable::new(account, client)),
        Origin::Classic => Arc::new(Classic::new(account, client)),
        Origin::Wecom => Arc::new(Wecom::new(account, client)),
        Origin::External(settings) => external::source(settings, client),
    }
}
