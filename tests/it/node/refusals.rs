//! Connections that end before there is a request: TLS handshakes that fail, and bytes that are no
//! HTTP. Each has its count, and one line a minute with the peer and what to do.

use std::{net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::net::TcpStream;
use wxgate::sandbox::{self, Sandbox};

use super::listeners::{certificates, connector, shake};
use crate::support::{
    Setup, client,
    program::{LIMIT, Program, serve},
    raw::Wire,
    setup,
};

const TLS: &str =
    "tls = { cert = \"server.pem\", key = \"server.key\", client_ca = \"clients.pem\" }";
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02";

/// A running program in a folder with certificates.
struct Node {
    program: Program,
    proxy: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
    _sandbox: Sandbox,
}

impl Node {
    async fn start(setup: Setup) -> Self {
        let sandbox = sandbox::start(sandbox::SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        let folder = certificates();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write("root.pem", sandbox.ca_pem());
        write("wxgate.toml", &setup.file(&sandbox));
        let program = Program::start(&mut serve(folder.path()));
        let (proxy, admin) = (program.proxy(), program.admin());
        Self {
            program,
            proxy,
            admin,
            folder,
            _sandbox: sandbox,
        }
    }

    async fn metrics(&self) -> String {
        let page = client()
            .get(format!("http://{}/metrics", self.admin))
            .send()
            .await;
        page.expect("an answer").text().await.expect("text")
    }

    /// Waits until a counter has this value.
    async fn counted(&self, series: &str, count: u32) {
        let line = format!("{series} {count}");
        let counted = async {
            while !self.metrics().await.lines().any(|known| known == line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LIMIT, counted).await.is_err() {
            panic!("{line} is not in\n{}", self.metrics().await);
        }
    }

    /// Sends bytes and reads until the other end closes.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut wire = Wire::connect(self.proxy).await;
        wire.send(bytes).await;
        wire.finish().await;
        wire.rest().await
    }

    /// Checks that there is one line with this reason, the peer, and this advice.
    fn warned(&self, message: &str, reason: &str, advice: &str) {
        let reason = format!("reason={reason} ");
        self.program.logged(&reason);
        let log = self.program.stderr();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&reason)).collect();
        assert_eq!(lines.len(), 1, "{reason}\n{log}");
        for part in [" WARN ", message, advice, "peer=127.0.0.1"] {
            assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_are_counted_and_told_with_the_peer() {
    let node = Node::start(setup().set("server", TLS)).await;
    // To one, the authority is unknown; to the other, it is another with the same name.
    let (strangers, doubles) = (certificates(), certificates());
    let clients = strangers.path().join("clients.pem");
    std::fs::copy(clients, strangers.path().join("server.pem")).expect("copied");
    let version = &rustls::version::TLS13;
    let dial = async |folder: &TempDir, show: Option<&str>| {
        let tcp = TcpStream::connect(node.proxy).await.expect("it listens");
        if let Ok(stream) = shake(&connector(folder.path(), show, version), tcp).await {
            Wire::over(stream).reply_bytes().await;
        }
    };
    // Those that look for an open port are no news.
    drop(TcpStream::connect(node.proxy).await.expect("it listens"));
    for folder in [&strangers, &doubles] {
        dial(folder, Some("client")).await;
        dial(&node.folder, None).await;
        dial(&node.folder, Some("stranger")).await;
        node.say(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        node.say(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n").await;
        node.say(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await;
    }
    node.say(PROXY_V2).await;
    for (reason, count, advice) in [
        ("untrusted", 2, "refuses the certificate of server.tls"),
        (
            "no_client_certificate",
            2,
            "server.tls.client_ca demands one",
        ),
        ("bad_client_certificate", 2, "not from server.tls.client_ca"),
        ("plain_http", 2, "use https://"),
        ("proxy_protocol", 3, "server.trusted_proxies"),
        ("other", 2, "speaks no TLS"),
    ] {
        let series = format!("wxgate_tls_handshakes_refused_total{{reason=\"{reason}\"}}");
        node.counted(&series, count).await;
        node.warned("TLS handshake with a client failed", reason, advice);
    }
    for reason in ["closed", "timeout", "incompatible"] {
        let series = format!("wxgate_tls_handshakes_refused_total{{reason=\"{reason}\"}}");
        node.counted(&series, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_are_counted_and_told_with_the_peer() {
    let node = Node::start(setup()).await;
    let line = |target: &[u8]| {
        let head: [&[u8]; 3] = [
            b"GET /cgi-bin/user/info?openid=",
            target,
            b" HTTP/1.1\r\nHost: h\r\n\r\n",
        ];
        head.concat()
    };
    for target in [&b"\xd6\xd0\xce\xc4"[..], b"\"a\"", b"<a>", b"a b"] {
        let answer = node.say(&line(target)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{target:?}: {answer}");
    }
    // The second request of a connection counts as well.
    let answer = node.say(&[line(b"a"), line(b"<a>")].concat()).await;
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
    node.say(b"GET / HTTP/1.1\r\nno field\r\n\r\n").await;
    node.say(
        &[
            &b"GET / HTTP/1.1\r\nHost: "[..],
            &[b'h'; 70_000],
            b"\r\n\r\n",
        ]
        .concat(),
    )
    .await;
    node.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    node.say(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await;
    node.say(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\n\r\n")
        .await;
    node.say(PROXY_V2).await;
    for (reason, count, advice) in [
        ("request_line", 5, "must be percent-encoded"),
        ("header", 1, "a header line"),
        ("head_too_large", 1, "64 KiB"),
        ("http2", 1, "HTTP/2"),
        ("tls", 1, "https:// to a plain port"),
        ("proxy_protocol", 2, "server.trusted_proxies"),
    ] {
        let series = format!("wxgate_malformed_requests_total{{reason=\"{reason}\"}}");
        node.counted(&series, count).await;
        node.warned("a client sends no HTTP/1.1 request", reason, advice);
    }
    let log = node.program.stderr();
    assert!(!log.contains("openid=a"), "{log}");
}
