//! The life of a token: one task per account fetches, keeps and replaces it; requests only read.
//!
//! Knows nothing of the requests that are proxied. To them it offers [`Keeper::current`], [`Keeper::refresh_past`] and
//! two ways to tell what WeChat thought of a token.

use std::time::Duration;

use crate::{
    base::{AccountName, Secret},
    net::address::BaseUrl,
    wechat::api::Platform,
};

pub mod budget;
pub mod clock;
mod error;
mod gate;
pub mod keeper;
mod kept;
pub mod metrics;
mod paths;
mod registry;
pub mod schedule;
pub mod source;
pub mod store;
mod tickets;
mod value;

pub use error::{Cause, TokenError};
pub use keeper::{Condition, GiveBackReason, Keeper, LastError, Refresh, Refreshed, Status};
pub use kept::Kept;
pub use registry::Accounts;
pub use tickets::Tickets;
pub use value::{Generation, Token};

/// The table `[token]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Ask for a new token this long before expiry; at most half of what `expires_in` said.
    pub refresh_before: Duration,
    /// One call of a token endpoint, from connect to the last byte.
    pub fetch_timeout: Duration,
    /// How long a request may wait for a token that is not there yet.
    pub wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            refresh_before: Duration::from_secs(300),
            fetch_timeout: Duration::from_secs(5),
            wait: Duration::from_secs(3),
        }
    }
}

/// Which endpoint a token comes from. The two kinds are separate at WeChat and are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `POST /cgi-bin/stable_token`.
    Stable,
    /// `GET /cgi-bin/token`.
    Classic,
}

impl Kind {
    /// The word of the configuration, also used in store keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Classic => "classic",
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
    /// `wx…`.
    pub appid: String,
    /// The AppSecret.
    pub secret: Secret,
    /// Which token endpoint.
    pub kind: Kind,
    /// At least one; the rest are for fail-over.
    pub api: Vec<BaseUrl>,
    /// `Host` values that select this account, in lower case.
    pub hosts: Vec<String>,
}

impl AccountSettings {
    /// Whether a keeper that was started with these settings also serves `next`.
    pub fn share_keeper(&self, next: &Self) -> bool {
        // Spelt out, so that a new setting cannot be forgotten here. Who selects the account is none of the keeper's
        // business.
        let Self { name, platform, appid, secret, kind, api, hosts: _ } = self;
        *name == next.name
            && *platform == next.platform
            && *appid == next.appid
            && *secret == next.secret
            && *kind == next.kind
            && *api == next.api
    }
}
