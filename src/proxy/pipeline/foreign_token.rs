//! Tokens in a call's query that wxgate did not hand out and no account here has: tokens of another
//! appid, of a downstream corp, or of somebody who asks WeChat directly.

use std::{borrow::Cow, sync::Arc};

use super::{exchange::Exchange, request::Request};
use crate::{
    proxy::{
        error::ProxyError,
        headers::HeaderKind,
        inject::real_tokens,
        route::{Account, Accounts},
    },
    token::ForeignToken,
};

/// Token in a query, as the accounts here know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueryToken {
    /// None, a placeholder, or the account's own.
    Own,
    /// That of another account.
    OfOther,
    /// Unknown here.
    Foreign,
}

/// Length from which a text may be a token; WeChat's have 136 characters and more, WeCom's 64 and
/// more. Shorter ones are placeholders.
const MIN_TOKEN: usize = 64;

/// Decides about a call that brings a token; true if the call is to be forwarded as it came.
pub(super) fn is_kept<'r>(
    exchange: &Exchange<'r>,
    request: &Request<'r>,
    account: Option<&'r Arc<Account>>,
    phantom: Option<&Arc<Account>>,
) -> Result<bool, ProxyError> {
    let config = exchange.config;
    let account = account.map(|account| &**account);
    match token_in(exchange.uri.query(), account, &config.accounts) {
        QueryToken::Own => return Ok(false),
        QueryToken::OfOther => return Err(ProxyError::TokenOfOtherAccount),
        QueryToken::Foreign => {}
    }
    let is_selected = phantom.is_some()
        || request.path.prefix.is_some()
        || exchange.present.has(HeaderKind::Account);
    let by_default = ForeignToken::by_default(request.host_platform.is_some() && !is_selected);
    let Some(account) = account else {
        return Ok(by_default == ForeignToken::Keep);
    };
    let treatment = account.foreign_token.unwrap_or(by_default);
    account.metrics.foreign_token(treatment.as_str());
    if account.foreign_token_log.allows() {
        tracing::warn!(
            account = account.name.as_str(),
            id = exchange.id.as_str(),
            treatment = treatment.as_str(),
            "a call brings an access_token that wxgate did not hand out; foreign_token says what becomes of such calls",
        );
    }
    match treatment {
        ForeignToken::Replace => Ok(false),
        ForeignToken::Keep => Ok(true),
        ForeignToken::Refuse => Err(ProxyError::ForeignToken(account.name.clone())),
    }
}

/// Finds the kind of the token in a query. Without an account every token that none has is foreign.
fn token_in(query: Option<&str>, account: Option<&Account>, accounts: &Accounts) -> QueryToken {
    let is_unknown = |token: &Cow<'_, str>| {
        token.len() >= MIN_TOKEN && !account.is_some_and(|account| account.has_token(token))
    };
    let mut found = QueryToken::Own;
    for token in real_tokens(query).filter(is_unknown) {
        if accounts.is_token_of_other(&token, account) {
            return QueryToken::OfOther;
        }
        found = QueryToken::Foreign;
    }
    found
}

impl ForeignToken {
    /// Returns the treatment where the account's configuration leaves it open: under WeChat's own
    /// host name the caller believes to speak to WeChat, and knows which token it sends.
    fn by_default(came_as_wechat: bool) -> Self {
        if came_as_wechat {
            Self::Keep
        } else {
            Self::Replace
        }
    }

    /// Returns the word of the configuration, and of metrics and log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Keep => "keep",
            Self::Refuse => "refuse",
        }
    }
}
