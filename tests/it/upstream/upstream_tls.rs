//! Certificates that must not be believed: no connection is made, and nothing of a request is ever
//! said to them, neither by the data path nor by the token call.

use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use wxgate::sandbox::DEFAULT_SECRET;

use crate::support::{
    Gate, Setup,
    fake::{Act, Call, FAKE_TOKEN, Fake, Greeting},
    header, json, setup,
    wire::Caller,
};

const INFO: &str = "/cgi-bin/user/info?openid=a";

/// An authority of the tests' own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = root.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(root, key),
        }
    }

    /// A server that shows a certificate of this authority for `localhost`, changed in one way.
    pub fn greeting(&self, change: impl FnOnce(&mut CertificateParams)) -> Greeting {
        let key = KeyPair::generate().unwrap();
        let mut leaf = leaf();
        change(&mut leaf);
        let certificate = leaf.signed_by(&key, &self.issuer).unwrap();
        greeting(vec![certificate.der().clone()], &key)
    }
}

fn leaf() -> CertificateParams {
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    leaf.distinguished_name
        .push(DnType::CommonName, "localhost");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf
}

fn greeting(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Greeting {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    // What it shows is not checked here, or the bad ones could not be shown.
    greeting_with(Arc::new(Shown {
        key: Arc::new(CertifiedKey::new(chain, signer)),
        names: Arc::default(),
    }))
}

fn greeting_with(shown: Arc<Shown>) -> Greeting {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    Greeting::Tls(TlsAcceptor::from(Arc::new(
        builder.with_no_client_auth().with_cert_resolver(shown),
    )))
}

/// Shows one certificate whatever it is asked for, and remembers by which name it was asked.
#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    names: Arc<Mutex<Vec<Option<String>>>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.names
            .lock()
            .unwrap()
            .push(hello.server_name().map(str::to_owned));
        Some(Arc::clone(&self.key))
    }
}

/// Every way to be unbelievable.
fn bad(authority: &Authority) -> Vec<(&'static str, Greeting)> {
    let self_signed = {
        let key = KeyPair::generate().unwrap();
        greeting(vec![leaf().self_signed(&key).unwrap().der().clone()], &key)
    };
    let by_a_leaf = {
        let key = KeyPair::generate().unwrap();
        let middle = leaf().signed_by(&key, &authority.issuer).unwrap();
        let (own_key, issuer) = (KeyPair::generate().unwrap(), Issuer::new(leaf(), key));
        let end = leaf().signed_by(&own_key, &issuer).unwrap();
        greeting(
            vec![
                end.der().clone(),
                middle.der().clone(),
                authority.der.clone(),
            ],
            &own_key,
        )
    };
    let another_key = {
        let (key, wrong) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        greeting(
            vec![
                leaf()
                    .signed_by(&key, &authority.issuer)
                    .unwrap()
                    .der()
                    .clone(),
            ],
            &wrong,
        )
    };
    // ServerHello in TLS 1.1, the only version that the other side could go on with.
    let mut old = vec![0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
    old.extend([7; 32]);
    old.extend([0, 0xc0, 0x13, 0]);
    vec![
        (
            "expired",
            authority.greeting(|leaf| leaf.not_after = date_time_ymd(2020, 1, 1)),
        ),
        (
            "not yet valid",
            authority.greeting(|leaf| leaf.not_before = date_time_ymd(2200, 1, 1)),
        ),
        (
            "for another host",
            authority
                .greeting(|leaf| leaf.subject_alt_names = names("api.weixin.qq.com.evil.test")),
        ),
        (
            "for another name by wildcard",
            authority.greeting(|leaf| leaf.subject_alt_names = names("*.localhost")),
        ),
        (
            "name in CN only",
            authority.greeting(|leaf| leaf.subject_alt_names.clear()),
        ),
        (
            "for clients only",
            authority.greeting(|leaf| {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
            }),
        ),
        ("self-signed", self_signed),
        ("of an unknown authority", Authority::new().greeting(|_| {})),
        ("signed by a certificate that is no authority", by_a_leaf),
        ("with another key", another_key),
        (
            "plain HTTP",
            Greeting::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".into()),
        ),
        (
            "truncated handshake",
            Greeting::Bytes(vec![0x16, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3, 1, 2, 3]),
        ),
        ("hung up at once", Greeting::Bytes(Vec::new())),
        ("TLS 1.1 only", Greeting::Bytes(old)),
        (
            "protocol_version alert",
            Greeting::Bytes(vec![0x15, 3, 1, 0, 2, 2, 70]),
        ),
    ]
}

fn names(name: &str) -> Vec<rcgen::SanType> {
    vec![rcgen::SanType::DnsName(name.try_into().unwrap())]
}

async fn start(setup: Setup, authority: &Authority, fake: &Fake) -> Gate {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own.pem"), &authority.pem).unwrap();
    let sandbox = wxgate::sandbox::start(wxgate::sandbox::SandboxSettings::default())
        .await
        .unwrap();
    let api = format!("api = [\"https://localhost:{}\"]", fake.address.port());
    setup
        .set("upstream", "ca_file = \"own.pem\"")
        .account(&api)
        .start_in(sandbox, folder)
        .await
}

async fn fake(greeting: Greeting) -> Fake {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    // Closed each time, so that every call shakes hands anew.
    Fake::start_at("127.0.0.1:0", greeting, move |_| Act::Close(answer.into())).await
}

#[track_caller]
fn assert_nothing_said(fake: &Fake, before: usize, case: &str) {
    assert_eq!(
        fake.seen.plaintext(),
        before,
        "{case}: something was said after the handshake"
    );
    let raw = String::from_utf8_lossy(&fake.seen.raw()).into_owned();
    for word in [
        "HTTP/1.1",
        "GET ",
        "POST ",
        "access_token",
        FAKE_TOKEN,
        DEFAULT_SECRET,
    ] {
        assert!(!raw.contains(word), "{case}: {word} was sent in the clear");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_made_to_a_host_that_cannot_prove_who_it_is() {
    let authority = Authority::new();
    let fake = fake(authority.greeting(|_| {})).await;
    let gate = start(setup(), &authority, &fake).await;
    gate.warm().await;
    let bad = bad(&authority);
    assert!(bad.len() >= 12);
    for (case, greeting) in bad {
        fake.greet(greeting);
        let (before, connections) = (fake.seen.plaintext(), fake.seen.connections());
        for post in [false, true] {
            let answer = if post {
                gate.send_message("u").send().await.unwrap()
            } else {
                gate.get(INFO).await
            };
            let slug = header(&answer, "x-wxgate-error");
            assert_eq!(
                (answer.status().as_u16(), slug.as_str()),
                (502, "upstream_failed"),
                "{case}"
            );
            let message = json(answer).await["errmsg"].as_str().unwrap().to_owned();
            assert!(
                message.contains("TLS")
                    && !message.contains(FAKE_TOKEN)
                    && !message.contains("://"),
                "{message}"
            );
        }
        fake.seen.until(|seen| seen.open() == 0).await;
        assert!(
            fake.seen.connections() > connections,
            "{case}: it was tried"
        );
        assert_nothing_said(&fake, before, case);
    }
    // It was the certificates.
    fake.greet(authority.greeting(|_| {}));
    gate.warm().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_sent_to_a_host_that_cannot_prove_who_it_is() {
    let authority = Authority::new();
    for (case, greeting) in bad(&authority) {
        let fake = fake(greeting).await;
        let gate = start(setup().set("token", "wait = \"500ms\""), &authority, &fake).await;
        let answer = gate.get(INFO).await;
        let slug = header(&answer, "x-wxgate-error");
        assert_eq!(
            (answer.status().as_u16(), slug.as_str()),
            (503, "token_unavailable"),
            "{case}"
        );
        assert_ne!(header(&answer, "retry-after"), "", "{case}");
        let message = json(answer).await["errmsg"].as_str().unwrap().to_owned();
        assert!(
            !message.contains(DEFAULT_SECRET) && !message.contains("://"),
            "{case}: {message}"
        );
        fake.seen.until(|seen| seen.connections() > 0).await;
        assert_nothing_said(&fake, 0, case);
        assert_eq!(fake.seen.token_calls(), 0, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_named_in_the_handshake() {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let certificate = leaf()
        .signed_by(&key, &authority.issuer)
        .unwrap()
        .der()
        .clone();
    let signer = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&signer).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shown = Shown {
        key: Arc::new(CertifiedKey::new(vec![certificate], signer)),
        names: Arc::clone(&asked),
    };
    let fake = fake(greeting_with(Arc::new(shown))).await;
    let gate = start(setup(), &authority, &fake).await;
    gate.warm().await;
    let asked = asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [Some("localhost".to_owned()), Some("localhost".to_owned())],
        "token call and proxied call"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_ends_only_with_the_farewell_of_tls() {
    let authority = Authority::new();
    for length in [5, 200_000] {
        let answer = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; length]].concat();
        for whole in [true, false] {
            let answer = answer.clone();
            let act = move |_: &Call| {
                if whole {
                    Act::Close(answer.clone())
                } else {
                    Act::Drop(answer.clone())
                }
            };
            let fake = Fake::start_at("127.0.0.1:0", authority.greeting(|_| {}), act).await;
            let gate = start(setup(), &authority, &fake).await;
            let mut caller = Caller::connect(gate.proxy).await;
            let get = format!("GET {INFO} HTTP/1.1\r\nHost: a\r\n\r\n");
            caller.write(get).await;
            let reply = caller.reply(false).await;
            let came = reply.as_ref().is_some_and(|reply| {
                reply.status == 200 && reply.whole && reply.body.len() == length
            });
            assert_eq!(
                came,
                whole,
                "{length}: {:?}",
                reply.map(|reply| reply.headers)
            );
        }
    }
}
