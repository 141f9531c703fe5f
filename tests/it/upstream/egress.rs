//! How calls leave: fixed addresses, source address, CONNECT proxy, fail-over, hosts that do not
//! answer. The token call and the proxied call must always leave by the same way.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::Instant,
};
use wxgate::sandbox;

use crate::support::{
    Gate,
    fake::{Act, Call, FAKE_TOKEN, Fake, Greeting},
    header, json,
    program::{Program, folder, serve},
    setup,
};

const INFO: &str = "/cgi-bin/user/info?openid=a";

/// A port on which connections are refused for as long as this lives.
pub fn refusing() -> (Socket, SocketAddr) {
    refusing_at(([127, 0, 0, 1], 0).into())
}

/// The same at this address.
pub fn refusing_at(address: SocketAddr) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&address.into()).expect("a free port");
    let address = socket
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("TCP");
    (socket, address)
}

/// A port at which a connection is neither taken nor refused: a backlog that is full.
pub struct BlackHole {
    _sockets: Vec<Socket>,
    pub address: SocketAddr,
}

impl BlackHole {
    pub fn start() -> Self {
        Self::at(([127, 0, 0, 1], 0).into())
    }

    pub fn at(address: SocketAddr) -> Self {
        let (listener, address) = refusing_at(address);
        listener.listen(0).expect("it listens");
        let mut sockets = vec![listener];
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            // One that is not taken at once never will be.
            let full = socket
                .connect_timeout(&address.into(), Duration::from_millis(200))
                .is_err();
            sockets.push(socket);
            if full {
                return Self {
                    _sockets: sockets,
                    address,
                };
            }
            assert!(sockets.len() < 100, "the backlog does not fill");
        }
    }
}

async fn assert_down(gate: &Gate, status: u16, slug: &str, within: Duration) {
    for post in [false, true] {
        let started = Instant::now();
        let answer = if post {
            gate.send_message("u").send().await.unwrap()
        } else {
            gate.get(INFO).await
        };
        assert!(started.elapsed() < within, "{:?}", started.elapsed());
        assert_eq!(
            (
                answer.status().as_u16(),
                header(&answer, "x-wxgate-error").as_str()
            ),
            (status, slug)
        );
        assert_eq!(
            (
                header(&answer, "x-wxgate-attempts").as_str(),
                header(&answer, "x-wxgate-sent").as_str()
            ),
            ("", "no"),
            "nothing was sent"
        );
        let body = json(answer).await;
        assert_eq!(body["errcode"], 990_000 + i64::from(status));
        let message = body["errmsg"].as_str().unwrap();
        assert!(
            !message.contains("access_token")
                && !message.contains("://")
                && !message.contains(FAKE_TOKEN),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_is_502_and_one_that_keeps_silent_504_in_time() {
    let fake =
        Fake::start(|_| Act::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".into())).await;
    let gate = setup()
        .set("upstream", "connect_timeout = \"400ms\"")
        .account(&fake.api())
        .start()
        .await;
    gate.warm().await;
    let address = fake.address;
    fake.stopped().await;
    let refused = refusing_at(address);
    assert_down(&gate, 502, "upstream_failed", Duration::from_secs(3)).await;
    drop(refused);
    let _hole = BlackHole::at(address);
    assert_down(&gate, 504, "upstream_timeout", Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_host_is_asked_when_the_first_cannot_be_reached() {
    let second = Fake::start(|_| Act::ok("{\"host\":2}")).await;
    let (_socket, refused) = refusing();
    let hole = BlackHole::start();
    // Speaks no TLS, so the handshake fails before anything is said.
    let no_tls = Fake::start_at(
        "127.0.0.1:0",
        Greeting::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".into()),
        |_| Act::Silent,
    )
    .await;
    for (case, first) in [
        ("refuses", format!("http://{refused}")),
        ("silent", format!("http://{}", hole.address)),
        (
            "no TLS",
            format!("https://localhost:{}", no_tls.address.port()),
        ),
    ] {
        let gate = setup()
            .set("upstream", "connect_timeout = \"400ms\"")
            .set("token", "fetch_timeout = \"5s\"")
            .account(&format!(
                "api = [\"{first}\", \"http://{}\"]",
                second.address
            ))
            .start()
            .await;
        let before = second.seen.calls().len();
        for _ in 0..3 {
            assert_eq!(json(gate.get(INFO).await).await["host"], 2, "{case}");
            let answer = gate.send_message("u").send().await.unwrap();
            assert_eq!(
                header(&answer, "x-wxgate-attempts"),
                "1",
                "{case}: only one host saw it"
            );
            assert_eq!(json(answer).await["host"], 2, "{case}");
        }
        assert_eq!(second.seen.calls().len() - before, 6, "{case}");
    }
    // A host that is down is not dialled for every call.
    assert!(
        no_tls.seen.connections() <= 4,
        "{}",
        no_tls.seen.connections()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_host_is_never_asked_once_the_first_has_the_request() {
    for (case, act, status) in [
        ("closes", Act::Close(Vec::new()), 502),
        ("resets", Act::Reset(Vec::new()), 502),
        ("says no HTTP", Act::Close(b"nonsense\r\n\r\n".into()), 502),
        ("says nothing", Act::Silent, 504),
        (
            "is broken",
            Act::Answer(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".into()),
            503,
        ),
    ] {
        let first = Fake::start(move |_: &Call| act.clone()).await;
        let second = Fake::start(|_| Act::ok("{}")).await;
        let gate = setup()
            .set("upstream", "response_timeout = \"400ms\"")
            .account(&format!(
                "api = [\"http://{}\", \"http://{}\"]",
                first.address, second.address
            ))
            .start()
            .await;
        assert_eq!(gate.get(INFO).await.status(), status, "{case}");
        assert_eq!(
            gate.send_message("u").send().await.unwrap().status(),
            status,
            "{case}"
        );
        assert_eq!(
            (first.seen.calls().len(), second.seen.connections()),
            (2, 0),
            "{case}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_addresses_replace_dns_and_the_name_stays_in_tls_and_host() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .unwrap();
    let port = sandbox.https_addr().unwrap().port();
    let gate = setup()
        .set(
            "upstream",
            "resolve = { \"api.weixin.qq.com\" = [\"127.0.0.1\"] }",
        )
        .account(&format!("api = [\"https://api.weixin.qq.com:{port}\"]"))
        .start_with(sandbox)
        .await;
    gate.warm().await;
    assert_eq!(
        json(gate.send_message("u").send().await.unwrap()).await["errcode"],
        0
    );
    assert_eq!(gate.control().delivered_to("u"), 1);
    let requests = gate.control().requests("/**");
    assert_eq!(requests.len(), 3, "the token call left by the same way");
    for request in requests {
        assert!(request.tls);
        assert_eq!(
            request.header("host"),
            Some(format!("api.weixin.qq.com:{port}").as_str())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_fixed_address_is_tried_when_the_first_refuses() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .unwrap();
    let port = sandbox.https_addr().unwrap().port();
    let gate = setup()
        .set(
            "upstream",
            "resolve = { \"api.weixin.qq.com\" = [\"127.0.0.9\", \"127.0.0.1\"] }",
        )
        .account(&format!("api = [\"https://api.weixin.qq.com:{port}\"]"))
        .start_with(sandbox)
        .await;
    gate.warm().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_leaves_from_the_local_address() {
    let fake = Fake::start(|_| Act::ok("{}")).await;
    let gate = setup()
        .set("upstream", "local_address = \"127.0.0.2\"")
        .account(&fake.api())
        .start()
        .await;
    gate.warm().await;
    let peers = fake.seen.peers();
    assert_eq!((peers.len(), fake.seen.token_calls()), (2, 1));
    assert!(
        peers
            .iter()
            .all(|peer| peer.ip().to_string() == "127.0.0.2"),
        "{peers:?}"
    );
}

/// A CONNECT proxy that wants this `user:password`, if any.
struct Tunnels {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Tunnels {
    async fn start(credentials: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let mut tunnels = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                tunnels.spawn(tunnel(client, Arc::clone(&seen), credentials));
            }
        });
        Self {
            address,
            heads,
            task,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut client: TcpStream, heads: Arc<Mutex<Vec<String>>>, credentials: Option<&str>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    heads.lock().unwrap().push(head.clone());
    let wanted = credentials
        .map(|credentials| format!("proxy-authorization: basic {}", BASE64.encode(credentials)));
    let authorized =
        wanted.is_none_or(|wanted| head.lines().any(|line| line.eq_ignore_ascii_case(&wanted)));
    let target = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    let (Some(target), true) = (target, authorized) else {
        let _ = client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            .await;
        return;
    };
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await;
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_and_calls_go_through_the_connect_proxy() {
    for (credentials, prefix) in [(None, ""), (Some("user:word%"), "user:word%25@")] {
        let tunnels = Tunnels::start(credentials).await;
        let proxy = format!("proxy = \"http://{prefix}{}\"", tunnels.address);
        let gate = setup().set("upstream", &proxy).start().await;
        gate.warm().await;
        assert_eq!(
            json(gate.send_message("u").send().await.unwrap()).await["errcode"],
            0
        );
        let target = format!("localhost:{}", gate.sandbox.https_addr().unwrap().port());
        let heads = tunnels.heads();
        assert_eq!(
            heads.len(),
            2,
            "one for the token, one for the calls: {heads:?}"
        );
        for head in &heads {
            assert!(
                head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")),
                "{head}"
            );
            assert!(!head.contains("access_token"), "{head}");
        }
        let connections = gate.control().counters().connections;
        assert_eq!(connections, 2, "nothing went past the proxy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_proxy_that_refuses_is_not_gone_around() {
    let tunnels = Tunnels::start(Some("user:word")).await;
    let proxy = format!("proxy = \"http://user:wrong@{}\"", tunnels.address);
    let gate = setup()
        .set("upstream", &proxy)
        .set("token", "wait = \"1s\"")
        .start()
        .await;
    let answer = gate.get(INFO).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-error").as_str()
        ),
        (503, "token_unavailable")
    );
    let text = answer.text().await.unwrap();
    assert!(!text.contains("wrong") && !text.contains("://"), "{text}");
    assert_eq!(gate.control().counters().connections, 0);
    assert!(!tunnels.heads().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_of_the_environment_change_nothing() {
    let trap = Fake::start(|_| Act::ok("{}")).await;
    let url = format!("http://{}", trap.address);
    let names = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ];
    let mut variables: Vec<_> = names.iter().map(|name| (*name, url.clone())).collect();
    variables.extend([("NO_PROXY", String::new()), ("no_proxy", String::new())]);
    for plain in [false, true] {
        let sandbox = sandbox::start(sandbox::SandboxSettings::default())
            .await
            .unwrap();
        let settings = if plain { setup().plain() } else { setup() };
        let folder = folder(&settings, &sandbox);
        let program = Program::start(
            serve(folder.path()).envs(variables.iter().map(|(name, value)| (name, value))),
        );
        let client = crate::support::client();
        let answer = client
            .get(format!("http://{}{INFO}", program.proxy()))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{}", program.stderr());
        assert_eq!(sandbox.control().fetches(), 1);
    }
    assert_eq!(trap.seen.connections(), 0);
}
