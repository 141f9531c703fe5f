//! Calls below `/-/`: from the data listener into `service`, and its answers back.
//!
//! No token is injected here and no connection to WeChat's API is taken. What the calls mean is the
//! business of `service`.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
    http::request::Parts,
};

use super::{Chosen, Trail, admit, check_authority};
use crate::{
    net::drain::Phase,
    proxy::{
        access::{Client, Right},
        body,
        error::ProxyError,
        live::Live,
        route::Account,
        worker::Worker,
    },
    service::{self, ServiceCall, ServiceError, ServiceReply},
};

/// Answers a call below `/-/`.
#[allow(
    clippy::too_many_arguments,
    reason = "what the way of the request has found out so far"
)]
pub(super) async fn answer(
    worker: &Worker,
    live: &Live,
    path: &str,
    chosen: &Chosen<'_>,
    client: &Client,
    head: &Parts,
    body: Incoming,
    trail: &mut Trail,
) -> Result<Response<Bytes>, ProxyError> {
    let call = ServiceCall::parse(head.method.as_str(), path, head.uri.query())?;
    let account = select(live, &call, chosen, &head.headers)?;
    trail.account = Some(Arc::clone(account));
    check_authority(account, &head.uri)?;
    admit(client, account, Right::Scope(call.scope()), trail)?;
    let _aside = live.step_aside();
    let body = if call.wants_body() {
        body::small(body).await?
    } else {
        unread(&body)?
    };
    trail.body_unread = false;
    let known = known(&head.headers);
    let about = service::ServedAccount {
        platform: account.platform,
        appid: &account.appid,
        keeper: &account.keeper,
        may_refresh_current: live.access.may_refresh_current(client),
        tickets: account.tickets.as_deref(),
    };
    let mut drain = worker.drain.clone();
    // Who waits for a token that need not come must not hold up a stop, nor calls of others, nor
    // outlive his rights.
    let hurry = async {
        tokio::select! {
            () = drain.reached(Phase::Leaving) => {}
            () = live.superseded() => {}
        }
    };
    Ok(response(
        call.answer(&about, known.as_deref(), &body, hurry).await?,
    ))
}

/// The name in the path selects as a prefix does; the other selectors must not disagree with it.
fn select<'l>(
    live: &'l Live,
    call: &ServiceCall,
    chosen: &Chosen<'_>,
    headers: &HeaderMap,
) -> Result<&'l Arc<Account>, ProxyError> {
    let account = live.accounts.named(call.account())?;
    live.accounts
        .selected(Some(account), chosen.prefix, Some(headers), chosen.host)?;
    Ok(account)
}

/// A call that says everything in its address has no body.
fn unread(body: &Incoming) -> Result<Bytes, ProxyError> {
    if body.is_end_stream() {
        Ok(Bytes::new())
    } else {
        Err(ProxyError::BadRequest("this call takes no body"))
    }
}

/// All headers `If-None-Match` as one list.
fn known(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<&str> = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn response(reply: ServiceReply) -> Response<Bytes> {
    let mut response = Response::new(reply.body.into());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(etag) = reply.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
        headers.insert(ETAG, etag);
    }
    if response.status() == StatusCode::OK {
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
    }
    response
}

impl From<ServiceError> for ProxyError {
    fn from(refusal: ServiceError) -> Self {
        match refusal {
            ServiceError::NotFound => Self::NotFound,
            ServiceError::BadRequest(advice) => Self::BadRequest(advice),
            ServiceError::Unavailable(error) => Self::TokenUnavailable(error),
        }
    }
}
