//! Answers of each path without faults. Bodies and codes are WeChat's own, from its documentation
//! and from probes of the real API; where neither has a source, the simplest answer is given.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    answer::{SandboxAnswer, wording},
    call::ApiCall,
    envelope,
    recorder::Total,
    request::Framing,
    settings::SandboxPlatform,
    state::{TokenState, overwritten_code},
    whitelist::{self, Brings},
};

mod holdings;
pub(super) mod media;
mod messages;
pub(super) mod others;
mod sns;
mod tickets;
pub(super) mod token;

/// Longest JSON body that endpoints read, in bytes.
const MAX_JSON_BODY: usize = 8 << 20;

/// First path segments in use at api.weixin.qq.com.
const FIRST_SEGMENTS: [&str; 27] = [
    "cgi-bin",
    "wxa",
    "wxaapi",
    "sns",
    "datacube",
    "card",
    "channels",
    "shop",
    "product",
    "tcb",
    "componenttcb",
    "union",
    "xpay",
    "customservice",
    "nontax",
    "promoter",
    "cv",
    "intp",
    "cityservice",
    "user-order",
    "wedata",
    "donut",
    "scan",
    "publisher",
    "redpacketcover",
    "semantic",
    "wxadrama",
];

/// Executes the call and returns its answer.
pub(super) fn answer(call: ApiCall<'_>) -> SandboxAnswer {
    if call.head.framing == Framing::Chunked {
        call.shared.recorder.count(Total::Chunked);
        // WeChat's front server refuses chunked bodies before any endpoint sees them.
        return SandboxAnswer::empty(412);
    }
    match envelope::answer(call, plain_answer) {
        Some(answer) => answer,
        None => plain_answer(call),
    }
}

fn plain_answer(call: ApiCall<'_>) -> SandboxAnswer {
    let path = call.head.path();
    match path {
        token::CLASSIC => token::classic(call),
        token::STABLE => token::stable(call),
        token::WECOM => token::wecom(call),
        "/cgi-bin/clear_quota/v2" => token::clear_quota_v2(call),
        "/cgi-bin/component/api_start_push_ticket" => call.error(61011),
        _ => others::answer(call).unwrap_or_else(|| with_token(call)),
    }
}

/// Answers logins of users, and the calls that take the account's token.
fn with_token(call: ApiCall<'_>) -> SandboxAnswer {
    let path = call.head.path();
    if path.starts_with("/sns/") {
        return sns::answer(call);
    }
    if !is_in_use(path) {
        return unknown(call);
    }
    match call.judged.state {
        TokenState::None => others::no_token(call).unwrap_or_else(|| call.error(41001)),
        TokenState::Unknown => others::unknown_token(call)
            .unwrap_or_else(|| refused(call, overwritten_code(call.judged.platform))),
        TokenState::Stale(code) => refused(call, code),
        TokenState::Current | TokenState::Overlapping => {
            match whitelist::refusal(call, call.account(), Brings::Token) {
                Some(code) => call.error(code),
                None => business(call),
            }
        }
    }
}

/// Returns the number of body bytes that the endpoint needs.
pub(super) fn keep(path: &str) -> usize {
    match path {
        token::STABLE | "/cgi-bin/clear_quota" | "/cgi-bin/clear_quota/v2" => MAX_JSON_BODY,
        _ if messages::is_send(path)
            || media::reads_body(path)
            || holdings::reads_body(path)
            || others::reads_body(path) =>
        {
            MAX_JSON_BODY
        }
        _ => 0,
    }
}

fn business(call: ApiCall<'_>) -> SandboxAnswer {
    let path = call.head.path();
    match path {
        "/cgi-bin/ticket/getticket" => tickets::getticket(call),
        "/cgi-bin/get_jsapi_ticket" => tickets::wecom(call, "jsapi"),
        "/cgi-bin/ticket/get" => tickets::wecom(call, "agent_config"),
        "/cgi-bin/media/get" => media::get(call),
        "/cgi-bin/material/get_material" => media::get_material(call),
        "/wxa/getwxacodeunlimit" | "/wxa/getwxacode" | "/cgi-bin/wxaapp/createwxaqrcode" => {
            media::code(call)
        }
        "/cgi-bin/clear_quota" => token::clear_quota(call),
        others::DOWNSTREAM_TOKEN => others::downstream_token(call),
        "/cgi-bin/get_api_domain_ip" => {
            call.ok(&json!({"ip_list": ["203.0.113.10", "203.0.113.11"]}))
        }
        "/cgi-bin/getcallbackip" => call.ok(&json!({"ip_list": ["203.0.113.20"]})),
        _ if media::takes_file(path) => media::upload(call),
        _ if messages::is_send(path) => messages::send(call),
        _ => holdings::answer(call).unwrap_or_else(|| plain(call)),
    }
}

/// Answers a path without a rule of its own.
fn plain(call: ApiCall<'_>) -> SandboxAnswer {
    let path = call.head.path();
    match call.judged.platform {
        _ if path.starts_with("/cgi-bin/component/") && !others::is_for_accounts(path) => {
            call.error(61014)
        }
        SandboxPlatform::Wecom => call.ok(&json!({})),
        // The most frequent answer, also in load tests, so its body is static.
        SandboxPlatform::Wechat => {
            SandboxAnswer::done(path, Bytes::from_static(br#"{"errcode":0,"errmsg":"ok"}"#))
        }
    }
}

fn is_in_use(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    FIRST_SEGMENTS.contains(&first)
}

/// Answers an unknown path: WeCom with 404, WeChat with a code of its own.
fn unknown(call: ApiCall<'_>) -> SandboxAnswer {
    match call.judged.platform {
        SandboxPlatform::Wecom => SandboxAnswer::empty(404),
        SandboxPlatform::Wechat => call.error(40066),
    }
}

fn refused(call: ApiCall<'_>, code: i64) -> SandboxAnswer {
    let lists_addresses = matches!(
        call.head.path(),
        "/cgi-bin/getcallbackip" | "/cgi-bin/get_api_domain_ip"
    );
    if call.judged.platform == SandboxPlatform::Wecom && lists_addresses {
        let body = format!(
            r#"{{"ip_list":[],"errcode":{code},"errmsg":"{}"}}"#,
            wording(code, "")
        );
        return SandboxAnswer {
            errcode: Some(code),
            ..SandboxAnswer::new(200, "application/json", body)
        };
    }
    call.error(code)
}

/// Returns the text of a field; `None` if empty or absent.
fn text<'v>(value: &'v Value, field: &str) -> Option<Cow<'v, str>> {
    match &value[field] {
        Value::String(text) if !text.is_empty() => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}
