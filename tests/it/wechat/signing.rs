//! API signing: what is signed here, and the sandbox's own statement of the protocol, which shares no
//! code with it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use serde_json::{Value, json};
use wxgate::{
    internals::wechat::signing::{AnswerHeaders, KeyTexts, Opened, Signed, SigningKeys},
    sandbox::{self, ApiSigning, DEFAULT_APPID, DEFAULT_SECRET, Sandbox, SandboxSettings},
};

use crate::support::client;

const PATH: &str = "/wxa/getuserriskrank";
const AES: [u8; 32] = [9; 32];

struct World {
    sandbox: Sandbox,
    keys: SigningKeys,
    token: String,
}

async fn world() -> World {
    let sandbox = sandbox::start(SandboxSettings::default())
        .await
        .expect("free ports");
    let rsa = || KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
    let (own, platform) = (rsa(), rsa());
    let cert = CertificateParams::default()
        .self_signed(&platform)
        .expect("a certificate");
    sandbox.control().sign_api(
        DEFAULT_APPID,
        ApiSigning {
            paths: vec![PATH.to_owned()],
            public_key: own.subject_public_key_info(),
            aes_key: AES,
            aes_serial: "5e1f".to_owned(),
            platform_key: platform.serialize_der(),
            platform_serial: "0f1e".to_owned(),
        },
    );
    let keys = SigningKeys::new(
        DEFAULT_APPID,
        KeyTexts {
            private_key: own.serialize_pem().as_bytes(),
            aes_key: &STANDARD.encode(AES),
            aes_serial: "5e1f",
            platform_certs: &[("0f1e".to_owned(), cert.pem().into_bytes())],
        },
    )
    .expect("good keys");
    let order = json!({"grant_type": "client_credential", "appid": DEFAULT_APPID, "secret": DEFAULT_SECRET});
    let url = format!("{}/cgi-bin/stable_token", sandbox.http_url().expect("http"));
    let answer = client()
        .post(url)
        .json(&order)
        .send()
        .await
        .expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let token = answer["access_token"].as_str().expect("a token").to_owned();
    World {
        sandbox,
        keys,
        token,
    }
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

impl World {
    fn sign(&self, at: u64) -> Signed {
        let url = format!("https://api.weixin.qq.com{PATH}");
        self.keys
            .sign(
                &url,
                &[("env".into(), "test".into())],
                br#"{"scene":0}"#,
                at,
            )
            .expect("a signed call")
    }

    async fn send(&self, call: &Signed, appid: &str) -> reqwest::Response {
        let base = self.sandbox.http_url().expect("http");
        client()
            .post(format!("{base}{PATH}?access_token={}", self.token))
            .header("Wechatmp-Appid", appid)
            .header("Wechatmp-TimeStamp", call.timestamp)
            .header("Wechatmp-Signature", &call.signature)
            .body(call.body.clone())
            .send()
            .await
            .expect("an answer")
    }
}

#[tokio::test]
async fn a_signed_call_is_understood_and_its_answer_is_believed() {
    let world = world().await;
    let call = world.sign(now());
    let answer = world.send(&call, DEFAULT_APPID).await;
    let header = |name: &str| {
        let value = answer.headers().get(name).map(|value| value.to_str());
        value.and_then(Result::ok).map(str::to_owned)
    };
    let (appid, timestamp) = (header("wechatmp-appid"), header("wechatmp-timestamp"));
    let (serial, signature) = (header("wechatmp-serial"), header("wechatmp-signature"));
    let body = answer.bytes().await.expect("a body");
    let headers = AnswerHeaders {
        appid: appid.as_deref(),
        timestamp: timestamp.as_deref(),
        serial: serial.as_deref(),
        signature: signature.as_deref(),
        ..AnswerHeaders::default()
    };
    let url = format!("https://api.weixin.qq.com{PATH}");
    let opened = world.keys.open(&url, headers, &body, now());
    let Ok(Opened::Content { body, .. }) = opened else {
        panic!("{opened:?}")
    };
    let content: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(content, json!({"errcode": 0, "errmsg": "ok"}));
}

#[tokio::test]
async fn what_is_wrong_with_a_signed_call_has_its_code() {
    let world = world().await;
    let good = world.sign(now());
    let other = world.sign(now());
    let tampered = Signed {
        body: other.body,
        ..good.clone()
    };
    let plain = Signed {
        body: r#"{"scene":0}"#.to_owned(),
        ..good.clone()
    };
    for (call, appid, code) in [
        (good.clone(), DEFAULT_APPID, 0),
        (tampered, DEFAULT_APPID, 40234),
        (plain, DEFAULT_APPID, 40234),
        (good, "wx9999999999999999", 40237),
        (world.sign(now() - 600), DEFAULT_APPID, 40240),
        (world.sign(now() + 600), DEFAULT_APPID, 40240),
    ] {
        let answer = world.send(&call, appid).await;
        let is_sealed = answer.headers().contains_key("wechatmp-signature");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(is_sealed, code == 0, "{body}");
        assert_eq!(body["errcode"].as_i64().unwrap_or_default(), code, "{body}");
    }
    let base = world.sandbox.http_url().expect("http");
    let url = format!("{base}{PATH}?access_token={}", world.token);
    let unsigned = client().post(url).json(&json!({})).send().await;
    let unsigned: Value = unsigned.expect("an answer").json().await.expect("JSON");
    assert_eq!(unsigned["errcode"], 40233);
}
