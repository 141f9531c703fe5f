//! Tests of the admin listener over real token refreshers with a scripted token endpoint.

mod console;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    Admin, AdminBindError,
    control::AdminControl,
    settings::AdminSettings,
    site::{Site, Sources},
};
use crate::{
    base::{AccountName, Secret},
    net::drain::{self, DrainControl, Phase},
    telemetry::{events::EventLog, registry::MetricsRegistry},
    token::{
        self, AccountSettings, TokenProvider, TokenRefresher, TokenRegistry,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource},
        store::MemoryStore,
    },
    wechat::api::Platform,
};

const APP_SECRET: &str = "planted-app-secret";
const TOKEN: &str = "planted-access-token";
const ADMIN_KEY: &str = "planted-admin-key";

/// Token endpoint that fails as scripted, and then hands out a new token per call.
#[derive(Default)]
struct Script {
    failures: Mutex<VecDeque<FetchError>>,
    made: Mutex<u32>,
}

impl Script {
    fn failing(failures: impl IntoIterator<Item = FetchError>) -> Arc<Self> {
        Arc::new(Self {
            failures: Mutex::new(failures.into_iter().collect()),
            made: Mutex::default(),
        })
    }

    fn answer(&self) -> Result<Fetched, FetchError> {
        if let Some(failure) = self
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
        {
            return Err(failure);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        *made += 1;
        Ok(Fetched {
            token: Secret::new(format!("{TOKEN}-{made}")),
            expires_in: Duration::from_secs(7200),
        })
    }
}

impl TokenSource for Script {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async { self.answer() })
    }

    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(async { Probe::Fine })
    }
}

fn not_whitelisted() -> FetchError {
    FetchError::Refused {
        platform: Platform::Wechat,
        code: 40164,
        ip: Some("47.94.148.108".parse().unwrap()),
    }
}

fn account(name: &str) -> AccountSettings {
    AccountSettings {
        name: AccountName::new(name).unwrap(),
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef".into(),
        secret: Some(Secret::new(APP_SECRET)),
        provider: TokenProvider::Stable,
        api: vec!["https://api.weixin.qq.com".parse().unwrap()],
        hosts: Vec::new(),
        foreign_token: None,
    }
}

/// Accounts of these names, after the first attempt of each.
async fn settled(
    scripts: impl IntoIterator<Item = (&str, Arc<Script>)>,
    metrics: &MetricsRegistry,
) -> Arc<TokenRegistry> {
    let counted = metrics.register(token::metrics::TokenMetrics::register);
    let mut refreshers = Vec::new();
    for (name, script) in scripts {
        let account = account(name);
        let (name, counted) = (account.name.clone(), counted.for_account(&account.name));
        let store = Arc::new(MemoryStore::default());
        let refresher = TokenRefresher::spawn(
            account,
            token::TokenSettings::default(),
            script,
            store,
            counted,
        );
        let _ = refresher.current().await;
        refreshers.push((name, refresher.into()));
    }
    Arc::new(refreshers.into_iter().collect())
}

struct Bench {
    site: Site,
    control: DrainControl,
    events: EventLog,
}

impl Bench {
    async fn new(
        settings: &AdminSettings,
        scripts: impl IntoIterator<Item = (&str, Arc<Script>)>,
    ) -> Self {
        let metrics = MetricsRegistry::default();
        let accounts = settled(scripts, &metrics).await;
        let (control, drain) = drain::drain();
        Self {
            events: metrics.events(),
            site: Site::new(Sources::new(
                AdminControl::new(settings, accounts),
                metrics,
                drain,
            )),
            control,
        }
    }

    /// Bench of two accounts: `shop` has a token, `frozen` is refused twice.
    async fn usual() -> Self {
        let refused = Script::failing([not_whitelisted(), not_whitelisted()]);
        Self::new(
            &AdminSettings::default(),
            [("shop", Script::failing([])), ("frozen", refused)],
        )
        .await
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:8081");
        }
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        self.site
            .answer(request.body(Body::from(body)).unwrap())
            .await
    }

    fn events(&self) -> &EventLog {
        &self.events
    }

    async fn get_with_key(&self, path: &str) -> Value {
        let key = [("x-wxgate-key", ADMIN_KEY)];
        read(self.ask("GET", path, &key, "").await).await.1
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.ask("GET", path, &[], "").await).await
    }

    async fn refresh(&self, name: &str, body: &'static str) -> (StatusCode, Value) {
        read(
            self.ask("POST", &format!("/api/accounts/{name}/refresh"), &[], body)
                .await,
        )
        .await
    }
}

async fn text(response: Response) -> String {
    String::from_utf8(
        to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap()
            .to_vec(),
    )
    .unwrap()
}

async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    (status, serde_json::from_str(&text(response).await).unwrap())
}

#[tokio::test(start_paused = true)]
async fn accounts_are_listed_with_fingerprints_budgets_and_advice() {
    let (status, list) = Bench::usual().await.get("/api/accounts").await;
    assert_eq!(status, StatusCode::OK);
    let (shop, frozen) = (&list[0], &list[1]);
    assert_eq!(
        (&shop["name"], &shop["state"], &shop["usable"]),
        (&json!("shop"), &json!("ok"), &json!(true))
    );
    let fingerprint = Secret::new(format!("{TOKEN}-1")).fingerprint();
    assert_eq!(
        (&shop["fingerprint"], &shop["expires_in"]),
        (&json!(fingerprint), &json!(7200))
    );
    assert_eq!(
        (&shop["budgets"]["classic"], &shop["conflicts"]),
        (&Value::Null, &json!(0))
    );
    assert!(
        shop["budgets"]["forced"].is_u64() && shop["next_attempt_in"].is_u64(),
        "{shop}"
    );
    assert_eq!(
        (&frozen["state"], &frozen["generation"]),
        (&json!("fatal"), &json!(0))
    );
    assert_eq!(
        (&frozen["last_error"]["errcode"], &frozen["fingerprint"]),
        (&json!(40164), &Value::Null)
    );
    assert!(
        frozen["last_error"]["sentence"]
            .as_str()
            .unwrap()
            .contains("47.94.148.108"),
        "{frozen}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_refused_account_leaves_the_node_ready_and_is_named() {
    let bench = Bench::usual().await;
    let (status, some) = bench.get("/readyz").await;
    assert_eq!((status, &some["ready"]), (StatusCode::OK, &json!(true)));
    assert_eq!(some["lacking"][0]["account"], "frozen");
    assert!(
        some["lacking"][0]["message"]
            .as_str()
            .unwrap()
            .contains("47.94.148.108"),
        "{some}"
    );
    let (status, all) = bench.get("/readyz?all").await;
    assert_eq!(
        (status, &all["error"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("not_ready"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_readiness_and_leaves_liveness() {
    let bench = Bench::usual().await;
    bench.control.advance(Phase::Leaving);
    let (status, body) = bench.get("/readyz").await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("draining"))
    );
    assert_eq!(
        bench.ask("GET", "/livez", &[], "").await.status(),
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_by_hand_brings_another_token() {
    let bench = Bench::usual().await;
    for (body, generation) in [
        ("", 2),
        ("{}", 3),
        (" {\"force\":false}\n", 4),
        ("{\"force\":true}", 5),
    ] {
        let expected = json!({"refreshed": true, "generation": generation, "expires_in": 7200});
        assert_eq!(
            bench.refresh("shop", body).await,
            (StatusCode::OK, expected),
            "{body:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_over_the_budget_says_how_long_to_wait() {
    let bench = Bench::usual().await;
    assert_eq!(
        bench.refresh("shop", "{\"force\":true}").await.0,
        StatusCode::OK
    );
    let again = bench
        .ask(
            "POST",
            "/api/accounts/shop/refresh",
            &[],
            "{\"force\":true}",
        )
        .await;
    let wait: u64 = again.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=600).contains(&wait), "{wait}");
    let (status, body) = read(again).await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("budget_spent"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_says_what_wechat_said_and_the_next_one_may_succeed() {
    let bench = Bench::usual().await;
    let (status, body) = bench.refresh("frozen", "").await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::BAD_GATEWAY, &json!("fetch_failed"))
    );
    assert_eq!(body["errcode"], 40164);
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("frozen") && message.contains("47.94.148.108"),
        "{message}"
    );
    assert_eq!(
        bench.refresh("frozen", "").await.0,
        StatusCode::OK,
        "the operator has added the IP"
    );
}

#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_read_refreshes_nothing() {
    let bench = Bench::usual().await;
    let long = " ".repeat(8000);
    for body in [
        "{",
        "true",
        "{\"force\":1}",
        "{\"forced\":true}",
        "[]",
        "[true]",
        long.leak(),
    ] {
        let (status, answer) = bench.refresh("shop", body).await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::BAD_REQUEST, &json!("bad_request")),
            "{body:.20}"
        );
    }
    assert_eq!(bench.get("/api/accounts").await.1[0]["generation"], 1);
}

#[tokio::test(start_paused = true)]
async fn unknown_accounts_and_paths_are_not_found() {
    let bench = Bench::usual().await;
    for name in ["nobody", "a%20b", "%ff", "%3Cscript%3E", "Shop"] {
        let (status, body) = bench.refresh(name, "").await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::NOT_FOUND, &json!("account_unknown")),
            "{name}"
        );
    }
    for path in [
        "/api",
        "/api/event",
        "/favicon.ico",
        "/livez/",
        "//",
        "/api/accounts/shop",
    ] {
        let (status, body) = bench.get(path).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::NOT_FOUND, &json!("not_found")),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_method_is_told_the_right_ones() {
    let bench = Bench::usual().await;
    for (method, path, allow) in [
        ("POST", "/", "GET,HEAD"),
        ("DELETE", "/livez", "GET,HEAD"),
        ("POST", "/api/accounts", "GET,HEAD"),
        ("GET", "/api/accounts/shop/refresh", "POST"),
    ] {
        let response = bench.ask(method, path, &[], "").await;
        assert_eq!(response.headers()["allow"], allow, "{method} {path}");
        let (status, body) = read(response).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn page_and_api_need_a_known_host_and_probes_do_not() {
    let bench = Bench::usual().await;
    let strange = [("host", "evil.example")];
    for path in [
        "/",
        "/api/accounts",
        "/api/nothing",
        "/nothing",
        "//livez",
        "/livez/",
        "/LIVEZ",
    ] {
        let (status, body) = read(bench.ask("GET", path, &strange, "").await).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::MISDIRECTED_REQUEST, &json!("host_unknown")),
            "{path}"
        );
    }
    for path in ["/livez", "/readyz", "/readyz?x", "/metrics"] {
        assert_eq!(
            bench.ask("GET", path, &strange, "").await.status(),
            StatusCode::OK,
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_site_cannot_refresh() {
    let bench = Bench::usual().await;
    let response = bench
        .ask(
            "POST",
            "/api/accounts/shop/refresh",
            &[("sec-fetch-site", "cross-site")],
            "",
        )
        .await;
    let (status, body) = read(response).await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::FORBIDDEN, &json!("cross_site"))
    );
    assert_eq!(bench.get("/api/accounts").await.1[0]["generation"], 1);
}

#[tokio::test(start_paused = true)]
async fn with_a_key_only_probes_and_metrics_stay_open() {
    let settings = AdminSettings {
        key: Some(Secret::new(ADMIN_KEY)),
        ..AdminSettings::default()
    };
    let bench = Bench::new(&settings, [("shop", Script::failing([]))]).await;
    for path in ["/api/accounts", "/api/events", "/api/overview", "/nothing"] {
        let response = bench.ask("GET", path, &[], "").await;
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"wxgate\"",
            "{path}"
        );
        let (status, body) = read(response).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::UNAUTHORIZED, &json!("key_required")),
            "{path}"
        );
    }
    let bearer = format!("Bearer {ADMIN_KEY}");
    let shown = bench
        .ask(
            "GET",
            "/api/accounts",
            &[("authorization", bearer.as_str())],
            "",
        )
        .await;
    assert_eq!(shown.status(), StatusCode::OK);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(
            bench.ask("GET", path, &[], "").await.status(),
            StatusCode::OK,
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_carries_the_headers_for_browsers() {
    let bench = Bench::usual().await;
    for (method, path, host) in [
        ("GET", "/", "localhost"),
        ("GET", "/api/accounts", "localhost"),
        ("POST", "/api/accounts/shop/refresh", "localhost"),
        ("POST", "/api/accounts/frozen/refresh", "localhost"),
        ("PUT", "/", "localhost"),
        ("GET", "/nothing", "localhost"),
        ("GET", "/", "evil.example"),
    ] {
        let response = bench.ask(method, path, &[("host", host)], "").await;
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            header("x-content-type-options"),
            "nosniff",
            "{method} {path}"
        );
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-store");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(
                header("content-security-policy").contains(part),
                "{method} {path}: {part}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_holds_a_token_or_a_secret() {
    let settings = AdminSettings {
        key: Some(Secret::new(ADMIN_KEY)),
        ..AdminSettings::default()
    };
    let scripts = [
        ("shop", Script::failing([])),
        ("frozen", Script::failing([not_whitelisted()])),
    ];
    let bench = Bench::new(&settings, scripts).await;
    let mut seen = String::new();
    for key in [ADMIN_KEY, "wrong"] {
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/readyz?all"),
            ("GET", "/metrics"),
            ("GET", "/api/accounts"),
            ("GET", "/api/accounts?limit=9"),
            ("GET", "/api/overview"),
            ("GET", "/api/series"),
            ("GET", "/api/clients"),
            ("POST", "/api/accounts/shop/refresh"),
            ("POST", "/api/accounts/shop/refresh?x=planted"),
        ] {
            let response = bench.ask(method, path, &[("x-wxgate-key", key)], "").await;
            write!(seen, "{:?}", response.headers()).unwrap();
            seen += &text(response).await;
        }
    }
    assert!(
        seen.contains(&Secret::new(format!("{TOKEN}-1")).fingerprint()),
        "the search looks at what is shown"
    );
    assert!(!seen.contains("planted"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn metrics_are_open_metrics_text() {
    let response = Bench::usual().await.ask("GET", "/metrics", &[], "").await;
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let page = text(response).await;
    assert!(
        page.contains("wxgate_build_info")
            && page.contains("wxgate_token_generation{account=\"shop\"} 1"),
        "{page}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_page_is_html_and_a_head_request_has_no_body() {
    let bench = Bench::usual().await;
    let response = bench.ask("GET", "/", &[], "").await;
    assert_eq!(
        response.headers()["content-type"],
        "text/html; charset=utf-8"
    );
    let page = text(response).await;
    assert!(
        page.contains("<script type=\"module\" src=\"/console.js\">"),
        "{page}"
    );
    let head = bench.ask("HEAD", "/", &[], "").await;
    assert_eq!(
        (head.status(), text(head).await.as_str()),
        (StatusCode::OK, "")
    );
}

#[tokio::test]
async fn other_machines_are_let_near_only_with_a_key() {
    let open = AdminSettings {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..AdminSettings::default()
    };
    let bind = |settings: &AdminSettings| {
        Admin::bind(settings, Arc::default(), MetricsRegistry::default())
    };
    let refused = bind(&open).unwrap_err();
    assert!(
        matches!(refused, AdminBindError::KeyMissing { .. }) && refused.label() == "key_missing"
    );
    assert!(
        bind(&AdminSettings {
            key: Some(Secret::new("k")),
            ..open
        })
        .is_ok()
    );
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let settings = AdminSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..AdminSettings::default()
    };
    let first = Admin::bind(&settings, Arc::default(), MetricsRegistry::default()).unwrap();
    let taken = first.address().to_string();
    let settings = AdminSettings {
        listen: taken.parse().unwrap(),
        ..settings
    };
    let refused = Admin::bind(&settings, Arc::default(), MetricsRegistry::default()).unwrap_err();
    assert!(
        refused.to_string().contains(&taken) && refused.label() == "listen",
        "{refused}"
    );
}

#[tokio::test]
async fn it_serves_over_a_socket_until_the_drain_aborts() {
    let metrics = MetricsRegistry::default();
    let accounts = settled([("shop", Script::failing([]))], &metrics).await;
    let settings = AdminSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..AdminSettings::default()
    };
    let admin = Admin::bind(&settings, accounts, metrics).unwrap();
    let address = admin.address().tcp().unwrap();
    let (control, drain) = drain::drain();
    let running = admin.start(drain).await.unwrap();
    let ask = async |head: &str| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket
            .write_all(format!("{head}connection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        ask("GET /readyz HTTP/1.1\r\nhost: node-1\r\n").await,
        "HTTP/1.1 200 OK"
    );
    // Blocks this thread and with it the runtime that stands for the one of background work.
    let mut probe = std::net::TcpStream::connect(address).unwrap();
    probe
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    std::io::Write::write_all(&mut probe, b"GET /livez HTTP/1.1\r\nhost: node-1\r\n\r\n").unwrap();
    let mut begin = [0; 12];
    std::io::Read::read_exact(&mut probe, &mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    drop(probe);
    assert_eq!(
        ask("GET / HTTP/1.1\r\nhost: node-1\r\n").await,
        "HTTP/1.1 421 Misdirected Request"
    );
    assert_eq!(
        ask(&format!("GET / HTTP/1.1\r\nhost: {address}\r\n")).await,
        "HTTP/1.1 200 OK"
    );
    let refresh = "POST /api/accounts/shop/refresh HTTP/1.1\r\nhost: localhost\r\n";
    assert_eq!(ask(refresh).await, "HTTP/1.1 200 OK");
    control.advance(Phase::Leaving);
    assert_eq!(
        ask("GET /readyz HTTP/1.1\r\nhost: node-1\r\n").await,
        "HTTP/1.1 503 Service Unavailable"
    );
    assert_eq!(
        ask("GET /livez HTTP/1.1\r\nhost: node-1\r\n").await,
        "HTTP/1.1 200 OK"
    );
    control.advance(Phase::Closing);
    assert_eq!(
        ask("GET /livez HTTP/1.1\r\nhost: node-1\r\n").await,
        "HTTP/1.1 200 OK",
        "requests may be in flight"
    );
    control.advance(Phase::Aborting);
    running.await.unwrap();
}
