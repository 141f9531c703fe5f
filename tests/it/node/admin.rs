//! The admin listener over real HTTP, with a real WeChat (well, the sandbox) behind the accounts.

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::Instant,
};
use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, SandboxAccount, TokenFilter, TokenKind};

use crate::support::{Gate, Setup, header, json as body, program::LIMIT, setup, start};

const LISTED: &str = "wx2222222222222222";

fn second_account() -> Setup {
    setup().sandbox(|sandbox| sandbox.accounts.push(SandboxAccount::new(LISTED, "two"))).more(&format!(
        "[[account]]\nname = \"listed\"\nappid = \"{LISTED}\"\nsecret = {{ value = \"two\" }}\napi = [\"{{api}}\"]\n"
    ))
}

async fn with_one_not_whitelisted() -> Gate {
    let setup = second_account();
    let sandbox = wxgate::sandbox::start(setup.sandbox_settings())
        .await
        .expect("the sandbox starts");
    let fault: Fault =
        serde_json::from_str(r#"{"kind":"errcode","code":40164,"ip":"198.51.100.7"}"#)
            .expect("a fault");
    sandbox.control().fault(
        Rule::new("/cgi-bin/stable_token", fault)
            .account(LISTED)
            .always(),
    );
    let gate = setup.start_with(sandbox).await;
    eventually(&gate, "/api/accounts", |_, list| list[0]["state"] == "ok").await;
    eventually(&gate, "/api/accounts", |_, list| {
        list[1]["state"] == "fatal"
    })
    .await;
    gate
}

fn get(gate: &Gate, target: &str) -> RequestBuilder {
    gate.client.get(gate.admin_url(target))
}

async fn sent(request: RequestBuilder) -> Response {
    request.send().await.expect("the admin listener answers")
}

async fn read(request: RequestBuilder) -> (u16, Value) {
    let answer = sent(request).await;
    (answer.status().as_u16(), body(answer).await)
}

/// Asks again until the answer is as wished.
async fn eventually(gate: &Gate, target: &str, wished: impl Fn(u16, &Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let (status, value) = read(get(gate, target)).await;
        if wished(status, &value) {
            return value;
        }
        assert!(Instant::now() < deadline, "{target} stays {status} {value}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The status of a raw request, whose head is written as it stands.
async fn status_of(gate: &Gate, head: &str) -> u16 {
    let stream = TcpStream::connect(gate.admin)
        .await
        .expect("the admin listener");
    raw_status(stream, head).await
}

async fn raw_status(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    head: &str,
) -> u16 {
    stream
        .write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())
        .await
        .expect("written");
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer));
    let _ = reading.await.expect("the connection is closed");
    let text = String::from_utf8_lossy(&answer);
    text.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {text:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer() {
    let gate = start().await;
    gate.warm().await;
    let live = sent(get(&gate, "/livez")).await;
    assert_eq!(
        (live.status().as_u16(), live.text().await.unwrap()),
        (200, "ok\n".to_owned())
    );
    for target in ["/readyz", "/readyz?all"] {
        assert_eq!(
            read(get(&gate, target)).await,
            (200, json!({"ready": true, "lacking": []})),
            "{target}"
        );
    }
    let metrics = sent(get(&gate, "/metrics")).await;
    assert!(header(&metrics, "content-type").starts_with("application/openmetrics-text"));
    let text = metrics.text().await.unwrap();
    assert!(
        text.contains("wxgate_token_generation{account=\"shop\"} 1") && text.ends_with("# EOF\n"),
        "{text}"
    );
    let page = sent(get(&gate, "/")).await;
    assert!(header(&page, "content-security-policy").contains("default-src 'none'"));
    assert!(header(&page, "content-type").starts_with("text/html"));
    assert!(page.text().await.unwrap().contains("/console.js"));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_ip_that_is_not_on_the_whitelist_and_the_node_stays_in_service() {
    let gate = with_one_not_whitelisted().await;
    let (status, some) = read(get(&gate, "/readyz")).await;
    assert_eq!((status, &some["ready"]), (200, &json!(true)));
    let lack = &some["lacking"][0];
    assert_eq!(
        (&lack["account"], &lack["errcode"]),
        (&json!("listed"), &json!(40164))
    );
    assert!(
        lack["message"].as_str().unwrap().contains("198.51.100.7"),
        "{lack}"
    );
    let (status, all) = read(get(&gate, "/readyz?all")).await;
    assert_eq!(
        (status, &all["ready"], &all["error"]),
        (503, &json!(false), &json!("not_ready"))
    );

    // A call on that account says the same, and costs WeChat nothing.
    let fetches = gate.control().fetches();
    let answer = gate
        .client
        .get(gate.url("/@listed/cgi-bin/user/get"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (answer.status().as_u16(), header(&answer, "x-wxgate-error")),
        (503, "token_unavailable".to_owned())
    );
    assert!(
        header(&answer, "retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds > 0)
    );
    let said = body(answer).await["errmsg"].as_str().unwrap().to_owned();
    assert!(
        said.contains("198.51.100.7") && said.contains("40164"),
        "{said}"
    );
    assert_eq!(gate.control().fetches(), fetches);

    // The operator adds the address and asks again.
    gate.control().clear_faults();
    let (status, done) = read(
        gate.client
            .post(gate.admin_url("/api/accounts/listed/refresh")),
    )
    .await;
    assert_eq!(
        (status, &done["refreshed"], &done["generation"]),
        (200, &json!(true), &json!(1)),
        "{done}"
    );
    assert_eq!(read(get(&gate, "/readyz?all")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_any_token_is_not_ready_and_says_why() {
    let sandbox = wxgate::sandbox::start(wxgate::sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let held = sandbox
        .control()
        .fault(Rule::new("/cgi-bin/stable_token", Fault::Pass).hold());
    let gate = setup().start_with(sandbox).await;
    let (status, waiting) = read(get(&gate, "/readyz")).await;
    assert_eq!(
        (status, &waiting["lacking"][0]["state"]),
        (503, &json!("waiting")),
        "{waiting}"
    );
    assert_eq!(sent(get(&gate, "/livez")).await.status(), 200);
    gate.control().release(held);
    eventually(&gate, "/readyz", |status, _| status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_listed_and_refreshed_and_no_token_is_shown() {
    let gate = with_one_not_whitelisted().await;
    let (_, list) = read(get(&gate, "/api/accounts")).await;
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("it was fetched");
    let shop = &list[0];
    assert_eq!(
        (&shop["name"], &shop["state"], &shop["usable"]),
        (&json!("shop"), &json!("ok"), &json!(true))
    );
    assert_eq!(
        shop["fingerprint"],
        json!(wxgate::internals::base::Secret::new(token.clone()).fingerprint())
    );
    assert!(
        shop["expires_in"]
            .as_u64()
            .is_some_and(|left| (7000..=7200).contains(&left)),
        "{shop}"
    );
    assert!(!list.to_string().contains(&token));

    let refresh = |order: Value| {
        gate.client
            .post(gate.admin_url("/api/accounts/shop/refresh"))
            .json(&order)
    };
    let (status, same) = read(refresh(json!({"force": false}))).await;
    assert_eq!(
        (status, &same["refreshed"]),
        (200, &json!(false)),
        "stable_token gives the same: {same}"
    );
    let (status, forced) = read(refresh(json!({"force": true}))).await;
    assert_eq!(
        (status, &forced["refreshed"], &forced["generation"]),
        (200, &json!(true), &json!(2)),
        "{forced}"
    );
    assert_eq!(gate.control().counters().forced_fetches, 1);
    // WeChat takes no second forced call within 30 s; neither do we try.
    let again = sent(refresh(json!({"force": true}))).await;
    assert_eq!(
        (
            again.status().as_u16(),
            header(&again, "retry-after").is_empty()
        ),
        (429, false)
    );
    assert_eq!(gate.control().counters().forced_fetches, 1);
    let answer = gate.get("/@shop/cgi-bin/user/get").await;
    assert_eq!(
        header(&answer, "x-wxgate-attempts"),
        "1",
        "the forced token is in use at once"
    );
    let (status, unknown) = read(
        gate.client
            .post(gate.admin_url("/api/accounts/nobody/refresh")),
    )
    .await;
    assert_eq!(
        (status, &unknown["error"]),
        (404, &json!("account_unknown"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn page_and_api_are_reached_under_known_names_only() {
    let gate = setup()
        .set("admin", "hosts = [\"ops.internal\"]")
        .start()
        .await;
    gate.warm().await;
    let port = gate.admin.port();
    for known in [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "10.1.2.3",
        "ops.internal",
        "Ops.Internal",
        "localhost:1",
        &format!("127.0.0.1:{port}"),
    ] {
        let head = format!("GET /api/accounts HTTP/1.1\r\nHost: {known}\r\n");
        assert_eq!(status_of(&gate, &head).await, 200, "{known}");
    }
    for strange in [
        "evil.example",
        "localhost.evil.example",
        "evil.example:8081",
        "ops.internal.",
        "127.0.0.1.nip.io",
        "",
        "localhost:x",
        "a@localhost",
        "[::1",
        "ops.internal, localhost",
    ] {
        for target in ["/", "/api/accounts", "/api/nothing"] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: {strange}\r\n");
            let status = status_of(&gate, &head).await;
            assert!(
                status == 421 || status == 400,
                "{strange:?} {target}: {status}"
            );
        }
        let status = status_of(
            &gate,
            &format!("GET /readyz HTTP/1.1\r\nHost: {strange}\r\n"),
        )
        .await;
        assert!(
            status == 200 || status == 400,
            "probes take any name: {strange:?} {status}"
        );
    }
    for head in [
        "GET /api/accounts HTTP/1.1\r\n",
        "GET /api/accounts HTTP/1.0\r\n",
        "GET /api/accounts HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        "GET http://evil.example/api/accounts HTTP/1.1\r\nHost: localhost\r\n",
    ] {
        let status = status_of(&gate, head).await;
        assert!(status == 421 || status == 400, "{head:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_can_order_nothing() {
    let gate = start().await;
    gate.warm().await;
    let generation =
        || async { read(get(&gate, "/api/accounts")).await.1[0]["generation"].clone() };
    let own = format!("http://localhost:{}", gate.admin.port());
    let order = |headers: &str| {
        let host = format!("Host: localhost:{}\r\n", gate.admin.port());
        format!("POST /api/accounts/shop/refresh HTTP/1.1\r\n{host}Content-Length: 0\r\n{headers}")
    };
    for (refused, headers) in [
        (true, "Sec-Fetch-Site: cross-site\r\n".to_owned()),
        (true, "Sec-Fetch-Site: same-site\r\n".to_owned()),
        (true, "Origin: http://evil.example\r\n".to_owned()),
        (true, "Origin: null\r\n".to_owned()),
        (
            true,
            format!("Origin: {own}\r\nSec-Fetch-Site: cross-site\r\n"),
        ),
        (true, "Origin: http://localhost:1\r\n".to_owned()),
        (true, format!("Origin: {own}.evil.example\r\n")),
        (false, String::new()),
        (false, format!("Origin: {own}\r\n")),
        (
            false,
            format!("Origin: {own}\r\nSec-Fetch-Site: same-origin\r\n"),
        ),
        (false, "Sec-Fetch-Site: none\r\n".to_owned()),
    ] {
        gate.control().revoke(TokenFilter::default());
        let before = generation().await;
        let status = status_of(&gate, &order(&headers)).await;
        assert_eq!(status, if refused { 403 } else { 200 }, "{headers:?}");
        assert_eq!(generation().await == before, refused, "{headers:?}");
        if !refused {
            continue;
        }
        // Ready for the next one.
        assert_eq!(status_of(&gate, &order("")).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_opens_the_api() {
    let gate = setup()
        .set("admin", "key = { value = \"adm1n-k3y\" }")
        .start()
        .await;
    gate.warm().await;
    for target in ["/api/overview", "/api/accounts", "/nothing"] {
        for (request, status) in [
            (get(&gate, target), 401),
            (get(&gate, target).bearer_auth("wrong"), 401),
            (get(&gate, target).bearer_auth(""), 401),
            (get(&gate, target).bearer_auth("adm1n-k3"), 401),
            (
                get(&gate, target).basic_auth("adm1n-k3y", Some("adm1n-k3y")),
                401,
            ),
            (get(&gate, &format!("{target}?key=adm1n-k3y")), 401),
            (
                get(&gate, target).bearer_auth("adm1n-k3y"),
                if target == "/nothing" { 404 } else { 200 },
            ),
            (
                get(&gate, target).header("x-wxgate-key", "adm1n-k3y"),
                if target == "/nothing" { 404 } else { 200 },
            ),
        ] {
            assert_eq!(sent(request).await.status(), status, "{target}");
        }
    }
    let refresh = gate
        .client
        .post(gate.admin_url("/api/accounts/shop/refresh"));
    let (status, refused) = read(refresh).await;
    assert_eq!((status, &refused["error"]), (401, &json!("key_required")));
    for target in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(sent(get(&gate, target)).await.status(), 200, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_and_admin_paths_do_not_mix() {
    let gate = start().await;
    gate.warm().await;
    for target in ["/metrics", "/api/accounts", "/livez"] {
        let answer = gate.get(target).await;
        assert!(
            !answer.text().await.unwrap().contains("wxgate_"),
            "{target} on the data listener"
        );
    }
    let requests = gate.control().counters().requests;
    assert_eq!(sent(get(&gate, "/cgi-bin/user/get")).await.status(), 404);
    assert_eq!(
        gate.control().counters().requests,
        requests,
        "the admin listener proxies nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_operators_too() {
    let sandbox = wxgate::sandbox::start(wxgate::sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let place = tempfile::tempdir().expect("a temporary folder");
    let socket = place.path().join("admin.sock");
    let setup = setup().set("admin", &format!("listen = \"unix:{}\"", socket.display()));
    let folder = crate::support::program::folder(&setup, &sandbox);
    let program =
        crate::support::program::Program::start(&mut crate::support::program::serve(folder.path()));
    program.logged("new access token");
    let stream = UnixStream::connect(&socket)
        .await
        .expect("the socket is there");
    assert_eq!(
        raw_status(stream, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n").await,
        200
    );
    assert_eq!(program.stop().status, Some(0));
    assert!(!socket.exists(), "the socket is taken away at the end");
}
