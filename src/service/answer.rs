//! What the calls of the service API answer.
//!
//! The real token is in one answer only, that of `GET …/token`. Nothing here asks WeChat: refreshers
//! do, if their own limits let them.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    call::{Call, Order, Refusal},
    jssdk::{self, PageUrl},
};
use crate::{
    token::{GiveBackReason, Refresh, Tickets, Token, TokenRefresher, clock::WallClock},
    wechat::{api::Platform, ticket::TicketType},
};

/// The account that a call is about.
#[derive(Debug, Clone, Copy)]
pub struct Account<'r> {
    /// Decides which tickets there are.
    pub platform: Platform,
    /// The appid or corpid, for signatures.
    pub appid: &'r str,
    /// Refresher of its token.
    pub refresher: &'r TokenRefresher,
    /// Whether the caller may have the current token replaced without naming it.
    pub may_refresh_current: bool,
    /// Its tickets.
    pub tickets: Option<&'r Tickets>,
}

/// An answer without the headers that every answer gets. Never to be cached, since the body
/// expires.
pub struct Reply {
    /// 200 or 304.
    pub status: u16,
    /// The generation in quotes, where the answer has one.
    pub etag: Option<String>,
    /// JSON; empty with 304.
    pub body: Vec<u8>,
}

/// The body of a refresh.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rejected {
    rejected: String,
}

const BAD_ORDER: Refusal = Refusal::BadRequest(
    "the body must be empty or {\"rejected\":\"TOKEN\"}, where TOKEN is the access token that WeChat refused",
);

const UNNAMED_TOKEN: Refusal = Refusal::BadRequest(
    "say which token WeChat refused: {\"rejected\":\"TOKEN\"}; only a client whose may names \"refresh\" may leave it out",
);

impl Call {
    /// Answers. `if_none_match` is the header of that name. A call that waits is cut short when
    /// `hurry` resolves, and answers as at the end of its wait.
    ///
    /// # Errors
    /// When the platform has no such ticket, the body is wrong, or there is nothing to answer with.
    pub async fn answer(
        &self,
        account: &Account<'_>,
        if_none_match: Option<&str>,
        body: &[u8],
        hurry: impl Future<Output = ()>,
    ) -> Result<Reply, Refusal> {
        let known = if_none_match.unwrap_or_default();
        match &self.order {
            Order::Token { wait } => {
                show(account.refresher, "access_token", known, *wait, hurry).await
            }
            Order::Refresh => match read(body)? {
                None if !account.may_refresh_current => Err(UNNAMED_TOKEN),
                rejected => refresh(account.refresher, rejected).await,
            },
            Order::Ticket { name, wait } => {
                let kind = TicketType::named(account.platform, name).ok_or(Refusal::NotFound)?;
                let refresher = account.ticket(kind)?;
                show(refresher, "ticket", known, *wait, hurry)
                    .await
                    .map_err(|error| account.deeper(error))
            }
            Order::Signature { url, agent } => sign(account, url, *agent).await,
        }
    }
}

impl Account<'_> {
    fn ticket(&self, kind: TicketType) -> Result<&TokenRefresher, Refusal> {
        self.tickets
            .and_then(|tickets| tickets.get(kind))
            .ok_or(Refusal::NotFound)
    }

    /// Where a ticket is missing because the token is, the token's own error says what to do.
    fn deeper(&self, error: Refusal) -> Refusal {
        match error {
            Refusal::Unavailable(_) if self.refresher.token().is_none() => {
                Refusal::Unavailable(self.refresher.trouble())
            }
            other => other,
        }
    }
}

/// The current token or ticket; 304 when the caller has it, after waiting for another one.
async fn show(
    refresher: &TokenRefresher,
    field: &str,
    known: &str,
    wait: Duration,
    hurry: impl Future<Output = ()>,
) -> Result<Reply, Refusal> {
    let deadline = Instant::now() + wait;
    let mut token = refresher.current().await.map_err(Refusal::Unavailable)?;
    if has(known, &token) {
        let newer = tokio::select! {
            newer = refresher.wait_past(token.generation(), deadline) => newer,
            () = hurry => None,
        };
        match newer {
            Some(newer) => token = newer,
            None => {
                return Ok(Reply {
                    status: 304,
                    etag: Some(etag(&token)),
                    body: Vec::new(),
                });
            }
        }
    }
    let body = json!({field: token.secret().expose(), "expires_in": token.expires_in().as_secs()});
    Ok(Reply {
        status: 200,
        etag: Some(etag(&token)),
        body: body.to_string().into_bytes(),
    })
}

fn etag(token: &Token) -> String {
    format!("\"{}\"", token.generation())
}

/// Whether `If-None-Match` names this token.
fn has(known: &str, token: &Token) -> bool {
    let etag = etag(token);
    known
        .split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

fn read(body: &[u8]) -> Result<Option<String>, Refusal> {
    match body.trim_ascii() {
        [] => Ok(None),
        // Without this look, serde would take an array for a struct.
        object @ [b'{', ..] => match serde_json::from_slice::<Rejected>(object) {
            Ok(order) => Ok(Some(order.rejected)),
            Err(_) if matches!(serde_json::from_slice(object), Ok(Value::Object(empty)) if empty.is_empty()) => {
                Ok(None)
            }
            Err(_) => Err(BAD_ORDER),
        },
        _ => Err(BAD_ORDER),
    }
}

/// The passive refresh. A token that is not the current one was replaced already, which costs
/// nothing to say.
async fn refresh(refresher: &TokenRefresher, rejected: Option<String>) -> Result<Reply, Refusal> {
    let current = refresher.current().await.map_err(Refusal::Unavailable)?;
    if rejected.is_some_and(|rejected| !current.matches(&rejected)) {
        return Ok(report(false, &current, None));
    }
    match refresher.refresh_past(current.generation(), "").await {
        Refresh::Replay(token) => Ok(report(true, &token, None)),
        Refresh::GiveBack(GiveBackReason::RefreshFailed | GiveBackReason::Timeout) => {
            Err(Refusal::Unavailable(refresher.trouble()))
        }
        Refresh::GiveBack(reason) => Ok(report(false, &current, Some(reason.slug()))),
    }
}

fn report(refreshed: bool, token: &Token, reason: Option<&str>) -> Reply {
    let mut body = json!({
        "refreshed": refreshed,
        "generation": token.generation().0,
        "expires_in": token.expires_in().as_secs(),
    });
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    Reply {
        status: 200,
        etag: None,
        body: body.to_string().into_bytes(),
    }
}

async fn sign(account: &Account<'_>, page: &PageUrl, agent: bool) -> Result<Reply, Refusal> {
    let kind = if agent {
        TicketType::AgentConfig
    } else {
        TicketType::Jsapi
    };
    if kind.endpoint(account.platform).is_none() {
        return Err(Refusal::BadRequest(
            "type=agent_config is for WeCom accounts; leave type out",
        ));
    }
    let ticket = account
        .ticket(kind)?
        .current()
        .await
        .map_err(|error| account.deeper(Refusal::Unavailable(error)))?;
    let (nonce, timestamp) = (jssdk::nonce(), WallClock::system().now_ms() / 1000);
    let body = json!({
        "appId": account.appid,
        "timestamp": timestamp,
        "nonceStr": nonce,
        "signature": jssdk::signature(&ticket, &nonce, timestamp, page),
    });
    Ok(Reply {
        status: 200,
        etag: None,
        body: body.to_string().into_bytes(),
    })
}
