//! Access tokens and tickets: one task per credential fetches, stores and replaces it; requests
//! only read.
//!
//! Proxied requests are left to `proxy`, which calls [`TokenRefresher::current`],
//! [`TokenRefresher::refresh_past`], and reports each token that WeChat accepted or rejected.

use std::time::Duration;

use crate::{
    base::{AccountName, Secret},
    net::address::BaseUrl,
    wechat::api::Platform,
};

pub(crate) mod budget;
pub(crate) mod clock;
mod credential;
mod denylist;
mod dial;
mod error;
mod limiter;
pub(crate) mod metrics;
pub(crate) mod pacer;
mod phantom_keys;
mod published;
pub(crate) mod refresher;
mod registry;
pub(crate) mod schedule;
pub(crate) mod source;
pub(crate) mod store;
mod tickets;
mod value;

pub(crate) use error::{Cause, TokenError};
pub(crate) use phantom_keys::PhantomKeys;
pub use refresher::TokenRefresher;
pub(crate) use refresher::{
    Condition, GiveBackReason, LastError, Refresh, Refreshed, RefresherParts, Status,
};
pub(crate) use registry::{AccountTokens, TokenRegistry};
pub(crate) use tickets::{TicketParts, Tickets};
pub use value::Generation;
pub(crate) use value::Token;

/// The table `[token]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSettings {
    /// Margin before expiry at which a new token is asked for; at most half of `expires_in`.
    pub refresh_before: Duration,
    /// Limit for one call of a token endpoint, from connect to the last byte.
    pub fetch_timeout: Duration,
    /// Limit for a request that waits for the first token.
    pub wait: Duration,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self {
            refresh_before: Duration::from_secs(300),
            fetch_timeout: Duration::from_secs(5),
            wait: Duration::from_secs(3),
        }
    }
}

/// Kind of [`TokenProvider`], which decides how tokens behave. Tokens of two kinds are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// `POST /cgi-bin/stable_token`.
    Stable,
    /// `GET /cgi-bin/token`.
    Classic,
    /// `GET /cgi-bin/gettoken` of WeCom.
    Wecom,
    /// Another central server that keeps the token.
    External,
}

/// Provider of an account's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenProvider {
    /// See [`ProviderKind::Stable`].
    Stable,
    /// See [`ProviderKind::Classic`].
    Classic,
    /// See [`ProviderKind::Wecom`].
    Wecom,
    /// See [`ProviderKind::External`]. Holds the address of the server.
    External(source::external::ExternalSettings),
}

impl ProviderKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Stable, Self::Classic, Self::Wecom, Self::External];

    /// Word for the kind in stored records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Classic => "classic",
            Self::Wecom => "wecom",
            // The word of records that are stored already.
            Self::External => "elsewhere",
        }
    }

    /// True if wxgate fetches the token from WeChat itself.
    pub fn is_ours(self) -> bool {
        self != Self::External
    }

    /// True if wxgate can replace a token that the endpoint would give again: by the forced mode of
    /// the endpoint, or because every fetch makes another token. WeCom has no such mode (page
    /// 91039), and the token of another server is not replaced from here.
    pub fn can_force(self) -> bool {
        matches!(self, Self::Stable | Self::Classic)
    }
}

impl TokenProvider {
    /// Kind of the provider.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Stable => ProviderKind::Stable,
            Self::Classic => ProviderKind::Classic,
            Self::Wecom => ProviderKind::Wecom,
            Self::External(_) => ProviderKind::External,
        }
    }
}

/// One `[[account]]`, checked.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    /// Name, unique in the configuration.
    pub name: AccountName,
    /// Platform, which decides error codes and endpoints.
    pub platform: Platform,
    /// `wx…`; on WeCom the corpid, which several accounts may share.
    pub appid: String,
    /// AppSecret, or the secret of a WeCom agent. `None` only if another server keeps the token.
    pub secret: Option<Secret>,
    /// Provider of the token.
    pub provider: TokenProvider,
    /// API hosts, at least one; the second and later ones are for fail-over.
    pub api: Vec<BaseUrl>,
    /// `Host` values that select this account, in lower case.
    pub hosts: Vec<String>,
    /// Treatment of foreign tokens; `None` leaves it to the way of the call.
    pub foreign_token: Option<ForeignToken>,
}

/// Treatment of an `access_token` in a call that looks real and is not the account's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignToken {
    /// The account's token replaces it.
    Replace,
    /// The call is forwarded as it came.
    Keep,
    /// The call is refused.
    Refuse,
}

impl AccountSettings {
    /// Kind of the token provider.
    pub fn kind(&self) -> ProviderKind {
        self.provider.kind()
    }

    /// True if `next` is the same account with another AppSecret, which wxgate can try by a fetch.
    pub fn rotates_to(&self, next: &Self) -> bool {
        let is_same = self.platform == next.platform
            && self.appid == next.appid
            && self.kind() == next.kind();
        is_same && self.kind().is_ours() && self.secret != next.secret
    }

    /// True if a refresher that was started with these settings also serves `next`.
    pub fn share_refresher(&self, next: &Self) -> bool {
        // Destructured, so that a new setting cannot be forgotten here. `hosts` and `foreign_token`
        // decide before the refresher is asked.
        let Self {
            name,
            platform,
            appid,
            secret,
            provider,
            api,
            hosts: _,
            foreign_token: _,
        } = self;
        *name == next.name
            && *platform == next.platform
            && *appid == next.appid
            && *secret == next.secret
            && *provider == next.provider
            && *api == next.api
    }
}
