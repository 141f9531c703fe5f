//! Tests of the call that returns the real token, against a refresher with a scripted source.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    base::{AccountName, Secret},
    token::{
        self, AccountSettings, TokenProvider, TokenRefresher,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource},
        store::MemoryStore,
    },
    wechat::api::Platform,
};

const TOKEN: &str = "/-/accounts/shop/token";

/// Source that returns another token with each call.
#[derive(Default)]
struct Mint(AtomicU64);

impl TokenSource for Mint {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        let token = Secret::new(format!("T{}", self.0.fetch_add(1, Ordering::Relaxed) + 1));
        Box::pin(ready(Ok(Fetched {
            token,
            expires_in: Duration::from_secs(7200),
        })))
    }

    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(ready(Probe::Fine))
    }
}

fn refresher() -> (TokenRefresher, Arc<Mint>) {
    let mint = Arc::new(Mint::default());
    let account = AccountSettings {
        name: AccountName::new("shop").unwrap(),
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef".into(),
        secret: Some(Secret::new("s3cret")),
        provider: TokenProvider::Stable,
        api: Vec::new(),
        hosts: Vec::new(),
        foreign_token: None,
    };
    let metrics =
        token::metrics::TokenMetrics::register(&mut Registry::default()).for_account(&account.name);
    let source = Arc::clone(&mint) as Arc<dyn TokenSource>;
    (
        TokenRefresher::spawn(
            account,
            token::TokenSettings::default(),
            source,
            Arc::new(MemoryStore::default()),
            metrics,
        ),
        mint,
    )
}

fn about(refresher: &TokenRefresher) -> ServedAccount<'_> {
    ServedAccount {
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef",
        refresher,
        may_refresh_current: true,
        tickets: None,
    }
}

async fn get(refresher: &TokenRefresher, query: Option<&str>, known: Option<&str>) -> ServiceReply {
    ServiceCall::parse("GET", TOKEN, query)
        .unwrap()
        .answer(&about(refresher), known, b"", pending())
        .await
        .unwrap()
}

async fn refresh(refresher: &TokenRefresher, body: &str) -> Result<Value, ServiceError> {
    let call = ServiceCall::parse("POST", "/-/accounts/shop/token/refresh", None)?;
    let reply = call
        .answer(&about(refresher), None, body.as_bytes(), pending())
        .await?;
    Ok(serde_json::from_slice(&reply.body).unwrap())
}

/// Has the current token replaced, as a proxied call does.
async fn replaced(refresher: &TokenRefresher) {
    let current = refresher.current().await.unwrap().generation();
    refresher.accepted(current);
    let _ = refresher.refresh_past(current, "/a").await;
}

#[tokio::test(start_paused = true)]
async fn the_real_token_comes_with_what_is_left_of_it() {
    let (refresher, _) = refresher();
    refresher.current().await.unwrap();
    sleep(Duration::from_secs(200)).await;
    let reply = get(&refresher, None, None).await;
    assert_eq!((reply.status, reply.etag.as_deref()), (200, Some("\"1\"")));
    assert_eq!(
        String::from_utf8(reply.body).unwrap(),
        r#"{"access_token":"T1","expires_in":7000}"#
    );
}

#[tokio::test(start_paused = true)]
async fn who_has_it_already_waits_for_the_next_one_and_not_longer_than_wished() {
    let (refresher, mint) = refresher();
    let start = Instant::now();
    assert_eq!(get(&refresher, None, Some("\"1\"")).await.status, 304);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "without a wait there is none"
    );
    let reply = get(&refresher, Some("wait=30"), Some("\"1\"")).await;
    assert_eq!(
        (reply.status, reply.etag.as_deref(), reply.body.len()),
        (304, Some("\"1\""), 0)
    );
    assert!(
        start.elapsed() >= Duration::from_secs(30) && start.elapsed() < Duration::from_secs(31)
    );
    let start = Instant::now();
    let waiting = tokio::spawn({
        let refresher = refresher.clone();
        async move { get(&refresher, Some("wait=60"), Some("\"1\"")).await }
    });
    replaced(&refresher).await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status, reply.etag.as_deref()), (200, Some("\"2\"")));
    assert!(String::from_utf8(reply.body).unwrap().contains("\"T2\""));
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        get(&refresher, Some("wait=60"), Some("\"1\"")).await.status,
        200,
        "it has an old one"
    );
    assert_eq!(
        mint.0.load(Ordering::Relaxed),
        2,
        "waiting asks for nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hurry_ends_the_wait() {
    let (refresher, _) = refresher();
    refresher.current().await.unwrap();
    let (start, call) = (
        Instant::now(),
        ServiceCall::parse("GET", TOKEN, Some("wait=60")).unwrap(),
    );
    let hurry = sleep(Duration::from_secs(3));
    assert_eq!(
        call.answer(&about(&refresher), Some("\"1\""), b"", hurry)
            .await
            .unwrap()
            .status,
        304
    );
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_replaces_the_current_token_only_and_names_none() {
    let (refresher, mint) = refresher();
    refresher.accepted(refresher.current().await.unwrap().generation());
    let report = refresh(&refresher, r#"{"rejected":"T1"}"#).await.unwrap();
    assert_eq!(
        report,
        serde_json::json!({"refreshed": true, "generation": 2, "expires_in": 7200})
    );
    for stale in [
        r#"{"rejected":"T1"}"#,
        r#" {"rejected":""} "#,
        r#"{"rejected":"T2 "}"#,
    ] {
        let report = refresh(&refresher, stale).await.unwrap();
        assert_eq!(
            (&report["refreshed"], &report["generation"]),
            (&false.into(), &2.into()),
            "{stale}"
        );
        assert_eq!(report.get("reason"), None, "nothing was asked: {stale}");
    }
    assert_eq!(mint.0.load(Ordering::Relaxed), 2);
    // No call has succeeded with the token yet, so the first complaint does not trigger a refresh
    // at once.
    assert_eq!(refresh(&refresher, "").await.unwrap()["reason"], "backoff");
    for body in [
        "[]",
        "null",
        "{\"rejected\":null}",
        "{\"rejected\":\"a\",\"force\":true}",
        "rejected=T2",
        "{",
    ] {
        assert!(
            matches!(
                refresh(&refresher, body).await,
                Err(ServiceError::BadRequest(_))
            ),
            "{body}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresher_without_tickets_has_none() {
    let (refresher, _) = refresher();
    for target in ["tickets/jsapi", "tickets/agent_config", "tickets/x"] {
        let call = ServiceCall::parse("GET", &format!("/-/accounts/shop/{target}"), None).unwrap();
        let answer = call.answer(&about(&refresher), None, b"", pending()).await;
        assert!(matches!(answer, Err(ServiceError::NotFound)), "{target}");
    }
}
