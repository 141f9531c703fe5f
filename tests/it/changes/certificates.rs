//! Certificates of the listeners, read again by a reload.

use std::{fs, path::Path};

use rustls::version::TLS13;

use crate::{
    node::listeners::{certificates, connector, dial, shake, start_in},
    support::{Gate, json, raw::Wire, setup},
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

async fn gate(tls: &str) -> Gate {
    start_in(
        setup().set("server", &format!("tls = {{ {tls} }}")),
        certificates(),
    )
    .await
}

/// Takes the file of one folder into another.
fn copy(from: &Path, to: &Path, name: &str) {
    fs::copy(from.join(name), to.join(name)).expect("copied");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_get_the_new_certificate_and_a_bad_one_changes_nothing() {
    let gate = gate("cert = \"server.pem\", key = \"server.key\"").await;
    let folder = gate.folder.path();
    let mut before = Wire::over(dial(&gate, None, &TLS13).await.expect("a handshake"));
    assert_eq!(before.ask(INFO).await.expect("an answer").status, 200);
    let next = certificates();
    let trusts_next = connector(next.path(), None, &TLS13);
    let shakes = async || {
        let tcp = tokio::net::TcpStream::connect(gate.proxy)
            .await
            .expect("it listens");
        shake(&trusts_next, tcp).await
    };
    assert!(shakes().await.is_err(), "the old one is not trusted");

    // The certificate without its key, garbage, and no file.
    let text = gate.file();
    let old = fs::read(folder.join("server.pem")).expect("it is there");
    let put: [(&str, &dyn Fn()); 3] = [
        ("server.pem", &|| copy(next.path(), folder, "server.pem")),
        ("server.pem", &|| {
            fs::write(folder.join("server.pem"), "no certificate").expect("mine")
        }),
        ("server.pem", &|| {
            fs::remove_file(folder.join("server.pem")).expect("mine")
        }),
    ];
    for (file, put) in put {
        put();
        let refused = gate.reload(&text).await;
        assert_eq!(refused.status(), 422);
        let problems = json(refused).await["problems"].to_string();
        assert!(
            problems.contains("server.tls") && problems.contains(file),
            "{problems}"
        );
        assert!(shakes().await.is_err(), "the old one stays");
    }
    fs::write(folder.join("server.pem"), old).expect("mine");
    let trusts_old = dial(&gate, None, &TLS13).await;
    assert!(trusts_old.is_ok());

    for name in ["server.pem", "server.key"] {
        copy(next.path(), folder, name);
    }
    assert_eq!(gate.reload(&text).await.status(), 200);
    let mut after = Wire::over(shakes().await.expect("the new one is in use"));
    assert_eq!(after.ask(INFO).await.expect("an answer").status, 200);
    assert_eq!(
        before.ask(INFO).await.expect("an answer").status,
        200,
        "goes on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_of_client_certificates_counts_for_new_connections() {
    let tls = "cert = \"server.pem\", key = \"server.key\", client_ca = \"clients.pem\"";
    let gate = gate(tls).await;
    let folder = gate.folder.path();
    let answer = async || {
        let stream = dial(&gate, Some("client"), &TLS13).await.ok()?;
        Wire::over(stream).ask(INFO).await.map(|reply| reply.status)
    };
    let mut before = Wire::over(
        dial(&gate, Some("client"), &TLS13)
            .await
            .expect("a handshake"),
    );
    assert_eq!(before.ask(INFO).await.expect("an answer").status, 200);
    let text = gate.file();
    fs::write(folder.join("clients.pem"), "nobody").expect("mine");
    let refused = gate.reload(&text).await;
    assert_eq!(refused.status(), 422);
    let problems = json(refused).await["problems"].to_string();
    assert!(problems.contains("clients.pem"), "{problems}");
    assert_eq!(answer().await, Some(200), "the old one stays");

    copy(certificates().path(), folder, "clients.pem");
    assert_eq!(gate.reload(&text).await.status(), 200);
    assert_eq!(
        answer().await,
        None,
        "this client is of the former authority"
    );
    assert_eq!(
        before.ask(INFO).await.expect("an answer").status,
        200,
        "goes on"
    );
}
