//! Logins of users. These calls carry an AppSecret or a user's token, never the account's token.
//!
//! A `js_code` or `code` beginning with `bad` is invalid; any other is valid once.

use serde_json::{Value, json};

use super::{
    ApiCall,
    token::{GRANT, identify},
};
use crate::sandbox::{
    answer::{SandboxAnswer, TEXT, sns_message},
    digest::sha256_hex,
};

/// Number of used codes, of user tokens and of refresh tokens that are kept.
const MAX_USER_CREDENTIALS: usize = 100_000;

pub(super) fn answer(call: ApiCall<'_>) -> SandboxAnswer {
    let outcome = match call.head.path() {
        "/sns/jscode2session" => exchange(call, "js_code").map(|openid| {
            let session_key = format!("{}==", call.shared.state.noise.text(22));
            json!({"session_key": session_key, "openid": openid})
        }),
        "/sns/oauth2/access_token" => exchange(call, "code").map(|openid| {
            let refresh = user_refresh_token(call, &openid);
            login(call, &refresh, &openid)
        }),
        "/sns/oauth2/refresh_token" => {
            refreshed(call).map(|(refresh, openid)| login(call, &refresh, &openid))
        }
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

/// Answer of a web login and of its refresh, with a new token of the user.
fn login(call: ApiCall<'_>, refresh_token: &str, openid: &str) -> Value {
    json!({"access_token": user_token(call), "expires_in": 7200, "refresh_token": refresh_token,
           "openid": openid, "scope": "snsapi_userinfo"})
}

/// Returns the refresh token of the call and its user. No AppSecret is asked for.
fn refreshed(call: ApiCall<'_>) -> Result<(String, String), i64> {
    let appid = call.head.param("appid").ok_or(41002)?;
    let token = call.head.param("refresh_token").ok_or(41003)?;
    if call.head.param("grant_type").as_deref() != Some("refresh_token") {
        return Err(40002);
    }
    let ledger = call.shared.state.ledger();
    match ledger.user_refresh_tokens.get(&token) {
        Some((owner, openid)) if *owner == appid => {
            let openid = openid.clone();
            drop(ledger);
            Ok((token, openid))
        }
        _ => Err(40030),
    }
}

fn user_refresh_token(call: ApiCall<'_>, openid: &str) -> String {
    let token = call.shared.state.noise.text(80);
    let appid = call.head.param("appid").unwrap_or_default();
    let mut ledger = call.shared.state.ledger();
    if ledger.user_refresh_tokens.len() >= MAX_USER_CREDENTIALS {
        ledger.user_refresh_tokens.clear();
    }
    let owner = (appid, openid.to_owned());
    ledger.user_refresh_tokens.insert(token.clone(), owner);
    token
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
