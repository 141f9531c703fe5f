//! Endpoints that issue tokens, and those that clear quotas. They authenticate by appid and secret.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{ApiCall, text};
use crate::sandbox::{
    answer::{JSON_CHARSET, JSON_ENCODING, SandboxAnswer, message},
    body::Received,
    issue::Grant,
    recorder::{Recorder, Total},
    settings::SandboxPlatform,
    state::CredentialCheck,
    whitelist::{self, Brings},
};

pub(in crate::sandbox) const CLASSIC: &str = "/cgi-bin/token";
pub(in crate::sandbox) const STABLE: &str = "/cgi-bin/stable_token";
pub(in crate::sandbox) const WECOM: &str = "/cgi-bin/gettoken";

pub(in crate::sandbox) const QUOTA: &str = "reach max api daily quota limit, could get access_token by getStableAccessToken, more details at \
                     https://mmbizurl.cn/s/JtxxFh33r";

/// The only grant type.
pub(super) const GRANT: &str = "client_credential";

/// Returns true if the path issues tokens.
pub(in crate::sandbox) fn is_token_endpoint(path: &str) -> bool {
    matches!(path, CLASSIC | STABLE | WECOM)
}

/// Counts a fetch, refused or not.
pub(in crate::sandbox) fn count(recorder: &Recorder, path: &str, body: &Received) {
    match path {
        CLASSIC => recorder.count(Total::Classic),
        WECOM => recorder.count(Total::Wecom),
        STABLE => {
            if is_forced(&body_of(body)) {
                recorder.count(Total::Forced);
            }
            recorder.count(Total::Stable)
        }
        _ => 0,
    };
}

/// Returns the appid in the body of a token call.
pub(in crate::sandbox) fn appid_in(body: &Received) -> Option<String> {
    text(&body_of(body), "appid").map(std::borrow::Cow::into_owned)
}

/// Answers `GET cgi-bin/token?grant_type=client_credential&appid=&secret=`; POST is accepted too,
/// which no documentation forbids.
pub(super) fn classic(call: ApiCall<'_>) -> SandboxAnswer {
    let param = |name| call.head.param(name);
    let account = match identify(
        call,
        param("appid"),
        param("grant_type").as_deref(),
        param("secret"),
    ) {
        Ok(account) => account,
        Err(code) => return token_error(call, code),
    };
    granted(call, call.shared.state.grant_classic(account, call.value))
}

/// Answers `POST cgi-bin/stable_token` with all parameters in a JSON body.
pub(super) fn stable(call: ApiCall<'_>) -> SandboxAnswer {
    if call.head.method() != "POST" {
        return token_error(call, 43002);
    }
    let Some(body) = call.json() else {
        return token_error(call, 47001);
    };
    let field = |name| text(&body, name).map(std::borrow::Cow::into_owned);
    let account = match identify(
        call,
        field("appid"),
        field("grant_type").as_deref(),
        field("secret"),
    ) {
        Ok(account) => account,
        Err(code) => return token_error(call, code),
    };
    let state = &call.shared.state;
    granted(
        call,
        if is_forced(&body) {
            state.grant_forced(account, call.value)
        } else {
            state.grant_stable(account, call.value)
        },
    )
}

/// Answers `GET cgi-bin/gettoken?corpid=&corpsecret=`.
pub(super) fn wecom(call: ApiCall<'_>) -> SandboxAnswer {
    let Some(corpid) = call.head.param("corpid") else {
        return wecom_error(call, 40013);
    };
    let Some(secret) = call.head.param("corpsecret") else {
        return wecom_error(call, 41004);
    };
    let credential =
        call.shared
            .state
            .ledger()
            .credential(SandboxPlatform::Wecom, &corpid, &secret);
    match credential {
        CredentialCheck::UnknownAppid => wecom_error(call, 40013),
        CredentialCheck::WrongSecret | CredentialCheck::ForeignSecret => wecom_error(call, 40001),
        CredentialCheck::Good(account) => {
            if let Some(code) = whitelist::refusal(call, &corpid, Brings::Secret) {
                return wecom_error(call, code);
            }
            match call.shared.state.grant_wecom(account, call.value) {
                Grant::Token {
                    token, expires_in, ..
                } => {
                    let body = json!({"errcode": 0, "errmsg": "ok", "access_token": &*token, "expires_in": expires_in});
                    SandboxAnswer::done_with(WECOM, &body).with_content_type(JSON_CHARSET)
                }
                Grant::DailyQuota | Grant::TooFast => wecom_error(call, 45009),
            }
        }
    }
}

/// Answers `POST cgi-bin/clear_quota?access_token=` with the appid in the body.
pub(super) fn clear_quota(call: ApiCall<'_>) -> SandboxAnswer {
    let appid = call
        .json()
        .and_then(|body| text(&body, "appid").map(std::borrow::Cow::into_owned));
    if appid.as_deref() != Some(call.account()) {
        return call.error(40013);
    }
    let index = call
        .shared
        .state
        .ledger()
        .accounts
        .iter()
        .position(|a| *a.appid == *call.account());
    index.map_or_else(|| call.error(40013), |index| cleared(call, index))
}

/// Answers `POST cgi-bin/clear_quota/v2` with appid and appsecret, in the body or the query.
pub(super) fn clear_quota_v2(call: ApiCall<'_>) -> SandboxAnswer {
    let body = call.json().unwrap_or(Value::Null);
    let field = |name: &str| {
        text(&body, name)
            .map(std::borrow::Cow::into_owned)
            .or_else(|| call.head.param(name))
    };
    match identify(call, field("appid"), Some(GRANT), field("appsecret")) {
        Ok(index) => cleared(call, index),
        Err(code) => call.error(code),
    }
}

fn cleared(call: ApiCall<'_>, account: usize) -> SandboxAnswer {
    if call.shared.state.clear_quota(account) {
        call.ok(&json!({"errcode": 0, "errmsg": "ok"}))
    } else {
        call.error(48006)
    }
}

/// Checks appid, grant type and secret; returns the account's index. Checks the appid first, as the
/// real API does.
pub(super) fn identify(
    call: ApiCall<'_>,
    appid: Option<String>,
    grant_type: Option<&str>,
    secret: Option<String>,
) -> Result<usize, i64> {
    let appid = appid.ok_or(41002)?;
    // One lock for both look-ups, so that a concurrent change of the secret cannot come between.
    let ledger = call.shared.state.ledger();
    if !ledger.knows(SandboxPlatform::Wechat, &appid) {
        return Err(40013);
    }
    if grant_type != Some(GRANT) {
        return Err(40002);
    }
    let credential = ledger.credential(SandboxPlatform::Wechat, &appid, &secret.ok_or(41004)?);
    drop(ledger);
    match credential {
        CredentialCheck::Good(account) => {
            whitelist::refusal(call, &appid, Brings::Secret).map_or(Ok(account), Err)
        }
        CredentialCheck::UnknownAppid => Err(40013),
        CredentialCheck::WrongSecret => Err(40125),
        CredentialCheck::ForeignSecret => Err(40001),
    }
}

fn granted(call: ApiCall<'_>, grant: Grant) -> SandboxAnswer {
    match grant {
        Grant::Token {
            token, expires_in, ..
        } => with_log(token_body(&token, &expires_in.to_string()), 0),
        Grant::DailyQuota => {
            let text = format!("{QUOTA} rid: {}", call.shared.state.rid());
            with_log(SandboxAnswer::error(45009, &text, JSON_ENCODING), 45009)
        }
        Grant::TooFast => token_error(call, 45011),
    }
}

/// Creates a successful answer; `expires_in` is JSON text, and empty text omits the field.
pub(in crate::sandbox) fn token_body(token: &Arc<str>, expires_in: &str) -> SandboxAnswer {
    let token = Value::from(&**token);
    let body = match expires_in {
        "" => format!(r#"{{"access_token":{token}}}"#),
        _ => format!(r#"{{"access_token":{token},"expires_in":{expires_in}}}"#),
    };
    SandboxAnswer {
        executed: true,
        ..SandboxAnswer::new(200, JSON_ENCODING, body)
    }
}

fn token_error(call: ApiCall<'_>, code: i64) -> SandboxAnswer {
    let text = match code {
        // At a token endpoint the secret is wrong, not a token.
        40001 => format!("invalid credential rid: {}", call.shared.state.rid()),
        _ => message(
            SandboxPlatform::Wechat,
            code,
            &call.seen_ip(),
            &call.shared.state.rid(),
        ),
    };
    with_log(SandboxAnswer::error(code, &text, JSON_ENCODING), code)
}

fn wecom_error(call: ApiCall<'_>, code: i64) -> SandboxAnswer {
    let text = match code {
        40001 => "invalid credential",
        40013 => "invalid corpid",
        41004 => "corpsecret missing",
        60020 => "not allow to access from your ip",
        _ => "api freq out of limit",
    };
    let rid = call.shared.state.rid();
    let more = format!(
        "from ip: {}, more info at https://open.work.weixin.qq.com/devtool/query?e={code}",
        call.seen_ip()
    );
    SandboxAnswer::error(
        code,
        &format!("{text}, hint: [{rid}], {more}"),
        JSON_CHARSET,
    )
}

/// Adds the header fields observed at this endpoint; `LogicRet` mirrors the errcode.
pub(in crate::sandbox) fn with_log(answer: SandboxAnswer, code: i64) -> SandboxAnswer {
    answer
        .with_header("RetKey", "11")
        .with_header("LogicRet", code.to_string())
}

fn body_of(body: &Received) -> Value {
    serde_json::from_slice(&body.kept).unwrap_or(Value::Null)
}

fn is_forced(body: &Value) -> bool {
    body["force_refresh"] == true
}
