//! Sources against a server with scripted answers, byte for byte, on a free port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::{
    base::AccountName,
    net::{address::BaseUrl, egress::Egress},
    token::{TokenRefresher, TokenSettings, metrics::TokenMetrics, store::MemoryStore},
    wechat::{api::Platform, ticket::TicketType},
};

const GOOD: &str = r#"{"access_token":"81_a+b/c","expires_in":7200}"#;

/// Reaction of the server to each request.
#[derive(Clone)]
enum Reply {
    Says(Vec<u8>),
    Nothing,
    HangsUp,
    /// Sends one byte at a time, without end.
    Drips,
    Endless,
}

struct Server {
    base: BaseUrl,
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<String>,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, reply.clone(), heard.clone()));
            }
        });
        Self {
            base: format!("http://{address}").parse().unwrap(),
            address,
            requests,
        }
    }

    async fn request(&mut self) -> String {
        self.requests.recv().await.unwrap()
    }
}

async fn serve(mut stream: TcpStream, reply: Reply, heard: mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !complete(&request) {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend_from_slice(&chunk[..n]),
        }
    }
    let _ = heard.send(String::from_utf8(request).unwrap());
    match reply {
        Reply::Says(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Reply::Nothing => std::future::pending().await,
        Reply::HangsUp => {}
        Reply::Drips => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                .await;
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Reply::Endless => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n")
                .await;
            while stream.write_all(&[b' '; 8192]).await.is_ok() {}
        }
    }
}

/// Returns true if head and body of the request are complete.
fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    body.len() >= length.unwrap_or(0)
}

fn http(status: &str, body: &str) -> Reply {
    Reply::Says(
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

fn source(provider: TokenProvider, api: Vec<BaseUrl>, timeout: Duration) -> Arc<dyn TokenSource> {
    let account = AccountSettings {
        name: AccountName::new("shop").unwrap(),
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef".into(),
        secret: Some(Secret::new("s3&cret")),
        provider,
        api,
        hosts: Vec::new(),
        foreign_token: None,
    };
    for_account(
        &account,
        TokenClient::new(&Egress::default(), timeout).unwrap(),
    )
}

async fn fetched(reply: Reply, timeout: Duration) -> Result<Fetched, FetchError> {
    let server = Server::start(reply).await;
    source(TokenProvider::Stable, vec![server.base], timeout)
        .fetch(FetchMode::Normal)
        .await
}

#[tokio::test]
async fn the_stable_endpoint_gets_json_with_its_length_and_no_query() {
    let mut server = Server::start(http("200 OK", GOOD)).await;
    let source = source(
        TokenProvider::Stable,
        vec![server.base.clone()],
        Duration::from_secs(5),
    );
    for (mode, force) in [(FetchMode::Normal, "false"), (FetchMode::Forced, "true")] {
        let token = source.fetch(mode).await.unwrap();
        assert_eq!(
            (token.token.expose(), token.expires_in.as_secs()),
            ("81_a+b/c", 7200)
        );
        let request = server.request().await;
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("POST /cgi-bin/stable_token HTTP/1.1\r\n"),
            "{head}"
        );
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains(&format!("content-length: {}", body.len()))
                && !head.contains("transfer-encoding"),
            "{head}"
        );
        assert!(
            !head.contains("referer") && !head.contains("accept-encoding"),
            "{head}"
        );
        assert_eq!(
            body,
            format!(
                r#"{{"grant_type":"client_credential","appid":"wx0123456789abcdef","secret":"s3&cret","force_refresh":{force}}}"#
            )
        );
    }
}

#[tokio::test]
async fn the_classic_endpoint_gets_its_secret_encoded_in_the_query() {
    let mut server = Server::start(http("200 OK", GOOD)).await;
    source(
        TokenProvider::Classic,
        vec![server.base.clone()],
        Duration::from_secs(5),
    )
    .fetch(FetchMode::Normal)
    .await
    .unwrap();
    let request = server.request().await;
    let line = "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=s3%26cret HTTP/1.1";
    assert_eq!(request.lines().next(), Some(line));
}

#[tokio::test]
async fn a_probe_carries_the_token_and_brings_the_verdict() {
    let stale = r#"{"errcode":40001,"errmsg":"invalid credential"}"#;
    for (body, verdict) in [
        (r#"{"ip_list":["1.2.3.4"]}"#, Probe::Fine),
        (stale, Probe::Stale),
        ("<html>", Probe::Unknown),
    ] {
        let mut server = Server::start(http("200 OK", body)).await;
        for provider in [TokenProvider::Stable, TokenProvider::Classic] {
            let source = source(provider, vec![server.base.clone()], Duration::from_secs(5));
            assert_eq!(
                source.probe(&Secret::new("81_a&b")).await,
                verdict,
                "{body}"
            );
            let request = server.request().await;
            assert!(
                request
                    .starts_with("GET /cgi-bin/get_api_domain_ip?access_token=81%5Fa%26b HTTP/1.1"),
                "{request}"
            );
        }
    }
}

#[tokio::test]
async fn odd_answers_are_failures_with_the_right_name() {
    let redirect = Reply::Says(
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            .to_vec(),
    );
    let cut =
        Reply::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access_token\":".to_vec());
    let chunked = |body: &str| {
        Reply::Says(
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
            .into_bytes(),
        )
    };
    let refused = FetchError::Refused {
        platform: Platform::Wechat,
        code: 40164,
        ip: Some("203.0.113.9".parse().unwrap()),
    };
    let ip = r#"{"errcode":40164,"errmsg":"invalid ip 203.0.113.9 ipv6 ::ffff:203.0.113.9, not in whitelist rid: 5fab84d2-09424a07-00bd7fe3"}"#;
    for (reply, error) in [
        (
            http("500 Internal Server Error", "oops"),
            FetchError::Status(500),
        ),
        (http("502 Bad Gateway", GOOD), FetchError::Status(502)),
        (http("412 Precondition Failed", ""), FetchError::Status(412)),
        (
            http("200 OK", "<html>login</html>"),
            FetchError::Malformed("no JSON"),
        ),
        (http("200 OK", ""), FetchError::Malformed("no JSON")),
        (
            http("200 OK", &GOOD[..20]),
            FetchError::Malformed("no JSON"),
        ),
        (
            http("200 OK", "[]"),
            FetchError::Malformed("no access_token"),
        ),
        (http("200 OK", ip), refused.clone()),
        (chunked(ip), refused),
        (redirect, FetchError::Redirect),
        (cut, FetchError::Broken),
        (Reply::HangsUp, FetchError::Broken),
        (
            Reply::Says(b"220 smtp ready\r\n".to_vec()),
            FetchError::Broken,
        ),
        (Reply::Endless, FetchError::Malformed("more than 64 KiB")),
    ] {
        assert_eq!(
            fetched(reply, Duration::from_secs(5)).await.unwrap_err(),
            error
        );
    }
}

#[tokio::test]
async fn words_of_a_refusal_are_kept_without_the_secret_until_the_next_call() {
    let reply = |body: &str| http("200 OK", body);
    let words = async |reply: Reply| {
        let server = Server::start(reply).await;
        let patience = Duration::from_secs(30);
        let source = source(TokenProvider::Stable, vec![server.base], patience);
        let _ = source.fetch(FetchMode::Normal).await;
        source.words().map(|words| words.to_string())
    };
    let refused = r#"{"errcode":40125,"errmsg":"invalid appsecret s3&cret, rid: 1"}"#;
    let masked = "invalid appsecret *******, rid: 1".to_owned();
    assert_eq!(words(reply(refused)).await, Some(masked));
    assert_eq!(words(reply(GOOD)).await, None);
    assert_eq!(words(Reply::HangsUp).await, None);
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_does_not_end_is_a_timeout() {
    for reply in [Reply::Nothing, Reply::Drips] {
        assert_eq!(
            fetched(reply, Duration::from_millis(300))
                .await
                .unwrap_err(),
            FetchError::Timeout
        );
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_passed_over_for_the_next() {
    let gone = Server::start(Reply::Nothing).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert_ne!(closed, gone.address);
    let closed: BaseUrl = format!("http://{closed}").parse().unwrap();
    let good = Server::start(http("200 OK", GOOD)).await;
    let api = vec![closed.clone(), good.base.clone()];
    assert!(
        source(TokenProvider::Stable, api, Duration::from_secs(5))
            .fetch(FetchMode::Normal)
            .await
            .is_ok()
    );
    let error = source(TokenProvider::Classic, vec![closed], Duration::from_secs(5))
        .fetch(FetchMode::Normal)
        .await
        .unwrap_err();
    assert_eq!(
        (error.clone(), error.is_lost_answer()),
        (FetchError::REFUSED, false)
    );
}

#[tokio::test]
async fn an_answer_of_the_first_host_is_final_even_when_it_is_bad() {
    let bad = Server::start(http("500 Internal Server Error", "")).await;
    let mut good = Server::start(http("200 OK", GOOD)).await;
    let api = vec![bad.base.clone(), good.base.clone()];
    let error = source(TokenProvider::Classic, api, Duration::from_secs(5))
        .fetch(FetchMode::Normal)
        .await
        .unwrap_err();
    assert_eq!(
        (error.clone(), error.is_lost_answer()),
        (FetchError::Status(500), true)
    );
    assert!(
        good.requests.try_recv().is_err(),
        "a second fetch would make a second token"
    );
}

#[tokio::test]
async fn plain_http_where_tls_is_expected_sends_nothing_secret() {
    let mut server = Server::start(http("200 OK", GOOD)).await;
    let tls: BaseUrl = format!("https://{}", server.address).parse().unwrap();
    let error = source(
        TokenProvider::Classic,
        vec![tls],
        Duration::from_millis(500),
    )
    .fetch(FetchMode::Normal)
    .await
    .unwrap_err();
    assert!(
        matches!(error, FetchError::Connect(_) | FetchError::Timeout),
        "{error:?}"
    );
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn fixed_addresses_take_the_place_of_dns() {
    let mut server = Server::start(http("200 OK", GOOD)).await;
    let mut egress = Egress::default();
    egress
        .resolve
        .insert("localhost".into(), vec!["127.0.0.1".parse().unwrap()]);
    let client = TokenClient::new(&egress, Duration::from_secs(5)).unwrap();
    let base: BaseUrl = format!("http://localhost:{}", server.address.port())
        .parse()
        .unwrap();
    assert!(
        client
            .call(&AccountName::new("shop").unwrap(), &[base], |http, base| {
                http.get(format!("{base}/x"))
            })
            .await
            .is_ok()
    );
    assert!(server.request().await.starts_with("GET /x HTTP/1.1"));
}

#[test]
fn no_error_shows_anything_of_a_secret() {
    for provider in [TokenProvider::Stable, TokenProvider::Classic] {
        let account = AccountSettings {
            name: AccountName::new("shop").unwrap(),
            platform: Platform::Wechat,
            appid: "wx0123456789abcdef".into(),
            secret: Some(Secret::new("hunter2")),
            provider,
            api: Vec::new(),
            hosts: Vec::new(),
            foreign_token: None,
        };
        let client = TokenClient::new(&Egress::default(), Duration::from_secs(5)).unwrap();
        let shown = format!(
            "{account:?} {:?} {:?}",
            StableSource::new(&account, client.clone()),
            ClassicSource::new(&account, client)
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

/// Token source that always gives the same token.
struct Fixed;

impl TokenSource for Fixed {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        let fetched = Fetched {
            token: Secret::new("81_a+b"),
            expires_in: Duration::from_secs(7200),
        };
        Box::pin(std::future::ready(Ok(fetched)))
    }

    fn probe<'a>(&'a self, _: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::Fine))
    }
}

fn tickets(platform: Platform, ticket: TicketType, base: BaseUrl) -> TicketSource {
    let account = AccountSettings {
        name: AccountName::new("shop").unwrap(),
        platform,
        appid: "wx0123456789abcdef".into(),
        secret: Some(Secret::new("s3&cret")),
        provider: TokenProvider::Stable,
        api: vec![base],
        hosts: Vec::new(),
        foreign_token: None,
    };
    let counters = TokenMetrics::register(&mut Registry::default()).for_account(&account.name);
    let store = Arc::new(MemoryStore::default());
    let refresher = TokenRefresher::spawn(
        account.clone(),
        TokenSettings::default(),
        Arc::new(Fixed),
        store,
        counters,
    );
    let client = TokenClient::new(&Egress::default(), Duration::from_secs(5)).unwrap();
    TicketSource::new(ticket, &account, client, refresher, Arc::default())
}

#[tokio::test]
async fn each_platform_is_asked_for_its_tickets_in_its_own_words() {
    let good = r#"{"errcode":0,"errmsg":"ok","ticket":"kgt8","expires_in":7200}"#;
    let mut server = Server::start(http("200 OK", good)).await;
    for (platform, ticket, target) in [
        (
            Platform::Wechat,
            TicketType::Jsapi,
            "/cgi-bin/ticket/getticket?access_token=81_a%2Bb&type=jsapi",
        ),
        (
            Platform::Wechat,
            TicketType::WxCard,
            "/cgi-bin/ticket/getticket?access_token=81_a%2Bb&type=wx_card",
        ),
        (
            Platform::Wecom,
            TicketType::Jsapi,
            "/cgi-bin/get_jsapi_ticket?access_token=81_a%2Bb",
        ),
        (
            Platform::Wecom,
            TicketType::AgentConfig,
            "/cgi-bin/ticket/get?access_token=81_a%2Bb&type=agent_config",
        ),
    ] {
        let fetched = tickets(platform, ticket, server.base.clone())
            .fetch(FetchMode::Normal)
            .await
            .unwrap();
        assert_eq!(
            (fetched.token.expose(), fetched.expires_in.as_secs()),
            ("kgt8", 7200)
        );
        let request = server.request().await;
        assert!(
            request.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
            "{request}"
        );
    }
    let none = tickets(Platform::Wecom, TicketType::WxCard, server.base.clone())
        .fetch(FetchMode::Normal)
        .await;
    assert_eq!(none.unwrap_err().label(), "malformed");
}

#[tokio::test]
async fn a_refused_ticket_has_advice_of_its_own_except_for_the_address() {
    for (body, error) in [
        (
            r#"{"errcode":48001,"errmsg":"x"}"#,
            FetchError::NoTicket {
                platform: Platform::Wecom,
                code: 48001,
                said: Some("x".into()),
            },
        ),
        // WeCom uses this code for something else than a stale token.
        (
            r#"{"errcode":40001,"errmsg":"x"}"#,
            FetchError::NoTicket {
                platform: Platform::Wecom,
                code: 40001,
                said: Some("x".into()),
            },
        ),
        (
            r#"{"errcode":60020,"errmsg":"not allow to access from your ip, from ip: 9.30.0.138, more"}"#,
            FetchError::Refused {
                platform: Platform::Wecom,
                code: 60020,
                ip: Some("9.30.0.138".parse().unwrap()),
            },
        ),
        (
            r#"{"errcode":0,"ticket":"","expires_in":7200}"#,
            FetchError::Malformed("an empty or impossible ticket"),
        ),
    ] {
        let server = Server::start(http("200 OK", body)).await;
        let source = tickets(Platform::Wecom, TicketType::Jsapi, server.base);
        assert_eq!(
            source.fetch(FetchMode::Normal).await.unwrap_err(),
            error,
            "{body}"
        );
    }
}
