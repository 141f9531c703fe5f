//! Tokens that another central server keeps: in a real Redis, and behind HTTP. wxgate uses them,
//! finds what replaces them, and asks WeChat for none.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    routing::any,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Sandbox};

use crate::support::{
    Gate, Setup, json,
    redis::RedisServer,
    setup,
    token_tools::{DEADLINE, Said, all, call_until, get, said, spawned},
};

const INFO: &str = "/cgi-bin/user/info?openid=a";
const KEY: &str = "wx:access_token:wx0123456789abcdef";

/// The other central server's hand at WeChat: each call makes a token that WeChat takes, and ends
/// the one before.
async fn minted(sandbox: &Sandbox) -> String {
    let url = sandbox.http_url().expect("the sandbox listens");
    let query =
        format!("grant_type=client_credential&appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}");
    let answer = crate::support::client()
        .get(format!("{url}/cgi-bin/token?{query}"))
        .send()
        .await
        .expect("an answer");
    let token = json(answer).await["access_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    sandbox.control().clear_record();
    token
}

/// An account whose token stands at a key.
fn in_redis(redis: &RedisServer, more: &str) -> Setup {
    setup().account(&format!(
        "token = {{ from = \"redis\", url = {{ value = \"{}\" }}, {more} }}",
        redis.url("")
    ))
}

fn overlap_free() -> impl FnOnce(&mut wxgate::sandbox::SandboxSettings) {
    |sandbox| sandbox.overlap = std::time::Duration::ZERO
}

/// Asks for a look at once, as an operator would.
async fn look(gate: &Gate) -> Value {
    json(
        gate.client
            .post(gate.admin_url("/api/accounts/shop/refresh"))
            .send()
            .await
            .expect("an answer"),
    )
    .await
}

async fn account(gate: &Gate) -> Value {
    json(
        gate.client
            .get(gate.admin_url("/api/accounts"))
            .send()
            .await
            .expect("an answer"),
    )
    .await[0]
        .take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_redis_is_used_with_what_remains_of_it_and_wechat_is_not_asked() {
    let redis = RedisServer::start();
    let setup = in_redis(&redis, &format!("key = \"{KEY}\""));
    let sandbox = setup.start_sandbox().await;
    let token = minted(&sandbox).await;
    redis.run::<()>(&["SET", KEY, &token, "EX", "4000"]);
    let gate = setup.start_with(sandbox).await;
    let answer = get(&gate, INFO).await;
    assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    let row = account(&gate).await;
    let left = row["expires_in"].as_u64().unwrap();
    assert!((3900..=4000).contains(&left), "{row}");
    assert!(row["next_attempt_in"].as_u64().unwrap() <= 60, "{row}");
    assert_eq!(
        (&row["budgets"]["classic"], &row["budgets"]["forced"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(gate.control().fetches(), 0);
    for command in ["set", "del", "expire", "hset", "getdel", "getex"] {
        assert_eq!(
            redis.calls(command),
            u64::from(command == "set"),
            "{command}: only ours"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_replaced_there_cures_refused_calls_without_a_fetch() {
    let redis = RedisServer::start();
    let setup = in_redis(&redis, &format!("key = \"{KEY}\"")).sandbox(overlap_free());
    let sandbox = setup.start_sandbox().await;
    redis.set(KEY, &minted(&sandbox).await);
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    for round in 0..3 {
        redis.set(KEY, &minted(&gate.sandbox).await);
        let reads = redis.calls("get");
        let calls = (0..30)
            .map(|n| spawned(gate.send_message(&format!("u{round}-{n}"))))
            .collect();
        let answers = all(calls).await;
        assert!(answers.iter().all(Said::is_fine), "{answers:?}");
        assert!(answers.iter().any(|answer| answer.attempts == "2"));
        assert_eq!(gate.control().deliveries().len(), 30, "each once");
        assert_eq!(
            (gate.control().fetches(), redis.calls("get") - reads),
            (0, 1),
            "one look for all"
        );
    }
    assert_eq!(account(&gate).await["conflicts"], 0);
}

/// The other server has died, or has not noticed: its dead token is all there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_that_nobody_replaces_gives_wechats_answer_back_and_costs_few_looks() {
    let redis = RedisServer::start();
    let setup = in_redis(&redis, &format!("key = \"{KEY}\""));
    let sandbox = setup.start_sandbox().await;
    redis.set(KEY, &minted(&sandbox).await);
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    assert_eq!(gate.control().revoke(DEFAULT_APPID), 1);
    let reads = redis.calls("get");
    let answer = get(&gate, INFO).await;
    assert_eq!(
        (answer.status, answer.errcode(), answer.replay.as_str()),
        (200, Some(40001), "skipped; reason=same_token")
    );
    for _ in 0..100 {
        let answer = get(&gate, INFO).await;
        assert_eq!(
            (
                answer.errcode(),
                answer.attempts.as_str(),
                answer.error.as_str()
            ),
            (Some(40001), "1", "")
        );
    }
    assert!(redis.calls("get") - reads <= 3, "not one per call");
    assert_eq!(gate.control().fetches(), 0);
    assert_eq!(
        gate.control().path("/cgi-bin/get_api_domain_ip").requests,
        0
    );
    redis.set(KEY, &minted(&gate.sandbox).await);
    assert!(
        call_until(&gate, INFO, Said::is_fine).await.is_fine(),
        "found when it is there"
    );
}

/// What the SDKs write, with the commands they use (docs/coexistence.md).
#[tokio::test(flavor = "multi_thread")]
async fn every_layout_is_read_from_a_real_server() {
    let redis = RedisServer::start();
    let setup = setup();
    let sandbox = setup.start_sandbox().await;
    let token = minted(&sandbox).await;
    let serialized = format!("s:{}:\"{token}\";", token.len());
    let bag = json!({"AppId": DEFAULT_APPID, "AccessTokenExpireTime": "2126-08-06T10:03:42.1234567+08:00",
                     "AccessTokenResult": {"access_token": token, "expires_in": 7200}})
    .to_string();
    let array = format!("a:2:{{s:12:\"access_token\";{serialized}s:10:\"expires_in\";i:7200;}}");
    let ends = "4944938622000";
    let senparc = "Senparc:DefaultCache:Container:Senparc.Weixin.MP.Containers.AccessTokenBag";
    redis.run::<()>(&["SET", "wx:access_token:a", &token, "EX", "7200"]);
    redis.run::<()>(&[
        "HSET",
        "maConfig:accessToken",
        "value",
        &token,
        "expire",
        ends,
    ]);
    redis.run::<()>(&[
        "SET",
        "laravel_cache:official_account.access_token.a.s.1",
        &serialized,
        "EX",
        "7200",
    ]);
    redis.run::<()>(&[
        "SET",
        "easywechat.kernel.access_token.md5",
        &array,
        "EX",
        "7200",
    ]);
    redis.run::<()>(&[
        "SETEX",
        "gowechat_officialaccount__access_token_a",
        "5700",
        &token,
    ]);
    redis.run::<()>(&["SET", &format!("{senparc}:a"), &bag]);
    redis.run::<()>(&["HSET", senparc, "a", &bag, "b", "{}"]);
    let rows = [
        ("wx:access_token:a", None),
        ("maConfig:accessToken", Some("value")),
        ("laravel_cache:official_account.access_token.a.s.1", None),
        ("easywechat.kernel.access_token.md5", None),
        ("gowechat_officialaccount__access_token_a", None),
        (&format!("{senparc}:a")[..], None),
        (senparc, Some("a")),
    ];
    let mut more = String::new();
    for (n, (key, field)) in rows.iter().enumerate() {
        let field = field
            .map(|field| format!(", field = \"{field}\""))
            .unwrap_or_default();
        more += &format!(
            "[[account]]\nname = \"l{n}\"\nappid = \"wx{n}\"\napi = [\"{{api}}\"]\n\
             token = {{ from = \"redis\", url = {{ value = \"{}\" }}, key = \"{key}\"{field} }}\n",
            redis.url("")
        );
    }
    let gate = setup.more(&more).start_with(sandbox).await;
    for (n, (key, _)) in rows.iter().enumerate() {
        let answer = get(&gate, &format!("/@l{n}{INFO}")).await;
        assert!(answer.is_fine(), "{key}: {answer:?}");
        assert_eq!(answer.attempts, "1", "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_takes_no_good_token_along_and_is_used_again() {
    let mut redis = RedisServer::start();
    let setup = in_redis(&redis, &format!("key = \"{KEY}\"")).sandbox(overlap_free());
    let sandbox = setup.start_sandbox().await;
    redis.set(KEY, &minted(&sandbox).await);
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    redis.kill();
    let refused = look(&gate).await;
    assert!(
        refused["message"].as_str().unwrap().contains("token.url"),
        "{refused}"
    );
    assert_eq!(account(&gate).await["state"], "degraded");
    for _ in 0..20 {
        assert!(
            get(&gate, INFO).await.is_fine(),
            "what is in memory goes on working"
        );
    }
    redis.restart();
    redis.set(KEY, &minted(&gate.sandbox).await);
    assert!(call_until(&gate, INFO, Said::is_fine).await.is_fine());
    assert_eq!(
        (
            account(&gate).await["state"].as_str(),
            gate.control().fetches()
        ),
        (Some("ok"), 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_keeps_a_token_from_being_read_is_said_in_a_sentence() {
    let redis = RedisServer::start();
    redis.run::<()>(&[
        "ACL", "SETUSER", "reader", "on", ">pass", "~wx:*", "+get", "+pttl", "+hgetall",
    ]);
    redis.set("wx:html", "<html><body>Sign in</body></html>");
    redis.set("wx:phantom", "wxg1_somebody-elses-placeholder");
    redis.set("other:key", "81_token");
    redis.run::<()>(&["RPUSH", "wx:list", "81_token"]);
    redis.run::<()>(&[
        "HSET",
        "wx:over",
        "access_token",
        "81_token",
        "expires_at",
        "1600000000",
    ]);
    let rows = [
        ("?user=reader&pass=pass", "wx:nothing", "keeps no token"),
        ("?user=reader&pass=pass", "wx:html", "no token"),
        (
            "?user=reader&pass=pass",
            "wx:list",
            "neither a string nor a hash",
        ),
        ("?user=reader&pass=pass", "wx:over", "is over"),
        (
            "?user=reader&pass=pass",
            "wx:phantom",
            "answered by a wxgate",
        ),
        (
            "?user=reader&pass=pass",
            "other:key",
            "does not let wxgate read",
        ),
        (
            "?user=reader&pass=wrong",
            "wx:html",
            "does not let wxgate read",
        ),
        ("/nowhere", "wx:html", "no connection"),
    ];
    let mut more = String::new();
    for (n, (query, key, _)) in rows.iter().enumerate() {
        more += &format!(
            "[[account]]\nname = \"l{n}\"\nappid = \"wx{n}\"\napi = [\"{{api}}\"]\n\
             token = {{ from = \"redis\", url = {{ value = \"{}\" }}, key = \"{key}\" }}\n",
            redis.url(query)
        );
    }
    let gate = setup().more(&more).start().await;
    for (n, (query, key, part)) in rows.iter().enumerate() {
        let target = format!("/@l{n}{INFO}");
        let answer = call_until(&gate, &target, |answer| answer.text().contains(part)).await;
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (503, "token_unavailable"),
            "{query} {key}"
        );
        for hidden in ["81_token", "wxg1_", "Sign in", "redis.sock", "=pass"] {
            assert!(!answer.text().contains(hidden), "{key}: {}", answer.text());
        }
    }
}

fn tls() -> (String, TlsAcceptor) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (root_pem, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tcp_and_over_tls_that_is_always_verified() {
    let redis = RedisServer::start();
    redis.run::<()>(&["CONFIG", "SET", "requirepass", "s3&cret"]);
    let (root, acceptor) = tls();
    let (plain, secure) = (redis.door(None).await, redis.door(Some(acceptor)).await);
    for (url, trusted, works) in [
        (
            format!("redis://:s3%26cret@127.0.0.1:{}/0", plain.port),
            true,
            true,
        ),
        (
            format!("rediss://:s3%26cret@localhost:{}/0", secure.port),
            true,
            true,
        ),
        (
            format!("rediss://:s3%26cret@localhost:{}/0", secure.port),
            false,
            false,
        ),
        (
            format!("rediss://:s3%26cret@127.0.0.1:{}/0", secure.port),
            true,
            false,
        ),
        (
            format!("rediss://:s3%26cret@localhost:{}/0", plain.port),
            true,
            false,
        ),
        (
            format!("redis://:wrong@127.0.0.1:{}/0", plain.port),
            true,
            false,
        ),
    ] {
        // TLS to a server that speaks none ends with the time for a look.
        let mut setup = setup()
            .plain()
            .set("token", "fetch_timeout = \"1s\"")
            .account(&format!(
                "token = {{ from = \"redis\", url = {{ value = \"{url}\" }}, key = \"{KEY}\" }}"
            ));
        if trusted {
            setup = setup.set("upstream", "ca_file = \"own.pem\"");
        }
        let sandbox = setup.start_sandbox().await;
        let token = minted(&sandbox).await;
        let mut connection = redis::Client::open(redis.url("?pass=s3%26cret"))
            .unwrap()
            .get_connection()
            .unwrap();
        redis::cmd("SET")
            .arg(KEY)
            .arg(token)
            .exec(&mut connection)
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("own.pem"), &root).unwrap();
        let gate = setup.start_in(sandbox, folder).await;
        let answer = call_until(&gate, INFO, |answer| {
            answer.is_fine() || !answer.text().contains("not answered yet")
        })
        .await;
        assert_eq!(answer.is_fine(), works, "{url} {trusted}: {answer:?}");
    }
}

/// A central server with HTTP that answers as it is told, and remembers what it was asked.
struct Central {
    port: u16,
    said: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    /// Of reads; the last one stays.
    answers: VecDeque<(u16, String)>,
    /// Takes the place of the answers when it is asked to refresh.
    after_refresh: Option<(u16, String)>,
    calls: Vec<(String, String, Option<String>, String)>,
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let mut script = script.lock().unwrap();
    let key = headers
        .get("x-key")
        .map(|value| value.to_str().unwrap().to_owned());
    script.calls.push((
        method.to_string(),
        uri.to_string(),
        key,
        String::from_utf8_lossy(&body).into_owned(),
    ));
    let (status, text) = if method == Method::POST {
        if let Some(after) = script.after_refresh.take() {
            script.answers = [after].into();
        }
        (200, "{\"refreshed\":true}".to_owned())
    } else if script.answers.len() > 1 {
        script.answers.pop_front().unwrap()
    } else {
        script.answers[0].clone()
    };
    (
        StatusCode::from_u16(status).unwrap(),
        [("location", "/elsewhere")],
        text,
    )
}

impl Central {
    async fn start(answers: &[(u16, String)]) -> Self {
        let script = Script {
            answers: answers.iter().cloned().collect(),
            ..Script::default()
        };
        let said = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new()
            .fallback(any(answer))
            .with_state(Arc::clone(&said));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { port, said, task }
    }

    fn setup(&self, path: &str, more: &str) -> Setup {
        setup().account(&format!(
            "token = {{ from = \"http\", url = {{ value = \"http://127.0.0.1:{}{path}\" }}, \
             header = {{ X-Key = {{ value = \"kept-secret\" }} }}{more} }}",
            self.port
        ))
    }

    fn says(&self, status: u16, text: impl Into<String>) {
        self.said.lock().unwrap().answers = [(status, text.into())].into();
    }

    fn calls(&self) -> Vec<(String, String, Option<String>, String)> {
        std::mem::take(&mut self.said.lock().unwrap().calls)
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_behind_http_is_read_with_the_headers_and_from_every_form() {
    let central = Central::start(&[(503, String::new())]).await;
    let setup = central.setup("/wx/token?app=1", "").sandbox(overlap_free());
    let sandbox = setup.start_sandbox().await;
    let token = minted(&sandbox).await;
    central.says(
        200,
        json!({"code": 0, "data": {"access_token": token, "expires_in": 3000}}).to_string(),
    );
    let gate = setup.start_with(sandbox).await;
    assert!(get(&gate, INFO).await.is_fine());
    let left = account(&gate).await["expires_in"].as_u64().unwrap();
    assert!((2900..=3000).contains(&left), "{left}");
    for form in ["{\"accessToken\":\"TOKEN\"}", "TOKEN\n", "\"TOKEN\""] {
        let token = minted(&gate.sandbox).await;
        central.says(200, form.replace("TOKEN", &token));
        let answer = said(gate.send_message("u")).await;
        assert!(
            answer.is_fine() && answer.attempts == "2",
            "{form}: {answer:?}"
        );
    }
    assert_eq!(gate.control().fetches(), 0);
    for call in central.calls() {
        let expected = (
            "GET".to_owned(),
            "/wx/token?app=1".to_owned(),
            Some("kept-secret".to_owned()),
            String::new(),
        );
        assert_eq!(call, expected, "nothing but reads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_wxgate_is_asked_to_replace_a_token_that_it_still_gives() {
    let central = Central::start(&[(503, String::new())]).await;
    let setup = central
        .setup("/-/accounts/shop/token", "")
        .sandbox(overlap_free());
    let sandbox = setup.start_sandbox().await;
    let dead = minted(&sandbox).await;
    let body = |token: &str| json!({"access_token": token, "expires_in": 7000}).to_string();
    central.says(200, body(&dead));
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    central.calls();
    let fresh = minted(&gate.sandbox).await;
    central.said.lock().unwrap().after_refresh = Some((200, body(&fresh)));
    let answer = said(gate.send_message("u")).await;
    assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
    let calls: Vec<_> = central
        .calls()
        .into_iter()
        .map(|(method, uri, key, body)| (method + " " + &uri, key, body))
        .collect();
    let key = || Some("kept-secret".to_owned());
    let read = (
        "GET /-/accounts/shop/token".to_owned(),
        key(),
        String::new(),
    );
    let asked = (
        "POST /-/accounts/shop/token/refresh".to_owned(),
        key(),
        json!({"rejected": dead}).to_string(),
    );
    assert_eq!(calls, [read.clone(), asked, read.clone()]);
    // One that has the news already is not asked.
    let newer = minted(&gate.sandbox).await;
    central.says(200, body(&newer));
    assert!(said(gate.send_message("v")).await.is_fine());
    assert_eq!(central.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_of_a_central_server_are_named_and_end_no_good_token() {
    let central = Central::start(&[(503, String::new())]).await;
    let setup = central.setup("/token", "");
    let sandbox = setup.start_sandbox().await;
    central.says(200, minted(&sandbox).await);
    let gate = setup.start_with(sandbox).await;
    gate.warm().await;
    central.calls();
    for (status, body, part) in [
        (500, "oops", "HTTP status 500"),
        (302, "", "HTTP status 302"),
        (401, "", "does not let wxgate read"),
        (403, "", "does not let wxgate read"),
        (404, "", "keeps no token"),
        (200, "{\"errcode\":40001}", "no token"),
        (200, "<html>", "no token"),
        (
            200,
            "{\"access_token\":\"wxg1_x\",\"expires_in\":7200}",
            "scope \"token\"",
        ),
        (
            200,
            "{\"access_token\":\"81_x\",\"expires_in\":0}",
            "is over",
        ),
    ] {
        central.says(status, body);
        let refused = look(&gate).await;
        let message = refused["message"]
            .as_str()
            .unwrap_or_else(|| panic!("{status} {body}: {refused}"));
        assert!(message.contains(part), "{status} {body}: {message}");
        assert!(get(&gate, INFO).await.is_fine(), "{status} {body}");
    }
    let asked = central.calls();
    assert!(
        asked.iter().all(|(_, uri, ..)| uri == "/token"),
        "no redirect is followed: {asked:?}"
    );
}

/// An account without a secret, whose central server comes up after wxgate.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_needed_and_a_late_server_is_waited_for() {
    let central = Central::start(&[(502, String::new())]).await;
    let late = format!(
        "[[account]]\nname = \"late\"\nappid = \"{DEFAULT_APPID}\"\napi = [\"{{api}}\"]\n\
         token = {{ from = \"http\", url = {{ value = \"http://127.0.0.1:{}/t\" }} }}\n",
        central.port
    );
    let gate = setup().more(&late).start().await;
    let target = format!("/@late{INFO}");
    let first = call_until(&gate, &target, |answer| {
        answer.text().contains("HTTP status 502")
    })
    .await;
    assert_eq!(
        (first.status, first.error.as_str()),
        (503, "token_unavailable")
    );
    central.says(200, minted(&gate.sandbox).await);
    let served = tokio::time::timeout(DEADLINE, call_until(&gate, &target, Said::is_fine))
        .await
        .unwrap();
    assert!(served.is_fine());
}
