//! A call below `/-/`: from the data listener into `service`, and its answer back.
//!
//! No token is injected here and no connection to WeChat's API is taken. The meaning of the calls
//! is the business of `service`.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH},
};

use super::{
    exchange::Exchange,
    request::{Request, unknown_client},
};
use crate::{
    net::drain::Phase,
    proxy::{access::Right, body, error::ProxyError, route::Account},
    service::{self, ServiceCall, ServiceError, ServiceReply},
};

/// Answers a call below `/-/`.
pub(super) async fn answer<'r>(
    exchange: &mut Exchange<'r>,
    request: &Request<'r>,
    incoming: Incoming,
) -> Result<Response<Bytes>, ProxyError> {
    let config = exchange.config;
    let (_, phantom_client) = request.phantom(exchange)?;
    let client = request
        .identify(exchange, None, phantom_client)
        .map_err(unknown_client)?;
    exchange.set_client(client)?;
    let path = request.path.unchecked();
    let call = ServiceCall::parse(exchange.method.as_str(), path, exchange.uri.query())?;
    let account = account_of(exchange, request, &call)?;
    exchange.set_account(account)?;
    exchange.admit(client, Some(account), Right::Scope(call.scope()))?;
    let body = if call.wants_body() {
        body::small(incoming, &exchange.conn.state).await?
    } else {
        no_body(&incoming)?
    };
    exchange.log.body_unread = false;
    let known = if_none_match(exchange.headers);
    let about = service::ServedAccount {
        platform: account.platform,
        appid: &account.appid,
        refresher: &account.refresher,
        may_refresh_current: config.access.may_refresh_current(client),
        tickets: account.tickets.as_deref(),
    };
    let mut drain = exchange.worker.drain.clone();
    // A call that waits for a token that need not come must not hold up a stop, nor the calls of
    // others, nor outlive the rights of its caller.
    let hurry = async {
        tokio::select! {
            () = drain.reached(Phase::Leaving) => {}
            () = config.superseded() => {}
        }
    };
    let reply = call.answer(&about, known.as_deref(), &body, hurry).await?;
    Ok(response(reply))
}

/// Returns the account in the path; the other selectors must not disagree with it.
fn account_of<'r>(
    exchange: &Exchange<'r>,
    request: &Request<'r>,
    call: &ServiceCall,
) -> Result<&'r Arc<Account>, ProxyError> {
    let config = exchange.config;
    let account = config.accounts.named(call.account())?;
    request.selection(exchange, Some(account))?;
    Ok(account)
}

/// Refuses a body where the address says everything.
fn no_body(body: &Incoming) -> Result<Bytes, ProxyError> {
    if body.is_end_stream() {
        Ok(Bytes::new())
    } else {
        Err(ProxyError::BadRequest("this call takes no body"))
    }
}

/// Joins all headers `If-None-Match` into one list.
fn if_none_match(headers: &HeaderMap) -> Option<String> {
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
