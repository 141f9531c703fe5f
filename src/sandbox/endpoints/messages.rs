//! Messages to users. Accepted messages count as delivered and can be queried; refused ones do not.

use serde_json::{Value, json};

use super::{ApiCall, text};
use crate::sandbox::{answer::SandboxAnswer, record::DeliveredMessage};

/// Returns true if the path sends a message to one user.
pub(super) fn is_send(path: &str) -> bool {
    matches!(
        path,
        "/cgi-bin/message/custom/send"
            | "/cgi-bin/message/template/send"
            | "/cgi-bin/message/subscribe/send"
            | "/cgi-bin/message/subscribe/bizsend"
            | "/cgi-bin/message/send"
    )
}

/// Answers `POST cgi-bin/message/custom/send` and its relatives.
pub(super) fn send(call: ApiCall<'_>) -> SandboxAnswer {
    if call.head.method() != "POST" {
        return call.error(43002);
    }
    let Some(body) = call.json() else {
        return call.error(47001);
    };
    let Some(openid) = text(&body, "touser") else {
        return call.error(40003);
    };
    let kind = text(&body, "msgtype").unwrap_or("template".into());
    if lacks_media(&kind, &body[&*kind]) {
        return call.error(40007);
    }
    let id = call.shared.recorder.deliver(|id| DeliveredMessage {
        id,
        at_ms: call.shared.state.clock.now(),
        account: call.account().to_owned(),
        openid: openid.clone().into_owned(),
        content: content(&body, &kind),
        kind: kind.clone().into_owned(),
    });
    match call.head.path() {
        "/cgi-bin/message/template/send" => {
            call.ok(&json!({"errcode": 0, "errmsg": "ok", "msgid": id}))
        }
        "/cgi-bin/message/send" => call
            .ok(&json!({"errcode": 0, "errmsg": "ok", "invaliduser": "", "msgid": id.to_string()})),
        _ => call.ok(&json!({"errcode": 0, "errmsg": "ok"})),
    }
}

/// Returns true if the payload of a message of this kind lacks a `media_id`.
fn lacks_media(kind: &str, payload: &Value) -> bool {
    match kind {
        // WeCom's articles stand in the message, each with a picture.
        "mpnews" if payload["articles"].is_array() => {
            let mut articles = payload["articles"].as_array().into_iter().flatten();
            articles.any(|article| text(article, "thumb_media_id").is_none())
        }
        "image" | "voice" | "video" | "file" | "mpnews" => text(payload, "media_id").is_none(),
        "music" | "miniprogrampage" => text(payload, "thumb_media_id").is_none(),
        _ => false,
    }
}

fn content(body: &Value, kind: &str) -> String {
    let payload = if kind == "template" {
        &body["data"]
    } else {
        &body[kind]
    };
    match &payload["content"] {
        Value::String(text) => text.clone(),
        _ => payload.to_string(),
    }
}
