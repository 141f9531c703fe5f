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
    let wants_media = matches!(&*kind, "image" | "voice" | "video" | "file" | "mpnews");
    if wants_media && text(&body[&*kind], "media_id").is_none() {
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
