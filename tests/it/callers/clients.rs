//! Who may do what: every way of showing who one is, on every account and path, against a table of
//! its own.

use std::net::{IpAddr, Ipv4Addr};

use reqwest::{Client, Response};
use serde_json::{Value, json};
use wxgate::{
    internals::net::egress::Egress,
    sandbox::{self, SandboxAccount, TokenKind},
};

use crate::{
    node::listeners::{certificates, dial, start_in},
    support::{
        Gate, Setup, client, header, json as body,
        program::{Program, folder, serve},
        raw::Wire,
        setup,
    },
};

const NEWS: &str = "wxnews0000000000";
const CLIENTS: &str = r#"
[[account]]
name = "news"
appid = "wxnews0000000000"
secret = { value = "s-news" }
api = ["{api}"]

[[client]]
name = "crm"
key = { value = "crm-key-0123456789" }
accounts = ["shop"]
allow = ["/cgi-bin/message/**", "/cgi-bin/user/info"]

[[client]]
name = "erp"
# Of erp-key-0123456789
key = { sha256 = "a906a2df7cc47cf9a85e0302259c285cc8cdd08fb1f59441b70d4b8b8d9c6922" }
accounts = ["shop", "news"]
deny = ["/cgi-bin/menu/**"]

[[client]]
name = "ops"
key = { value = "ops-key-0123456789" }
accounts = ["news"]
allow = ["/cgi-bin/**", "/cgi-bin/clear_quota"]
may = ["token", "refresh", "ticket"]

[[client]]
name = "floor"
from = ["127.0.0.2/32"]
accounts = ["shop"]

[[client]]
name = "desk"
key = { value = "desk-key-0123456789" }
from = ["127.0.0.3/32"]
accounts = ["shop"]
"#;

const ACCOUNTS: [(&str, &str); 2] = [("shop", "wx0123456789abcdef"), ("news", NEWS)];
/// Client, key, and the last number of the address that it calls from.
const CALLERS: [(&str, &str, u8); 7] = [
    ("crm", "crm-key-0123456789", 1),
    ("erp", "erp-key-0123456789", 1),
    ("ops", "ops-key-0123456789", 2),
    ("desk", "desk-key-0123456789", 3),
    ("nobody", "desk-key-0123456789", 1),
    ("nobody", "crm-key-0123456788", 2),
    ("nobody", "", 1),
];
const TICKET: &str = "/-/accounts/NAME/tickets/jsapi";
const PATHS: [&str; 8] = [
    "/cgi-bin/message/custom/send",
    "/cgi-bin/message",
    "/cgi-bin/user/info",
    "/cgi-bin/menu/get",
    "/cgi-bin/MENU/get",
    "/cgi-bin/clear_quota",
    "/wxa/getwxacode",
    TICKET,
];

/// The table, once more and in other words than the configuration's.
fn may(client: &str, account: &str, path: &str) -> &'static str {
    let accounts: &[&str] = match client {
        "crm" | "floor" | "desk" => &["shop"],
        "erp" => &["shop", "news"],
        "ops" => &["news"],
        _ => return "client_unknown",
    };
    if !accounts.contains(&account) {
        return "account_denied";
    }
    match (client, path) {
        ("ops", TICKET | "/cgi-bin/clear_quota") => "",
        (_, TICKET) => "scope_denied",
        ("crm", "/cgi-bin/message/custom/send" | "/cgi-bin/user/info") => "",
        ("crm", _)
        | ("erp", "/cgi-bin/menu/get" | "/cgi-bin/MENU/get")
        | ("ops", "/wxa/getwxacode") => "path_denied",
        (_, "/cgi-bin/clear_quota") => "endpoint_blocked",
        _ => "",
    }
}

fn house() -> Setup {
    setup()
        .sandbox(|s| s.accounts.push(SandboxAccount::new(NEWS, "s-news")))
        .more(CLIENTS)
}

fn from(last: u8) -> Client {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    let tls = Egress::default().tls().expect("the platform has roots");
    let builder = Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .no_proxy();
    builder.local_address(address).build().expect("a client")
}

/// What the token endpoint answers to this secret.
async fn ask_token(gate: &Gate, client: &Client, appid: &str, secret: &str) -> Response {
    let query = format!("grant_type=client_credential&appid={appid}&secret={secret}");
    client
        .get(gate.url(&format!("/cgi-bin/token?{query}")))
        .send()
        .await
        .expect("an answer")
}

/// The phantom of this client on this account.
async fn phantom(gate: &Gate, client: &Client, appid: &str, secret: &str) -> String {
    let answer = body(ask_token(gate, client, appid, secret).await).await;
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// What came of a call: the slug, and whether WeChat saw it.
async fn outcome(
    gate: &Gate,
    account: &str,
    path: &str,
    request: reqwest::RequestBuilder,
) -> (String, bool) {
    let before = gate.control().counters().requests;
    let answer = request.send().await.expect("an answer");
    let slug = header(&answer, "x-wxgate-error");
    if slug.is_empty() {
        assert_eq!(header(&answer, "x-wxgate-account"), account, "{path}");
    }
    let asked = gate.control().counters().requests > before || path == TICKET;
    (slug, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_identifying_gives_exactly_the_rights_of_the_client() {
    let gate = house().start().await;
    gate.control().until(|control| control.fetches() == 2).await;
    let (mut admitted, mut denied) = (0, 0);
    for (name, key, last) in CALLERS {
        let client = from(last);
        for (account, appid) in ACCOUNTS {
            for path in PATHS {
                let target = if path == TICKET {
                    gate.url(&path.replace("NAME", account))
                } else {
                    gate.url(&format!("/@{account}{path}"))
                };
                let expected = match may(name, account, path) {
                    // Without a key, the network speaks for the caller.
                    "client_unknown" if key.is_empty() && last == 2 => may("floor", account, path),
                    other => other,
                };
                let get = || client.get(&target);
                let mut ways = vec![("key", get().header("x-wxgate-key", key))];
                if !key.is_empty() {
                    ways.push((
                        "bearer",
                        get().header("authorization", format!("Bearer {key}")),
                    ));
                    ways.push(("basic", get().basic_auth(name, Some(key))));
                }
                // A phantom is had only where the account may be used.
                if name != "nobody" && may(name, account, "/") != "account_denied" && path != TICKET
                {
                    let token = phantom(&gate, &client, appid, key).await;
                    ways.push((
                        "phantom",
                        client
                            .get(gate.url(path))
                            .query(&[("access_token", &token)]),
                    ));
                    let both = get()
                        .header("x-wxgate-key", key)
                        .query(&[("access_token", &token)]);
                    ways.push(("phantom and key", both));
                }
                for (way, request) in ways {
                    // A text in Authorization that is no key leaves the caller to its network.
                    let is_ignored = name == "nobody" && last == 2 && way != "key";
                    let expected = if is_ignored {
                        may("floor", account, path)
                    } else {
                        expected
                    };
                    let (slug, asked) = outcome(&gate, account, path, request).await;
                    assert_eq!(
                        slug, expected,
                        "{name} from {last} on {account} at {path} by {way}"
                    );
                    if expected.is_empty() {
                        admitted += 1;
                        assert!(asked, "{name} {account} {path} {way}");
                    } else {
                        denied += 1;
                        assert!(!asked || path == TICKET, "{name} {account} {path} {way}");
                    }
                }
            }
        }
    }
    for (account, _) in ACCOUNTS {
        for path in PATHS.iter().filter(|path| **path != TICKET) {
            let request = from(2).get(gate.url(&format!("/@{account}{path}")));
            assert_eq!(
                outcome(&gate, account, path, request).await.0,
                may("floor", account, path),
                "{account} {path}"
            );
        }
    }
    println!("{admitted} calls admitted, {denied} denied, none wrongly");
    assert!(
        admitted >= 60 && denied >= 100,
        "{admitted} admitted, {denied} denied"
    );
    let tokens = gate.control().requests("/**");
    assert!(tokens.iter().all(|request| request.token_params <= 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_its_client_and_only_on_its_networks() {
    let certificate = |name: &str, more: &str| {
        format!(
            "[[client]]\nname = \"{name}\"\ncert = \"crm.internal\"\naccounts = [\"shop\"]\n{more}\n"
        )
    };
    for (clients, status, slug) in [
        (certificate("crm", ""), 200, ""),
        (certificate("crm", "from = [\"127.0.0.1/32\"]"), 200, ""),
        (
            certificate("crm", "from = [\"10.0.0.0/8\"]"),
            401,
            "client_unknown",
        ),
        (
            certificate("crm", "key = { value = \"crm-key-0123456789\" }"),
            401,
            "client_unknown",
        ),
        (
            certificate("crm", "deny = [\"/cgi-bin/user/**\"]"),
            403,
            "path_denied",
        ),
        (
            certificate("crm", "").replace("crm.internal", "erp.internal"),
            401,
            "client_unknown",
        ),
    ] {
        let tls =
            "tls = { cert = \"server.pem\", key = \"server.key\", client_ca = \"clients.pem\" }";
        let gate = start_in(setup().set("server", tls).more(&clients), certificates()).await;
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            // The second time the session could be resumed, if the listener let it.
            for _ in 0..2 {
                let stream = dial(&gate, Some("client"), version)
                    .await
                    .expect("a handshake");
                let request = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";
                let reply = Wire::over(stream).ask(request).await.expect("an answer");
                assert_eq!((reply.status, reply.slug()), (status, slug), "{clients}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_keys_in_one_request_must_be_of_one_client() {
    let gate = house().start().await;
    let info = gate.url("/@shop/cgi-bin/user/info");
    let (crm, erp) = ("crm-key-0123456789", "erp-key-0123456789");
    let token = phantom(&gate, &gate.client, ACCOUNTS[0].1, crm).await;
    for (request, slug) in [
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", crm)
                .header("x-wxgate-key", crm),
            "",
        ),
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", crm)
                .header("x-wxgate-key", erp),
            "client_unknown",
        ),
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", crm)
                .bearer_auth(erp),
            "client_unknown",
        ),
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", erp)
                .query(&[("access_token", &token)]),
            "client_unknown",
        ),
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", crm)
                .query(&[("access_token", &token)]),
            "",
        ),
        (
            gate.client
                .get(&info)
                .header("x-wxgate-key", "no")
                .query(&[("access_token", &token)]),
            "client_unknown",
        ),
    ] {
        assert_eq!(
            header(&request.send().await.expect("an answer"), "x-wxgate-error"),
            slug
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_account_of_a_client_needs_no_mention_and_beats_the_default() {
    let gate = house().default_account("news").start().await;
    let account = async |key: &str| {
        let request = gate
            .client
            .get(gate.url("/cgi-bin/user/info"))
            .header("x-wxgate-key", key);
        header(
            &request.send().await.expect("an answer"),
            "x-wxgate-account",
        )
    };
    assert_eq!(account("crm-key-0123456789").await, "shop");
    assert_eq!(
        account("erp-key-0123456789").await,
        "news",
        "two accounts, so the default"
    );
    assert_eq!(account("ops-key-0123456789").await, "news");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_calls_too_fast_is_told_when_to_come_back_and_others_are_not() {
    let limited = "[[client]]\nname = \"fast\"\nkey = { value = \"fast-key-0123456789\" }\naccounts = [\"shop\"]\n\
                   rate = { per_second = 1, burst = 5 }\n[[client]]\nname = \"free\"\nfrom = [\"loopback\"]\naccounts = [\"shop\"]\n";
    let gate = setup().more(limited).start().await;
    let call = || {
        gate.client
            .get(gate.url("/cgi-bin/user/info"))
            .header("x-wxgate-key", "fast-key-0123456789")
    };
    let mut refused = Vec::new();
    for n in 0..30 {
        let answer = call().send().await.expect("an answer");
        if answer.status() == 429 {
            let wait: u64 = header(&answer, "retry-after").parse().expect("seconds");
            assert!((1..=2).contains(&wait), "{wait}");
            assert_eq!(header(&answer, "x-wxgate-error"), "rate_limited");
            assert_eq!(body(answer).await["errcode"], 990_429);
            refused.push(n);
        }
    }
    assert!(
        refused.first().is_some_and(|first| *first >= 5),
        "{refused:?}"
    );
    assert!(refused.len() >= 15, "{refused:?}");
    assert_eq!(gate.get("/cgi-bin/user/info").await.status(), 200);
    // A reload that does not concern the client does not fill its bucket.
    let refilled = gate
        .reload(
            &gate
                .file()
                .replace("[upstream]\n", "[upstream]\nresponse_timeout = \"29s\"\n"),
        )
        .await;
    assert_eq!(refilled.status(), 200);
    let after = call().send().await.expect("an answer").status().as_u16();
    let again = call().send().await.expect("an answer").status().as_u16();
    assert!(after == 429 || again == 429, "{after} {again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_trial_nothing_is_denied_but_everything_is_told() {
    let on_trial = CLIENTS.replacen("allow = [", "mode = \"report\"\nallow = [", 1);
    let gate = setup()
        .sandbox(|s| s.accounts.push(SandboxAccount::new(NEWS, "s-news")))
        .more(&on_trial)
        .start()
        .await;
    gate.control().until(|control| control.fetches() == 2).await;
    let call = async |target: &str| {
        let request = gate
            .client
            .get(gate.url(target))
            .header("x-wxgate-key", "crm-key-0123456789");
        header(&request.send().await.expect("an answer"), "x-wxgate-error")
    };
    assert_eq!(
        call("/@shop/cgi-bin/menu/get").await,
        "",
        "path_denied otherwise"
    );
    assert_eq!(
        call("/@news/cgi-bin/user/info").await,
        "",
        "account_denied otherwise"
    );
    assert_eq!(
        call("/-/accounts/shop/tickets/jsapi").await,
        "",
        "scope_denied otherwise"
    );
    assert_eq!(call("/@shop/cgi-bin/user/info").await, "");
    // Some things cannot be taken back.
    assert_eq!(call("/-/accounts/shop/token").await, "scope_denied");
    let metrics = gate
        .client
        .get(gate.admin_url("/metrics"))
        .send()
        .await
        .expect("an answer");
    let metrics = metrics.text().await.expect("a page");
    for (reason, mode) in [
        ("path_denied", "report"),
        ("account_denied", "report"),
        ("scope_denied", "report"),
        ("scope_denied", "enforce"),
    ] {
        let line =
            format!("wxgate_denied_total{{client=\"crm\",reason=\"{reason}\",mode=\"{mode}\"}} 1");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_token_is_handed_out_for_the_scope_token_only() {
    let gate = house().start().await;
    gate.control().until(|control| control.fetches() == 2).await;
    let real = |appid: &str| {
        gate.control()
            .current_token(appid, TokenKind::Stable)
            .expect("a token")
    };
    let secrets = [
        real(ACCOUNTS[0].1),
        real(NEWS),
        "sandbox0sandbox0".to_owned(),
        "s-news".to_owned(),
    ];
    let mut shown: Vec<(String, &str)> = Vec::new();
    for (_, key, last) in CALLERS {
        let client = from(last);
        for (account, appid) in ACCOUNTS {
            for target in [
                format!("/-/accounts/{account}/token"),
                format!("/-/accounts/{account}/tickets/jsapi"),
                format!("/@{account}/cgi-bin/user/info?echo=1"),
                format!("/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={key}"),
            ] {
                let request = client.get(gate.url(&target)).header("x-wxgate-key", key);
                let answer = request.send().await.expect("an answer");
                let headers = format!("{:?}", answer.headers());
                let text = headers + &answer.text().await.expect("a body");
                if secrets.iter().any(|secret| text.contains(secret.as_str())) {
                    shown.push((target, key));
                }
            }
        }
    }
    assert_eq!(
        shown,
        [("/-/accounts/news/token".to_owned(), "ops-key-0123456789")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_cleared_for_the_client_whose_allow_names_the_call() {
    let gate = house().start().await;
    let order = json!({"appid": NEWS});
    let post = |key: &str| {
        gate.post("/@news/cgi-bin/clear_quota")
            .header("x-wxgate-key", key.to_owned())
            .json(&order)
    };
    let answer = post("ops-key-0123456789").send().await.expect("an answer");
    assert_eq!(body(answer).await["errcode"], 0);
    let answer = post("erp-key-0123456789").send().await.expect("an answer");
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-error").as_str()
        ),
        (403, "endpoint_blocked")
    );
    let errmsg: Value = body(answer).await;
    assert!(
        errmsg["errmsg"]
            .as_str()
            .is_some_and(|text| text.contains("allow")),
        "{errmsg}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_denied_call_leaves_one_line_that_says_who_what_and_why_but_no_key() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let clients = "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n\
                   allow = [\"/cgi-bin/user/**\"]\n[[client]]\nname = \"trial\"\nkey = { value = \"trial-key-0123456789\" }\n\
                   accounts = []\nmode = \"report\"\n";
    let folder = folder(&setup().more(clients), &sandbox);
    let mut command = serve(folder.path());
    command.args(["--log-format", "json"]);
    let program = Program::start(&mut command);
    let proxy = program.proxy();
    let client = client();
    for (target, key) in [
        ("/cgi-bin/user/get", "crm-key-0123456789"),
        (
            "/cgi-bin/menu/get?secret=s3cret&x=%0a\u{1b}",
            "crm-key-0123456789",
        ),
        ("/cgi-bin/user/get", "wrong-key-0123456789"),
        ("/@shop/cgi-bin/user/get", "trial-key-0123456789"),
        ("/-/accounts/shop/token", "crm-key-0123456789"),
        (
            "/cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=wrong-key-0123456789",
            "",
        ),
        (
            "/cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=crm-key-0123456789",
            "",
        ),
        ("/cgi-bin/user/get?access_token=wxg1_forged", ""),
    ] {
        let request = client
            .get(format!("http://{proxy}{target}"))
            .header("x-request-id", "mine");
        let request = if key.is_empty() {
            request
        } else {
            request.header("x-wxgate-key", key)
        };
        request.send().await.expect("an answer");
    }
    program.logged("phantom_refused");
    let stderr = program.stop().stderr;
    let lines: Vec<Value> = stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "audit")
        .map(|line| {
            if line["fields"].is_object() {
                line["fields"].clone()
            } else {
                line
            }
        })
        .collect();
    let said: Vec<[&str; 4]> = lines
        .iter()
        .map(|line| {
            ["client", "reason", "mode", "account"]
                .map(|name| line[name].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(
        said,
        [
            ["crm", "path_denied", "enforce", "-"],
            ["-", "client_unknown", "enforce", "-"],
            ["trial", "account_denied", "report", "shop"],
            ["crm", "scope_denied", "enforce", "shop"],
            ["-", "client_unknown", "enforce", "-"],
            ["-", "phantom_refused", "enforce", "-"],
        ],
        "{stderr}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line["caller"] == "127.0.0.1" && line["id"] == "mine"),
        "{stderr}"
    );
    for secret in ["key-0123456789", "s3cret", "wxg1_forged"] {
        assert!(!stderr.contains(secret), "{secret} in {stderr}");
    }
}

/// Sends these fields in a request line of this form, and returns slug and account of the answer.
async fn shown(gate: &Gate, target: &str, fields: &str) -> (u16, String) {
    let reply = Wire::connect(gate.proxy)
        .await
        .ask(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
        ))
        .await
        .expect("an answer");
    (reply.status, reply.slug().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_stand_in_a_base_url_or_be_meant_for_a_proxy_and_goes_no_further() {
    let gate = house().start().await;
    gate.control().until(|control| control.fetches() == 2).await;
    let port = gate.sandbox.https_addr().expect("TLS").port();
    let origin = "/@shop/cgi-bin/user/info?openid=o".to_owned();
    let absolute = format!("http://localhost:{port}{origin}");
    // crm:crm-key-0123456789, and the same without a name.
    let basic = "Basic Y3JtOmNybS1rZXktMDEyMzQ1Njc4OQ==";
    let nameless = "Basic OmNybS1rZXktMDEyMzQ1Njc4OQ==";
    let wrong = "Basic Y3JtOndyb25n";
    gate.control().clear_record();
    let known = [
        (&origin, format!("Authorization: {basic}\r\n")),
        (&origin, format!("Authorization: {nameless}\r\n")),
        (&absolute, format!("Authorization: {basic}\r\n")),
        (&absolute, format!("Proxy-Authorization: {basic}\r\n")),
        (
            &absolute,
            "Proxy-Authorization: Bearer crm-key-0123456789\r\n".to_owned(),
        ),
        // Not ours, so meant for others.
        (
            &origin,
            format!("X-Wxgate-Key: crm-key-0123456789\r\nAuthorization: {wrong}\r\n"),
        ),
        (
            &absolute,
            format!("Proxy-Authorization: {wrong}\r\nAuthorization: {basic}\r\n"),
        ),
    ];
    for (target, fields) in &known {
        assert_eq!(
            shown(&gate, target, fields).await,
            (200, String::new()),
            "{fields}"
        );
    }
    let records = gate.control().requests("/cgi-bin/user/info");
    assert_eq!(records.len(), known.len());
    for record in records {
        for (name, _) in &record.headers {
            assert!(
                !name.to_ascii_lowercase().contains("authorization"),
                "{name}"
            );
        }
    }
    let unknown = (401, "client_unknown".to_owned());
    for (target, fields) in [
        (&origin, format!("Authorization: {wrong}\r\n")),
        (&origin, format!("Proxy-Authorization: {basic}\r\n")),
        (&absolute, format!("Proxy-Authorization: {wrong}\r\n")),
        (
            &origin,
            format!("Authorization: {basic}\r\nX-Wxgate-Key: erp-key-0123456789\r\n"),
        ),
        (
            &origin,
            format!("Authorization: {basic}\r\nX-Wxgate-Key: wrong\r\n"),
        ),
        (
            &absolute,
            format!("Authorization: {basic}\r\nProxy-Authorization: Bearer erp-key-0123456789\r\n"),
        ),
    ] {
        assert_eq!(shown(&gate, target, &fields).await, unknown, "{fields}");
    }
}
