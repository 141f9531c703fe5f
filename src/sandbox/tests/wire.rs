//! Connections: framing, keep-alive, TLS, the end of a sandbox.

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::TlsConnector;

use super::*;

#[tokio::test]
async fn a_chunked_body_gets_412_and_nothing_else() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let mut client = world.client().await;
    for path in ["/cgi-bin/tags/get", "/cgi-bin/stable_token"] {
        client
            .send(format!(
                "POST {path}?access_token={token} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
            ))
            .await;
        let reply = client.reply().await.unwrap();
        assert_eq!(
            (reply.status, reply.body.len(), reply.field("content-type")),
            (412, 0, None)
        );
    }
    assert_eq!(world.control.counters().chunked, 2);
    assert_eq!(
        client
            .get(&format!("/cgi-bin/menu/get?access_token={token}"))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_even_in_one_packet() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let before = world.control.counters().connections;
    let mut client = world.client().await;
    let one = format!("GET /cgi-bin/menu/get?access_token={token} HTTP/1.1\r\n\r\n");
    client.send(one.repeat(3)).await;
    for _ in 0..3 {
        assert_eq!(client.reply().await.unwrap().status, 200);
    }
    assert_eq!(world.control.counters().connections, before + 1);
    client
        .send(format!(
            "HEAD /cgi-bin/menu/get?access_token={token} HTTP/1.1\r\nConnection: close\r\n\r\n"
        ))
        .await;
    let (rest, _) = client.rest().await;
    let text = String::from_utf8(rest).unwrap();
    assert!(
        text.contains("Connection: close") && text.ends_with("\r\n\r\n"),
        "{text}"
    );
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_time() {
    let world = TestSandbox::with(SandboxSettings {
        idle_close: Some(Duration::from_millis(30)),
        ..SandboxSettings::default()
    })
    .await;
    let mut client = world.client().await;
    assert_eq!(client.get("/cgi-bin/menu/get").await.errcode(), 41001);
    let (rest, end) = client.rest().await;
    assert!(rest.is_empty() && end.is_ok());
}

#[tokio::test]
async fn every_connection_can_be_closed_without_a_word() {
    let world = TestSandbox::new().await;
    world.control.set_close_each(true);
    let mut client = world.client().await;
    assert_eq!(
        client.get("/cgi-bin/menu/get").await.field("connection"),
        Some("keep-alive")
    );
    assert!(client.rest().await.0.is_empty());
}

#[tokio::test]
async fn what_is_no_request_gets_400() {
    let world = TestSandbox::new().await;
    let mut client = world.client().await;
    client.send("NONSENSE\r\n\r\n").await;
    assert_eq!(client.reply().await.unwrap().status, 400);
    assert_eq!(world.control.counters().malformed, 1);
}

#[tokio::test]
async fn a_client_may_wait_for_a_hundred_before_it_sends() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let mut client = world.client().await;
    let target = format!("/cgi-bin/tags/get?access_token={token}");
    client
        .send(format!(
            "POST {target} HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert_eq!(client.head().await.unwrap(), "HTTP/1.1 100 Continue\n");
    client.send("{}").await;
    assert_eq!(client.reply().await.unwrap().errcode(), 0);
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_on_record() {
    let world = TestSandbox::new().await;
    let mut client = world.client().await;
    client
        .send("POST /cgi-bin/tags/get HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
        .await;
    drop(client);
    timeout(
        PATIENCE,
        world.control.until(|c| c.counters().requests == 1),
    )
    .await
    .unwrap();
    let record = &world.control.requests("/**")[0];
    assert_eq!(
        (record.complete, record.body_length, record.status),
        (false, 3, 0)
    );
}

#[tokio::test]
async fn tls_is_served_under_the_names_of_the_api() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(world.sandbox.ca_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    for name in [
        "api.weixin.qq.com",
        "qyapi.weixin.qq.com",
        "localhost",
        "127.0.0.1",
        "::1",
    ] {
        let stream = TcpStream::connect(world.sandbox.https_addr().unwrap())
            .await
            .unwrap();
        let stream = connector
            .connect(ServerName::try_from(name).unwrap(), stream)
            .await
            .unwrap();
        let mut client = WireClient {
            pipe: Box::new(stream),
            buffer: Vec::new(),
        };
        assert_eq!(
            client
                .get(&format!("/cgi-bin/menu/get?access_token={token}"))
                .await
                .status,
            200,
            "{name}"
        );
    }
    assert!(
        world
            .control
            .requests("/cgi-bin/menu/get")
            .iter()
            .all(|record| record.tls)
    );

    let stream = TcpStream::connect(world.sandbox.https_addr().unwrap())
        .await
        .unwrap();
    assert!(
        connector
            .connect(ServerName::try_from("mp.weixin.qq.com").unwrap(), stream)
            .await
            .is_err()
    );
    timeout(
        PATIENCE,
        world.control.until(|c| c.counters().failed_handshakes == 1),
    )
    .await
    .unwrap();

    world
        .control
        .fault(Rule::new("/**", Fault::Reset { executed: false }));
    let stream = TcpStream::connect(world.sandbox.https_addr().unwrap())
        .await
        .unwrap();
    let stream = connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap();
    let mut client = WireClient {
        pipe: Box::new(stream),
        buffer: Vec::new(),
    };
    client.send("GET /cgi-bin/menu/get HTTP/1.1\r\n\r\n").await;
    assert_eq!(
        client.rest().await.1.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn certificates_can_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = CertificateFiles {
        cert: folder.path().join("c.pem"),
        key: folder.path().join("k.pem"),
    };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let world = TestSandbox::with(SandboxSettings {
        certificate: Some(files.clone()),
        ..SandboxSettings::default()
    })
    .await;
    assert_eq!(world.sandbox.ca_pem(), made.cert.pem());
    std::fs::remove_file(&files.key).unwrap();
    assert!(
        start(SandboxSettings {
            certificate: Some(files),
            ..SandboxSettings::default()
        })
        .await
        .is_err()
    );
}

#[tokio::test]
async fn a_stopped_sandbox_frees_its_port_and_ends_its_connections() {
    let world = TestSandbox::new().await;
    let address = world.sandbox.http_addr().unwrap();
    let mut client = world.client().await;
    client.get("/cgi-bin/menu/get").await;
    world.sandbox.stopped().await;
    let (rest, _) = client.rest().await;
    assert!(rest.is_empty());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_sandbox_without_a_record_still_counts() {
    let world = TestSandbox::with(SandboxSettings {
        record: false,
        ..SandboxSettings::default()
    })
    .await;
    let token = world.token().await;
    let message = r#"{"touser":"o1","msgtype":"text","text":{"content":"x"}}"#;
    let target = format!("/cgi-bin/message/custom/send?access_token={token}");
    assert_eq!(world.post(&target, message).await.errcode(), 0);
    let counters = world.control.counters();
    assert_eq!(
        (
            counters.requests,
            counters.deliveries,
            counters.stable_fetches
        ),
        (2, 1, 1)
    );
    assert!(world.control.requests("/**").is_empty() && world.control.deliveries().is_empty());
}
