//! A call of a token endpoint: answered here, with a phantom token.
//!
//! It authenticates itself by the `secret` it brings, so it comes before all other checks. WeChat
//! is not asked.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, Response, body::Incoming, http::request::Parts};

use super::{Chosen, Live, Origin, ProxyError, Trail, admit, check_authority};
use crate::proxy::{
    access::{Caller, Client, Right},
    answer::{self, Asked, Flavour, Refusal},
    body,
    path::ApiPath,
    route::Account,
};

/// Answers the call.
#[allow(
    clippy::too_many_arguments,
    reason = "what the way of the request has found out so far"
)]
pub(super) async fn token(
    live: &Live,
    origin: &Origin,
    head: &Parts,
    incoming: Incoming,
    path: &ApiPath<'_>,
    chosen: &Chosen<'_>,
    caller: Caller<'_>,
    trail: &mut Trail,
) -> Result<Response<Bytes>, ProxyError> {
    if !matches!(head.method, Method::GET | Method::POST) {
        return Err(ProxyError::TokenEndpoint);
    }
    let body = if head.method == Method::POST {
        body::small(incoming, &origin.connection).await?
    } else {
        Bytes::new()
    };
    trail.body_unread &= head.method != Method::POST;
    let asked = match Asked::read(path.as_str(), &head.method, head.uri.query(), &body) {
        Ok(asked) => asked,
        Err(refusal) => return Ok(answer::refused(Flavour::of(path.as_str()), &refusal)),
    };
    let with_appid = live.accounts.with_appid(&asked.appid).iter();
    let candidates: Vec<&Arc<Account>> = with_appid
        .filter(|account| account.platform == asked.flavour.platform())
        .collect();
    if candidates.is_empty() {
        return Ok(answer::refused(asked.flavour, &Refusal::UnknownAppid));
    }
    let caller = Caller {
        key: asked.secret.as_deref(),
        ..caller
    };
    let client = match live.access.identify(Some(&head.headers), &caller) {
        Ok(client) => client,
        Err(stranger) => {
            trail.refused = Some(ProxyError::ClientUnknown("").slug());
            let without = asked.secret.is_none();
            let refusal = if without {
                Refusal::NoSecret
            } else {
                Refusal::WrongSecret(stranger.advice())
            };
            return Ok(answer::refused(asked.flavour, &refusal));
        }
    };
    trail.client = Some(Arc::clone(client));
    origin.count_for(live, client, trail)?;
    let selected = live
        .accounts
        .selected(None, chosen.prefix, Some(&head.headers), chosen.host)?;
    let account = match meant(&candidates, selected, client) {
        Ok(account) => account,
        Err(refusal) => return Ok(answer::refused(asked.flavour, &refusal)),
    };
    trail.account = Some(Arc::clone(account));
    check_authority(account, &head.uri)?;
    admit(client, account, Right::Phantom, trail)?;
    Ok(answer::granted(
        asked.flavour,
        &live.phantom_key(account, client).mint(live.now()),
    ))
}

/// Of the accounts with this appid, the one that the rest of the request selects, or the only one
/// that the client may use.
fn meant<'l>(
    candidates: &[&'l Arc<Account>],
    selected: Option<&'l Arc<Account>>,
    client: &Client,
) -> Result<&'l Arc<Account>, Refusal> {
    if let Some(selected) = selected {
        let is_one = candidates
            .iter()
            .any(|candidate| Arc::ptr_eq(candidate, selected));
        return if is_one {
            Ok(selected)
        } else {
            Err(Refusal::OtherAccount)
        };
    }
    let usable = candidates
        .iter()
        .copied()
        .filter(|account| client.may_use(&account.name));
    let usable: Vec<&'l Arc<Account>> = usable.collect();
    match (candidates, &usable[..]) {
        // Whether the client may use the only one is asked later, and answered in other words.
        ([only], _) | (_, [only]) => Ok(only),
        (all, []) => Err(ambiguous(all)),
        (_, usable) => Err(ambiguous(usable)),
    }
}

fn ambiguous(choices: &[&Arc<Account>]) -> Refusal {
    Refusal::Ambiguous(
        choices
            .iter()
            .map(|account| account.name.to_string())
            .collect(),
    )
}
