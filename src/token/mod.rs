//! The life of a token: one task per account fetches, keeps and replaces it; requests only read.
//!
//! Knows nothing of the requests that are proxied. To them it offers [`TokenRefresher::current`],
//! [`TokenRefresher::refresh_past`] and two ways to tell what WeChat thought of a token.

use std::time::Duration;

use crate::{
    base::{AccountName, Secret},
    net::address::BaseUrl,
    wechat::api::Platform,
};

pub mod budget;
pub mod clock;
mod credential;
mod denylist;
mod dial;
mod error;
mod limiter;
pub mod metrics;
pub mod pacer;
mod published;
pub mod refresher;
mod registry;
pub mod schedule;
pub mod source;
pub mod store;
mod tickets;
mod value;

pub use credential::CredentialType;
pub use error::{Cause, TokenError};
pub use refresher::{
    Condition, GiveBackReason, LastError, Refresh, Refreshed, Status, TokenRefresher,
};
pub use registry::{AccountTokens, TokenRegistry};
pub use tickets::Tickets;
pub use value::{Generation, Token};

/// The table `[token]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSettings {
    /// Ask for a new token this long before expiry; at most half of what `expires_in` said.
    pub refresh_before: Duration,
    /// One call of a token endpoint, from connect to the last byte.
    pub fetch_timeout: Duration,
    /// How long a request may wait for a token that is not there yet.
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

/// How tokens behave, which is decided by where they come from. Tokens of two kinds are never
/// mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// `POST /cgi-bin/stable_token`.
    Stable,
    /// `GET /cgi-bin/token`.
    Classic,
    /// `GET /cgi-bin/gettoken` of WeCom.
    Wecom,
    /// Another central server keeps the token.
    External,
}

/// Where an account's token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenProvider {
    /// See [`ProviderKind::Stable`].
    Stable,
    /// See [`ProviderKind::Classic`].
    Classic,
    /// See [`ProviderKind::Wecom`].
    Wecom,
    /// See [`ProviderKind::External`]; and where that is.
    External(source::external::ExternalSettings),
}

impl ProviderKind {
    /// Every kind there is.
    pub const ALL: [Self; 4] = [Self::Stable, Self::Classic, Self::Wecom, Self::External];

    /// The word that stands for it in stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Classic => "classic",
            Self::Wecom => "wecom",
            Self::External => "elsewhere",
        }
    }

    /// Whether wxgate fetches the token from WeChat and is the one that keeps it.
    pub fn is_ours(self) -> bool {
        self != Self::External
    }

    /// Whether a token can be replaced that the endpoint would give again: by its forced mode, or
    /// because every fetch makes another one. WeCom has no such mode (page 91039), and another
    /// server's token is not ours to end.
    pub fn can_force(self) -> bool {
        matches!(self, Self::Stable | Self::Classic)
    }
}

impl TokenProvider {
    /// How tokens from there behave.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Stable => ProviderKind::Stable,
            Self::Classic => ProviderKind::Classic,
            Self::Wecom => ProviderKind::Wecom,
            Self::External(_) => ProviderKind::External,
        }
    }
}

/// One `[[account]]`, proven right.
#[derive(Debug, Clone)]
pub struct AccountSettings {
    /// Unique.
    pub name: AccountName,
    /// Decides codes and endpoints.
    pub platform: Platform,
    /// `wx…`; on WeCom the corpid, which several accounts may share.
    pub appid: String,
    /// The AppSecret, or the secret of a WeCom agent. There is always one unless another server
    /// keeps the token.
    pub secret: Option<Secret>,
    /// Where the token comes from.
    pub provider: TokenProvider,
    /// At least one; the rest are for fail-over.
    pub api: Vec<BaseUrl>,
    /// `Host` values that select this account, in lower case.
    pub hosts: Vec<String>,
}

impl AccountSettings {
    /// How its tokens behave.
    pub fn kind(&self) -> ProviderKind {
        self.provider.kind()
    }

    /// True if a refresher that was started with these settings also serves `next`.
    pub fn share_refresher(&self, next: &Self) -> bool {
        // Spelt out, so that a new setting cannot be forgotten here. Who selects the account is
        // none of the refresher's business.
        let Self {
            name,
            platform,
            appid,
            secret,
            provider,
            api,
            hosts: _,
        } = self;
        *name == next.name
            && *platform == next.platform
            && *appid == next.appid
            && *secret == next.secret
            && *provider == next.provider
            && *api == next.api
    }
}
