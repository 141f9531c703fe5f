//! The HTTP side of the console: files, sessions, the stream of events, and pages of accounts.

use std::collections::HashMap;

use axum::http::HeaderMap;
use futures_util::StreamExt as _;

use super::*;
use crate::telemetry::events::{Event, Level};

const LOG_IN: &str = "{\"key\":\"planted-admin-key\"}";
const JSON: (&str, &str) = ("content-type", "application/json");
const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:8081");

/// Bench with an admin key.
async fn keyed() -> Bench {
    let settings = AdminSettings {
        key: Some(Secret::new(ADMIN_KEY)),
        ..AdminSettings::default()
    };
    Bench::new(&settings, [("shop", Script::failing([]))]).await
}

/// Logs in and returns the cookie as a browser sends it.
async fn logged_in(bench: &Bench) -> String {
    let answer = bench.ask("POST", "/api/session", &[JSON], LOG_IN).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let line = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    line.split(';').next().unwrap().to_owned()
}

async fn status(bench: &Bench, method: &str, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    bench.ask(method, path, headers, "").await.status()
}

#[tokio::test(start_paused = true)]
async fn a_session_opens_the_api_until_its_log_out() {
    let bench = keyed().await;
    let answer = bench
        .ask("POST", "/api/session", &[JSON, ORIGIN], LOG_IN)
        .await;
    let line = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in [
        "; HttpOnly",
        "; SameSite=Strict",
        "; Path=/",
        "; Max-Age=28800",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(
        !line.contains("Secure") && !line.contains(ADMIN_KEY),
        "{line}"
    );
    let cookie = line.split(';').next().unwrap();
    let with = [("cookie", cookie)];
    for path in [
        "/api/accounts",
        "/api/overview",
        "/api/series",
        "/api/clients",
        "/api/events",
    ] {
        assert_eq!(
            status(&bench, "GET", path, &with).await,
            StatusCode::OK,
            "{path}"
        );
        let without = status(&bench, "GET", path, &[]).await;
        assert_eq!(without, StatusCode::UNAUTHORIZED, "{path}");
    }
    let refresh = "/api/accounts/shop/refresh";
    assert_eq!(status(&bench, "POST", refresh, &with).await, StatusCode::OK);
    let out = bench.ask("DELETE", "/api/session", &with, "").await;
    assert_eq!(out.status(), StatusCode::NO_CONTENT);
    let ended = out.headers()["set-cookie"].to_str().unwrap();
    assert!(ended.starts_with("wxgate_session=; ") && ended.contains("Max-Age=0"));
    let after = status(&bench, "GET", "/api/accounts", &with).await;
    assert_eq!(
        after,
        StatusCode::UNAUTHORIZED,
        "the cookie is worth nothing now"
    );
}

#[tokio::test(start_paused = true)]
async fn behind_a_proxy_with_tls_the_cookie_is_for_tls_only() {
    let origin = ("origin", "https://127.0.0.1:8081");
    let answer = keyed()
        .await
        .ask("POST", "/api/session", &[JSON, origin], LOG_IN)
        .await;
    let line = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(line.ends_with("; Secure"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_site_can_use_no_session() {
    let bench = keyed().await;
    let cookie = logged_in(&bench).await;
    for foreign in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "http://127.0.0.1:3000"),
        ("origin", "null"),
    ] {
        let headers = [("cookie", cookie.as_str()), foreign];
        for (method, path) in [
            ("POST", "/api/accounts/shop/refresh"),
            ("POST", "/api/reload"),
            ("POST", "/api/session"),
            ("DELETE", "/api/session"),
        ] {
            let got = status(&bench, method, path, &headers).await;
            assert_eq!(got, StatusCode::FORBIDDEN, "{method} {path} {foreign:?}");
        }
    }
    let rebound = [("cookie", cookie.as_str()), ("host", "evil.example")];
    let got = status(&bench, "GET", "/api/accounts", &rebound).await;
    assert_eq!(got, StatusCode::MISDIRECTED_REQUEST);
    let own = [("cookie", cookie.as_str())];
    assert_eq!(
        status(&bench, "GET", "/api/accounts", &own).await,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn another_key_ends_every_session() {
    let bench = keyed().await;
    let cookie = logged_in(&bench).await;
    let control = bench.site.control();
    let accounts = Arc::clone(&control.state.load().accounts);
    let with_key = |key: &str| AdminSettings {
        key: Some(Secret::new(key)),
        ..AdminSettings::default()
    };
    control.switch(
        &with_key(ADMIN_KEY),
        Arc::clone(&accounts),
        HashMap::default(),
    );
    let with = [("cookie", cookie.as_str())];
    let same = status(&bench, "GET", "/api/accounts", &with).await;
    assert_eq!(
        same,
        StatusCode::OK,
        "a reload with the same key ends nothing"
    );
    control.switch(&with_key("another-key"), accounts, HashMap::default());
    let other = status(&bench, "GET", "/api/accounts", &with).await;
    assert_eq!(other, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn a_log_in_that_is_none_opens_nothing() {
    let bench = keyed().await;
    for (headers, body, wanted) in [
        (&[JSON][..], "{\"key\":\"wrong\"}", StatusCode::UNAUTHORIZED),
        (&[JSON], "{\"key\":\"\"}", StatusCode::UNAUTHORIZED),
        (&[JSON], "{}", StatusCode::BAD_REQUEST),
        (
            &[JSON],
            "{\"key\":\"planted-admin-key\",\"x\":1}",
            StatusCode::BAD_REQUEST,
        ),
        (&[JSON], "", StatusCode::BAD_REQUEST),
        (
            &[("content-type", "text/plain")],
            LOG_IN,
            StatusCode::BAD_REQUEST,
        ),
        (&[], LOG_IN, StatusCode::BAD_REQUEST),
    ] {
        let answer = bench.ask("POST", "/api/session", headers, body).await;
        assert_eq!(answer.status(), wanted, "{body}");
        assert!(!answer.headers().contains_key("set-cookie"), "{body}");
    }
    let forged = [("cookie", "wxgate_session=; wxgate_session=AAAA")];
    let got = status(&bench, "GET", "/api/accounts", &forged).await;
    assert_eq!(got, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn wrong_keys_close_the_form_for_a_while_and_leave_the_header_open() {
    let bench = keyed().await;
    let wrong = "{\"key\":\"wrong\"}";
    for _ in 0..10 {
        let answer = bench.ask("POST", "/api/session", &[JSON], wrong).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let answer = bench.ask("POST", "/api/session", &[JSON], LOG_IN).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (status, body) = read(answer).await;
    let wanted = (StatusCode::TOO_MANY_REQUESTS, &json!("too_many_attempts"));
    assert_eq!((status, &body["error"]), wanted);
    let header = [("x-wxgate-key", ADMIN_KEY)];
    let answer = bench.ask("GET", "/api/accounts", &header, "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    tokio::time::advance(Duration::from_secs(301)).await;
    logged_in(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn the_files_need_no_key_and_name_no_other_server() {
    let bench = keyed().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/console.css", "text/css; charset=utf-8"),
        ("/console.js", "text/javascript; charset=utf-8"),
        ("/words.js", "text/javascript; charset=utf-8"),
        ("/plot.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let answer = bench.ask("GET", path, &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.headers()["content-type"], kind, "{path}");
        assert_policy(answer.headers(), path);
        let file = text(answer).await;
        // No address of another server; the one of SVG's namespace is a name.
        for (place, _) in file.match_indices("://") {
            assert!(
                file[place..].starts_with("://www.w3.org/2000/svg"),
                "{path}"
            );
        }
        // Markup and style stay in files of their own, as the policy wants.
        for inline in [
            "<script>",
            "<style",
            " style=",
            " onclick=",
            "innerHTML",
            "eval(",
        ] {
            assert!(!file.contains(inline), "{inline} in {path}");
        }
    }
    let strange = [("host", "evil.example")];
    let got = status(&bench, "GET", "/console.js", &strange).await;
    assert_eq!(got, StatusCode::MISDIRECTED_REQUEST);
}

fn assert_policy(headers: &HeaderMap, path: &str) {
    let policy = headers["content-security-policy"].to_str().unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{path}: {part}");
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
}

#[tokio::test(start_paused = true)]
async fn events_are_streamed_and_a_log_out_ends_the_stream() {
    let bench = keyed().await;
    let cookie = logged_in(&bench).await;
    let with = [("cookie", cookie.as_str())];
    let answer = bench.ask("GET", "/api/events", &with, "").await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_policy(answer.headers(), "/api/events");
    let mut body = answer.into_body().into_data_stream();
    let mut next = async || {
        let chunk = body.next().await?.unwrap();
        Some(String::from_utf8(chunk.to_vec()).unwrap())
    };
    let first = next().await.unwrap();
    assert!(first.contains("\"kind\":\"login\""), "{first}");
    bench.events().record(Event::new("reload", Level::Info));
    let second = next().await.unwrap();
    assert!(
        second.contains("\"kind\":\"reload\"") && second.ends_with("\n\n"),
        "{second}"
    );
    status(&bench, "DELETE", "/api/session", &with).await;
    bench.events().record(Event::new("fetched", Level::Info));
    assert_eq!(next().await, None, "nothing is shown after a log-out");
}

#[tokio::test(start_paused = true)]
async fn the_list_is_paged_and_searched_on_demand() {
    let bench = Bench::usual().await;
    let (_, plain) = bench.get("/api/accounts").await;
    assert_eq!(
        plain.as_array().map(Vec::len),
        Some(2),
        "scripts know this form"
    );
    let (_, page) = bench.get("/api/accounts?limit=1&order=trouble").await;
    assert_eq!((&page["total"], &page["matching"]), (&json!(2), &json!(2)));
    assert_eq!(page["accounts"].as_array().map(Vec::len), Some(1));
    assert_eq!(page["accounts"][0]["name"], "frozen", "trouble comes first");
    for query in ["query=47.94", "query=40164", "query=FROZ", "state=fatal"] {
        let (_, page) = bench.get(&format!("/api/accounts?{query}")).await;
        assert_eq!(page["matching"], 1, "{query}");
        assert_eq!(page["accounts"][0]["name"], "frozen", "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_overview_counts_accounts_by_state() {
    let bench = Bench::usual().await;
    let (status, overview) = bench.get("/api/overview").await;
    assert_eq!((status, &overview["ready"]), (StatusCode::OK, &json!(true)));
    let accounts = &overview["accounts"];
    assert_eq!(
        (&accounts["total"], &accounts["usable"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(
        (&accounts["ok"], &accounts["fatal"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(overview["key_required"], false);
    assert_eq!(
        keyed().await.get_with_key("/api/overview").await["key_required"],
        true
    );
}
