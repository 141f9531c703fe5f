//! `GET /api/accounts` and `POST /api/accounts/NAME/refresh`.
//!
//! The JSON types here are separate from [`Status`], so that a change there breaks no script.

use std::{net::IpAddr, time::Duration};

use axum::{
    Json,
    body::{self, Body},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{answer::ApiError, control::AdminState};
use crate::{
    base::AccountName,
    net::address::Peer,
    token::{
        AccountTokens, Cause, LastError, Refreshed, Status, TokenError, TokenRefresher,
        TokenRegistry,
    },
    wechat::ticket::TicketType,
};

/// Account in `GET /api/accounts`. Times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AccountRow {
    pub(super) name: String,
    /// `ok`, `waiting`, `degraded`, `failing` or `fatal`.
    pub(super) state: &'static str,
    pub(super) usable: bool,
    pub(super) generation: u64,
    pub(super) fingerprint: Option<String>,
    pub(super) expires_in: Option<u64>,
    pub(super) age: Option<u64>,
    pub(super) next_attempt_in: Option<u64>,
    pub(super) budgets: Budgets,
    pub(super) conflicts: u64,
    pub(super) last_error: Option<LastFailure>,
    /// Tickets that were requested since the start.
    pub(super) tickets: Vec<TicketRow>,
    /// Set if calls without a selector go here only until the next restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) warning: Option<String>,
}

/// Ticket of an account. Times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TicketRow {
    r#type: &'static str,
    state: &'static str,
    usable: bool,
    generation: u64,
    fingerprint: Option<String>,
    expires_in: Option<u64>,
    last_error: Option<LastFailure>,
}

/// Fetches left today; `null` where the token endpoint of the account has no such limit.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Budgets {
    pub(super) classic: Option<u32>,
    pub(super) forced: Option<u32>,
}

/// Latest failure of a token, as the API shows [`LastError`].
#[derive(Debug, Clone, Serialize)]
pub(super) struct LastFailure {
    pub(super) label: &'static str,
    pub(super) errcode: Option<i64>,
    /// Source address that WeChat refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<IpAddr>,
    pub(super) sentence: String,
    pub(super) failures: u32,
    /// Text of WeChat's answer, without credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) words: Option<String>,
}

/// Body of a refresh; an empty body stands for the default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RefreshRequest {
    force: bool,
    /// Ends the time of phantoms that were made under a former AppSecret.
    revoke: bool,
}

/// Answer to a refresh.
#[derive(Debug, Serialize)]
struct RefreshResponse {
    refreshed: bool,
    generation: u64,
    expires_in: u64,
}

/// Size limit of the body of a refresh, which needs about 20 bytes.
const MAX_REFRESH_BODY: usize = 4096;

/// Returns the status of every account, in the order of the configuration.
pub(super) fn statuses(accounts: &TokenRegistry) -> Vec<(AccountName, Status)> {
    accounts
        .iter()
        .map(|(name, tokens)| (name.clone(), tokens.token.status()))
        .collect()
}

/// Returns every account in the form of the API, in the order of the configuration.
pub(super) fn rows(state: &AdminState) -> Vec<AccountRow> {
    let row = |(name, tokens): (&AccountName, &AccountTokens)| {
        let tickets = tokens.tickets.iter().flat_map(|tickets| tickets.statuses());
        AccountRow {
            tickets: tickets.map(TicketRow::from).collect(),
            warning: state.warnings.get(name).cloned(),
            ..AccountRow::of(name, tokens.token.status())
        }
    };
    state.accounts.iter().map(row).collect()
}

/// Returns the tokens of the account of this name.
pub(super) fn named<'a>(
    accounts: &'a TokenRegistry,
    name: &str,
) -> Result<&'a AccountTokens, ApiError> {
    AccountName::new(name)
        .and_then(|name| accounts.get(&name))
        .ok_or_else(unknown_account)
}

/// Answers `POST /api/accounts/NAME/refresh`. A refresh goes on when the caller hangs up.
pub(super) async fn refresh(
    accounts: &TokenRegistry,
    name: &str,
    body: Body,
    caller: Peer,
) -> Result<Response, ApiError> {
    let tokens = named(accounts, name)?;
    let refresher = &tokens.token;
    let request = read_refresh_request(body).await?;
    if request.revoke {
        // First, since it must not depend on an answer of WeChat.
        tokens.phantoms.revoke().await;
        tracing::info!(target: "audit", account = %refresher.name(), %caller, "phantoms of former AppSecrets were revoked by hand");
    }
    // The refresher works on when this future is dropped.
    let result = refresher.refresh_now(request.force).await;
    log_refresh(refresher, request.force, caller, &result);
    let done = result.map_err(|error| refresh_error(refresher.name(), &error))?;
    let response = RefreshResponse {
        refreshed: done.refreshed,
        generation: done.generation.0,
        expires_in: done.expires_in.as_secs(),
    };
    Ok(Json(response).into_response())
}

impl AccountRow {
    pub(super) fn of(name: &AccountName, status: Status) -> Self {
        Self {
            name: name.to_string(),
            state: status.condition.as_str(),
            usable: status.usable,
            generation: status.generation,
            fingerprint: status.fingerprint,
            expires_in: status.expires_in,
            age: status.age,
            next_attempt_in: status.next_attempt_in,
            budgets: Budgets {
                classic: status.classic_left,
                forced: status.forced_left,
            },
            conflicts: status.conflicts,
            last_error: status.last_error.map(LastFailure::from),
            tickets: Vec::new(),
            warning: None,
        }
    }
}

impl From<(TicketType, Status)> for TicketRow {
    fn from((kind, status): (TicketType, Status)) -> Self {
        Self {
            r#type: kind.as_str(),
            state: status.condition.as_str(),
            usable: status.usable,
            generation: status.generation,
            fingerprint: status.fingerprint,
            expires_in: status.expires_in,
            last_error: status.last_error.map(LastFailure::from),
        }
    }
}

impl From<LastError> for LastFailure {
    fn from(error: LastError) -> Self {
        Self {
            label: error.label,
            errcode: error.errcode,
            ip: error.ip,
            sentence: error.sentence,
            failures: error.failures,
            words: error.words,
        }
    }
}

async fn read_refresh_request(body: Body) -> Result<RefreshRequest, ApiError> {
    let bytes = body::to_bytes(body, MAX_REFRESH_BODY)
        .await
        .map_err(|_| bad_refresh_request())?;
    match bytes.trim_ascii() {
        [] => Ok(RefreshRequest::default()),
        // serde would also accept an array for a struct, hence the test for the brace.
        object @ [b'{', ..] => serde_json::from_slice(object).map_err(|_| bad_refresh_request()),
        _ => Err(bad_refresh_request()),
    }
}

fn bad_refresh_request() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "bad_request",
        "the body must be empty, or an object with \"force\" and \"revoke\", each true or false",
    )
}

fn unknown_account() -> ApiError {
    let message = "there is no account of this name: GET /api/accounts lists them";
    ApiError::new(StatusCode::NOT_FOUND, "account_unknown", message)
}

/// Returns the answer for a refresh that failed, with `Retry-After` only for causes that pass with
/// time.
fn refresh_error(name: &AccountName, error: &TokenError) -> ApiError {
    let wait = Some(error.retry_after());
    let (status, slug, wait) = match error.cause() {
        Cause::Budget(_) => (StatusCode::TOO_MANY_REQUESTS, "budget_spent", wait),
        Cause::CannotForce(_) => (StatusCode::CONFLICT, "cannot_force", None),
        Cause::Fetch(_) => (StatusCode::BAD_GATEWAY, "fetch_failed", None),
        Cause::Waiting => (StatusCode::SERVICE_UNAVAILABLE, "fetch_pending", wait),
        Cause::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "account_stopped", wait),
    };
    ApiError {
        errcode: error.errcode(),
        retry_after: wait.map(|wait| Duration::as_secs(&wait)),
        ..ApiError::new(
            status,
            slug,
            format!("account {name} got no new token: {}", error.cause()),
        )
    }
}

/// Logs a refresh that an operator ordered.
fn log_refresh(
    refresher: &TokenRefresher,
    force: bool,
    caller: Peer,
    result: &Result<Refreshed, TokenError>,
) {
    let account = refresher.name();
    match result {
        Ok(done) => tracing::info!(
            target: "audit", %account, force, %caller, refreshed = done.refreshed, generation = done.generation.0, "refreshed by hand"
        ),
        Err(error) => {
            tracing::warn!(target: "audit", %account, force, %caller, reason = error.label(), "refresh by hand failed");
        }
    }
}
