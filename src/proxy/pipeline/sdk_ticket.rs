//! A ticket call as SDKs make it: answered here, from the ticket that all callers share, in WeChat's
//! shape.
//!
//! WeChat allows few fetches of a ticket a day, and an SDK in each process would make them all.

use super::exchange::Exchange;
use crate::{
    proxy::{error::ProxyError, query, route::Account},
    service,
    token::TokenRefresher,
    wechat::credential::Minting,
};
use bytes::Bytes;
use hyper::{
    Method, Response,
    header::{CONTENT_TYPE, HeaderValue},
};

/// Finds the ticket that a call asks for; `None` for calls that are forwarded: those for other types
/// of ticket, or for those of another platform.
pub(super) fn managed<'r>(
    exchange: &Exchange<'r>,
    minting: Minting,
    account: &'r Account,
) -> Result<Option<&'r TokenRefresher>, ProxyError> {
    if minting.platform() != account.platform {
        return Ok(None);
    }
    let kind = minting.ticket(type_in(exchange.uri.query()).as_deref());
    let ticket = kind.and_then(|kind| account.tickets.as_ref()?.get(kind));
    match *exchange.method {
        Method::GET | Method::POST | Method::HEAD => Ok(ticket),
        // At WeChat, it would cost a fetch of the day's few.
        _ if ticket.is_some() => Err(ProxyError::TokenEndpoint),
        _ => Ok(None),
    }
}

/// Answers with the ticket, or with WeChat's refusal of it.
pub(super) async fn answer(
    exchange: &mut Exchange<'_>,
    ticket: &TokenRefresher,
) -> Result<Response<Bytes>, ProxyError> {
    let (body, refusal) = service::sdk_ticket(ticket)
        .await
        .map_err(ProxyError::TokenUnavailable)?;
    exchange.log.errcode = refusal;
    let mut response = Response::new(body.into());
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    Ok(response)
}

/// Returns the parameter `type`, unless there are several.
fn type_in(query: Option<&str>) -> Option<String> {
    let mut types = query::pairs(query)
        .map(query::decoded)
        .filter(|(name, _)| name == "type")
        .map(|(_, value)| value.into_owned());
    types.next().filter(|_| types.next().is_none())
}
