//! WeChat's own host name leads to wxgate: clients that were changed in nothing but what they trust
//! call `https://api.weixin.qq.com`, and wxgate answers with a certificate of the company's own
//! authority.

use std::{fs, process::Command};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use wxgate::sandbox::{DEFAULT_APPID, Sandbox};

use crate::{
    sdk::environments::{command, plain_python, repository},
    support::{Gate, Setup, setup},
};

/// Host that the tests here call.
pub const HOST: &str = "api.weixin.qq.com";
/// WeCom's host, which leads to wxgate too.
const WECOM_HOST: &str = "qyapi.weixin.qq.com";

/// A folder with `server.pem` and `server.key` for both hosts, signed by the authority in `ca.pem`,
/// and with another authority in `stranger.pem`.
fn certificates() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file");
    let (pem, issuer) = authority();
    write("ca.pem", pem);
    write("stranger.pem", authority().0);
    let mut leaf =
        CertificateParams::new(vec![HOST.to_owned(), WECOM_HOST.to_owned()]).expect("two names");
    leaf.distinguished_name.push(DnType::CommonName, HOST);
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("a key");
    write(
        "server.pem",
        leaf.signed_by(&key, &issuer).expect("a certificate").pem(),
    );
    write("server.key", key.serialize_pem());
    folder
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let mut root = CertificateParams::new(Vec::new()).expect("no names");
    root.distinguished_name
        .push(DnType::CommonName, "an authority of the tests' own");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.name_constraints = Some(NameConstraints {
        permitted_subtrees: [HOST, WECOM_HOST]
            .map(|host| GeneralSubtree::DnsName(host.to_owned()))
            .to_vec(),
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate().expect("a key");
    let pem = root.self_signed(&key).expect("a certificate").pem();
    (pem, Issuer::new(root, key))
}

/// wxgate in the place of the hosts.
pub async fn start(setup: Setup) -> Gate {
    let setup = setup.set(
        "server",
        "tls = { cert = \"server.pem\", key = \"server.key\" }",
    );
    reaching_the_host(setup.start_sandbox().await, setup, certificates()).await
}

/// The variables by which a script finds the gate under WeChat's own names, and trusts it.
pub fn ways(gate: &Gate) -> [(&'static str, String); 3] {
    let authority = gate.folder.path().join("ca.pem").display().to_string();
    [
        ("WXGATE_TEST_TAKEOVER", gate.proxy.to_string()),
        ("REQUESTS_CA_BUNDLE", authority.clone()),
        ("NODE_EXTRA_CA_CERTS", authority),
    ]
}

/// wxgate, for which the name leads to the sandbox; that shows a certificate for it too.
async fn reaching_the_host(sandbox: Sandbox, setup: Setup, folder: TempDir) -> Gate {
    let url = sandbox.https_url().expect("it listens");
    let port = url.rsplit(':').next().expect("a port").to_owned();
    setup
        .set(
            "upstream",
            &format!("resolve = {{ \"{HOST}\" = [\"127.0.0.1\"] }}"),
        )
        .account(&format!("api = [\"https://{HOST}:{port}\"]"))
        .start_in(sandbox, folder)
        .await
}

/// A client that asks for a user at the literal host, trusts the authority in this file of the
/// folder, and finds the gate there.
struct Client {
    name: &'static str,
    command: fn(&Gate, authority: &str, openid: &str) -> Command,
}

const CLIENTS: [Client; 3] = [
    Client {
        name: "curl",
        command: |gate, authority, openid| {
            let mut curl = curl(gate, HOST, authority);
            curl.arg(format!(
                "https://{HOST}/cgi-bin/user/info?access_token=any&openid={openid}"
            ));
            curl
        },
    },
    Client {
        name: "Python",
        command: |gate, authority, openid| {
            let mut python = command(plain_python());
            python.env("WXGATE_TEST_TAKEOVER", gate.proxy.to_string());
            python.env("SSL_CERT_FILE", gate.folder.path().join(authority));
            python
                .arg(repository("tests/sdk/plain_calls.py"))
                .arg(openid);
            python
        },
    },
    Client {
        name: "Node",
        command: |gate, authority, openid| {
            let mut node = command("node");
            node.env("WXGATE_TEST_TAKEOVER", gate.proxy.to_string());
            node.env("NODE_EXTRA_CA_CERTS", gate.folder.path().join(authority));
            node.arg("--require")
                .arg(repository("tests/sdk/node/takeover.js"));
            node.arg(repository("tests/sdk/node/plain_calls.js"))
                .arg(openid);
            node
        },
    },
];

/// curl, for which this host is the gate.
fn curl(gate: &Gate, host: &str, authority: &str) -> Command {
    let mut curl = command("curl");
    // No file of the user's own, no proxy, no progress.
    curl.args([
        "--disable",
        "--noproxy",
        "*",
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--connect-to",
    ]);
    curl.arg(format!("{host}:443:{}", gate.proxy))
        .arg("--cacert")
        .arg(gate.folder.path().join(authority));
    curl
}

/// Whether the command went well, what it printed, and what it complained of.
async fn outcome(mut command: Command) -> (bool, String, String) {
    let text = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("it ends");
    let output =
        output.unwrap_or_else(|error| panic!("{text}: {error}; install curl, python3 and nodejs"));
    let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        read(&output.stdout),
        read(&output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_call_wechats_own_url_and_notice_neither_wxgate_nor_the_death_of_a_token() {
    for client in CLIENTS {
        let gate = start(setup()).await;
        gate.control().until(|control| control.fetches() == 1).await;
        for openid in ["o-first", "o-second"] {
            let (well, answer, error) = outcome((client.command)(&gate, "ca.pem", openid)).await;
            assert!(well, "{}: {error}", client.name);
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(answer["openid"], json!(openid), "{}: {answer}", client.name);
            gate.control().revoke(DEFAULT_APPID);
        }
        assert_eq!(
            gate.control().fetches(),
            2,
            "{}: one at the start, one for the death in between",
            client.name
        );
        let calls = gate.control().requests("/cgi-bin/user/info");
        assert_eq!(calls.len(), 3, "{}: the second was sent twice", client.name);
        for call in calls {
            assert!(
                call.tls && call.token_params == 1,
                "{}: {call:?}",
                client.name
            );
            let host = call
                .headers
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case("host"))
                .expect("a host");
            assert!(
                host.1.starts_with(HOST),
                "{}: wxgate calls the host by its name too: {host:?}",
                client.name
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_may_name_wxgate_as_the_base_or_as_the_proxy_too() {
    let gate = reaching_the_host(
        setup().start_sandbox().await,
        setup(),
        tempfile::tempdir().expect("a folder"),
    )
    .await;
    let ways = [
        vec![gate.url("/cgi-bin/user/info?openid=o")],
        vec![gate.url("/@shop/cgi-bin/user/info?openid=o")],
        vec![
            "--proxy".to_owned(),
            gate.url(""),
            format!("http://{HOST}/cgi-bin/user/info?access_token=any&openid=o"),
        ],
    ];
    for way in ways {
        let mut curl = command("curl");
        curl.args(["--disable", "--silent", "--show-error", "--max-time", "30"])
            .args(&way);
        let (well, answer, error) = outcome(curl).await;
        assert!(
            well && answer.contains("\"openid\":\"o\""),
            "{way:?}: {answer}{error}"
        );
    }
    let mut tunnel = command("curl");
    tunnel.args([
        "--disable",
        "--silent",
        "--show-error",
        "--proxy",
        &gate.url(""),
        &format!("https://{HOST}/"),
    ]);
    let (well, answer, error) = outcome(tunnel).await;
    assert!(
        !well && answer.is_empty() && error.contains("CONNECT"),
        "a tunnel is refused: {answer}{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_trust_the_authority_say_nothing_to_wxgate() {
    let gate = start(setup()).await;
    gate.control().until(|control| control.fetches() == 1).await;
    for client in CLIENTS {
        let (well, answer, error) =
            outcome((client.command)(&gate, "stranger.pem", "o-user")).await;
        assert!(!well && answer.is_empty(), "{}: {answer}", client.name);
        assert!(
            error.to_lowercase().contains("certificate"),
            "{}: {error}",
            client.name
        );
    }
    let log = gate.stop().await.1;
    assert!(!log.contains("/cgi-bin/"), "no request arrived: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_another_name_the_same_certificate_is_shown_and_clients_refuse_it() {
    let gate = start(setup()).await;
    gate.control().until(|control| control.fetches() == 1).await;
    for host in [
        "mp.weixin.qq.com",
        "api.weixin.qq.com.evil.test",
        "localhost",
    ] {
        let mut curl = curl(&gate, host, "ca.pem");
        curl.arg(format!("https://{host}/cgi-bin/user/info?openid=o"));
        let (well, answer, error) = outcome(curl).await;
        assert!(!well && answer.is_empty(), "{host}: {answer}");
        assert!(
            error.contains(host) || error.contains("subject name"),
            "{host}: it is the name that is wrong: {error}"
        );
    }
    assert_eq!(
        gate.control().counters().requests,
        1,
        "nothing but the token was asked for"
    );
    // A Host that no account has says nothing about the account; the certificate was checked for
    // the name of the URL.
    let mut curl = curl(&gate, HOST, "ca.pem");
    curl.args(["--header", "Host: sh.api.weixin.qq.com"])
        .arg(format!("https://{HOST}/cgi-bin/user/info?openid=o"));
    let (well, answer, error) = outcome(curl).await;
    assert!(
        well && answer.contains("\"openid\":\"o\""),
        "{answer}{error}"
    );
}
