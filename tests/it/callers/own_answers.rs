//! Answers that wxgate makes itself: the table of errors, who is let in, and what becomes of a body
//! that nobody read.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use wxgate::sandbox::{Fault, Rule, SandboxAccount};

use crate::support::{
    Gate,
    raw::{Reply, Wire},
    setup, start,
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// What every answer of wxgate's own must be.
fn check(reply: &Reply, status: u16, errcode: i64, slug: &str) {
    let text = reply.text();
    assert_eq!((reply.status, reply.slug()), (status, slug), "{text}");
    let body = reply.json();
    assert_eq!(body["errcode"], errcode, "{text}");
    assert_eq!(
        body.as_object().map(serde_json::Map::len),
        Some(2),
        "{text}"
    );
    let errmsg = body["errmsg"].as_str().expect("a text");
    assert!(
        errmsg.starts_with("wxgate: ") && errmsg.len() > 20,
        "{text}"
    );
    for secret in ["sandbox0sandbox0", "://", "127.0.0.1", "access_token="] {
        assert!(!errmsg.contains(secret), "{text}");
    }
    assert_eq!(
        reply.header("content-type"),
        "application/json; charset=utf-8",
        "{text}"
    );
    assert_eq!(reply.header("x-request-id").len(), 16, "{slug}");
    assert_eq!(reply.header("x-wxgate-replay"), "", "{slug}");
    let wait = reply.header("retry-after");
    assert_eq!(!wait.is_empty(), errcode == 990_503, "{slug}: {wait}");
    assert!(
        wait.is_empty()
            || wait
                .parse::<u64>()
                .is_ok_and(|seconds| (1..=600).contains(&seconds)),
        "{wait}"
    );
}

async fn ask(gate: &Gate, request: impl AsRef<[u8]>) -> Reply {
    Wire::connect(gate.proxy)
        .await
        .ask(request)
        .await
        .expect("an answer")
}

/// The same request with HEAD.
async fn ask_head(gate: &Gate, request: &str) -> Reply {
    let mut wire = Wire::connect(gate.proxy).await;
    wire.send(request.replacen("GET", "HEAD", 1)).await;
    wire.reply_to("HEAD").await.expect("an answer")
}

/// One gate on which everything can go wrong that needs no special limits.
async fn prone(style: &str) -> (Gate, TcpListener) {
    // Takes connections and never answers, without a fixed port.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent_url = format!("http://{}", silent.local_addr().expect("bound"));
    let gate = setup()
        .set("server", &format!("error_style = \"{style}\""))
        .set("server", "max_body = \"100KiB\"")
        .set("upstream", "response_timeout = \"300ms\"")
        .set("token", "wait = \"100ms\"")
        .set("token", "fetch_timeout = \"200ms\"")
        .sandbox(|s| s.accounts.push(SandboxAccount::new("wxnews0000000000", "s-news")))
        .account("hosts = [\"shop.internal\"]")
        .more("[[account]]\nname = \"news\"\nappid = \"wxnews0000000000\"\nsecret = { value = \"wrong\" }\napi = [\"{api}\"]\n")
        .more(&format!("[[account]]\nname = \"mute\"\nappid = \"wxmute0000000000\"\nsecret = {{ value = \"s\" }}\napi = [\"{silent_url}\"]\n"))
        .start()
        .await;
    (gate, silent)
}

fn errors() -> Vec<(String, u16, i64, &'static str)> {
    let get =
        |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: gate\r\n{fields}\r\n");
    vec![
        (
            get("/@shop/cgi-bin/%75ser", ""),
            400,
            990_400,
            "bad_request",
        ),
        (
            get("/@shop/cgi-bin/user?ACCESS_TOKEN=1", ""),
            400,
            990_400,
            "bad_request",
        ),
        (
            get("/cgi-bin/user/info", ""),
            400,
            990_400,
            "account_unknown",
        ),
        (
            get("/@none/cgi-bin/user/info", ""),
            400,
            990_400,
            "account_unknown",
        ),
        (
            get("/@shop/cgi-bin/user/info", "X-Wxgate-Account: news\r\n"),
            400,
            990_400,
            "account_conflict",
        ),
        (
            get("/@shop/cgi-bin/clear_quota/v2", ""),
            403,
            990_403,
            "endpoint_blocked",
        ),
        (
            get("/@shop/cgi-bin/clear_quota", ""),
            403,
            990_403,
            "endpoint_blocked",
        ),
        (get("/-/nothing/here", ""), 404, 990_404, "not_found"),
        (get("/-/", ""), 404, 990_404, "not_found"),
        (get("//-//accounts", ""), 404, 990_404, "not_found"),
        (
            get("/@shop/cgi-bin/user/info", "Content-Length: 102401\r\n"),
            413,
            990_413,
            "body_too_large",
        ),
        (
            get("/@shop/cgi-bin/broken", ""),
            502,
            990_502,
            "upstream_failed",
        ),
        (
            get("/@shop/cgi-bin/slow", ""),
            504,
            990_504,
            "upstream_timeout",
        ),
        (
            get("/@news/cgi-bin/user/info", ""),
            503,
            990_503,
            "token_unavailable",
        ),
        (
            get("/@mute/cgi-bin/user/info", ""),
            503,
            990_503,
            "token_unavailable",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_has_its_status_its_code_and_its_slug_in_all_styles() {
    for style in ["http", "wechat", "auto"] {
        let (gate, _silent) = prone(style).await;
        ask(&gate, INFO.replace("/cgi-bin", "/@shop/cgi-bin")).await;
        gate.control()
            .fault(Rule::new("/cgi-bin/broken", Fault::Close { executed: false }).always());
        gate.control()
            .fault(Rule::new("/cgi-bin/slow", Fault::Hang { executed: false }).always());
        for (request, status, errcode, slug) in errors() {
            let reply = ask(&gate, &request).await;
            check(
                &reply,
                if style == "wechat" { 200 } else { status },
                errcode,
                slug,
            );
            // The same call, as an SDK makes it.
            let mark = if request.contains('?') { "&" } else { "?" };
            for credential in [
                "access_token=T",
                "secret=s",
                "access%5ftoken=",
                "suite_access_token=T",
            ] {
                // Another credential changes the class of the call, which may then end otherwise,
                // but not that of a path that no call has.
                if !credential.starts_with("access") && !request.contains("%75") {
                    continue;
                }
                let request = request.replace(" HTTP/1.1", &format!("{mark}{credential} HTTP/1.1"));
                let reply = ask(&gate, &request).await;
                let expected = if style == "http" { status } else { 200 };
                check(&reply, expected, errcode, slug);
                let head = ask_head(&gate, &request).await;
                let expected = if style == "wechat" { 200 } else { status };
                if slug != "not_found" {
                    assert_eq!(
                        (head.status, head.slug(), head.body.len()),
                        (expected, slug, 0),
                        "{style} {request}"
                    );
                }
            }
        }
        let (_, log) = gate.stop().await;
        for (.., slug) in errors() {
            assert!(
                log.contains(&format!("\"{slug}\"")),
                "{slug} is not in the access log: {log}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_above_the_limit_is_too_large_as_well() {
    let gate = setup().set("server", "max_body = \"1KiB\"").start().await;
    gate.warm().await;
    gate.control().clear_record();
    let chunk = format!("200\r\n{}\r\n", "a".repeat(512));
    let head =
        "POST /cgi-bin/menu/create HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n";
    let reply = ask(&gate, format!("{head}{chunk}{chunk}0\r\n\r\n")).await;
    assert_eq!((reply.status, reply.slug()), (200, ""), "{}", reply.text());
    let reply = ask(&gate, format!("{head}{chunk}{chunk}1\r\na\r\n0\r\n\r\n")).await;
    check(&reply, 413, 990_413, "body_too_large");
    assert_eq!(gate.control().counters().requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_in_flight_than_allowed_is_answered_at_once_and_leaves_no_trace() {
    let gate = setup().set("upstream", "max_in_flight = 2").start().await;
    gate.warm().await;
    let held = gate
        .control()
        .fault(Rule::new("/cgi-bin/menu/get", Fault::Pass).always().hold());
    let slow = "GET /cgi-bin/menu/get HTTP/1.1\r\nHost: gate\r\n\r\n";
    let (mut first, mut second) = (
        Wire::connect(gate.proxy).await,
        Wire::connect(gate.proxy).await,
    );
    first.send(slow).await;
    second.send(slow).await;
    gate.control()
        .until(|control| control.hits(held) == 2)
        .await;
    let mut third = Wire::connect(gate.proxy).await;
    for _ in 0..10 {
        check(
            &third.ask(INFO).await.expect("an answer"),
            503,
            990_503,
            "overloaded",
        );
    }
    assert_eq!(
        gate.control().path("/cgi-bin/user/info").requests,
        1,
        "only the warm-up"
    );
    gate.control().remove_fault(held);
    assert_eq!(first.reply().await.expect("an answer").status, 200);
    assert_eq!(second.reply().await.expect("an answer").status, 200);
    // A slot is given back when its answer was sent, not a moment later: the refused ones took none
    // with them.
    for _ in 0..10 {
        assert_eq!(third.ask(INFO).await.expect("an answer").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_says_about_its_address_counts_behind_a_trusted_proxy_only() {
    let trusting = "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]";
    for (allow, trusted, cases) in [
        (
            "allow = [\"192.0.2.0/24\"]",
            "trusted_proxies = []",
            vec![
                ("", false),
                ("X-Forwarded-For: 192.0.2.1\r\n", false),
                (
                    "Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\n",
                    false,
                ),
            ],
        ),
        (
            "allow = [\"loopback\"]",
            "trusted_proxies = []",
            vec![("X-Forwarded-For: 8.8.8.8\r\n", true)],
        ),
        (
            "allow = [\"192.0.2.0/24\", \"2001:db8::/32\"]",
            trusting,
            vec![
                ("", false),
                ("X-Forwarded-For: 192.0.2.1\r\n", true),
                ("x-forwarded-for:192.0.2.1\r\n", true),
                ("X-Forwarded-For: 192.0.2.1:4711\r\n", true),
                ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", true),
                ("X-Forwarded-For: [2001:db8::1]:80\r\n", true),
                ("X-Forwarded-For: 192.0.2.1, 10.1.1.1, 127.0.0.1\r\n", true),
                (
                    "X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-For: 192.0.2.1\r\n",
                    true,
                ),
                // Spoofed by the caller, before the proxy added the truth.
                ("X-Forwarded-For: 192.0.2.1, 8.8.8.8\r\n", false),
                (
                    "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 8.8.8.8\r\n",
                    false,
                ),
                ("X-Forwarded-For: unknown\r\n", false),
                ("X-Forwarded-For: 192.0.2.1, _hidden\r\n", false),
                ("X-Forwarded-For: 192.0.2.256\r\n", false),
                ("X-Forwarded-For:\r\n", false),
                ("X-Forwarded-For: 192.0.2.1,\r\n", false),
                ("X_Forwarded_For: 192.0.2.1\r\n", false),
                ("Forwarded: for=192.0.2.1\r\n", false),
                ("X-Real-IP: 192.0.2.1\r\n", false),
            ],
        ),
    ] {
        let gate = setup()
            .set("server", allow)
            .set("server", trusted)
            .start()
            .await;
        for (fields, admitted) in cases {
            let reply = ask(
                &gate,
                INFO.replace("\r\n\r\n", &format!("\r\n{fields}\r\n")),
            )
            .await;
            if admitted {
                assert_eq!(
                    (reply.status, reply.slug()),
                    (200, ""),
                    "{allow} {trusted} {fields}: {}",
                    reply.text()
                );
            } else {
                check(&reply, 401, 990_401, "client_unknown");
            }
        }
        // Whoever is not let in learns nothing about accounts and paths either.
        let inside = allow.contains("loopback");
        let reply = ask(
            &gate,
            "GET /@none/cgi-bin/clear_quota HTTP/1.1\r\nHost: gate\r\n\r\n",
        )
        .await;
        assert_eq!(
            reply.slug(),
            if inside {
                "account_unknown"
            } else {
                "client_unknown"
            }
        );
        let reply = ask(
            &gate,
            "GET /-/accounts/shop/token HTTP/1.1\r\nHost: gate\r\n\r\n",
        )
        .await;
        assert_eq!(
            reply.slug(),
            if inside {
                "scope_denied"
            } else {
                "client_unknown"
            }
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_unread_body_is_never_taken_for_a_request() {
    let gate = setup().set("server", "max_body = \"1KiB\"").start().await;
    gate.warm().await;
    gate.control().clear_record();
    let hidden = "GET /cgi-bin/user/get?hidden=1 HTTP/1.1\r\nHost: gate\r\n\r\n";
    for target in [
        "/cgi-bin/clear_quota",
        "/@none/a",
        "/cgi-bin/%61",
        "/-/x",
        "/cgi-bin/menu/create",
        "/cgi-bin/a?ACCESS_TOKEN",
    ] {
        for (framing, body) in [
            (
                format!("Content-Length: {}", 2000 + hidden.len()),
                format!("{}{hidden}", "a".repeat(2000)),
            ),
            (format!("Content-Length: {}", 100_000), hidden.to_owned()),
            (format!("Content-Length: {}", 100_000), String::new()),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!(
                    "7d0\r\n{}\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n",
                    "a".repeat(2000),
                    hidden.len()
                ),
            ),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!("fffff\r\n{hidden}"),
            ),
            (
                format!(
                    "Expect: 100-continue\r\nContent-Length: {}",
                    hidden.len() + 2000
                ),
                String::new(),
            ),
        ] {
            let mut wire = Wire::connect(gate.proxy).await;
            let endless =
                body.len() < 100 || framing.contains("100000") || body.starts_with("fffff");
            wire.send(format!(
                "POST {target} HTTP/1.1\r\nHost: gate\r\n{framing}\r\n\r\n{body}"
            ))
            .await;
            if endless && target == "/cgi-bin/menu/create" && framing.starts_with("Transfer") {
                // This one is read until it is too long, and it never gets there.
                wire.finish().await;
                assert_eq!(
                    wire.reply().await.map(|reply| reply.status),
                    Some(400),
                    "{target} {framing}"
                );
                continue;
            }
            let reply = wire
                .reply()
                .await
                .unwrap_or_else(|| panic!("no answer to {target} {framing}"));
            assert!(
                reply.status >= 400 && !reply.slug().is_empty(),
                "{target} {framing}"
            );
            // Either the rest was read and thrown away, or the connection ends.
            if reply.closes() {
                assert!(wire.is_closed().await, "{target} {framing}");
            } else if let Some(next) = wire.ask(INFO.replace("=o", "=next")).await {
                assert_eq!(next.json()["openid"], "next", "{target} {framing}");
            }
        }
    }
    assert_eq!(gate.control().path("/cgi-bin/user/get").requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_only_when_it_will_be_taken() {
    let gate = setup().set("server", "max_body = \"1KiB\"").start().await;
    gate.warm().await;
    let body = json!({"touser": "o", "msgtype": "text", "text": {"content": "x"}}).to_string();
    let post = |target: &str, length: usize| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: gate\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut wire = Wire::connect(gate.proxy).await;
    wire.send(post("/cgi-bin/message/custom/send", body.len()))
        .await;
    assert_eq!(wire.interim().await, 100);
    assert_eq!(
        wire.ask(&body).await.expect("an answer").json()["errcode"],
        0
    );
    for (target, length, status) in [
        ("/cgi-bin/clear_quota", 10, 403),
        ("/cgi-bin/message/custom/send", 2000, 413),
    ] {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(post(target, length)).await;
        assert_eq!(wire.interim().await, status, "{target}");
    }
    assert_eq!(gate.control().deliveries().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_get_their_own_answers_in_order() {
    let gate = start().await;
    gate.warm().await;
    gate.control().clear_record();
    let mut wire = Wire::connect(gate.proxy).await;
    let ask = |n: usize| match n % 4 {
        0 => format!("GET /cgi-bin/user/info?openid=user-{n} HTTP/1.1\r\nHost: gate\r\n\r\n"),
        1 => format!(
            "POST /cgi-bin/user/info?openid=user-{n} HTTP/1.1\r\nHost: gate\r\nContent-Length: 2\r\n\r\n{{}}"
        ),
        2 => format!(
            "GET /cgi-bin/user/info?openid=user-{n} HTTP/1.1\r\nHost: gate\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ),
        _ => "GET /cgi-bin/clear_quota HTTP/1.1\r\nHost: gate\r\n\r\n".to_owned(),
    };
    // And the begin of one more, which must not hold back what is ready.
    wire.send((0..40).map(ask).collect::<String>() + "GET /cgi-bin/us")
        .await;
    for n in 0..40 {
        let reply = wire
            .reply()
            .await
            .unwrap_or_else(|| panic!("no answer to {n}"));
        if n % 4 == 3 {
            check(&reply, 403, 990_403, "endpoint_blocked");
        } else {
            assert_eq!(reply.json()["openid"], format!("user-{n}"));
        }
    }
    wire.send("er/info?openid=last HTTP/1.1\r\nHost: gate\r\n\r\nEARLY-BYTES")
        .await;
    assert_eq!(
        wire.reply().await.expect("an answer").json()["openid"],
        "last"
    );
    assert_eq!(gate.control().path("/cgi-bin/user/info").requests, 31);
    assert!(
        wire.is_silent_for(Duration::from_millis(100)).await,
        "half a request line is no request"
    );
}
