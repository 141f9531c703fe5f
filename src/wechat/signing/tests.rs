use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

use super::{error::explain, *};

const URL: &str = "https://api.weixin.qq.com/wxa/business/getuserphonenumber";
const APP: &str = "wx0123456789abcdef";
/// Time at which the answer of the vectors was signed.
const SIGNED: u64 = 1_764_288_001;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/wechat/vectors.json")).unwrap()
}

fn text<'v>(vectors: &'v Value, pointer: &str) -> &'v str {
    vectors
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no {pointer}"))
}

fn pem(label: &str, base64: &str) -> Vec<u8> {
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
    .into_bytes()
}

/// Certificates of the vectors: `new` and `old`.
fn certs(vectors: &Value, which: &[&str]) -> Vec<(String, Vec<u8>)> {
    which
        .iter()
        .map(|which| {
            let at = format!("/S2_response/platform_cert_{which}");
            let serial = text(vectors, &format!("{at}/sn")).to_owned();
            let cert = pem("CERTIFICATE", text(vectors, &format!("{at}/cert_der_b64")));
            (serial, cert)
        })
        .collect()
}

fn keys_with(which: &[&str]) -> SigningKeys {
    let vectors = vectors();
    let request = |name: &str| text(&vectors, &format!("/S1_request_rsa_aes/{name}")).to_owned();
    SigningKeys::new(
        APP,
        KeyTexts {
            private_key: &pem("PRIVATE KEY", &request("private_key_pkcs8_der_b64")),
            aes_key: &request("symmetric_key_b64"),
            aes_serial: &request("symmetric_sn"),
            platform_certs: &certs(&vectors, which),
        },
    )
    .unwrap()
}

fn keys() -> SigningKeys {
    keys_with(&["new"])
}

/// Headers and body of the answer of this name.
fn answer(vectors: &Value, name: &str) -> (Vec<(String, String)>, String) {
    let at = format!("/S2_response/{name}");
    let headers = vectors
        .pointer(&format!("{at}/headers"))
        .unwrap()
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| {
            (
                name.to_ascii_lowercase(),
                value.as_str().unwrap().to_owned(),
            )
        })
        .collect();
    (headers, text(vectors, &format!("{at}/body")).to_owned())
}

fn headers(all: &[(String, String)]) -> AnswerHeaders<'_> {
    let find = |name: &str| {
        all.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    AnswerHeaders {
        appid: find(APPID),
        timestamp: find(TIMESTAMP),
        serial: find(SERIAL),
        signature: find(SIGNATURE),
        serial_deprecated: find(SERIAL_DEPRECATED),
        signature_deprecated: find(SIGNATURE_DEPRECATED),
    }
}

fn verify(vectors: &Value, signed_text: &[u8], signature: &str) -> bool {
    let key = text(vectors, "/S1_request_rsa_aes/public_key_spki_der_b64");
    let key = STANDARD.decode(key).unwrap();
    let signature = STANDARD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key)
        .verify(signed_text, &signature)
        .is_ok()
}

#[test]
fn the_envelope_of_a_request_is_that_of_the_vector() {
    let vectors = vectors();
    let request = |name: &str| text(&vectors, &format!("/S1_request_rsa_aes/{name}"));
    let keys = keys();
    let iv = STANDARD.decode(request("iv_b64")).unwrap();
    let time = 1_764_288_000;
    let aad = keys.additional_data(URL, time);
    assert_eq!(aad.as_ref(), request("aad").as_bytes());
    let content = request("plaintext").as_bytes().to_vec();
    let body = keys
        .seal(URL, time, iv.try_into().unwrap(), content)
        .unwrap();
    assert_eq!(body, request("body"));
    let signed_text = keys.signed_text(URL, time, body.as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &signed_text);
    let expected = request("signed_text_sha256");
    let bytes = (0..expected.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&expected[at..at + 2], 16).unwrap());
    assert!(bytes.eq(digest.as_ref().iter().copied()));
    assert!(verify(
        &vectors,
        &signed_text,
        request("signature_example_b64")
    ));
}

#[test]
fn a_call_is_signed_so_that_its_public_key_fits_and_holds_what_the_caller_sent() {
    let vectors = vectors();
    let keys = keys();
    let parameters = [
        ("env".into(), "a\"b".into()),
        ("code".into(), "lost".into()),
    ];
    let body = br#" { "code" : "c", "big":123456789012345678901234567890, "e":1.50 } "#;
    let signed = keys.sign(URL, &parameters, body, SIGNED).unwrap();
    let signed_text = keys.signed_text(URL, SIGNED, signed.body.as_bytes());
    assert!(verify(&vectors, &signed_text, &signed.signature));
    let content = keys.unseal(URL, SIGNED, signed.body.as_bytes()).unwrap();
    let content_text = String::from_utf8(content.clone()).unwrap();
    assert!(
        content_text.ends_with(
            r#","env":"a\"b","code" : "c","big":123456789012345678901234567890,"e":1.50}"#
        ),
        "{content_text}"
    );
    let value: Value = serde_json::from_slice(&content).unwrap();
    assert_eq!(
        (&value["_appid"], &value["_timestamp"]),
        (&json!(APP), &json!(SIGNED))
    );
    let nonce = value["_n"].as_str().unwrap();
    assert_eq!(STANDARD.decode(nonce).unwrap().len(), 16);
    // Nothing of a call is used twice.
    let again = keys.sign(URL, &parameters, body, SIGNED).unwrap();
    assert!(again.body != signed.body && again.signature != signed.signature);
    for bad in [
        keys.signed_text(&URL.replace("https://", ""), SIGNED, signed.body.as_bytes()),
        keys.signed_text(URL, SIGNED + 1, signed.body.as_bytes()),
        [&signed_text[..], b"\n"].concat(),
    ] {
        assert!(!verify(&vectors, &bad, &signed.signature));
    }
}

#[test]
fn only_json_objects_without_the_names_of_the_envelope_are_signed() {
    let keys = keys();
    let sign = |parameters: &[(Cow<'_, str>, Cow<'_, str>)], body: &[u8]| {
        keys.sign(URL, parameters, body, SIGNED).map(|signed| {
            let content = keys.unseal(URL, SIGNED, signed.body.as_bytes()).unwrap();
            serde_json::from_slice::<Value>(&content)
                .unwrap()
                .as_object()
                .unwrap()
                .len()
        })
    };
    for (body, right) in [
        (&b""[..], Ok(3)),
        (b" {} ", Ok(3)),
        (b"{\"a\":{\"_n\":1}}", Ok(4)),
        (b"[]", Err(SignError::NotAnObject)),
        (b"{\"a\":1", Err(SignError::NotAnObject)),
        (b"{\"a\":1}x", Err(SignError::NotAnObject)),
        (b"{\"a\":1,}", Err(SignError::NotAnObject)),
        (b"{\"a\" 1}", Err(SignError::NotAnObject)),
        (b"{a:1}", Err(SignError::NotAnObject)),
        (b"a=1", Err(SignError::NotAnObject)),
        (b"\xff\xfe", Err(SignError::NotAnObject)),
        (b"{\"_n\":1}", Err(SignError::Reserved)),
        (b"{\"\\u005fappid\":1}", Err(SignError::Reserved)),
    ] {
        assert_eq!(sign(&[], body), right, "{}", String::from_utf8_lossy(body));
    }
    let timestamp = [("_timestamp".into(), "1".into())];
    assert_eq!(sign(&timestamp, b"{}"), Err(SignError::Reserved));
}

#[test]
fn an_answer_is_verified_decrypted_and_freed_of_its_envelope() {
    let vectors = vectors();
    let (all, body) = answer(&vectors, "ok");
    let open = |keys: &SigningKeys, now| keys.open(URL, headers(&all), body.as_bytes(), now);
    let plain = br#"{"errcode":0,"errmsg":"ok","phone_info":{"phoneNumber":"13800000000","purePhoneNumber":"13800000000","countryCode":"86"}}"#;
    let content = |by_deprecated| Opened::Content {
        body: plain.to_vec(),
        by_deprecated,
    };
    for now in [SIGNED - 300, SIGNED, SIGNED + 300] {
        assert_eq!(open(&keys(), now), Ok(content(false)));
    }
    assert_eq!(
        open(&keys_with(&["old", "new"]), SIGNED),
        Ok(content(false))
    );
    // During a change of certificates.
    assert_eq!(open(&keys_with(&["old"]), SIGNED), Ok(content(true)));
    let (all, body) = answer(&vectors, "token_error_inside_the_envelope");
    let opened = keys()
        .open(URL, headers(&all), body.as_bytes(), SIGNED)
        .unwrap();
    let Opened::Content { body, .. } = opened else {
        panic!("{opened:?}")
    };
    assert_eq!(verdict::errcode(&body), Some(40001));
}

#[test]
fn the_printed_answer_of_the_documentation_is_taken() {
    let vectors = vectors();
    let of = |name: &str| text(&vectors, name);
    let own = text(&vectors, "/S1_request_rsa_aes/private_key_pkcs8_der_b64");
    let serial = of("/O2_official_response_rsa_aes/platform_cert_sn");
    let cert = pem(
        "CERTIFICATE",
        of("/O2_official_response_rsa_aes/platform_cert_der_b64"),
    );
    let keys = SigningKeys::new(
        of("/O2_official_response_rsa_aes/appid"),
        KeyTexts {
            private_key: &pem("PRIVATE KEY", own),
            aes_key: of("/O1_official_request_rsa_aes/symmetric_key_b64"),
            aes_serial: of("/O1_official_request_rsa_aes/symmetric_sn"),
            platform_certs: &[(serial.to_owned(), cert)],
        },
    )
    .unwrap();
    let headers = AnswerHeaders {
        appid: Some("wxba6223c06417af7b"),
        timestamp: Some("1635927956"),
        serial: Some(serial),
        signature: Some(of("/O2_official_response_rsa_aes/signature_b64")),
        ..AnswerHeaders::default()
    };
    let url = of("/O2_official_response_rsa_aes/urlpath");
    let body = of("/O2_official_response_rsa_aes/body");
    let opened = keys
        .open(url, headers, body.as_bytes(), 1_635_927_956)
        .unwrap();
    assert_eq!(
        opened,
        Opened::Content {
            body: br#"{"errcode":0,"errmsg":"getuserriskrank succ","risk_rank":0,"unoin_id":2258658297}"#
                .to_vec(),
            by_deprecated: false
        }
    );
}

#[test]
fn an_answer_whose_headers_do_not_fit_is_not_passed_on() {
    let vectors = vectors();
    let (all, body) = answer(&vectors, "ok");
    let right = headers(&all);
    let keys = keys();
    for (change, error) in [
        (
            (|h| h.appid = Some("wx9999999999999999")) as fn(&mut AnswerHeaders<'_>),
            AnswerError::OtherAppid,
        ),
        (|h| h.appid = None, AnswerError::Incomplete(APPID)),
        (|h| h.serial = None, AnswerError::Incomplete(SERIAL)),
        (|h| h.timestamp = None, AnswerError::Incomplete(TIMESTAMP)),
        (|h| h.signature = None, AnswerError::Incomplete(SIGNATURE)),
        (
            |h| {
                h.serial = Some("00ff<b>");
                h.serial_deprecated = None;
            },
            AnswerError::UnknownSerial("00ffb".to_owned()),
        ),
        (|h| h.timestamp = Some("soon"), AnswerError::Timestamp),
        (|h| h.timestamp = Some("1764288002"), AnswerError::Signature),
        (
            |h| h.signature = h.signature_deprecated,
            AnswerError::Signature,
        ),
        (|h| h.signature = Some("no base64!"), AnswerError::Signature),
    ] {
        let mut headers = right;
        change(&mut headers);
        let opened = keys.open(URL, headers, body.as_bytes(), SIGNED);
        assert_eq!(opened, Err(error));
    }
}

#[test]
fn an_answer_that_is_old_changed_or_unsigned_is_not_passed_on() {
    let vectors = vectors();
    let (all, body) = answer(&vectors, "ok");
    let right = headers(&all);
    let keys = keys();
    let open = |headers, body: &str, now| keys.open(URL, headers, body.as_bytes(), now);
    for (body, now, error) in [
        (&body, SIGNED + 301, AnswerError::Old(301)),
        (&body, SIGNED + 600, AnswerError::Old(600)),
        (&body, SIGNED - 600, AnswerError::Ahead(600)),
        (&format!("{body}\n"), SIGNED, AnswerError::Signature),
        (
            &body.replacen("\"D9b", "\"E9b", 1),
            SIGNED,
            AnswerError::Signature,
        ),
    ] {
        assert_eq!(open(right, body, now), Err(error));
    }
    let elsewhere = keys.open(
        "https://proxy.internal/wxa/business/getuserphonenumber",
        right,
        body.as_bytes(),
        SIGNED,
    );
    assert_eq!(elsewhere, Err(AnswerError::Signature));
    for (body, right) in [
        (
            r#"{"errcode":40234,"errmsg":"invalid signature rid: x"}"#,
            Ok(Opened::Refusal),
        ),
        (r#"{"errcode":0,"errmsg":"ok"}"#, Err(AnswerError::Unsigned)),
        (r#"{"phone_info":{}}"#, Err(AnswerError::Unsigned)),
        (&*body, Err(AnswerError::Unsigned)),
    ] {
        assert_eq!(
            open(AnswerHeaders::default(), body, SIGNED),
            right,
            "{body}"
        );
    }
}

/// Answer with a fault inside that WeChat could have signed. These tests do not concern the
/// signature itself.
#[test]
fn what_is_wrong_inside_an_envelope_is_told() {
    let keys = keys();
    let sealed = |content: &str| {
        keys.seal(URL, SIGNED, [7; NONCE_LEN], content.as_bytes().to_vec())
            .unwrap()
    };
    let good = r#"{"_n":"x","_appid":"wx0123456789abcdef","_timestamp":1764288001,"a":1e400}"#;
    let opened = |content: &str| {
        let content = keys.unseal(URL, SIGNED, sealed(content).as_bytes())?;
        keys.plain(&content, SIGNED)
    };
    assert_eq!(opened(good), Ok(b"{\"a\":1e400}".to_vec()));
    for (content, error) in [
        ("[]", AnswerError::Content),
        ("{\"_appid\":", AnswerError::Content),
        (&*good.replace("cdef", "cdee"), AnswerError::ContentAppid),
        (
            &*good.replace("\"_n\"", "\"_appid\""),
            AnswerError::ContentAppid,
        ),
        (
            &*good.replace("8001", "8002"),
            AnswerError::ContentTimestamp,
        ),
        (
            &*good.replace("1764288001", "\"1764288001\""),
            AnswerError::ContentTimestamp,
        ),
    ] {
        assert_eq!(opened(content), Err(error), "{content}");
    }
    let unsealed = |body: &str| keys.unseal(URL, SIGNED, body.as_bytes()).unwrap_err();
    let body = sealed(good);
    let envelope: Value = serde_json::from_str(&body).unwrap();
    let with = |name: &str, value: &str| {
        let mut changed = envelope.clone();
        changed[name] = value.into();
        changed.to_string()
    };
    let tag = STANDARD
        .decode(envelope["authtag"].as_str().unwrap())
        .unwrap();
    for (body, error) in [
        ("{}".to_owned(), AnswerError::NotAnEnvelope),
        ("plain".to_owned(), AnswerError::NotAnEnvelope),
        (with("iv", "AAAA"), AnswerError::NotAnEnvelope),
        (with("data", "?"), AnswerError::NotAnEnvelope),
        (
            with("authtag", &STANDARD.encode(&tag[..12])),
            AnswerError::NotAnEnvelope,
        ),
        (with("data", "AAAA"), AnswerError::Undecryptable),
    ] {
        assert_eq!(unsealed(&body), error, "{body}");
    }
    let later = keys.unseal(URL, SIGNED + 1, body.as_bytes());
    assert_eq!(later, Err(AnswerError::Undecryptable));
}

#[test]
fn a_key_that_cannot_be_used_says_why() {
    let vectors = vectors();
    let request = |name: &str| text(&vectors, &format!("/S1_request_rsa_aes/{name}"));
    let rsa = pem("PRIVATE KEY", request("private_key_pkcs8_der_b64"));
    let sm2 = pem(
        "PRIVATE KEY",
        text(
            &vectors,
            "/S3_request_sm2_sm4/sm2_private_key_pkcs8_der_b64",
        ),
    );
    let aes = request("symmetric_key_b64");
    let sm4 = text(&vectors, "/S3_request_sm2_sm4/symmetric_key_b64");
    let cert = certs(&vectors, &["new"]);
    let none = [("1".to_owned(), b"nothing".to_vec())];
    let three = [cert.clone(), cert.clone(), cert.clone()].concat();
    let read = |private_key: &[u8], aes_key: &str, platform_certs: &[(String, Vec<u8>)]| {
        let texts = KeyTexts {
            private_key,
            aes_key,
            aes_serial: "5e",
            platform_certs,
        };
        SigningKeys::new(APP, texts).map(|_| ())
    };
    assert_eq!(read(&rsa, &format!(" {aes}\n"), &cert), Ok(()));
    for (private, aes, certs, error) in [
        (&b"x"[..], aes, &cert[..], SigningKeyError::NoPrivateKey),
        (&cert[0].1, aes, &cert, SigningKeyError::NoPrivateKey),
        (&sm2, aes, &cert, SigningKeyError::NotRsa),
        (&rsa, "no base64!", &cert, SigningKeyError::AesNotBase64),
        (&rsa, sm4, &cert, SigningKeyError::Sm4),
        (&rsa, "AAAA", &cert, SigningKeyError::AesLength),
        (&rsa, aes, &none, SigningKeyError::NoCertificate),
        (&rsa, aes, &[], SigningKeyError::Certificates),
        (&rsa, aes, &three, SigningKeyError::Certificates),
    ] {
        assert_eq!(read(private, aes, certs), Err(error));
    }
    let shown = format!("{:?}", keys());
    assert!(shown.contains(APP) && !shown.contains(aes), "{shown}");
}

#[test]
fn every_refusal_of_the_signature_layer_is_explained() {
    for code in 40230..=40240 {
        let advice = explain(code).unwrap();
        assert!(advice.contains(": ") && !advice.ends_with('.'), "{advice}");
        assert!(crate::wechat::codes::known(code).is_some(), "{code}");
    }
    assert_eq!(explain(40229).or(explain(40241)), None);
}
