//! A call of a token endpoint: answered here, with a phantom token. WeChat is not asked.
//!
//! The call authenticates itself by the `secret` in it, as SDKs do, and is refused in WeChat's own
//! words.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, Response, body::Incoming};

use super::{exchange::Exchange, request::Request};
use crate::proxy::{
    access::{AuthError, Client, Right},
    answer::{self, TokenEndpoint, TokenRefusal, TokenRequest},
    body,
    error::ProxyError,
    route::Account,
};

/// Answers the call.
pub(super) async fn answer<'r>(
    exchange: &mut Exchange<'r>,
    request: &Request<'r>,
    incoming: Incoming,
) -> Result<Response<Bytes>, ProxyError> {
    let path = request.path.check()?;
    let endpoint = TokenEndpoint::of(path.as_str());
    if !matches!(*exchange.method, Method::GET | Method::POST) {
        return Err(ProxyError::TokenEndpoint);
    }
    let body = if exchange.method == Method::POST {
        let body = body::small(incoming, &exchange.conn.state).await?;
        exchange.log.body_unread = false;
        body
    } else {
        Bytes::new()
    };
    let call = match TokenRequest::read(endpoint, exchange.method, exchange.uri.query(), &body) {
        Ok(call) => call,
        Err(refusal) => return Ok(answer::refused(endpoint, &refusal)),
    };
    let candidates = accounts_with_appid(exchange, request, &call);
    if candidates.is_empty() {
        return Ok(answer::refused(endpoint, &TokenRefusal::UnknownAppid));
    }
    let client = match request.identify(exchange, call.secret.as_deref(), None) {
        Ok(client) => client,
        Err(error) => {
            exchange.log.refused = Some(ProxyError::ClientUnknown("").slug());
            return Ok(answer::refused(endpoint, &unknown_client(&call, error)));
        }
    };
    exchange.set_client(client)?;
    let selected = request.selection(exchange, None)?.account;
    let account = match choose(&candidates, selected, client, call.secret.as_deref()) {
        Ok(account) => account,
        Err(refusal) => return Ok(answer::refused(endpoint, &refusal)),
    };
    exchange.set_account(account)?;
    exchange.admit(client, Some(account), Right::Phantom)?;
    exchange.worker.proxy.healing.token_given(request.caller);
    let config = exchange.config;
    let place = request.shown_key(exchange, call.secret.as_deref(), client);
    let phantom = config.mint_phantom(account, client, place);
    Ok(answer::granted(endpoint, &phantom))
}

/// Returns the accounts with the appid of the call, on the platform that has the endpoint.
fn accounts_with_appid<'r>(
    exchange: &Exchange<'r>,
    request: &Request<'r>,
    call: &TokenRequest,
) -> Vec<&'r Arc<Account>> {
    let (config, platform) = (exchange.config, call.endpoint.platform());
    if request.host_platform.is_some_and(|host| host != platform) {
        return Vec::new();
    }
    config
        .accounts
        .with_appid(&call.appid)
        .iter()
        .filter(|account| account.platform == platform)
        .collect()
}

fn unknown_client(call: &TokenRequest, error: AuthError) -> TokenRefusal {
    if call.secret.is_none() {
        TokenRefusal::NoSecret
    } else {
        TokenRefusal::WrongSecret(error.advice())
    }
}

/// Returns the candidate that the rest of the request selects, the one whose secret the call brings,
/// if the client has no key that stands there, or the only one that the client may use.
fn choose<'l>(
    candidates: &[&'l Arc<Account>],
    selected: Option<&'l Arc<Account>>,
    client: &Client,
    secret: Option<&str>,
) -> Result<&'l Arc<Account>, TokenRefusal> {
    if let Some(selected) = selected {
        let is_one = candidates
            .iter()
            .any(|candidate| Arc::ptr_eq(candidate, selected));
        return if is_one {
            Ok(selected)
        } else {
            Err(TokenRefusal::OtherAccount)
        };
    }
    let usable = candidates
        .iter()
        .copied()
        .filter(|account| client.may_use(&account.name));
    let usable: Vec<&'l Arc<Account>> = usable.collect();
    let is_named = |account: &&&Arc<Account>| {
        let own = account.secret.as_ref().zip(secret);
        own.is_some_and(|(own, secret)| own.matches(secret))
    };
    if client.keys().is_empty()
        && let Some(named) = usable.iter().find(is_named)
    {
        return Ok(named);
    }
    match (candidates, &usable[..]) {
        // Rights are asked for later: an only one that the client may not use is another error.
        ([only], _) | (_, [only]) => Ok(only),
        (all, []) => Err(ambiguous(all)),
        (_, usable) => Err(ambiguous(usable)),
    }
}

fn ambiguous(choices: &[&Arc<Account>]) -> TokenRefusal {
    TokenRefusal::Ambiguous(
        choices
            .iter()
            .map(|account| account.name.to_string())
            .collect(),
    )
}
