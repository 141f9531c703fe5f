//! Calls below `/-/`: from the data listener into `service`, and its answers back.
//!
//! No token is injected here and no connection to WeChat's API is taken. What the calls mean is the business of `service`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
    http::request::Parts,
};
use tokio::time::timeout;

use super::{Trail, check_authority};
use crate::{
    net::drain::Phase,
    proxy::{error::ProxyError, inspect::Answer, live::Live, path::SplitPath, route::Account, worker::Worker},
    service::{self, Call, Refusal, Reply, Scope},
};

/// The most bytes of a body; a token has 512.
const MAX_BODY: usize = 64 * 1024;
/// A body has to be there by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers a call below `/-/`. The caller has been let in.
pub(super) async fn answer(
    worker: &Worker,
    live: &Live,
    split: &SplitPath<'_>,
    host: Option<&str>,
    head: &Parts,
    body: Incoming,
    trail: &mut Trail,
) -> Result<Response<Answer>, ProxyError> {
    let path = split.service_path().unwrap_or_default();
    let call = Call::parse(head.method.as_str(), path, head.uri.query())?;
    let account = select(live, &call, split, &head.headers, host)?;
    trail.account = Some(Arc::clone(&account));
    check_authority(&account, &head.uri)?;
    may(call.scope())?;
    let body = if call.wants_body() { read(body).await? } else { unread(&body)? };
    trail.body_unread = false;
    let known = known(&head.headers);
    let about = service::Account { platform: account.platform, appid: &account.appid, keeper: &account.keeper };
    let mut drain = worker.drain.clone();
    // Who waits for a token that need not come must not hold up a stop.
    let hurry = async move { drain.reached(Phase::Leaving).await };
    Ok(response(call.answer(&about, known.as_deref(), &body, hurry).await?))
}

/// The name in the path selects as a prefix does; the other selectors must not disagree with it.
fn select(
    live: &Live,
    call: &Call,
    split: &SplitPath<'_>,
    headers: &HeaderMap,
    host: Option<&str>,
) -> Result<Arc<Account>, ProxyError> {
    let account = live.accounts.select(Some(call.account()), headers, host)?;
    if let Some(prefix) = &split.prefix
        && !Arc::ptr_eq(live.accounts.select(Some(prefix), headers, host)?, account)
    {
        return Err(ProxyError::AccountConflict);
    }
    Ok(Arc::clone(account))
}

/// What callers may that are known by their network alone: everything but read the real token.
fn may(scope: Scope) -> Result<(), ProxyError> {
    match scope {
        Scope::Refresh | Scope::Ticket => Ok(()),
        Scope::Token => Err(ProxyError::ScopeDenied(scope)),
    }
}

async fn read(body: Incoming) -> Result<Bytes, ProxyError> {
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ProxyError::OrderTooLarge),
        _ => Err(ProxyError::BadRequest("the request body broke off or came too slowly")),
    }
}

/// A call that says everything in its address has no body.
fn unread(body: &Incoming) -> Result<Bytes, ProxyError> {
    if body.is_end_stream() { Ok(Bytes::new()) } else { Err(ProxyError::BadRequest("this call takes no body")) }
}

/// All headers `If-None-Match` as one list.
fn known(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn response(reply: Reply) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(reply.body.into()));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(etag) = reply.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
        headers.insert(ETAG, etag);
    }
    if response.status() == StatusCode::OK {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    }
    response
}

impl From<Refusal> for ProxyError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::NotFound,
            Refusal::BadRequest(advice) => Self::BadRequest(advice),
            Refusal::Unavailable(error) => Self::TokenUnavailable(error),
        }
    }
}
