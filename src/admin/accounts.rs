//! The accounts as the API shows them, and the refresh by hand.
//!
//! The wire form is its own, so that the refresher's snapshot can change without breaking a script.

use std::time::Duration;

use axum::{
    Json,
    body::{self, Body},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::answer::Problem;
use crate::{
    base::AccountName,
    token::{
        AccountTokens, Cause, Condition, LastError, Refreshed, Status, TokenError, TokenRefresher,
        TokenRegistry,
    },
    wechat::ticket::TicketType,
};

/// One element of `GET /api/accounts`. Times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
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
    pub(super) last_error: Option<Trouble>,
    /// Those that somebody has asked for since the start.
    pub(super) tickets: Vec<TicketRow>,
}

/// A ticket of an account.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TicketRow {
    r#type: &'static str,
    state: &'static str,
    usable: bool,
    generation: u64,
    fingerprint: Option<String>,
    expires_in: Option<u64>,
    last_error: Option<Trouble>,
}

/// Fetches left today; `null` where the account's kind of token knows no such budget.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Budgets {
    pub(super) classic: Option<u32>,
    pub(super) forced: Option<u32>,
}

/// Why there was no success lately.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Trouble {
    pub(super) label: &'static str,
    pub(super) errcode: Option<i64>,
    pub(super) sentence: String,
    pub(super) failures: u32,
}

/// The body of a refresh; an empty one is the default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Order {
    force: bool,
}

/// What a refresh came to.
#[derive(Debug, Serialize)]
struct Report {
    refreshed: bool,
    generation: u64,
    expires_in: u64,
}

/// Far more than an order needs.
const MAX_ORDER: usize = 4096;

/// Every account with its status, in the order of the configuration.
pub(super) fn statuses(accounts: &TokenRegistry) -> Vec<(AccountName, Status)> {
    accounts
        .iter()
        .map(|(name, tokens)| (name.clone(), tokens.token.status()))
        .collect()
}

/// Every account as a row, in the order of the configuration.
pub(super) fn rows(accounts: &TokenRegistry) -> Vec<Row> {
    let row = |(name, tokens): (&AccountName, &AccountTokens)| {
        let tickets = tokens.tickets.iter().flat_map(|tickets| tickets.statuses());
        Row {
            tickets: tickets.map(TicketRow::from).collect(),
            ..Row::of(name, tokens.token.status())
        }
    };
    accounts.iter().map(row).collect()
}

/// The word for a condition.
pub(super) fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Ok => "ok",
        Condition::Waiting => "waiting",
        Condition::Degraded => "degraded",
        Condition::Failing => "failing",
        Condition::Fatal => "fatal",
    }
}

/// `POST /api/accounts/NAME/refresh`. A caller that hangs up stops nothing.
pub(super) async fn refresh(
    accounts: &TokenRegistry,
    name: &str,
    body: Body,
) -> Result<Response, Problem> {
    let refresher = AccountName::new(name)
        .and_then(|name| accounts.get(&name))
        .map(|tokens| &tokens.token)
        .ok_or_else(unknown_account)?;
    let order = read_order(body).await?;
    let result = refresher.refresh_now(order.force).await;
    note(refresher, order.force, &result);
    let done = result.map_err(|error| refused(refresher.name(), &error))?;
    let report = Report {
        refreshed: done.refreshed,
        generation: done.generation.0,
        expires_in: done.expires_in.as_secs(),
    };
    Ok(Json(report).into_response())
}

impl Row {
    pub(super) fn of(name: &AccountName, status: Status) -> Self {
        Self {
            name: name.to_string(),
            state: word(status.condition),
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
            last_error: status.last_error.map(Trouble::from),
            tickets: Vec::new(),
        }
    }
}

impl From<(TicketType, Status)> for TicketRow {
    fn from((kind, status): (TicketType, Status)) -> Self {
        Self {
            r#type: kind.as_str(),
            state: word(status.condition),
            usable: status.usable,
            generation: status.generation,
            fingerprint: status.fingerprint,
            expires_in: status.expires_in,
            last_error: status.last_error.map(Trouble::from),
        }
    }
}

impl From<LastError> for Trouble {
    fn from(error: LastError) -> Self {
        Self {
            label: error.label,
            errcode: error.errcode,
            sentence: error.sentence,
            failures: error.failures,
        }
    }
}

async fn read_order(body: Body) -> Result<Order, Problem> {
    let bytes = body::to_bytes(body, MAX_ORDER)
        .await
        .map_err(|_| bad_order())?;
    match bytes.trim_ascii() {
        [] => Ok(Order::default()),
        // Without this look, serde would take an array for a struct.
        object @ [b'{', ..] => serde_json::from_slice(object).map_err(|_| bad_order()),
        _ => Err(bad_order()),
    }
}

fn bad_order() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad_request",
        "the body must be empty or {\"force\":true} or {\"force\":false}",
    )
}

fn unknown_account() -> Problem {
    let message = "there is no account of this name: GET /api/accounts lists them";
    Problem::new(StatusCode::NOT_FOUND, "account_unknown", message)
}

/// Why there is no new token. Only where waiting is what helps does the answer say how long.
fn refused(name: &AccountName, error: &TokenError) -> Problem {
    let wait = Some(error.retry_after());
    let (status, slug, wait) = match error.cause() {
        Cause::Budget(_) => (StatusCode::TOO_MANY_REQUESTS, "budget_spent", wait),
        Cause::CannotForce(_) => (StatusCode::CONFLICT, "cannot_force", None),
        Cause::Fetch(_) => (StatusCode::BAD_GATEWAY, "fetch_failed", None),
        Cause::Waiting => (StatusCode::SERVICE_UNAVAILABLE, "fetch_pending", wait),
        Cause::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "account_stopped", wait),
    };
    Problem {
        errcode: error.errcode(),
        retry_after: wait.map(|wait| Duration::as_secs(&wait)),
        ..Problem::new(
            status,
            slug,
            format!("account {name} got no new token: {}", error.cause()),
        )
    }
}

/// A trace of what people did by hand.
fn note(refresher: &TokenRefresher, force: bool, result: &Result<Refreshed, TokenError>) {
    let account = refresher.name();
    match result {
        Ok(done) => tracing::info!(
            %account, force, refreshed = done.refreshed, generation = done.generation.0, "refreshed by hand"
        ),
        Err(error) => {
            tracing::warn!(%account, force, reason = error.label(), "refresh by hand failed");
        }
    }
}
