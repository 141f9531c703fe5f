//! API signing by the whole proxy, against the sandbox's own statement of the protocol and against
//! answers that a third one, here, seals.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand::SystemRandom,
    signature::{RSA_PSS_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use reqwest::{Body, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use wxgate::sandbox::{
    self, ApiSigning, DEFAULT_APPID, Fault, RecordedRequest, Rule, Sandbox, SandboxSettings,
};

use crate::support::{
    Gate, Setup, client, header, json,
    program::{Program, serve},
    setup,
};

const PATH: &str = "/cgi-bin/express/intracity/addorder";
const MESSAGE: &str = "/cgi-bin/message/custom/send";
const AES: [u8; 32] = [9; 32];
const AES_SERIAL: &str = "5e1f0a2b";
const SERIAL: &str = "0f1e2d3c";
const NEXT_SERIAL: &str = "1a2b3c4d";

/// Keys on both sides, as files in a folder.
struct Keys {
    own: KeyPair,
    platform: KeyPair,
    folder: TempDir,
}

fn rsa() -> KeyPair {
    KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key")
}

fn certificate(key: &KeyPair) -> String {
    let cert = CertificateParams::default().self_signed(key);
    cert.expect("a certificate").pem()
}

/// The key in the account, with these numbers of the files `cert.pem` and `next.pem`.
fn signing(certs: &[(&str, &str)]) -> String {
    let cert = |(file, serial): &(&str, &str)| {
        format!("{{ cert = {{ file = \"{file}\" }}, serial = \"{serial}\" }}")
    };
    let certs: Vec<String> = certs.iter().map(cert).collect();
    format!(
        "signing = {{ key = {{ file = \"key.pem\" }}, serial = \"a1b2\", aes_key = {{ file = \"aes.key\" }}, \
         aes_serial = \"{AES_SERIAL}\", platform_certs = [{}], \
         paths = [\"/cgi-bin/express/intracity/**\", \"{MESSAGE}\"] }}",
        certs.join(", ")
    )
}

impl Keys {
    fn new() -> Self {
        let (own, platform) = (rsa(), rsa());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write("key.pem", &own.serialize_pem());
        write("aes.key", &format!("{}\n", STANDARD.encode(AES)));
        write("cert.pem", &certificate(&platform));
        write("next.pem", &certificate(&rsa()));
        Self {
            own,
            platform,
            folder,
        }
    }

    async fn sandbox(&self) -> Sandbox {
        let sandbox = sandbox::start(SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        sandbox.control().sign_api(
            DEFAULT_APPID,
            ApiSigning {
                paths: vec![PATH.to_owned(), MESSAGE.to_owned()],
                public_key: self.own.subject_public_key_info(),
                aes_key: AES,
                aes_serial: AES_SERIAL.to_owned(),
                platform_key: self.platform.serialize_der(),
                platform_serial: SERIAL.to_owned(),
            },
        );
        sandbox
    }

    /// Seals an answer as WeChat would.
    fn seal(&self, content: Value, timestamp: u64) -> sandbox::Response {
        let url = format!("https://api.weixin.qq.com{PATH}");
        let mut content = content;
        content["_n"] = json!("bm9uY2U");
        content["_appid"] = json!(DEFAULT_APPID);
        content["_timestamp"] = json!(timestamp);
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &AES).expect("a key"));
        let aad = Aad::from(format!("{url}|{DEFAULT_APPID}|{timestamp}|{AES_SERIAL}"));
        let mut data = content.to_string().into_bytes();
        let iv = [3; 12];
        let tag = cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut data)
            .expect("sealed");
        let body = json!({"iv": STANDARD.encode(iv), "data": STANDARD.encode(&data),
                          "authtag": STANDARD.encode(tag)})
        .to_string();
        let text = format!("{url}\n{DEFAULT_APPID}\n{timestamp}\n{body}");
        let key = RsaKeyPair::from_pkcs8(&self.platform.serialize_der()).expect("a key");
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PSS_SHA256,
            &SystemRandom::new(),
            text.as_bytes(),
            &mut signature,
        )
        .expect("signed");
        let headers = [
            ("Wechatmp-Appid", DEFAULT_APPID.to_owned()),
            ("Wechatmp-TimeStamp", timestamp.to_string()),
            ("Wechatmp-Serial", SERIAL.to_owned()),
            ("Wechatmp-Signature", STANDARD.encode(signature)),
        ];
        sandbox::Response {
            content_type: "application/json".to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
            body,
            ..sandbox::Response::default()
        }
    }
}

/// A gate whose account signs, in front of a sandbox that wants it.
async fn gate_with(keys: Keys, certs: &[(&str, &str)]) -> (Gate, Keys) {
    let sandbox = keys.sandbox().await;
    let Keys {
        own,
        platform,
        folder,
    } = keys;
    let spare = tempfile::tempdir().expect("a temporary folder");
    let gate = setup()
        .account(&signing(certs))
        .start_in(sandbox, folder)
        .await;
    let keys = Keys {
        own,
        platform,
        folder: spare,
    };
    (gate, keys)
}

async fn gate() -> (Gate, Keys) {
    gate_with(Keys::new(), &[("cert.pem", SERIAL)]).await
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

async fn send(request: reqwest::RequestBuilder) -> Response {
    request.send().await.expect("the proxy answers")
}

async fn order(gate: &Gate) -> Response {
    send(gate.post(PATH).json(&json!({"cargo": "lamp"}))).await
}

fn sent(gate: &Gate, path: &str) -> Vec<RecordedRequest> {
    gate.control().requests(path)
}

fn field<'r>(request: &'r RecordedRequest, name: &str) -> Option<&'r str> {
    let mut fields = request.headers.iter();
    fields
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn answer_with(gate: &Gate, response: sandbox::Response) {
    gate.control()
        .fault(Rule::new(PATH, Fault::Respond(response)).times(1));
}

async fn counted(gate: &Gate, result: &str) -> u64 {
    let page = gate.client.get(gate.admin_url("/metrics")).send().await;
    let page = page.expect("an answer").text().await.expect("text");
    let start = format!("wxgate_api_signing_total{{account=\"shop\",result=\"{result}\"}} ");
    page.lines()
        .find_map(|line| line.strip_prefix(&start))
        .map_or(0, |count| count.parse().expect("a number"))
}

/// Checks that an answer of WeChat was not passed on, and that the reason says this.
async fn assert_refused(answer: Response, part: &str) {
    assert_eq!(answer.status(), 502);
    assert_eq!(header(&answer, "x-wxgate-error"), "upstream_failed");
    assert_eq!(header(&answer, "wechatmp-signature"), "");
    let body = json(answer).await;
    let text = body["errmsg"].as_str().expect("text");
    assert!(text.contains(part), "{text} lacks {part}");
    assert!(
        !text.contains("lamp") && !text.contains("https://"),
        "{text}"
    );
}

#[tokio::test]
async fn a_caller_sends_plain_json_and_gets_plain_json() {
    let (gate, _) = gate().await;
    let message = json!({"touser": "o1", "msgtype": "text", "text": {"content": "hello"}});
    let answer = send(
        gate.post(&format!("{MESSAGE}?lang=zh%5FCN&x"))
            .header("Accept-Encoding", "gzip")
            .json(&message),
    )
    .await;
    assert_eq!(answer.status(), 200);
    assert!(header(&answer, "content-type").starts_with("application/json"));
    let signature_headers = answer
        .headers()
        .keys()
        .filter(|name| name.as_str().starts_with("wechatmp-"));
    assert_eq!(signature_headers.count(), 0);
    let length: usize = header(&answer, "content-length").parse().expect("a number");
    let text = answer.text().await.expect("a body");
    assert_eq!(
        (length, &*text),
        (text.len(), r#"{"errcode":0,"errmsg":"ok"}"#)
    );
    assert_eq!(gate.control().delivered_to("o1"), 1);
    let sent = sent(&gate, MESSAGE);
    let [call] = &sent[..] else {
        panic!("{} calls", sent.len())
    };
    let query = call.query.as_deref().unwrap_or_default();
    assert!(
        query.starts_with("access_token=") && !query.contains('&'),
        "{query}"
    );
    let body: Value = serde_json::from_slice(&call.body).expect("JSON");
    let names: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["iv", "data", "authtag"]);
    assert_eq!(field(call, "wechatmp-appid"), Some(DEFAULT_APPID));
    assert_eq!(field(call, "wechatmp-serial"), None);
    assert_eq!(field(call, "content-type"), Some("application/json"));
    assert_eq!(field(call, "accept-encoding"), None);
    assert_eq!(counted(&gate, "signed").await, 1);
}

#[tokio::test]
async fn json_is_signed_in_every_form_that_programs_send_it() {
    let (gate, _) = gate().await;
    let large = format!("{{\"cargo\":\"{}\"}}", "x".repeat(900_000));
    for (kind, body) in [
        ("application/json; charset=utf-8", "{\"a\":1}"),
        ("text/plain", "{\"a\":1}"),
        ("application/x-www-form-urlencoded", " {\"a\":1.50}\n"),
        ("application/json", ""),
        ("application/json", &*large),
    ] {
        let answer = send(
            gate.post(PATH)
                .header("Content-Type", kind)
                .body(body.to_owned()),
        )
        .await;
        assert_eq!(json(answer).await["errcode"], 0, "{kind}");
    }
    assert_eq!(json(send(gate.post(PATH)).await).await["errcode"], 0);
    let pieces =
        ["{\"a\"", ":1}"].map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
    let chunked = Body::wrap(StreamBody::new(stream::iter(pieces)));
    let answer = send(gate.post(PATH).body(chunked)).await;
    assert_eq!(json(answer).await["errcode"], 0);
    assert_eq!(counted(&gate, "signed").await, 7);
}

#[tokio::test]
async fn a_replay_is_sealed_and_signed_anew() {
    let (gate, _) = gate().await;
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    let answer = order(&gate).await;
    assert_eq!(header(&answer, "x-wxgate-attempts"), "2");
    assert_eq!(json(answer).await["errcode"], 0);
    let sent = sent(&gate, PATH);
    let [first, second] = &sent[..] else {
        panic!("{} calls", sent.len())
    };
    assert!(first.body != second.body && first.query != second.query);
    let signature = |call| field(call, "wechatmp-signature").map(str::to_owned);
    assert_ne!(signature(first), signature(second));
    assert_eq!(counted(&gate, "refused").await, 1);
}

#[tokio::test]
async fn a_stale_token_inside_the_envelope_is_cured() {
    let (gate, keys) = gate().await;
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    let stale = json!({"errcode": 42001, "errmsg": "access_token expired"});
    answer_with(&gate, keys.seal(stale, now()));
    let answer = order(&gate).await;
    assert_eq!(header(&answer, "x-wxgate-attempts"), "2");
    assert_eq!(json(answer).await, json!({"errcode": 0, "errmsg": "ok"}));
    assert_eq!(counted(&gate, "signed").await, 2);
    let page = gate.client.get(gate.admin_url("/metrics")).send().await;
    let page = page.expect("an answer").text().await.expect("text");
    let line = "wxgate_upstream_errcode_total{account=\"shop\",errcode=\"42001\"} 1";
    assert!(page.contains(line), "{page}");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_never_passed_on() {
    let (gate, keys) = gate().await;
    let good = || keys.seal(json!({"errcode": 0, "cargo": "lamp"}), now());
    let with = |name: &str, value: Option<&str>| {
        let mut response = good();
        response.headers.retain(|(known, _)| known != name);
        if let Some(value) = value {
            response.headers.push((name.to_owned(), value.to_owned()));
        }
        response
    };
    let plain = |status, body: &str| sandbox::Response {
        status,
        headers: Vec::new(),
        body: body.to_owned(),
        ..good()
    };
    let changed = sandbox::Response {
        body: good().body.replacen("data\":\"", "data\":\"A", 1),
        ..good()
    };
    let cases = [
        (changed, "the signature of WeChat's answer does not fit"),
        (
            with("Wechatmp-Serial", Some("99aa")),
            "platform certificate 99aa, which signing.platform_certs does not have",
        ),
        (
            keys.seal(json!({"errcode": 0}), now() - 600),
            "seconds old, and 300 are allowed; check this machine's clock",
        ),
        (
            keys.seal(json!({"errcode": 0}), now() + 600),
            "seconds ahead; check this machine's clock",
        ),
        (
            with("Wechatmp-Appid", Some("wx9999999999999999")),
            "another appid",
        ),
        (
            with("Wechatmp-Appid", None),
            "lacks the header wechatmp-appid",
        ),
        (
            with("Wechatmp-Signature", None),
            "WeChat's answer to a signed call is not signed",
        ),
        (
            plain(200, r#"{"errcode":0,"cargo":"lamp"}"#),
            "is not signed",
        ),
        (plain(200, r#"{"cargo":"lamp"}"#), "is not signed"),
        (plain(502, "<html>Bad Gateway</html>"), "is not signed"),
        (
            sandbox::Response {
                pad_to: 5 << 20,
                ..good()
            },
            "longer than 4 MiB",
        ),
    ];
    let count = cases.len() as u64;
    for (response, part) in cases {
        answer_with(&gate, response);
        assert_refused(order(&gate).await, part).await;
    }
    assert_eq!(counted(&gate, "unverified").await, count);
    // A stale code that nobody has signed to is no reason for a second attempt where a signature
    // is there and does not fit.
    let mut stale = plain(200, r#"{"errcode":40001,"errmsg":"x"}"#);
    stale.headers = good().headers;
    answer_with(&gate, stale);
    let answer = order(&gate).await;
    assert_eq!(header(&answer, "x-wxgate-attempts"), "1");
    assert_refused(answer, "does not fit").await;
    // The account goes on.
    assert_eq!(json(order(&gate).await).await["errcode"], 0);
}

#[tokio::test]
async fn wrong_keys_have_sentences_of_their_own() {
    // Another certificate under the right number.
    let (gate, _) = gate_with(Keys::new(), &[("next.pem", SERIAL)]).await;
    assert_refused(
        order(&gate).await,
        "the certificate under this number is another one",
    )
    .await;
    // Neither certificate has the number.
    let certs = [("cert.pem", "77"), ("next.pem", NEXT_SERIAL)];
    let (gate, _) = gate_with(Keys::new(), &certs).await;
    assert_refused(order(&gate).await, "download it at WeChat under API 安全").await;
    // Another symmetric key: WeChat cannot open the call, and says so in plain text.
    let keys = Keys::new();
    std::fs::write(keys.folder.path().join("aes.key"), STANDARD.encode([8; 32])).expect("written");
    let (gate, keys) = gate_with(keys, &[("cert.pem", SERIAL)]).await;
    assert_eq!(json(order(&gate).await).await["errcode"], 40235);
    // And what it seals cannot be opened here.
    answer_with(&gate, keys.seal(json!({"errcode": 0}), now()));
    assert_refused(order(&gate).await, "compare signing.aes_key").await;
    // Another private key.
    let keys = Keys::new();
    std::fs::write(keys.folder.path().join("key.pem"), rsa().serialize_pem()).expect("written");
    let (gate, _) = gate_with(keys, &[("cert.pem", SERIAL)]).await;
    assert_eq!(json(order(&gate).await).await["errcode"], 40234);
}

#[tokio::test]
async fn both_certificates_count_while_wechat_changes_them() {
    let certs = [("next.pem", NEXT_SERIAL), ("cert.pem", SERIAL)];
    let (gate, keys) = gate_with(Keys::new(), &certs).await;
    assert_eq!(json(order(&gate).await).await["errcode"], 0);
    // WeChat signs with a certificate that is not known yet, and with the old one besides.
    let sealed = keys.seal(json!({"errcode": 0, "rank": 1}), now());
    let of = |name: &str| {
        let mut all = sealed.headers.iter();
        all.find(|(known, _)| known == name)
            .expect("there")
            .1
            .clone()
    };
    let headers = [
        ("Wechatmp-Appid", of("Wechatmp-Appid")),
        ("Wechatmp-TimeStamp", of("Wechatmp-TimeStamp")),
        ("Wechatmp-Serial", "ffff".to_owned()),
        ("Wechatmp-Signature", "AAAA".to_owned()),
        ("Wechatmp-Serial-Deprecated", SERIAL.to_owned()),
        ("Wechatmp-Signature-Deprecated", of("Wechatmp-Signature")),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
    answer_with(&gate, sandbox::Response { headers, ..sealed });
    let answer = order(&gate).await;
    assert_eq!(header(&answer, "wechatmp-serial-deprecated"), "");
    assert_eq!(json(answer).await, json!({"errcode": 0, "rank": 1}));
}

#[tokio::test]
async fn a_refusal_in_plain_text_is_passed_on() {
    let (gate, _) = gate().await;
    for gzip in [false, true] {
        let refusal = r#"{"errcode":45009,"errmsg":"reach max api daily quota limit rid: 1"}"#;
        let response = sandbox::Response {
            content_type: "text/plain".to_owned(),
            body: refusal.to_owned(),
            gzip,
            ..sandbox::Response::default()
        };
        answer_with(&gate, response);
        let answer = order(&gate).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "content-encoding"), "");
        assert_eq!(answer.text().await.expect("a body"), refusal);
    }
    assert_eq!(counted(&gate, "refused").await, 2);
    // Clocks that are ten minutes apart: WeChat refuses the call, and nothing is executed.
    gate.control().advance(Duration::from_secs(600));
    let answer = send(gate.send_message("o2")).await;
    assert_eq!(json(answer).await["errcode"], 40240);
    assert_eq!(gate.control().delivered_to("o2"), 0);
}

#[tokio::test]
async fn a_caller_with_keys_of_its_own_is_left_alone() {
    let (gate, keys) = gate().await;
    let sealed = keys.seal(json!({"errcode": 0}), now());
    answer_with(&gate, sealed.clone());
    let body = r#"{"iv":"a","data":"b","authtag":"c"}"#;
    let request = gate
        .post(&format!("{PATH}?env=test"))
        .header("Content-Type", "application/json")
        .header("Wechatmp-Appid", DEFAULT_APPID)
        .header("Wechatmp-TimeStamp", "1764288000")
        .header("Wechatmp-Signature", "of-the-caller")
        .body(body);
    let answer = send(request).await;
    assert_eq!(header(&answer, "wechatmp-serial"), SERIAL);
    assert_eq!(answer.text().await.expect("a body"), sealed.body);
    let sent = sent(&gate, PATH);
    assert_eq!(sent[0].body, body.as_bytes());
    assert!(
        sent[0]
            .query
            .as_deref()
            .unwrap_or_default()
            .ends_with("&env=test")
    );
    assert_eq!(field(&sent[0], "wechatmp-signature"), Some("of-the-caller"));
    assert_eq!(field(&sent[0], "wechatmp-timestamp"), Some("1764288000"));
    assert_eq!(counted(&gate, "by_caller").await, 1);
}

#[tokio::test]
async fn other_methods_and_types_go_unsigned_and_are_counted() {
    let (gate, _) = gate().await;
    let answer = gate.get(&format!("{PATH}?a=1")).await;
    assert_eq!(json(answer).await["errcode"], 0);
    let sent_as_get = sent(&gate, PATH);
    assert_eq!(field(&sent_as_get[0], "wechatmp-signature"), None);
    assert_eq!(counted(&gate, "unsigned_method").await, 1);
    let upload = vec![7; 2 << 20];
    for (kind, body) in [
        ("application/json", b"[1]".to_vec()),
        ("application/json", b"{\"a\":1".to_vec()),
        ("application/x-www-form-urlencoded", b"a=1".to_vec()),
        ("multipart/form-data; boundary=b", upload),
        ("application/octet-stream", b"{}".to_vec()),
    ] {
        let request = gate
            .post(PATH)
            .header("Content-Type", kind)
            .body(body.clone());
        // The sandbox wants these signed.
        assert_eq!(json(send(request).await).await["errcode"], 40233, "{kind}");
        let last = sent(&gate, PATH).pop().expect("sent");
        assert_eq!(last.body_length, body.len() as u64, "{kind}");
        assert_eq!(field(&last, "content-type"), Some(kind));
    }
    assert_eq!(counted(&gate, "unsigned_type").await, 5);
    // Paths outside signing.paths have nothing to do with it.
    gate.warm().await;
    assert_eq!(counted(&gate, "signed").await, 0);
}

#[tokio::test]
async fn what_cannot_be_signed_is_refused_before_anything_is_sent() {
    let (gate, _) = gate().await;
    let large = format!("{{\"cargo\":\"{}\"}}", "x".repeat(1 << 20));
    let request = gate.post(PATH).header("Content-Type", "application/json");
    let answer = send(request.body(large)).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(header(&answer, "x-wxgate-error"), "body_too_large");
    assert_eq!(header(&answer, "x-wxgate-sent"), "no");
    let text = answer.text().await.expect("a body");
    assert!(
        text.contains("1 MiB") && text.contains("signing.paths"),
        "{text}"
    );
    for (target, body) in [
        (PATH.to_owned(), json!({"_timestamp": 1})),
        (format!("{PATH}?_%61ppid=x"), json!({})),
    ] {
        let answer = send(gate.post(&target).json(&body)).await;
        assert_eq!(answer.status(), 400);
        assert_eq!(header(&answer, "x-wxgate-sent"), "no");
        let text = answer.text().await.expect("a body");
        assert!(text.contains("which API signing uses itself"), "{text}");
    }
    assert_eq!(sent(&gate, PATH).len(), 0);
}

#[tokio::test]
async fn bodies_are_signed_from_the_disk_too() {
    let keys = Keys::new();
    let sandbox = keys.sandbox().await;
    let gate = setup()
        .set("replay", "memory = \"1KiB\"")
        .account(&signing(&[("cert.pem", SERIAL)]))
        .start_in(sandbox, keys.folder)
        .await;
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    let cargo = "x".repeat(500_000);
    let answer = send(gate.post(PATH).json(&json!({"cargo": cargo}))).await;
    assert_eq!(header(&answer, "x-wxgate-attempts"), "2");
    assert_eq!(json(answer).await["errcode"], 0);
}

#[tokio::test]
async fn a_reload_brings_other_keys_and_paths_into_force() {
    let (gate, _) = gate().await;
    assert_eq!(json(order(&gate).await).await["errcode"], 0);
    let file = gate.file();
    // The next certificate alone, under the number of the first.
    let other = file.replace("\"cert.pem\"", "\"next.pem\"");
    assert_eq!(gate.reload(&other).await.status(), 200);
    assert_refused(order(&gate).await, "does not fit").await;
    let lines = file.lines().filter(|line| !line.starts_with("signing"));
    let without: String = lines.map(|line| format!("{line}\n")).collect();
    assert_eq!(gate.reload(&without).await.status(), 200);
    assert_eq!(json(order(&gate).await).await["errcode"], 40233);
    let broken = file.replace("\"cert.pem\"", "\"key.pem\"");
    let answer = gate.reload(&broken).await;
    assert_ne!(answer.status(), 200);
    let text = answer.text().await.expect("a body");
    assert!(text.contains("platform_certs[0].cert"), "{text}");
    assert_eq!(gate.reload(&file).await.status(), 200);
    assert_eq!(json(order(&gate).await).await["errcode"], 0);
}

#[test]
fn keys_come_from_the_environment_and_from_the_file_itself() {
    let key = rsa();
    let cert = certificate(&key);
    let environment = BTreeMap::from([
        ("SIGN_KEY".to_owned(), key.serialize_pem()),
        ("AES_KEY".to_owned(), STANDARD.encode(AES)),
        ("SECRET".to_owned(), "0123456789abcdef".repeat(2)),
    ]);
    let file = |signing: &str| {
        format!(
            "[[account]]\nname = \"shop\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ env = \"SECRET\" }}\n\
             [account.signing]\n{signing}\nkey = {{ env = \"SIGN_KEY\" }}\naes_key = {{ env = \"AES_KEY\" }}\n\
             aes_serial = \"5e\"\npaths = [\"/cgi-bin/*/send\"]\n\
             [[account.signing.platform_certs]]\ncert = {{ value = \"\"\"{cert}\"\"\" }}\nserial = \"0f\"\n"
        )
    };
    let parse = |signing: &str| {
        wxgate::config::parse(&file(signing), Path::new("/"), "wxgate.toml", &environment)
    };
    let config = parse("serial = \"a1\"").unwrap_or_else(|problems| panic!("{problems}"));
    // A certificate is public, so its text in the file is nothing to warn of.
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shown = format!("{config:?}");
    assert!(!shown.contains(&STANDARD.encode(AES)), "{shown}");
    let problems = parse("serial = 7").unwrap_err().to_string();
    assert!(problems.contains("account[0].signing.serial"), "{problems}");
}

/// Runs the program in the folder of the keys.
fn program(keys: &Keys, sandbox: &Sandbox, setup: &Setup) -> Program {
    let folder = keys.folder.path();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write("root.pem", sandbox.ca_pem());
    write("wxgate.toml", &setup.file(sandbox));
    Program::start(&mut serve(folder))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_explains_what_an_operator_has_to_do() {
    let keys = Keys::new();
    let sandbox = keys.sandbox().await;
    // Without the key in the account: WeChat's refusal says little by itself.
    let unsigned = program(&keys, &sandbox, &setup());
    let (client, call) = (client(), json!({"cargo": "lamp"}));
    let post = async |program: &Program| {
        let url = format!("http://{}{PATH}", program.proxy());
        client
            .post(url)
            .json(&call)
            .send()
            .await
            .expect("an answer")
    };
    assert_eq!(json(post(&unsigned).await).await["errcode"], 40233);
    let line = unsigned.logged("add the path to the account's signing.paths");
    assert!(line.contains("WARN") && line.contains("40233"), "{line}");
    assert_eq!(json(post(&unsigned).await).await["errcode"], 40233);
    let ended = unsigned.stop();
    assert_eq!(
        ended.stderr.matches("signing.paths").count(),
        1,
        "once a minute"
    );
    // With the wrong private key.
    std::fs::write(keys.folder.path().join("key.pem"), rsa().serialize_pem()).expect("written");
    let setup = setup().account(&signing(&[("cert.pem", SERIAL)]));
    let signed = program(&keys, &sandbox, &setup);
    assert_eq!(json(post(&signed).await).await["errcode"], 40234);
    let line = signed.logged("the private key does not belong to the public key");
    assert!(line.contains("a1b2") && line.contains(AES_SERIAL), "{line}");
    for _ in 0..3 {
        let url = format!("http://{}{PATH}", signed.proxy());
        client.get(url).send().await.expect("an answer");
    }
    let line = signed.logged("goes to WeChat unsigned: only POST can be signed");
    assert!(line.contains("GET") && line.contains(PATH), "{line}");
    let ended = signed.stop();
    assert_eq!(ended.status, Some(0));
    assert_eq!(
        ended.stderr.matches("goes to WeChat unsigned").count(),
        1,
        "once a minute"
    );
}
