//! Where wxgate listens: TCP, IPv6, Unix sockets, TLS with and without client certificates, and how
//! many may come.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wxgate::{app::Grace, sandbox};

use crate::support::{Gate, Setup, raw::Wire, setup};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// Status of one call over a stream.
async fn status_over(stream: impl AsyncRead + AsyncWrite + Unpin) -> u16 {
    let reply = Wire::over(stream).ask(INFO).await;
    reply.expect("an answer").status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_port_of_either_family_is_taken_and_named() {
    for listen in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        let gate = setup()
            .set("server", &format!("listen = [\"{listen}\"]"))
            .start()
            .await;
        assert!(
            gate.proxy.ip().is_loopback() && gate.proxy.port() != 0,
            "{listen}: {}",
            gate.proxy
        );
        assert_eq!(
            gate.proxy.is_ipv6(),
            listen.starts_with('['),
            "{listen}: {}",
            gate.proxy
        );
        let reply = Wire::connect(gate.proxy)
            .await
            .ask(INFO)
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200, "{listen}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_served_beside_tcp_and_removed_at_the_end() {
    let gate = setup()
        .set("server", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]")
        .start()
        .await;
    let path = gate.folder.path().join("gate.sock");
    let stream = UnixStream::connect(&path)
        .await
        .expect("the socket is there");
    let mut unix = Wire::over(stream);
    let mut tcp = Wire::connect(gate.proxy).await;
    for _ in 0..3 {
        assert_eq!(unix.ask(INFO).await.expect("an answer").status, 200);
        assert_eq!(tcp.ask(INFO).await.expect("an answer").status, 200);
    }
    // Beside the file, the folder must outlive the gate to be looked at.
    let mut gate = gate;
    let folder = std::mem::replace(&mut gate.folder, tempfile::tempdir().expect("a folder"));
    let (ended, log) = gate.stop().await;
    assert!(ended.is_ok(), "{ended:?}");
    assert!(
        log.contains("\"unix\"") && log.contains("\"127.0.0.1\""),
        "{log}"
    );
    assert!(!path.exists());
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_counts_as_loopback_and_only_as_that() {
    for (allow, status) in [("loopback", 200), ("127.0.0.1/32", 401), ("private", 401)] {
        let gate = setup()
            .set("server", "listen = [\"unix:gate.sock\"]")
            .set("server", &format!("allow = [\"{allow}\"]"))
            .start()
            .await;
        let stream = UnixStream::connect(gate.folder.path().join("gate.sock"))
            .await
            .expect("the socket is there");
        assert_eq!(status_over(stream).await, status, "{allow}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let gate = setup()
        .set("server", "max_connections = 2")
        .set("server", "max_connections_per_client = \"100%\"")
        .start()
        .await;
    let mut first = Wire::connect(gate.proxy).await;
    let mut second = Wire::connect(gate.proxy).await;
    assert_eq!(first.ask(INFO).await.expect("an answer").status, 200);
    assert_eq!(second.ask(INFO).await.expect("an answer").status, 200);
    let mut third = Wire::connect(gate.proxy).await;
    third.send(INFO).await;
    assert!(
        third.is_silent_for(Duration::from_millis(300)).await,
        "the third is not served yet"
    );
    assert_eq!(
        first.ask(INFO).await.expect("an answer").status,
        200,
        "those that are in are served on"
    );
    drop(second);
    assert_eq!(third.reply().await.expect("an answer").status, 200);
}

/// Writes certificates for the listener into a folder: `server.pem`, `server.key`, and for callers
/// `client.pem`, `client.key` by the authority in `clients.pem`, and a pair by nobody.
pub fn certificates() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file");
    let server =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    write("server.pem", server.cert.pem());
    write("server.key", server.signing_key.serialize_pem());
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    write(
        "clients.pem",
        authority
            .self_signed(&authority_key)
            .expect("a certificate")
            .pem(),
    );
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let mut client =
        rcgen::CertificateParams::new(vec!["crm.internal".to_owned()]).expect("a name");
    client.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().expect("a key");
    write(
        "client.pem",
        client
            .signed_by(&key, &issuer)
            .expect("a certificate")
            .pem(),
    );
    write("client.key", key.serialize_pem());
    let mut expired = client.clone();
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2000, 1, 1);
    write(
        "expired.pem",
        expired
            .signed_by(&key, &issuer)
            .expect("a certificate")
            .pem(),
    );
    write("expired.key", key.serialize_pem());
    let mut server_only = client;
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    write(
        "usage.pem",
        server_only
            .signed_by(&key, &issuer)
            .expect("a certificate")
            .pem(),
    );
    write("usage.key", key.serialize_pem());
    let stranger =
        rcgen::generate_simple_self_signed(vec!["crm.internal".to_owned()]).expect("a certificate");
    write("stranger.pem", stranger.cert.pem());
    write("stranger.key", stranger.signing_key.serialize_pem());
    folder
}

pub async fn start_in(setup: Setup, folder: TempDir) -> Gate {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    setup.start_in(sandbox, folder).await
}

/// A TLS client that trusts the listener and shows this certificate, if any.
pub async fn dial(
    gate: &Gate,
    show: Option<&str>,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(gate.proxy).await?;
    shake(&connector(gate.folder.path(), show, version), tcp).await
}

pub async fn shake(
    connector: &TlsConnector,
    tcp: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    connector.connect(name, tcp).await
}

pub fn connector(
    folder: &Path,
    show: Option<&str>,
    version: &'static rustls::SupportedProtocolVersion,
) -> TlsConnector {
    let pem = |name: &str| CertificateDer::from_pem_file(folder.join(name)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(pem("server.pem")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version");
    let builder = builder.with_root_certificates(roots);
    let config = match show {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key =
                PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).expect("a key");
            builder
                .with_client_auth_cert(vec![pem(&format!("{name}.pem"))], key)
                .expect("a pair")
        }
    };
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_listener_speaks_tls_only() {
    let gate = start_in(
        setup().set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        ),
        certificates(),
    )
    .await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = dial(&gate, None, version).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        let mut wire = Wire::over(stream);
        for _ in 0..2 {
            assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
        }
    }
    let before = gate.control().counters().requests;
    let plain = gate.raw(INFO.as_bytes()).await;
    assert!(!plain.contains("HTTP/1"), "{plain}");
    for garbage in [
        &b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"[..],
        b"\x16\x03\x03\xff\xff",
        &[0x80; 64],
        b"\0",
    ] {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(garbage).await;
        wire.finish().await;
        while wire.reply_bytes().await {}
    }
    assert_eq!(gate.control().counters().requests, before);
    let mut wire = Wire::over(
        dial(&gate, None, &rustls::version::TLS13)
            .await
            .expect("a handshake"),
    );
    assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_nobody_without_its_certificate_is_heard() {
    let tls = "tls = { cert = \"server.pem\", key = \"server.key\", client_ca = \"clients.pem\" }";
    let gate = start_in(setup().set("server", tls), certificates()).await;
    gate.control().until(|control| control.fetches() == 1).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for show in [None, Some("stranger"), Some("expired"), Some("usage")] {
            // In TLS 1.3 the client learns of it only when it reads.
            let answer = match dial(&gate, show, version).await {
                Ok(stream) => Wire::over(stream).ask(INFO).await.map(|reply| reply.status),
                Err(_) => None,
            };
            assert_eq!(answer, None, "{show:?}");
        }
    }
    assert_eq!(
        gate.control().counters().requests,
        1,
        "nothing but the token was asked for"
    );
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // The second time the session may be resumed.
        for _ in 0..2 {
            let stream = dial(&gate, Some("client"), version)
                .await
                .expect("a handshake");
            assert_eq!(status_over(stream).await, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_stays_plain_beside_tls() {
    let setup = setup()
        .set("server", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]")
        .set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        );
    let gate = start_in(setup, certificates()).await;
    let stream = UnixStream::connect(gate.folder.path().join("gate.sock"))
        .await
        .expect("the socket is there");
    assert_eq!(status_over(stream).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_handshake_holds_up_nobody() {
    let grace = Grace {
        leaving: Duration::ZERO,
        idle: Duration::ZERO,
        closing: Duration::from_secs(1),
    };
    let gate = start_in(
        setup().grace(grace).set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        ),
        certificates(),
    )
    .await;
    let mut stalled = Vec::new();
    for begin in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        for _ in 0..20 {
            let mut wire = Wire::connect(gate.proxy).await;
            wire.send(begin).await;
            stalled.push(wire);
        }
    }
    let mut wire = Wire::over(
        dial(&gate, None, &rustls::version::TLS13)
            .await
            .expect("a handshake"),
    );
    for _ in 0..20 {
        assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
    }
    drop(wire);
    // They may still become requests, so a drain gives them its time; none of them is one.
    let stopping = tokio::time::Instant::now();
    let (ended, _) = gate.stop().await;
    assert!(
        ended.is_ok() && stopping.elapsed() < Duration::from_secs(20),
        "{ended:?} after {:?}",
        stopping.elapsed()
    );
    for mut wire in stalled {
        assert!(!wire.reply_bytes().await, "nothing was said");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_handshake_is_cut_after_its_time() {
    let gate = start_in(
        setup().set(
            "server",
            "tls = { cert = \"server.pem\", key = \"server.key\" }",
        ),
        certificates(),
    )
    .await;
    let mut silent = Wire::connect(gate.proxy).await;
    let mut half = Wire::connect(gate.proxy).await;
    half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc").await;
    // The limit is 10 s; is_closed gives up after 20.
    assert!(silent.is_closed().await && half.is_closed().await);
}
