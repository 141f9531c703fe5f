//! Answers to the calls of the service API.
//!
//! Only the answer of `GET …/token` holds the real token. Nothing here calls WeChat; the token
//! refreshers do, within their own limits.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    call::{ServiceAction, ServiceCall, ServiceError},
    jssdk::{self, PageUrl},
};
use crate::{
    token::{
        Cause, GiveBackReason, Refresh, Tickets, Token, TokenError, TokenRefresher,
        clock::WallClock, source::FetchError,
    },
    wechat::{api::Platform, ticket::TicketType},
};

/// Account that a call concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServedAccount<'r> {
    /// Platform, which decides the ticket types.
    pub platform: Platform,
    /// Appid or corpid, for signatures.
    pub appid: &'r str,
    /// Refresher of the account's token.
    pub refresher: &'r TokenRefresher,
    /// True if the caller may request a refresh without naming the rejected token.
    pub may_refresh_current: bool,
    /// Refreshers of the account's tickets; `None` if the account has no tickets.
    pub tickets: Option<&'r Tickets>,
}

/// Answer without the headers that all answers share. Must never be cached, because the content of
/// the body expires.
pub(crate) struct ServiceReply {
    /// Status, 200 or 304.
    pub status: u16,
    /// Generation in quotes; `None` for answers without a generation.
    pub etag: Option<String>,
    /// Body in JSON; empty with 304.
    pub body: Vec<u8>,
}

/// Outcome of a refresh call.
enum RefreshOutcome {
    Refreshed,
    /// The rejected token had already been replaced.
    NotCurrent,
    GivenBack(GiveBackReason),
}

/// Body of a refresh call.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshBody {
    rejected: String,
}

const BAD_ORDER: ServiceError = ServiceError::BadRequest(
    "the body must be empty or {\"rejected\":\"TOKEN\"}, where TOKEN is the access token that WeChat refused",
);

const UNNAMED_TOKEN: ServiceError = ServiceError::BadRequest(
    "say which token WeChat refused: {\"rejected\":\"TOKEN\"}; only a client whose may names \"refresh\" may leave it out",
);

impl ServiceCall {
    /// Answers the call. `if_none_match` is the header of that name. When `hurry` resolves, a
    /// waiting call stops waiting and answers as at the end of its wait.
    ///
    /// # Errors
    ///
    /// Fails if the platform has no such ticket, the body is wrong, or there is no token or ticket.
    pub(crate) async fn answer(
        &self,
        account: &ServedAccount<'_>,
        if_none_match: Option<&str>,
        body: &[u8],
        hurry: impl Future<Output = ()>,
    ) -> Result<ServiceReply, ServiceError> {
        let known = if_none_match.unwrap_or_default();
        match &self.order {
            ServiceAction::Token { wait } => {
                show(account.refresher, "access_token", known, *wait, hurry).await
            }
            ServiceAction::Refresh => match read(body)? {
                None if !account.may_refresh_current => Err(UNNAMED_TOKEN),
                rejected => refresh(account.refresher, rejected).await,
            },
            ServiceAction::Ticket { name, wait } => {
                let kind =
                    TicketType::named(account.platform, name).ok_or(ServiceError::NotFound)?;
                let refresher = account.ticket(kind)?;
                show(refresher, "ticket", known, *wait, hurry)
                    .await
                    .map_err(|error| account.deeper(error))
            }
            ServiceAction::Signature { url, ticket } => sign(account, url, *ticket).await,
        }
    }
}

impl ServedAccount<'_> {
    fn ticket(&self, kind: TicketType) -> Result<&TokenRefresher, ServiceError> {
        self.tickets
            .and_then(|tickets| tickets.get(kind))
            .ok_or(ServiceError::NotFound)
    }

    /// Replaces the error of a missing ticket by the token's error if the token is missing too:
    /// that error names the remedy.
    fn deeper(&self, error: ServiceError) -> ServiceError {
        match error {
            ServiceError::Unavailable(_) if self.refresher.token().is_none() => {
                ServiceError::Unavailable(self.refresher.trouble())
            }
            other => other,
        }
    }
}

/// Answers with the current token or ticket; with 304, after the wait, if the caller already has
/// it.
async fn show(
    refresher: &TokenRefresher,
    field: &str,
    known: &str,
    wait: Duration,
    hurry: impl Future<Output = ()>,
) -> Result<ServiceReply, ServiceError> {
    // Fixed before the first await, so that a slow first fetch counts as waiting.
    let deadline = Instant::now() + wait;
    let mut token = refresher
        .current()
        .await
        .map_err(ServiceError::Unavailable)?;
    if has(known, &token) {
        let newer = tokio::select! {
            newer = refresher.wait_past(token.generation(), deadline) => newer,
            () = hurry => None,
        };
        match newer {
            Some(newer) => token = newer,
            None => {
                return Ok(ServiceReply {
                    status: 304,
                    etag: Some(etag(&token)),
                    body: Vec::new(),
                });
            }
        }
    }
    let body = json!({field: token.secret().expose(), "expires_in": token.expires_in().as_secs()});
    Ok(ServiceReply {
        status: 200,
        etag: Some(etag(&token)),
        body: body.to_string().into_bytes(),
    })
}

fn etag(token: &Token) -> String {
    format!("\"{}\"", token.generation())
}

/// Returns true if `If-None-Match` names this token.
fn has(known: &str, token: &Token) -> bool {
    let etag = etag(token);
    known
        .split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn read(body: &[u8]) -> Result<Option<String>, ServiceError> {
    match body.trim_ascii() {
        [] => Ok(None),
        // Checked first, because serde reads an array as a struct too.
        object @ [b'{', ..] => match serde_json::from_slice::<RefreshBody>(object) {
            Ok(order) => Ok(Some(order.rejected)),
            Err(_) if matches!(serde_json::from_slice(object), Ok(Value::Object(empty)) if empty.is_empty()) => {
                Ok(None)
            }
            Err(_) => Err(BAD_ORDER),
        },
        _ => Err(BAD_ORDER),
    }
}

/// Refreshes on request. If the rejected token is not the current one, a refresh has already
/// happened and none is started.
async fn refresh(
    refresher: &TokenRefresher,
    rejected: Option<String>,
) -> Result<ServiceReply, ServiceError> {
    let current = refresher
        .current()
        .await
        .map_err(ServiceError::Unavailable)?;
    if rejected.is_some_and(|rejected| !current.matches(&rejected)) {
        return Ok(report(&current, &RefreshOutcome::NotCurrent));
    }
    match refresher.refresh_past(current.generation(), "").await {
        Refresh::Replay(token) => Ok(report(&token, &RefreshOutcome::Refreshed)),
        Refresh::GiveBack(GiveBackReason::RefreshFailed | GiveBackReason::Timeout) => {
            Err(ServiceError::Unavailable(refresher.trouble()))
        }
        Refresh::GiveBack(reason) => Ok(report(&current, &RefreshOutcome::GivenBack(reason))),
    }
}

fn report(token: &Token, outcome: &RefreshOutcome) -> ServiceReply {
    let mut body = json!({
        "refreshed": matches!(outcome, RefreshOutcome::Refreshed),
        "generation": token.generation().0,
        "expires_in": token.expires_in().as_secs(),
    });
    if let RefreshOutcome::GivenBack(reason) = outcome {
        body["reason"] = reason.slug().into();
    }
    ServiceReply {
        status: 200,
        etag: None,
        body: body.to_string().into_bytes(),
    }
}

/// Answers a ticket call as SDKs make it: body in WeChat's shape, and its `errcode` if WeChat refused
/// the ticket.
///
/// # Errors
///
/// Fails if there is no ticket for another reason.
pub(crate) async fn sdk_ticket(
    refresher: &TokenRefresher,
) -> Result<(Vec<u8>, Option<i64>), TokenError> {
    let (body, refusal) = match refresher.current().await {
        Ok(ticket) => {
            let body = json!({
                "errcode": 0,
                "errmsg": "ok",
                "ticket": ticket.secret().expose(),
                "expires_in": ticket.expires_in().as_secs(),
            });
            (body, None)
        }
        Err(error) => {
            let Cause::Fetch(FetchError::NoTicket { code, said, .. }) = error.cause() else {
                return Err(error);
            };
            let message = match said {
                Some(said) => said.to_string(),
                None => format!("wxgate: {error}"),
            };
            let body = json!({"errcode": code, "errmsg": message});
            (body, Some(*code))
        }
    };
    Ok((body.to_string().into_bytes(), refusal))
}

async fn sign(
    account: &ServedAccount<'_>,
    page: &PageUrl,
    kind: TicketType,
) -> Result<ServiceReply, ServiceError> {
    if kind.endpoint(account.platform).is_none() {
        return Err(ServiceError::BadRequest(
            "type=agent_config is for WeCom accounts; leave type out",
        ));
    }
    let ticket = account
        .ticket(kind)?
        .current()
        .await
        .map_err(|error| account.deeper(ServiceError::Unavailable(error)))?;
    let (nonce, timestamp) = (jssdk::nonce(), WallClock::system().now_ms() / 1000);
    let body = json!({
        "appId": account.appid,
        "timestamp": timestamp,
        "nonceStr": nonce,
        "signature": jssdk::signature(&ticket, &nonce, timestamp, page),
    });
    Ok(ServiceReply {
        status: 200,
        etag: None,
        body: body.to_string().into_bytes(),
    })
}
