//! Logins of users. These calls carry an AppSecret or a user's token, never the account's token.
//!
//! A `js_code` or `code` beginning with `bad` is invalid; any other is valid once.

use serde_json::json;

use super::{
    ApiCall,
    token::{GRANT, identify},
};
use crate::sandbox::{
    answer::{SandboxAnswer, TEXT, sns_message},
    digest::sha256_hex,
};

/// Number of used codes, and of user tokens, that are kept.
const MAX_USER_CREDENTIALS: usize = 100_000;

pub(super) fn answer(call: ApiCall<'_>) -> SandboxAnswer {
    let outcome = match call.head.path() {
        "/sns/jscode2session" => exchange(call, "js_code").map(|openid| {
            let session_key = format!("{}==", call.shared.state.noise.text(22));
            json!({"session_key": session_key, "openid": openid})
        }),
        "/sns/oauth2/access_token" => exchange(call, "code").map(|openid| {
            let token = user_token(call);
            let refresh = call.shared.state.noise.text(80);
            json!({"access_token": token, "expires_in": 7200, "refresh_token": refresh, "openid": openid,
                   "scope": "snsapi_userinfo"})
        }),
        "/sns/userinfo" => user(call).map(|openid| {
            json!({"openid": openid, "nickname": "Sandbox", "sex": 0, "province": "", "city": "", "country": "",
                   "headimgurl": "", "privilege": []})
        }),
        "/sns/auth" => user(call).map(|_| json!({"errcode": 0, "errmsg": "ok"})),
        _ => Err(40066),
    };
    match outcome {
        Ok(value) => SandboxAnswer::done_with(call.head.path(), &value),
        Err(code) => SandboxAnswer::error(code, &sns_message(code, &call.shared.state.rid()), TEXT),
    }
}

/// Exchanges a login code for an openid.
fn exchange(call: ApiCall<'_>, name: &str) -> Result<String, i64> {
    let param = |name| call.head.param(name);
    // These endpoints do not check the grant type.
    identify(call, param("appid"), Some(GRANT), param("secret"))?;
    let code = param(name).ok_or(41008)?;
    if code.starts_with("bad") {
        return Err(40029);
    }
    let mut ledger = call.shared.state.ledger();
    if ledger.used_codes.len() >= MAX_USER_CREDENTIALS {
        ledger.used_codes.clear();
    }
    if !ledger.used_codes.insert(code.clone()) {
        return Err(40163);
    }
    Ok(format!("o{}", &sha256_hex(code.as_bytes())[..27]))
}

fn user_token(call: ApiCall<'_>) -> String {
    let token = format!("user_{}", call.shared.state.noise.text(100));
    let mut ledger = call.shared.state.ledger();
    if ledger.user_tokens.len() >= MAX_USER_CREDENTIALS {
        ledger.user_tokens.clear();
    }
    ledger.user_tokens.insert(token.clone());
    token
}

fn user(call: ApiCall<'_>) -> Result<String, i64> {
    let token = call.head.param("access_token").ok_or(41001)?;
    if !call.shared.state.ledger().user_tokens.contains(&token) {
        return Err(40001);
    }
    call.head.param("openid").ok_or(40003)
}
