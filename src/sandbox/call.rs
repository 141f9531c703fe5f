//! Call of an endpoint: the request with the judgement on its token, and the answers of its platform.

use std::{borrow::Cow, net::IpAddr, sync::atomic::Ordering};

use serde_json::{Value, json};

use super::{
    SandboxShared,
    answer::{JSON_CHARSET, JSON_ENCODING, SandboxAnswer, TEXT, content_type, message},
    body::Received,
    request::RequestHead,
    settings::SandboxPlatform,
    shape::SEEN_IP,
    state::JudgedToken,
};

/// Request that was read, with the judgement on its token.
#[derive(Debug, Clone, Copy)]
pub(super) struct ApiCall<'c> {
    pub(super) shared: &'c SandboxShared,
    pub(super) head: &'c RequestHead,
    pub(super) body: &'c Received,
    pub(super) judged: &'c JudgedToken,
    /// Address that the call comes from.
    pub(super) peer: IpAddr,
    /// Value of the next issued token, set by a fault.
    pub(super) value: Option<&'c str>,
}

impl ApiCall<'_> {
    /// Creates an error in the text and the content type of platform and path.
    pub(super) fn error(&self, code: i64) -> SandboxAnswer {
        let platform = self.judged.platform;
        let text = message(platform, code, &self.seen_ip(), &self.shared.state.rid());
        let content_type = match (platform, code) {
            (SandboxPlatform::Wecom, _) => JSON_CHARSET,
            (_, 41001) => TEXT,
            (_, 40001 | 42001) => JSON_ENCODING,
            _ => content_type(self.head.path()),
        };
        SandboxAnswer::error(code, &text, content_type)
    }

    /// Returns the address that errors name: that of the call once an account has a whitelist, else
    /// one for documentation.
    pub(super) fn seen_ip(&self) -> Cow<'static, str> {
        if self.shared.state.lists_addresses.load(Ordering::Relaxed) {
            Cow::Owned(self.peer.to_string())
        } else {
            Cow::Borrowed(SEEN_IP)
        }
    }

    pub(super) fn ok(&self, value: &Value) -> SandboxAnswer {
        match self.judged.platform {
            SandboxPlatform::Wechat => SandboxAnswer::done_with(self.head.path(), value),
            SandboxPlatform::Wecom => {
                let mut whole = json!({"errcode": 0, "errmsg": "ok"});
                if let (Some(whole), Some(value)) = (whole.as_object_mut(), value.as_object()) {
                    whole.extend(value.clone());
                }
                SandboxAnswer::done_with(self.head.path(), &whole).with_content_type(JSON_CHARSET)
            }
        }
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body.kept)
            .ok()
            .filter(Value::is_object)
    }

    pub(super) fn account(&self) -> &str {
        self.judged.account.as_deref().unwrap_or("")
    }
}
