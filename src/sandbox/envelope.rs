//! API signing on WeChat's side: verifies the envelope of a call, has the call answered, and seals
//! the answer. Written from the documentation, independently of `wechat::signing`.

use std::sync::{Arc, atomic::Ordering};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand::SystemRandom,
    signature::{RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, RsaKeyPair, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    answer::{BodySource, JSON_ENCODING, SandboxAnswer},
    body::Received,
    call::ApiCall,
    request::RequestHead,
    script::path_matches,
    settings::ApiSigning,
    state::TokenState,
};

/// Origin in the signed text, whichever address the sandbox has.
const ORIGIN: &str = "https://api.weixin.qq.com";
/// Maximum difference between a call's timestamp and the sandbox clock, in seconds.
const WINDOW: u64 = 300;

/// Longest signed body that is verified, in bytes.
const MAX_SIGNED_BODY: usize = 4 << 20;

/// Returns the number of bytes of a body that are kept for the signature.
pub(super) fn keep(head: &RequestHead) -> usize {
    if head.field("Wechatmp-Signature").is_some() {
        MAX_SIGNED_BODY
    } else {
        0
    }
}

/// Answers a call whose path must be signed; `None` for all others.
pub(super) fn answer(
    call: ApiCall<'_>,
    inner: impl FnOnce(ApiCall<'_>) -> SandboxAnswer,
) -> Option<SandboxAnswer> {
    let signing = required(call)?;
    Some(match open(call, &signing) {
        Ok(content) => {
            let kept = Value::Object(content).to_string();
            let body = Received {
                length: kept.len() as u64,
                kept: Bytes::from(kept),
                complete: true,
                ..Received::default()
            };
            let answer = inner(ApiCall {
                body: &body,
                ..call
            });
            seal(call, &signing, &answer).unwrap_or_else(|| call.error(-1))
        }
        Err(code) => call.error(code),
    })
}

/// Returns the keys that a call must be signed with. A call with a refused token gets a plain
/// answer.
fn required(call: ApiCall<'_>) -> Option<Arc<ApiSigning>> {
    if !call.shared.state.signs.load(Ordering::Relaxed) {
        return None;
    }
    let account = call.judged.account.as_deref()?;
    let signing = call.shared.state.ledger().signing.get(account).cloned()?;
    let is_listed = signing
        .paths
        .iter()
        .any(|pattern| path_matches(pattern, call.head.path()));
    let is_good = matches!(
        call.judged.state,
        TokenState::Current | TokenState::Overlapping
    );
    (is_listed && is_good && call.head.method() == "POST").then_some(signing)
}

/// Opens the envelope of a call. Fails with the error code for the caller.
fn open(call: ApiCall<'_>, signing: &ApiSigning) -> Result<Map<String, Value>, i64> {
    let field = |name, missing| call.head.field(name).ok_or(missing);
    let appid = field("Wechatmp-Appid", 40233)?;
    let timestamp = field("Wechatmp-TimeStamp", 40231)?;
    let signature = field("Wechatmp-Signature", 40232)?;
    if Some(appid) != call.judged.account.as_deref() {
        return Err(40237);
    }
    let seconds: u64 = timestamp.parse().map_err(|_| 40240)?;
    if call.shared.state.clock.unix().abs_diff(seconds) > WINDOW {
        return Err(40240);
    }
    let url = format!("{ORIGIN}{}", call.head.path());
    let mut text = [&url, appid, timestamp, ""].join("\n").into_bytes();
    text.extend_from_slice(&call.body.kept);
    let signature = STANDARD.decode(signature).map_err(|_| 40234)?;
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, &signing.public_key)
        .verify(&text, &signature)
        .map_err(|_| 40234)?;
    let envelope: Value = serde_json::from_slice(&call.body.kept).map_err(|_| 40235)?;
    let part = |name: &str| {
        let text = envelope[name].as_str().ok_or(40235)?;
        STANDARD.decode(text).map_err(|_| 40235)
    };
    let (iv, mut data, tag) = (part("iv")?, part("data")?, part("authtag")?);
    if envelope.as_object().is_none_or(|fields| fields.len() != 3) || tag.len() != 16 {
        return Err(40235);
    }
    // aws-lc-rs expects the tag behind the ciphertext.
    data.extend(tag);
    let nonce = Nonce::try_assume_unique_for_key(&iv).map_err(|_| 40235)?;
    let aad = Aad::from(format!("{url}|{appid}|{timestamp}|{}", signing.aes_serial));
    let content = cipher(signing)
        .ok_or(40235)?
        .open_in_place(nonce, aad, &mut data)
        .map_err(|_| 40235)?;
    let mut content: Map<String, Value> = serde_json::from_slice(content).map_err(|_| 40235)?;
    let fits = content.remove("_appid") == Some(appid.into())
        && content.remove("_timestamp") == Some(seconds.into())
        && content.remove("_n").is_some_and(|nonce| nonce.is_string());
    if fits { Ok(content) } else { Err(40235) }
}

/// Seals an answer in an envelope signed with WeChat's key.
fn seal(call: ApiCall<'_>, signing: &ApiSigning, answer: &SandboxAnswer) -> Option<SandboxAnswer> {
    let appid = call.judged.account.as_deref()?;
    let mut content: Map<String, Value> =
        serde_json::from_slice(&answer.body.piece(0, u64::MAX)).ok()?;
    let timestamp = call.shared.state.clock.unix();
    content.insert("_n".to_owned(), call.shared.state.noise.text(22).into());
    content.insert("_appid".to_owned(), appid.into());
    content.insert("_timestamp".to_owned(), timestamp.into());
    let url = format!("{ORIGIN}{}", call.head.path());
    let aad = Aad::from(format!("{url}|{appid}|{timestamp}|{}", signing.aes_serial));
    let mut data = Value::Object(content).to_string().into_bytes();
    let iv: [u8; 12] = call
        .shared
        .state
        .noise
        .text(12)
        .into_bytes()
        .try_into()
        .ok()?;
    let tag = cipher(signing)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut data)
        .ok()?;
    let body = json!({
        "iv": STANDARD.encode(iv), "data": STANDARD.encode(&data), "authtag": STANDARD.encode(tag)
    })
    .to_string();
    let text = format!("{url}\n{appid}\n{timestamp}\n{body}");
    let key = RsaKeyPair::from_pkcs8(&signing.platform_key).ok()?;
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PSS_SHA256,
        &SystemRandom::new(),
        text.as_bytes(),
        &mut signature,
    )
    .ok()?;
    let sealed = SandboxAnswer {
        errcode: answer.errcode,
        executed: answer.executed,
        body: BodySource::Bytes(Bytes::from(body)),
        ..SandboxAnswer::new(200, JSON_ENCODING, Bytes::new())
    };
    Some(
        sealed
            .with_header("Wechatmp-Appid", appid)
            .with_header("Wechatmp-TimeStamp", timestamp.to_string())
            .with_header("Wechatmp-Serial", signing.platform_serial.as_str())
            .with_header("Wechatmp-Signature", STANDARD.encode(signature)),
    )
}

fn cipher(signing: &ApiSigning) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, &signing.aes_key)
        .ok()
        .map(LessSafeKey::new)
}
