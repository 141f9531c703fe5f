//! Sessions of browsers that logged in with the admin key: `POST` and `DELETE /api/session`.
//!
//! Sessions stand in memory alone, so a restart ends all of them. One that was begun with a former
//! key is dead: each remembers the epoch of the key, which the next key moves on.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    body::{self, Body},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use tokio::time::Instant;

use super::answer::ApiError;
use crate::{base::Secret, net::address::Peer};

/// Sessions in force, and failed log-ins by address.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: Mutex<Vec<Session>>,
    failures: Mutex<HashMap<Peer, Failures>>,
}

#[derive(Debug)]
struct Session {
    /// SHA-256 of the identifier: the identifier itself is only in the browser.
    digest: Vec<u8>,
    key_epoch: u64,
    ends: Instant,
}

/// Failed log-ins of an address since `since`.
#[derive(Debug)]
struct Failures {
    count: u32,
    since: Instant,
}

/// Body of a log-in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginRequest {
    key: String,
}

/// Lifetime of a session.
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(8 * 60 * 60);
/// Sessions at a time; the oldest makes room for a new one.
const MAX_SESSIONS: usize = 64;
/// Failed log-ins of one address in [`FAILURE_WINDOW`]; more are refused unread.
const MAX_FAILURES: u32 = 10;
const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// Addresses whose failures are remembered; a new one waits while the table is full.
const MAX_FAILING: usize = 1024;
/// Size limit of the body of a log-in.
const MAX_LOGIN_BODY: usize = 8192;
const COOKIE: &str = "wxgate_session";

impl Sessions {
    /// True if the request shows a session that is in force.
    pub(super) fn admit(&self, headers: &HeaderMap, key_epoch: u64) -> bool {
        let now = Instant::now();
        let open = self.lock_open();
        let mut shown = identifiers(headers).map(|id| digest(&SHA256, id.as_bytes()));
        shown.any(|shown| {
            open.iter().any(|session| {
                session.digest == shown.as_ref()
                    && session.key_epoch == key_epoch
                    && session.ends > now
            })
        })
    }

    /// Begins a session, and returns its identifier.
    fn begin(&self, key_epoch: u64) -> Result<String, ApiError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| no_random_numbers())?;
        let id = URL_SAFE_NO_PAD.encode(bytes);
        let now = Instant::now();
        let mut open = self.lock_open();
        open.retain(|session| session.ends > now && session.key_epoch == key_epoch);
        if open.len() >= MAX_SESSIONS {
            open.remove(0);
        }
        open.push(Session {
            digest: digest(&SHA256, id.as_bytes()).as_ref().to_vec(),
            key_epoch,
            ends: now + SESSION_LIFE,
        });
        Ok(id)
    }

    /// Ends the sessions that the request shows. Returns true if there was one.
    fn end(&self, headers: &HeaderMap) -> bool {
        let mut open = self.lock_open();
        let before = open.len();
        for id in identifiers(headers) {
            let ended = digest(&SHA256, id.as_bytes());
            open.retain(|session| session.digest != ended.as_ref());
        }
        open.len() < before
    }

    /// Returns the time that an address has to wait before its next log-in is looked at.
    fn penalty(&self, peer: Peer) -> Option<Duration> {
        let mut failures = self.lock_failures();
        failures.retain(|_, failures| failures.since.elapsed() < FAILURE_WINDOW);
        let rest = |failures: &Failures| FAILURE_WINDOW.saturating_sub(failures.since.elapsed());
        match failures.get(&peer) {
            Some(failures) => (failures.count >= MAX_FAILURES).then(|| rest(failures)),
            None => (failures.len() >= MAX_FAILING).then_some(FAILURE_WINDOW),
        }
    }

    fn failed(&self, peer: Peer) {
        let mut failures = self.lock_failures();
        let entry = failures.entry(peer).or_insert_with(|| Failures {
            count: 0,
            since: Instant::now(),
        });
        entry.count += 1;
    }

    fn lock_open(&self) -> MutexGuard<'_, Vec<Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_failures(&self) -> MutexGuard<'_, HashMap<Peer, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers `POST /api/session`. `key` and `key_epoch` are those in force.
pub(super) async fn log_in(
    sessions: &Sessions,
    key: Option<&Secret>,
    key_epoch: u64,
    caller: Peer,
    (headers, body): (&HeaderMap, Body),
) -> Result<Response, ApiError> {
    let peer = caller.counted();
    if let Some(wait) = sessions.penalty(peer) {
        tracing::warn!(target: "audit", %caller, "log-in refused: too many wrong keys");
        return Err(too_many_failures(wait));
    }
    let request = read_login(headers, body).await?;
    let Some(key) = key else {
        return Err(no_key());
    };
    if !key.matches(&request) {
        sessions.failed(peer);
        tracing::warn!(target: "audit", %caller, "log-in with a wrong admin key");
        return Err(wrong_key());
    }
    let id = sessions.begin(key_epoch)?;
    tracing::info!(target: "audit", %caller, "logged in with the admin key");
    Ok(with_cookie(headers, &id, SESSION_LIFE))
}

/// Answers `DELETE /api/session`.
pub(super) fn log_out(sessions: &Sessions, caller: Peer, headers: &HeaderMap) -> Response {
    if sessions.end(headers) {
        tracing::info!(target: "audit", %caller, "logged out");
    }
    with_cookie(headers, "", Duration::ZERO)
}

/// Answer without a body that sets the cookie for this time.
fn with_cookie(headers: &HeaderMap, id: &str, life: Duration) -> Response {
    // The listener itself has no TLS. Behind a proxy that has, the browser names the scheme of the
    // page.
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    let is_tls = origin.is_some_and(|origin| origin.starts_with(b"https://"));
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE}={id}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        life.as_secs()
    );
    let mut response = StatusCode::NO_CONTENT.into_response();
    // Base64 and the text around it are always a valid value.
    if let Ok(value) = HeaderValue::try_from(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

/// Identifiers of sessions that a request shows.
fn identifiers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, id)| *name == COOKIE && !id.is_empty())
        .map(|(_, id)| id)
}

async fn read_login(headers: &HeaderMap, body: Body) -> Result<String, ApiError> {
    // A form of another site cannot send this type without asking first.
    let kind = headers.get(header::CONTENT_TYPE);
    let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let bytes = body::to_bytes(body, MAX_LOGIN_BODY)
        .await
        .map_err(|_| bad_login())?;
    if !is_json {
        return Err(bad_login());
    }
    let request: LoginRequest = serde_json::from_slice(&bytes).map_err(|_| bad_login())?;
    Ok(request.key)
}

fn bad_login() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "bad_request",
        "a log-in is {\"key\":\"…\"} as application/json",
    )
}

fn no_key() -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        "no_key",
        "no admin.key is set, so that no log-in is needed",
    )
}

fn wrong_key() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "key_wrong",
        "this is not the admin key: use the value of admin.key",
    )
}

fn too_many_failures(wait: Duration) -> ApiError {
    ApiError {
        retry_after: Some(wait.as_secs().max(1)),
        ..ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_attempts",
            "too many wrong keys came from this address: wait, then try again",
        )
    }
}

fn no_random_numbers() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no_random_numbers",
        "the system gives no random numbers for a session: try again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn showing(cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_eight_hours_with_another_key_and_by_log_out() {
        let sessions = Sessions::default();
        let id = sessions.begin(1).unwrap();
        let shown = showing(&format!("theme=dark; {COOKIE}={id}"));
        assert!(sessions.admit(&shown, 1));
        assert!(!sessions.admit(&shown, 2), "the key was changed");
        assert!(!sessions.admit(&showing(&format!("{COOKIE}={id}x")), 1));
        assert!(!sessions.admit(&showing(&format!("other={id}")), 1));
        assert!(!sessions.admit(&showing(&format!("{COOKIE}=")), 1));
        let second = Duration::from_secs(1);
        tokio::time::advance(SESSION_LIFE.saturating_sub(second)).await;
        assert!(sessions.admit(&shown, 1));
        tokio::time::advance(second).await;
        assert!(!sessions.admit(&shown, 1));
        let id = sessions.begin(1).unwrap();
        let shown = showing(&format!("{COOKIE}={id}"));
        assert!(sessions.end(&shown) && !sessions.admit(&shown, 1));
        assert!(!sessions.end(&shown), "there is none any more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_session_makes_room() {
        let sessions = Sessions::default();
        let first = sessions.begin(1).unwrap();
        let rest: Vec<_> = (0..MAX_SESSIONS)
            .map(|_| sessions.begin(1).unwrap())
            .collect();
        assert!(!sessions.admit(&showing(&format!("{COOKIE}={first}")), 1));
        for id in rest {
            assert!(sessions.admit(&showing(&format!("{COOKIE}={id}")), 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_many_failures_waits_and_others_do_not() {
        let sessions = Sessions::default();
        let peer = |last: u8| Peer::Ip([192, 0, 2, last].into());
        for _ in 0..MAX_FAILURES {
            assert_eq!(sessions.penalty(peer(1)), None);
            sessions.failed(peer(1));
        }
        assert_eq!(sessions.penalty(peer(1)), Some(FAILURE_WINDOW));
        assert_eq!(sessions.penalty(peer(2)), None);
        tokio::time::advance(FAILURE_WINDOW).await;
        assert_eq!(sessions.penalty(peer(1)), None);
    }
}
