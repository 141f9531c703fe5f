//! The store: reachable, writable, with the rights that it takes.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::Patient;
use crate::support::redis::{RedisServer, free_port};
#[cfg(feature = "sql")]
use crate::upstream::egress::refusing;

fn redis(url: &str) -> String {
    format!("kind = \"redis\"\nurl = {{ value = \"{url}\" }}")
}

async fn with_store(lines: &str) -> Patient {
    Patient::new(|setup| setup.set("store", lines)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_works() {
    let server = RedisServer::start();
    server.run::<()>(&[
        "ACL",
        "SETUSER",
        "enough",
        "on",
        ">hunter2",
        "resetchannels",
        "~wxgate:*",
        "&wxgate:*",
        "-@all",
        "+get",
        "+set",
        "+del",
        "+pttl",
        "+eval",
        "+publish",
        "+subscribe",
        "+ping",
    ]);
    let patient = with_store(&redis(&server.url("?user=enough&pass=hunter2"))).await;
    patient.is_well(&["store: the server is there"]);
    let left: Vec<String> = server.run(&["KEYS", "*"]);
    assert_eq!(left, [""; 0], "the doctor leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not() {
    let server = RedisServer::start();
    for rights in [
        &[
            "ACL",
            "SETUSER",
            "reader",
            "on",
            ">hunter2",
            "resetchannels",
            "~wxgate:*",
            "&wxgate:*",
            "-@all",
            "+get",
            "+pttl",
            "+ping",
            "+subscribe",
        ][..],
        &[
            "ACL",
            "SETUSER",
            "narrow",
            "on",
            ">hunter2",
            "resetchannels",
            "~wxgate:*",
            "&wxgate:*",
            "-@all",
            "+get",
            "+set",
            "+del",
            "+pttl",
            "+eval",
            "+publish",
            "+subscribe",
            "+ping",
        ],
        &[
            "ACL",
            "SETUSER",
            "elsewhere",
            "on",
            ">hunter2",
            "~other:*",
            "&*",
            "+@all",
        ],
    ] {
        server.run::<()>(rights);
    }
    let primary = RedisServer::start_with(&["--port", &free_port().to_string()]);
    let replica = RedisServer::start();
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    replica.run::<()>(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    let full = RedisServer::start_with(&["--port", "0", "--maxmemory", "1mb"]);
    full.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let door = server.door(Some(acceptor(&own))).await;
    let gone = RedisServer::start();
    let gone_url = gone.url("");
    drop(gone);
    drop(primary);
    for (case, url, parts) in [
        (
            "down",
            gone_url,
            &["no connection to the server", "whether it runs"][..],
        ),
        (
            "no such host",
            "redis://redis.wxgate.invalid:6379/0".to_owned(),
            &["the host name in store.url does not resolve"],
        ),
        (
            "wrong password",
            server.url("?user=reader&pass=hunter3"),
            &["does not let wxgate in"],
        ),
        (
            "rights to read alone",
            server.url("?user=reader&pass=hunter2"),
            &["does not let wxgate in", "rights of that user"],
        ),
        (
            "rights on other keys",
            server.url("?user=elsewhere&pass=hunter2"),
            &["does not let wxgate in"],
        ),
        (
            "SELECT not allowed",
            server.url("?db=1&user=narrow&pass=hunter2"),
            &["refuses SELECT", "+select"],
        ),
        ("replica", replica.url(""), &["read-only replica"]),
        ("full", full.url(""), &["the server is full"]),
        (
            "foreign certificate",
            format!("rediss://localhost:{}/0", door.port),
            &["certificate is not trusted", "upstream.ca_file"],
        ),
    ] {
        let patient = with_store(&redis(&url)).await;
        patient.suffers_from(case, parts);
    }
}

fn acceptor(own: &rcgen::CertifiedKey<rcgen::KeyPair>) -> tokio_rustls::TlsAcceptor {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("cert.pem"), own.cert.pem()).expect("written");
    fs::write(path("key.pem"), own.signing_key.serialize_pem()).expect("written");
    let tls = wxgate::internals::net::tls::ServerTls {
        cert: path("cert.pem"),
        key: path("key.pem"),
        client_ca: None,
    };
    tls.acceptor().expect("it can be used")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used() {
    let file = |path: &str| format!("kind = \"file\"\npath = \"{path}\"");
    let patient = with_store(&file("state")).await;
    patient.is_well(&["state will be made at the start"]);
    assert!(!patient.path().join("state").exists(), "the doctor made it");

    patient.put("state", "precious");
    patient.suffers_from("a file", &["is no folder", "store.path"]);
    fs::remove_file(patient.path().join("state")).expect("removed");

    fs::create_dir(patient.path().join("state")).expect("made");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(patient.path().join("state"), open).expect("set");
    patient.suffers_from("open to everybody", &["written by everybody", "chmod 700"]);

    // No user can make folders or files there.
    let patient = with_store(&file("/proc/wxgate/state")).await;
    patient.suffers_from("nowhere", &["cannot be made", "store.path"]);
    let patient = with_store(&file("/proc/self")).await;
    patient.suffers_from("read-only", &["cannot write into /proc/self"]);
}

#[cfg(feature = "sql")]
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used() {
    let sql = |url: &str| format!("kind = \"sql\"\nurl = {{ value = \"{url}\" }}");
    let (_socket, refused) = refusing();
    for (case, url, parts) in [
        (
            "no folder",
            "sqlite://missing/tokens.db".to_owned(),
            &["the database file cannot be used"][..],
        ),
        (
            "another file",
            "sqlite://wxgate.toml".to_owned(),
            &["the database file cannot be used", "that it is SQLite's"],
        ),
        (
            "PostgreSQL down",
            format!("postgres://wxgate:hunter2@{refused}/wxgate?sslmode=disable"),
            &["no connection to the server", "whether it runs"],
        ),
        (
            "MariaDB down",
            format!("mysql://wxgate:hunter2@{refused}/wxgate?sslmode=disable"),
            &["no connection to the server", "whether it runs"],
        ),
    ] {
        let patient = with_store(&sql(&url)).await;
        patient.suffers_from(case, parts);
    }
    let patient = with_store(&sql("sqlite://tokens.db")).await;
    patient.is_well(&["store: the server is there"]);
}
