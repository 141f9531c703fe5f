//! Another configuration while wxgate runs: what changes at once, what stays, and what is said.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use reqwest::StatusCode;
use rustix::process::Signal;
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use serde_json::{Value, json};
use tokio::time::timeout;
use wxgate::sandbox::{self, DEFAULT_APPID, DEFAULT_SECRET, Fault, Rule, SandboxAccount};

use crate::support::{
    Gate, Setup, header, json as body,
    program::{LIMIT, Program, folder, serve},
    setup, start,
};

const OTHER_APPID: &str = "wx2222222222222222";
const USER: &str = "/cgi-bin/user/info?openid=o6_b";

/// The second account, as text for the end of a file.
fn other(gate: &Gate) -> String {
    let api = gate.sandbox.https_url().expect("the sandbox listens");
    format!(
        "[[account]]\nname = \"other\"\nappid = \"{OTHER_APPID}\"\nsecret = {{ value = \"two\" }}\napi = [\"{api}\"]\n"
    )
}

fn two_accounts() -> Setup {
    setup().sandbox(|sandbox| {
        sandbox
            .accounts
            .push(SandboxAccount::new(OTHER_APPID, "two"))
    })
}

/// Has a good configuration loaded and returns what the answer says.
async fn reloaded(gate: &Gate, text: &str) -> Value {
    let answer = gate.reload(text).await;
    let status = answer.status();
    let answer = body(answer).await;
    assert_eq!(
        (status, &answer["reloaded"]),
        (StatusCode::OK, &json!(true)),
        "{answer}\n{text}"
    );
    answer
}

async fn slug(gate: &Gate, target: &str) -> String {
    header(&gate.get(target).await, "x-wxgate-error")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_added_can_be_used_and_one_that_is_removed_is_unknown() {
    let gate = two_accounts().set("server", "workers = 2").start().await;
    gate.warm().await;
    let before = gate.file();
    assert_eq!(
        slug(&gate, &format!("/@other{USER}")).await,
        "account_unknown"
    );
    let answer = reloaded(&gate, &(before.clone() + &other(&gate))).await;
    assert_eq!(
        (&answer["accounts"], &answer["restart_needed"]),
        (&json!(["shop", "other"]), &json!([]))
    );
    let answer = gate.get(&format!("/@other{USER}")).await;
    assert_eq!(
        (
            answer.status(),
            header(&answer, "x-wxgate-account").as_str()
        ),
        (StatusCode::OK, "other")
    );
    let listed = gate
        .client
        .get(gate.admin_url("/api/accounts"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(body(listed).await[1]["name"], "other");
    reloaded(
        &gate,
        &format!("default_account = \"other\"\n{before}{}", other(&gate)),
    )
    .await;
    assert_eq!(header(&gate.get(USER).await, "x-wxgate-account"), "other");
    reloaded(&gate, &before).await;
    assert_eq!(
        slug(&gate, &format!("/@other{USER}")).await,
        "account_unknown"
    );
    assert_eq!(gate.get(USER).await.status(), 200);
    assert_eq!(gate.control().fetches(), 2, "one for each account");
    let page = gate
        .client
        .get(gate.admin_url("/metrics"))
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    assert!(
        page.contains("wxgate_token_generation{account=\"shop\"}"),
        "{page}"
    );
    assert!(
        !page.contains("wxgate_token_generation{account=\"other\"}"),
        "{page}"
    );
}

/// Account that answered a call.
async fn answered_by(gate: &Gate, target: &str) -> String {
    header(&gate.get(target).await, "x-wxgate-account")
}

/// The warning of an account in `/api/accounts`.
async fn warning_of(gate: &Gate, name: &str) -> Value {
    let listed = gate.client.get(gate.admin_url("/api/accounts")).send();
    let rows = body(listed.await.expect("an answer")).await;
    let rows = rows.as_array().expect("a list");
    let row = rows.iter().find(|row| row["name"] == name);
    row.expect("the account")["warning"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_account_takes_no_unnamed_call_away_until_a_default_is_set() {
    let gate = two_accounts().start().await;
    let alone = gate.file();
    let both = alone.clone() + &other(&gate);
    for _ in 0..2 {
        let warnings = reloaded(&gate, &both).await["warnings"].to_string();
        assert!(
            warnings.contains("default_account = \\\"shop\\\""),
            "{warnings}"
        );
        assert_eq!(answered_by(&gate, USER).await, "shop");
        let warning = warning_of(&gate, "shop").await;
        assert!(
            warning
                .as_str()
                .is_some_and(|text| text.contains("default_account is missing")),
            "{warning}"
        );
        assert_eq!(warning_of(&gate, "other").await, Value::Null);
    }

    let answer = reloaded(&gate, &format!("default_account = \"other\"\n{both}")).await;
    let warnings = answer["warnings"].to_string();
    assert!(!warnings.contains("default_account"), "{warnings}");
    assert_eq!(answered_by(&gate, USER).await, "other");
    assert_eq!(warning_of(&gate, "shop").await, Value::Null);

    // Whoever takes the default away wants these calls refused.
    reloaded(&gate, &both).await;
    assert_eq!(slug(&gate, USER).await, "account_unknown");

    reloaded(&gate, &alone).await;
    reloaded(&gate, &both).await;
    assert_eq!(answered_by(&gate, USER).await, "shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_former_only_account_is_no_default_once_it_is_gone() {
    let gate = two_accounts().start().await;
    let alone = gate.file();
    reloaded(&gate, &(alone.clone() + &other(&gate))).await;
    let third = other(&gate).replace("\"other\"", "\"third\"");
    let renamed = alone.replace("name = \"shop\"", "name = \"mall\"");
    let answer = reloaded(&gate, &(renamed + &other(&gate) + &third)).await;
    assert_eq!(slug(&gate, USER).await, "account_unknown");
    let warnings = answer["warnings"].to_string();
    assert!(!warnings.contains("before a reload"), "{warnings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_account_of_a_platform_takes_no_call_to_its_host_away() {
    let gate = two_accounts().start().await;
    let corp = "[[account]]\nname = \"corp\"\nplatform = \"wecom\"\nappid = \"ww1111111111111111\"\n\
                secret = { value = \"three\" }\n";
    let before = gate.file() + corp;
    reloaded(&gate, &format!("default_account = \"corp\"\n{before}")).await;
    let after = format!("default_account = \"corp\"\n{before}{}", other(&gate));
    let warnings = reloaded(&gate, &after).await["warnings"].to_string();
    assert!(warnings.contains("WeChat's own host"), "{warnings}");
    let answer = gate
        .client
        .get(gate.url(USER))
        .header("host", "api.weixin.qq.com")
        .send()
        .await
        .expect("an answer");
    assert_eq!(header(&answer, "x-wxgate-account"), "shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_ends_although_its_account_is_gone() {
    let gate = two_accounts().start().await;
    let before = gate.file();
    reloaded(&gate, &(before.clone() + &other(&gate))).await;
    let rule = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).hold());
    let call = tokio::spawn(gate.client.get(gate.url("/@other/cgi-bin/user/get")).send());
    timeout(
        LIMIT,
        gate.control().until(|control| control.hits(rule) == 1),
    )
    .await
    .expect("the call arrives");
    reloaded(&gate, &before).await;
    gate.control().release(rule);
    let answer = call.await.expect("no panic").expect("an answer");
    assert_eq!(
        (
            answer.status(),
            header(&answer, "x-wxgate-account").as_str()
        ),
        (StatusCode::OK, "other")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_file_means_a_fetch_with_the_new_secret_for_that_account_only() {
    let gate = two_accounts().start().await;
    let secret = gate.folder.path().join("shop.secret");
    fs::write(&secret, DEFAULT_SECRET).expect("written");
    let in_place = format!("secret = {{ value = \"{DEFAULT_SECRET}\" }}");
    let text = gate
        .file()
        .replace(&in_place, "secret = { file = \"shop.secret\" }")
        + &other(&gate);
    reloaded(&gate, &text).await;
    assert_eq!(gate.get(&format!("/@other{USER}")).await.status(), 200);
    assert_eq!(gate.get(&format!("/@shop{USER}")).await.status(), 200);
    assert_eq!(
        gate.control().fetches(),
        2,
        "the same secret from another place is no change"
    );
    gate.control()
        .add_account(&SandboxAccount::new(DEFAULT_APPID, "rotated-secret"));
    fs::write(&secret, "rotated-secret\n").expect("written");
    reloaded(&gate, &text).await;
    timeout(
        LIMIT,
        gate.control().until(|control| control.fetches() == 3),
    )
    .await
    .expect("one fetch more");
    let answer = gate.get(&format!("/@shop{USER}")).await;
    assert_eq!(
        (
            answer.status(),
            header(&answer, "x-wxgate-attempts").as_str()
        ),
        (StatusCode::OK, "1")
    );
    assert_eq!(gate.get(&format!("/@other{USER}")).await.status(), 200);
    assert_eq!(gate.control().fetches(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_twenty_reloads_cost_no_call_and_unchanged_accounts_no_fetch() {
    let gate = Arc::new(two_accounts().set("server", "workers = 2").start().await);
    let (one, stop, done) = (
        gate.file(),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let callers = (0..8).map(|caller| {
        let (gate, stop, done) = (Arc::clone(&gate), Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let mut sent = 0_u32;
            while !stop.load(Relaxed) {
                let message =
                    json!({"touser": format!("user-{caller}-{sent}"), "msgtype": "text", "text": {"content": "x"}});
                let answer =
                    gate.post("/@shop/cgi-bin/message/custom/send").json(&message).send().await.expect("an answer");
                assert_eq!((answer.status(), body(answer).await["errcode"].as_i64()), (StatusCode::OK, Some(0)));
                done.fetch_add(1, Relaxed);
                sent += 1;
            }
            sent
        })
    });
    let callers: Vec<_> = callers.collect();
    for round in 0..20 {
        let started = done.load(Relaxed);
        let more = if round % 2 == 0 {
            other(&gate)
        } else {
            String::new()
        };
        let text = format!("{one}{more}[replay]\nmemory = \"{}KiB\"\n", 64 + round);
        reloaded(&gate, &text).await;
        // Some calls between one reload and the next.
        timeout(LIMIT, async {
            while done.load(Relaxed) < started + 16 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("calls go on");
    }
    stop.store(true, Relaxed);
    let mut sent = 0;
    for caller in callers {
        sent += caller.await.expect("no call failed");
    }
    assert_eq!(
        gate.control().deliveries().len(),
        sent as usize,
        "each message once"
    );
    let fetched = gate.control().requests("/cgi-bin/stable_token").len();
    assert!(
        fetched <= 2,
        "shop once, other once: its token comes back from the store; {fetched}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_accounts_keep_token_generation_and_connections() {
    let gate = start().await;
    gate.warm().await;
    let row = async || {
        body(
            gate.client
                .get(gate.admin_url("/api/accounts"))
                .send()
                .await
                .expect("an answer"),
        )
        .await
    };
    let (before, connections) = (row().await, gate.control().connections());
    reloaded(
        &gate,
        &(gate.file() + "hosts = [\"shop.internal\"]\n[token]\n[replay]\ndisk = \"0\"\n"),
    )
    .await;
    gate.warm().await;
    assert_eq!(
        gate.control().connections(),
        connections,
        "the kept connection was used"
    );
    let by_host = gate
        .client
        .get(gate.url(USER))
        .header("host", "shop.internal")
        .send()
        .await
        .expect("an answer");
    assert_eq!(by_host.status(), 200);
    // The token settings belong to the refresher, which is made anew; the store gives the token back.
    let text = gate.file().replace("[token]\n", "[token]\nwait = \"2s\"\n");
    reloaded(&gate, &text).await;
    gate.warm().await;
    let after = row().await;
    assert_eq!(after[0]["fingerprint"], before[0]["fingerprint"]);
    assert_eq!(after[0]["generation"], before[0]["generation"]);
    assert_eq!(gate.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_changes_nothing_and_every_problem_is_named() {
    const PLANTED: &str = "5ec7e75ec7e75ec7e75ec7e75ec7e75e";
    let gate = start().await;
    gate.warm().await;
    let good = gate.file();
    let bad = format!(
        "{}[token]\nwait = \"fast\"\n[[account]]\nname = \"two words\"\nappid = \"wx00000000000000a1\"\nsecret = {{ file = \"{PLANTED}\" }}\n\
         [[account]]\nname = \"b\"\nappid = \"{OTHER_APPID}\"\nsecret = \"{PLANTED}\"\n",
        good.replace("[server]", "[server]\nallow = [\"nowhere\"]")
            .replace(DEFAULT_SECRET, PLANTED),
    );
    for text in [bad.as_str(), "[server", "", &format!("secret = {PLANTED}")] {
        let answer = gate.reload(text).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{text}");
        let answer = answer.text().await.expect("a body");
        assert!(!answer.contains(PLANTED), "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["error"], "bad_configuration", "{answer}");
        let problems = answer["problems"].as_array().expect("a list");
        assert!(!problems.is_empty());
        if text == bad {
            for key in [
                "server.allow",
                "token.wait",
                "account[1].name",
                "account[1].secret",
                "account[2].secret",
            ] {
                assert!(
                    problems
                        .iter()
                        .any(|p| p.as_str().is_some_and(|p| p.contains(key))),
                    "{key}: {problems:#?}"
                );
            }
        }
        assert_eq!(gate.get(USER).await.status(), 200);
    }
    let missing = good.replace(
        &format!("value = \"{DEFAULT_SECRET}\""),
        "env = \"NOT_SET\"",
    );
    assert_eq!(
        gate.reload(&missing).await.status(),
        StatusCode::UNPROCESSABLE_ENTITY
    );
    fs::remove_file(gate.folder.path().join("test.toml")).expect("removed");
    let gone = gate
        .client
        .post(gate.admin_url("/api/reload"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(gone.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(gate.get(USER).await.status(), 200);
    assert_eq!(reloaded(&gate, &good).await["accounts"], json!(["shop"]));
    assert_eq!(gate.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_until_it_is_taken_back_and_the_rest_counts_at_once() {
    let gate = start().await;
    gate.warm().await;
    let before = gate.file();
    let after = before
        .replace(
            "[server]\nlisten = [\"127.0.0.1:0\"]",
            "[server]\nlisten = [\"127.0.0.1:1\"]\nworkers = 3\nmax_body = \"1KiB\"",
        )
        .replace("ca_file", "pool_idle = \"1s\"\nca_file")
        .replace("kind = \"memory\"", "path = \"state\"");
    let keys = json!([
        "server.listen",
        "server.workers",
        "upstream.pool_idle",
        "store.kind"
    ]);
    for _ in 0..2 {
        assert_eq!(reloaded(&gate, &after).await["restart_needed"], keys);
        let long = gate
            .post("/cgi-bin/message/custom/send")
            .body(vec![b' '; 2048])
            .send()
            .await
            .expect("an answer");
        assert_eq!(
            (
                long.status().as_u16(),
                header(&long, "x-wxgate-error").as_str()
            ),
            (413, "body_too_large")
        );
    }
    assert_eq!(reloaded(&gate, &before).await["restart_needed"], json!([]));
    assert!(!gate.folder.path().join("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_callers_and_the_look_of_errors_change_at_once() {
    let gate = setup()
        .set("replay", "memory_total = \"64MiB\"")
        .start()
        .await;
    gate.warm().await;
    let before = gate.file();
    let with = |table: &str, line: &str| {
        before.replace(&format!("[{table}]\n"), &format!("[{table}]\n{line}\n"))
    };
    reloaded(&gate, &with("server", "allow = [\"192.0.2.0/24\"]")).await;
    assert_eq!(slug(&gate, USER).await, "client_unknown");
    reloaded(
        &gate,
        &with(
            "server",
            "allow = [\"192.0.2.0/24\"]\ntrusted_proxies = [\"127.0.0.1\"]",
        ),
    )
    .await;
    let forwarded = gate
        .client
        .get(gate.url(USER))
        .header("x-forwarded-for", "192.0.2.9")
        .send()
        .await
        .expect("an answer");
    assert_eq!(forwarded.status(), 200);
    reloaded(&gate, &with("server", "error_style = \"wechat\"")).await;
    let answer = gate.get("/cgi-bin/a%20b").await;
    assert_eq!(
        (answer.status(), header(&answer, "x-wxgate-error").as_str()),
        (StatusCode::OK, "bad_request")
    );
    reloaded(
        &gate,
        &with("upstream", "response_timeout = \"50ms\"\nmax_in_flight = 1"),
    )
    .await;
    let rule = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).always().hold());
    assert_eq!(slug(&gate, "/cgi-bin/user/get").await, "upstream_timeout");
    reloaded(&gate, &with("upstream", "max_in_flight = 1")).await;
    let held = tokio::spawn(gate.client.get(gate.url("/cgi-bin/user/get")).send());
    timeout(
        LIMIT,
        gate.control().until(|control| control.hits(rule) == 2),
    )
    .await
    .expect("the call arrives");
    assert_eq!(slug(&gate, USER).await, "overloaded");
    reloaded(&gate, &before).await;
    assert_eq!(
        gate.get(USER).await.status(),
        200,
        "the held one is still counted, and there is room"
    );
    gate.control().remove_fault(rule);
    assert_eq!(
        held.await.expect("no panic").expect("an answer").status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_api_host_gets_connections_of_its_own() {
    let gate = setup().set("server", "workers = 2").start().await;
    gate.warm().await;
    let second = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let (old, new) = (
        gate.sandbox.https_url().expect("a URL"),
        second.http_url().expect("a URL"),
    );
    let text = gate.file();
    reloaded(&gate, &text.replace(&old, &new)).await;
    // The token comes back from the store; the other host has never seen it and gives one of its
    // own.
    let answer = gate.get(USER).await;
    assert_eq!(
        (
            answer.status(),
            header(&answer, "x-wxgate-attempts").as_str()
        ),
        (StatusCode::OK, "2")
    );
    assert_eq!(
        (second.control().fetches(), gate.control().fetches()),
        (1, 1)
    );
    // And back, to the pool that is still there.
    reloaded(&gate, &text).await;
    gate.warm().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_key_changes_at_once() {
    let gate = start().await;
    let before = gate.file();
    reloaded(
        &gate,
        &before.replace(
            "[admin]\n",
            "[admin]\nkey = { value = \"k1\" }\nhosts = [\"gate.internal\"]\n",
        ),
    )
    .await;
    let refused = gate.reload(&before).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let post = |key: &str| {
        gate.client
            .post(gate.admin_url("/api/reload"))
            .bearer_auth(key.to_owned())
    };
    let named = post("k1")
        .header("host", "gate.internal")
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        named.status(),
        200,
        "the file on disk is the one without a key"
    );
    assert_eq!(gate.reload(&before).await.status(), 200);
    let foreign = gate
        .client
        .post(gate.admin_url("/api/reload"))
        .header("sec-fetch-site", "cross-site");
    assert_eq!(
        foreign.send().await.expect("an answer").status(),
        StatusCode::FORBIDDEN
    );
    let got = gate
        .client
        .get(gate.admin_url("/api/reload"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
}

fn certificate(folder: &Path) -> CertificateDer<'static> {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    fs::write(folder.join("server.pem"), made.cert.pem()).expect("written");
    fs::write(folder.join("server.key"), made.signing_key.serialize_pem()).expect("written");
    made.cert.der().clone()
}

fn trusting(certificate: &CertificateDer<'static>, gate: &Gate) -> reqwest::Client {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions");
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .pool_max_idle_per_host(0);
    client
        .resolve("localhost", gate.proxy)
        .build()
        .expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_and_broken_ones_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = certificate(folder.path());
    let setup = setup().set(
        "server",
        "tls = { cert = \"server.pem\", key = \"server.key\" }",
    );
    let sandbox = setup.start_sandbox().await;
    let gate = setup.start_in(sandbox, folder).await;
    let url = format!("https://localhost:{}{USER}", gate.proxy.port());
    let reaches =
        async |certificate: &_| trusting(certificate, &gate).get(&url).send().await.is_ok();
    assert!(reaches(&old).await);
    let new = certificate(gate.folder.path());
    assert!(
        reaches(&old).await && !reaches(&new).await,
        "not before the reload"
    );
    reloaded(&gate, &gate.file()).await;
    assert!(reaches(&new).await && !reaches(&old).await);
    fs::write(gate.folder.path().join("server.pem"), "no certificate").expect("written");
    let refused = body(gate.reload(&gate.file()).await).await;
    assert!(
        refused["problems"][0]
            .as_str()
            .is_some_and(|problem| problem.contains("server.pem")),
        "{refused}"
    );
    assert!(reaches(&new).await);
    let without = gate.file().replace("tls = {", "# tls = {");
    assert_eq!(
        reloaded(&gate, &without).await["restart_needed"],
        json!(["server.tls"])
    );
    assert!(reaches(&new).await, "TLS is not dropped while it runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reloads_the_real_program_and_never_ends_it() {
    const PLANTED: &str = "5ec7e75ec7e75ec7e75ec7e75ec7e75e";
    let setup = two_accounts();
    let sandbox = setup.start_sandbox().await;
    let folder = folder(&setup, &sandbox);
    let place = folder.path().join("wxgate.toml");
    let good = fs::read_to_string(&place).expect("readable");
    let api = sandbox.https_url().expect("the sandbox listens");
    let more = format!(
        "[[account]]\nname = \"other\"\nappid = \"{OTHER_APPID}\"\nsecret = {{ value = \"two\" }}\napi = [\"{api}\"]\n"
    );
    let mut program = Program::start(&mut serve(folder.path()));
    let client = crate::support::client();
    let url = format!("http://{}", program.proxy());
    let status = async |account: &str| {
        let answer = client
            .get(format!("{url}/@{account}{USER}"))
            .send()
            .await
            .expect("an answer");
        (answer.status().as_u16(), header(&answer, "x-wxgate-error"))
    };
    assert_eq!(status("shop").await, (200, String::new()));
    assert_eq!(status("other").await, (400, "account_unknown".to_owned()));

    fs::write(&place, good.clone() + &more + "[server_]\n").expect("written");
    program.signal(Signal::HUP);
    assert!(program.logged("unknown key").contains("server_"));
    let broken = good.replace(
        &format!("value = \"{DEFAULT_SECRET}\""),
        &format!("file = \"{PLANTED}\""),
    );
    fs::write(&place, broken).expect("written");
    program.signal(Signal::HUP);
    program.logged("account[0].secret");
    assert_eq!(status("shop").await, (200, String::new()));

    fs::write(
        &place,
        good.replace("[server]\n", "[server]\nmax_connections = 77\n") + &more,
    )
    .expect("written");
    program.signal(Signal::HUP);
    program.logged("server.max_connections");
    assert!(program.logged("loaded again").contains("other"));
    assert_eq!(status("other").await, (200, String::new()));
    for _ in 0..200 {
        program.signal(Signal::HUP);
    }
    assert_eq!(status("shop").await, (200, String::new()));
    assert!(program.is_running());
    let ended = program.stop();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    for secret in [PLANTED, DEFAULT_SECRET] {
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
    assert_eq!(sandbox.control().fetches(), 2, "one for each account");
}
