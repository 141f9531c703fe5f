//! The service API below `/-/`: who may, what is asked, what is answered.

use std::{path::Path, process::Command, time::Duration};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};
use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, SandboxAccount, TokenKind};

use crate::support::{
    Gate, header, json as body,
    program::{LIMIT, Program},
    raw::Wire,
    setup, start,
    token_tools::{Said, all, get, said, spawned},
};

const REFRESH: &str = "/-/accounts/shop/token/refresh";
const TICKET: &str = "/-/accounts/shop/tickets/jsapi";

fn read(said: &Said) -> Value {
    serde_json::from_slice(&said.body).unwrap_or_else(|_| panic!("{said:?}"))
}

fn token(gate: &Gate) -> String {
    gate.control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token")
}

async fn refresh(gate: &Gate, body: impl Into<reqwest::Body>) -> Said {
    said(gate.post(REFRESH).body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_by_network_alone_has_everything_but_the_real_token() {
    let gate = start().await;
    gate.warm().await;
    for target in [
        "/-/accounts/shop/token",
        &format!("/-/accounts/{DEFAULT_APPID}/token?wait=5"),
        "//-//accounts/shop//token",
    ] {
        let answer = get(&gate, target).await;
        assert_eq!(
            (answer.status, &*answer.error),
            (403, "scope_denied"),
            "{target}"
        );
        assert_eq!(answer.errcode(), Some(990_403));
        assert!(
            answer.text().contains("may = [") && !answer.text().contains(&token(&gate)),
            "{}",
            answer.text()
        );
    }
    for target in [TICKET, "/-/accounts/shop/jssdk?url=https://a.b/"] {
        assert_eq!(get(&gate, target).await.status, 200, "{target}");
    }
    assert_eq!(refresh(&gate, "{\"rejected\":\"old\"}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_named_in_the_path_and_other_selectors_must_agree() {
    let other = "[[account]]\nname = \"news\"\nappid = \"wxnews0000000000\"\nsecret = { value = \"s\" }\napi = [\"{api}\"]\n";
    let known = SandboxAccount::new("wxnews0000000000", "s");
    let gate = setup()
        .more(other)
        .account("hosts = [\"shop.internal\"]")
        .sandbox(|s| s.accounts.push(known))
        .start()
        .await;
    for (target, name) in [
        (TICKET.to_owned(), "shop"),
        (format!("/-/accounts/{DEFAULT_APPID}/tickets/jsapi"), "shop"),
        (
            "/-/accounts/wxnews0000000000/tickets/jsapi".to_owned(),
            "news",
        ),
        ("/@news/-/accounts/news/tickets/jsapi".to_owned(), "news"),
    ] {
        let answer = gate.get(&target).await;
        assert_eq!(
            (
                answer.status().as_u16(),
                header(&answer, "x-wxgate-account")
            ),
            (200, name.to_owned()),
            "{target}"
        );
        assert_eq!(
            header(&answer, "x-wxgate-attempts"),
            "",
            "WeChat's API was not called for the caller"
        );
        assert_eq!(header(&answer, "x-request-id").len(), 16);
    }
    for (target, selector, value, slug) in [
        (
            "/-/accounts/none/tickets/jsapi",
            "x-a",
            "b",
            "account_unknown",
        ),
        ("/-/accounts//tickets/jsapi", "x-a", "b", "not_found"),
        (
            "/@news/-/accounts/shop/tickets/jsapi",
            "x-a",
            "b",
            "account_conflict",
        ),
        (TICKET, "x-wxgate-account", "news", "account_conflict"),
        (
            "/-/accounts/news/tickets/jsapi",
            "host",
            "shop.internal",
            "account_conflict",
        ),
    ] {
        let answer = said(gate.client.get(gate.url(target)).header(selector, value)).await;
        assert_eq!(answer.error, slug, "{target}");
    }
    let (_, log) = gate.stop().await;
    let line = log
        .lines()
        .find(|line| line.contains("wxnews0000000000/tickets"))
        .expect("it is logged");
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (line["account"].as_str(), line["outcome"].as_str()),
        (Some("news"), Some("ok")),
        "{line}"
    );
    assert_eq!(
        (line["status"].as_u64(), line["attempts"].as_u64()),
        (Some(200), Some(0)),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn misuse_is_told_how_it_should_be() {
    let gate = start().await;
    gate.warm().await;
    let post = |target: &str| gate.post(target);
    for (request, status, slug, advice) in [
        (post(TICKET), 400, "bad_request", "GET"),
        (
            gate.client.get(gate.url(REFRESH)),
            400,
            "bad_request",
            "POST",
        ),
        (gate.client.head(gate.url(TICKET)), 400, "bad_request", ""),
        (
            gate.client.get(gate.url(TICKET)).body("x"),
            400,
            "bad_request",
            "no body",
        ),
        (
            gate.client.get(gate.url("/-/accounts/shop/token?wait=61")),
            400,
            "bad_request",
            "1 to 60",
        ),
        (post(REFRESH).body("[]"), 400, "bad_request", "rejected"),
        (
            post(REFRESH).body("{\"rejected\":7}"),
            400,
            "bad_request",
            "rejected",
        ),
        (
            post(REFRESH).body("{\"reject\":\"x\"}"),
            400,
            "bad_request",
            "rejected",
        ),
        (
            post(REFRESH).body("x".repeat(70_000)),
            413,
            "body_too_large",
            "64 KiB",
        ),
        (
            post("/-/accounts/shop/token/refresh?force=1"),
            400,
            "bad_request",
            "no query",
        ),
        (
            gate.client.get(gate.url("/-/accounts/shop/jssdk")),
            400,
            "bad_request",
            "url is missing",
        ),
        (
            gate.client.get(gate.url("/-/accounts/shop/jssdk?url=a.b")),
            400,
            "bad_request",
            "location.href",
        ),
        (
            gate.client
                .get(gate.url("/-/accounts/shop/jssdk?url=https://a.b/?x&y=1")),
            400,
            "bad_request",
            "encodeURIComponent",
        ),
        (
            gate.client
                .get(gate.url("/-/accounts/shop/jssdk?url=https://a.b/&type=agent_config")),
            400,
            "bad_request",
            "WeCom",
        ),
    ] {
        let answer = said(request).await;
        assert_eq!(
            (answer.status, &*answer.error),
            (status, slug),
            "{advice}: {answer:?}"
        );
        assert!(answer.text().contains(advice), "{}", answer.text());
    }
    assert_eq!(
        (
            gate.control().fetches(),
            gate.control().path("/cgi-bin/ticket/getticket").requests
        ),
        (1, 0)
    );
}

/// Pitfall: a hundred processes see 40001 at once and each asks for "a new token", killing the
/// others' one after another.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_compares_first_so_that_latecomers_cost_nothing() {
    for kind in ["stable", "classic"] {
        let gate = setup()
            .account(&format!("token = \"{kind}\""))
            .start()
            .await;
        gate.warm().await;
        let current = || {
            let kind = if kind == "stable" {
                TokenKind::Stable
            } else {
                TokenKind::Classic
            };
            gate.control()
                .current_token(DEFAULT_APPID, kind)
                .expect("a token")
        };
        let dead = current();
        gate.control().revoke(DEFAULT_APPID);
        let order = json!({"rejected": dead}).to_string();
        let answers = all((0..50)
            .map(|_| spawned(gate.post(REFRESH).body(order.clone())))
            .collect())
        .await;
        assert_eq!(gate.control().fetches(), 2, "{kind}");
        assert!(
            answers
                .iter()
                .any(|answer| read(answer)["refreshed"] == true),
            "{kind}"
        );
        for answer in &answers {
            let report = read(answer);
            assert_eq!(
                (answer.status, report["generation"].as_u64()),
                (200, Some(2)),
                "{kind}: {answer:?}"
            );
            assert!(
                report["expires_in"]
                    .as_u64()
                    .is_some_and(|left| left > 7000),
                "{report}"
            );
            assert!(
                !answer.text().contains(&current()) && !answer.text().contains(&dead),
                "{report}"
            );
        }
        let late = read(&refresh(&gate, order).await);
        assert_eq!(
            (&late["refreshed"], &late["generation"]),
            (&json!(false), &json!(2)),
            "{late}"
        );
        assert_eq!(late.get("reason"), None, "{late}");
        assert_eq!(gate.control().fetches(), 2, "{kind}");
        assert_eq!(
            get(&gate, "/cgi-bin/user/info?openid=o").await.attempts,
            "1"
        );
    }
}

/// A client that is known by its network.
fn ops(more: &str) -> String {
    format!("[[client]]\nname = \"ops\"\nfrom = [\"127.0.0.0/8\"]\naccounts = [\"shop\"]\n{more}\n")
}

/// Else anybody inside `server.allow` could end the token of all again and again, without ever having
/// had one.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_with_the_scope_may_leave_out_which_token_was_refused() {
    let orders = ["", "{}", "  ", "{ }"];
    let keyless = setup().account("token = \"classic\"").start().await;
    keyless.warm().await;
    for _ in 0..5 {
        for order in orders {
            let answer = refresh(&keyless, order).await;
            assert_eq!(
                (answer.status, &*answer.error),
                (400, "bad_request"),
                "{order:?}"
            );
            assert!(answer.text().contains("rejected") && answer.text().contains("may"));
        }
    }
    assert_eq!(keyless.control().fetches(), 1, "the token was not replaced");
    // On trial, a client is let through what it lacks; this is not a matter of letting through.
    let trial = setup()
        .account("token = \"classic\"")
        .more(&ops("mode = \"report\""))
        .start()
        .await;
    trial.warm().await;
    assert_eq!(refresh(&trial, "").await.status, 400);
    assert_eq!(trial.control().fetches(), 1);
    let named = setup()
        .account("token = \"classic\"")
        .more(&ops("may = [\"refresh\"]"))
        .start()
        .await;
    named.warm().await;
    let report = read(&refresh(&named, "").await);
    assert_eq!(report["refreshed"], true, "{report}");
    assert_eq!(named.control().fetches(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_brings_no_other_token_says_why() {
    let gate = setup().more(&ops("may = [\"refresh\"]")).start().await;
    gate.warm().await;
    // The token is good, and WeChat gives it again.
    for order in [
        String::new(),
        "{}".to_owned(),
        json!({"rejected": token(&gate)}).to_string(),
    ] {
        let answer = refresh(&gate, order.clone()).await;
        let report = read(&answer);
        assert_eq!(
            (answer.status, &report["refreshed"], &report["generation"]),
            (200, &json!(false), &json!(1)),
            "{order}"
        );
        let reason = report["reason"].as_str().expect("a reason");
        assert!(["same_token", "backoff"].contains(&reason), "{report}");
    }
    assert_eq!(gate.control().forced(), 0);
    // Nothing to be had at all.
    let refused: Fault =
        serde_json::from_str(r#"{"kind":"errcode","code":40164,"ip":"198.51.100.7"}"#).unwrap();
    gate.control()
        .fault(Rule::new("/cgi-bin/stable_token", refused).always());
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    let answer = refresh(&gate, "").await;
    assert_eq!(
        (answer.status, &*answer.error),
        (503, "token_unavailable"),
        "{answer:?}"
    );
    assert!(
        answer.text().contains("198.51.100.7") && !answer.retry_after.is_empty(),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_signed_with_the_ticket_that_everybody_gets() {
    let gate = start().await;
    let ticket = body(gate.get(TICKET).await).await["ticket"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut seen = Vec::new();
    for (written, page) in [
        (
            "https%3A%2F%2Fshop.example%2Fpay%3Fid%3D1%26from%3Da%252Bb%23%2Froute",
            "https://shop.example/pay?id=1&from=a%2Bb",
        ),
        ("https://shop.example/", "https://shop.example/"),
    ] {
        let answer = gate
            .get(&format!("/-/accounts/shop/jssdk?url={written}"))
            .await;
        assert_eq!(
            (header(&answer, "cache-control"), header(&answer, "etag")),
            ("no-store".to_owned(), String::new())
        );
        let signed = body(answer).await;
        let (nonce, time) = (
            signed["nonceStr"].as_str().unwrap(),
            signed["timestamp"].as_u64().unwrap(),
        );
        let text = format!("jsapi_ticket={ticket}&noncestr={nonce}&timestamp={time}&url={page}");
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        let hex: String = hash
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            (signed["signature"].as_str(), signed["appId"].as_str()),
            (Some(&*hex), Some(DEFAULT_APPID)),
            "{signed}"
        );
        assert_eq!(
            signed.as_object().map(serde_json::Map::len),
            Some(4),
            "{signed}"
        );
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        assert!(
            now.abs_diff(time) < 60 && !seen.contains(&nonce.to_owned()),
            "{signed}"
        );
        seen.push(nonce.to_owned());
    }
    assert_eq!(gate.control().path("/cgi-bin/ticket/getticket").requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_the_current_one_is_told_so_without_a_body() {
    let gate = start().await;
    let first = gate.get(TICKET).await;
    let etag = header(&first, "etag");
    assert_eq!(
        (etag.as_str(), &*header(&first, "cache-control")),
        ("\"1\"", "no-store")
    );
    assert_eq!(
        header(&first, "content-type"),
        "application/json; charset=utf-8"
    );
    let mut wire = Wire::connect(gate.proxy).await;
    for (known, status) in [
        ("\"1\"", 304),
        ("W/\"1\"", 304),
        ("\"0\", \"1\"", 304),
        ("*", 304),
        ("\"2\"", 200),
        ("1", 200),
        ("", 200),
    ] {
        let request =
            format!("GET {TICKET} HTTP/1.1\r\nHost: gate\r\nIf-None-Match: {known}\r\n\r\n");
        let reply = wire
            .ask(request)
            .await
            .expect("an answer on the same connection");
        assert_eq!(
            (reply.status, reply.header("etag")),
            (status, "\"1\""),
            "{known}"
        );
        assert_eq!(reply.body.is_empty(), status == 304, "{known}");
    }
    // The wait is over before anything changes.
    let request = gate
        .client
        .get(gate.url(&format!("{TICKET}?wait=1")))
        .header("if-none-match", etag);
    assert_eq!(said(request).await.status, 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_those_who_wait_for_a_token() {
    let gate = start().await;
    assert_eq!(gate.get(TICKET).await.status(), 200);
    let request = gate
        .client
        .get(gate.url(&format!("{TICKET}?wait=60")))
        .header("if-none-match", "\"1\"");
    let waiting = tokio::spawn(said(request));
    let metrics = gate.admin_url("/metrics");
    let in_flight = async {
        while !said(gate.client.get(&metrics))
            .await
            .text()
            .contains("wxgate_inflight_requests 1")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), in_flight)
        .await
        .expect("the call arrives");
    let (ended, _) = gate.stop().await;
    ended.expect("nothing had to be cut");
    assert_eq!(waiting.await.unwrap().status, 304);
}

/// The loop of docs/service-api.md, as it stands there.
fn documented_loop() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/service-api.md");
    let page = std::fs::read_to_string(page).expect("a page");
    let blocks = page.split("```sh\n").skip(1);
    let mut scripts = blocks.filter_map(|block| block.split("```").next());
    let script = scripts.find(|script| script.contains("while :"));
    script.expect("the loop is there").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_loop_follows_the_token_of_an_account() {
    let script = documented_loop();
    let wait = script.split("wait=").nth(1).expect("it waits");
    let wait: String = wait.chars().take_while(char::is_ascii_digit).collect();
    assert!(
        wait.parse::<u64>().expect("seconds") < 60,
        "proxies with their defaults give up after 60 s"
    );
    let gate = setup()
        .more(
            "[[account]]\nname = \"crm\"\nappid = \"wxcrm00000000000\"\napi = [\"{api}\"]\n\
             secret = { value = \"sandbox0sandbox0sandbox0sandbox0\" }\n\
             [[client]]\nname = \"job\"\nkey = { value = \"job-key-0123456789\" }\n\
             accounts = [\"crm\"]\nmay = [\"token\"]\n",
        )
        .sandbox(|sandbox| {
            let secret = "sandbox0sandbox0sandbox0sandbox0";
            let crm = SandboxAccount::new("wxcrm00000000000", secret);
            sandbox.accounts.push(crm);
        })
        .start()
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("GATE", gate.url(""))
        .env("KEY", "job-key-0123456789");
    let _running = Program::start(&mut shell);
    let file = folder.path().join("token.json");
    let written = async |known: &str| {
        let read = async {
            loop {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let answer = serde_json::from_str::<Value>(&text).unwrap_or_default();
                match answer["access_token"].as_str() {
                    Some(token) if token != known => return token.to_owned(),
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(LIMIT, read).await.expect("a token")
    };
    let first = written("").await;
    let refreshed = gate
        .client
        .post(gate.admin_url("/api/accounts/crm/refresh"))
        .json(&json!({"force": true}))
        .send()
        .await
        .expect("an answer");
    assert_eq!(refreshed.status(), 200);
    assert_ne!(written(&first).await, first);
}
