//! The listeners: free, not a wxgate's, or with a certificate that is over.

use std::{fs, net::TcpListener};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::Patient;
use crate::support::program::{Program, finish, serve};

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_had() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("bound");
    let answering = holder.try_clone().expect("a second handle");
    // A program that is no wxgate, whatever it is asked.
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        while let Ok((mut stream, _)) = answering.accept() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    });
    for (case, table, line, parts) in [
        (
            "taken",
            "server",
            format!("listen = [\"{taken}\"]"),
            &["server.listen", "another process is using it"][..],
        ),
        (
            "admin taken",
            "admin",
            format!("listen = \"{taken}\""),
            &["admin.listen", "another process is using it"],
        ),
        (
            "not of this machine",
            "server",
            "listen = [\"192.0.2.1:8080\"]\nallow = [\"private\"]".to_owned(),
            &["it is not an address of this machine"],
        ),
        (
            "a name that does not resolve",
            "server",
            "listen = [\"gate.wxgate.invalid:8080\"]\nallow = [\"private\"]".to_owned(),
            &["the host name cannot be resolved"],
        ),
        (
            "a file in the place of a socket",
            "server",
            "listen = [\"unix:root.pem\"]".to_owned(),
            &["there is a file at this path"],
        ),
        (
            "no folder for the socket",
            "server",
            "listen = [\"unix:missing/gate.sock\"]".to_owned(),
            &["the folder of the socket does not exist"],
        ),
    ] {
        let patient = Patient::new(|setup| setup.set(table, &line)).await;
        patient.suffers_from(case, parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_needs_a_right() {
    let patient = Patient::new(|setup| setup.set("server", "listen = [\"127.0.0.1:1\"]")).await;
    let inside = patient.command(&["check", "--live"]);
    let mut command = std::process::Command::new("setpriv");
    // Also for root, who has the right as a capability.
    command
        .args([
            "--bounding-set",
            "-net_bind_service",
            "--inh-caps",
            "-net_bind_service",
        ])
        .arg(inside.get_program())
        .args(inside.get_args())
        .current_dir(patient.path());
    let ended = finish(command);
    super::assert_broken(
        "privileged",
        &ended,
        &["CAP_NET_BIND_SERVICE", "127.0.0.1:1"],
    );
    // The start says the same.
    let mut command = std::process::Command::new("setpriv");
    let inside = serve(patient.path());
    command
        .args([
            "--bounding-set",
            "-net_bind_service",
            "--inh-caps",
            "-net_bind_service",
        ])
        .arg(inside.get_program())
        .args(inside.get_args());
    let ended = finish(command);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("CAP_NET_BIND_SERVICE"), "{ended:?}");
}

fn certificate(patient: &Patient, name: &str, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["gate.internal".to_owned()]).expect("a name");
    change(&mut params);
    let certificate = params.self_signed(&key).expect("a certificate");
    patient.put(&format!("{name}.pem"), &certificate.pem());
    patient.put(&format!("{name}.key"), &key.serialize_pem());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ours_that_is_over() {
    let tls = "tls = { cert = \"server.pem\", key = \"server.key\", client_ca = \"ca.pem\" }";
    let patient = Patient::new(|setup| setup.set("server", tls)).await;
    certificate(&patient, "server", |_| {});
    certificate(&patient, "ca", |_| {});
    patient.is_well(&[
        "server.tls.cert: issued by",
        "for gate.internal, good until",
    ]);
    certificate(&patient, "server", |params| {
        params.not_after = date_time_ymd(2001, 1, 1)
    });
    patient.suffers_from(
        "expired",
        &[
            "server.tls.cert: the certificate has expired",
            "2001-01-01",
            "renew it",
        ],
    );
    certificate(&patient, "server", |params| {
        params.not_before = date_time_ymd(2090, 1, 1)
    });
    patient.suffers_from("too early", &["server.tls.cert", "not valid yet"]);
    certificate(&patient, "server", |_| {});
    certificate(&patient, "ca", |params| {
        params.not_after = date_time_ymd(2001, 1, 1)
    });
    patient.suffers_from("authority", &["server.tls.client_ca", "has expired"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_wxgate_its_addresses_count_as_free() {
    let tls = "tls = { cert = \"server.pem\", key = \"server.key\" }";
    for (case, tls) in [("plain", ""), ("TLS", tls)] {
        let patient = Patient::new(|setup| setup.set("server", tls)).await;
        certificate(&patient, "server", |_| {});
        let program = Program::start(&mut serve(patient.path()));
        let (proxy, admin) = (program.proxy(), program.admin());
        let file = patient.path().join("wxgate.toml");
        let text = fs::read_to_string(&file).expect("it is there");
        let text = text
            .replacen("127.0.0.1:0", &proxy.to_string(), 1)
            .replacen("127.0.0.1:0", &admin.to_string(), 1);
        // Either table may come first in the file.
        let text = if text.find("[admin]") < text.find("[server]") {
            text.replace(&proxy.to_string(), "X")
                .replace(&admin.to_string(), &proxy.to_string())
                .replace('X', &admin.to_string())
        } else {
            text
        };
        fs::write(&file, text).expect("written");
        patient.is_well(&[
            &format!("server.listen: {proxy}: a wxgate answers there"),
            &format!("admin.listen: {admin}: a wxgate answers there"),
        ]);
        assert_eq!(program.stop().status, Some(0), "{case}");
    }
}
