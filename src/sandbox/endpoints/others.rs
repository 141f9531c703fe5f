//! Calls that take another credential than the account's token: of third-party platforms, suites,
//! providers, devices, other corps, robots.
//!
//! There is one of each, with a fixed identity ([`SECRET`] is the secret of all). Their tokens are
//! recorded by owner only. Paths, parameters and refusals are those of WeChat's documentation.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Call, text};
use crate::sandbox::{
    answer::{Answer, JSON_CHARSET, JSON_ENCODING, message},
    issue::Grant,
    settings::{Platform, SandboxAccount},
    shape::SEEN_IP,
};

/// Secret of the component, the suite, the provider and the device model.
pub const SECRET: &str = "sandbox1sandbox1sandbox1sandbox1";
/// Appid of WeChat's third-party platform (component).
pub const COMPONENT: &str = "wxc0mp0nent000001";
/// Id of WeCom's suite.
pub const SUITE: &str = "wwsuite0000000001";
/// Corpid of WeCom's provider.
pub const PROVIDER: &str = "wwprovider0000001";
/// Id of WeCom's device model.
pub const MODEL: &str = "model000000000001";
/// Appid of the account that has authorised the component.
pub const AUTHORIZER: &str = "wxauth0r1zer00001";
/// Corpid of the corp that has authorised the suite.
pub const AUTHORIZED_CORP: &str = "wwauthorized00001";
/// Corpid of the corp downstream of every other corp.
pub const DOWNSTREAM_CORP: &str = "wwdownstream00001";

/// Number of tokens of these owners that are kept.
const KEPT: usize = 10_000;

/// Owner of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Owner {
    Component,
    Suite,
    Provider,
    Device,
    Model,
}

/// Credential that a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// Token of this owner, in its own parameter.
    Token(Owner),
    /// The provider's token, in the parameter `access_token`.
    ProviderAsAccess,
    /// Token of a downstream corp.
    Downstream,
    /// Secret in the body.
    Secret(Owner),
    WebhookKey,
    ResponseCode,
}

/// Paths that take the component's token only. Listed singly, because `cgi-bin/component/` mixes
/// three kinds.
const COMPONENT_PATHS: [&str; 23] = [
    "/cgi-bin/component/api_authorizer_token",
    "/cgi-bin/component/api_create_preauthcode",
    "/cgi-bin/component/api_get_authorizer_info",
    "/cgi-bin/component/api_get_authorizer_list",
    "/cgi-bin/component/api_query_auth",
    "/cgi-bin/component/fastregisterweapp",
    "/cgi-bin/component/get_domain_confirmfile",
    "/cgi-bin/component/modify_wxa_jump_domain",
    "/cgi-bin/component/modify_wxa_server_domain",
    "/sns/component/jscode2session",
    "/sns/oauth2/component/access_token",
    "/sns/oauth2/component/refresh_token",
    "/wedata/wedata_get_login_config",
    "/wedata/wedata_set_login_config",
    "/wxa/addtotemplate",
    "/wxa/component/fastregisterbetaweapp",
    "/wxa/component/fastregisterpersonalweapp",
    "/wxa/deletetemplate",
    "/wxa/gettemplatedraftlist",
    "/wxa/gettemplatelist",
    "/wxa/security/applysetorderpathinfo",
    "/wxa/servicemarket/get_paid_order_list",
    "/wxa/servicemarket/service/login_auth",
];

/// Paths that take the component's token as well as the account's.
const BOTH: [&str; 13] = [
    "/cgi-bin/callback/check",
    "/cgi-bin/clear_quota",
    "/cgi-bin/component/get_authorizer_option",
    "/cgi-bin/component/set_authorizer_option",
    "/cgi-bin/get_api_domain_ip",
    "/cgi-bin/getcallbackip",
    "/cgi-bin/open/have",
    "/cgi-bin/openapi/quota/clear",
    "/cgi-bin/openapi/quota/get",
    "/cgi-bin/openapi/rid/get",
    "/product/register/register_shop",
    "/tcb/invokecloudfunction",
    "/tcb/modifyenv",
];

/// Paths below `/cgi-bin/service/` that take the suite's token; the others take the provider's.
const SUITE_PATHS: [&str; 18] = [
    "auth/getuserdetail3rd",
    "auth/getuserinfo3rd",
    "externalcontact/unionid_to_external_userid_3rd",
    "get_admin_list",
    "get_app_qrcode",
    "get_auth_info",
    "get_corp_token",
    "get_order",
    "get_order_list",
    "get_permanent_code",
    "get_pre_auth_code",
    "getuserdetail3rd",
    "getuserinfo3rd",
    "miniprogram/jscode2session",
    "prolong_try",
    "set_session_info",
    "v2/get_auth_info",
    "v2/get_permanent_code",
];

/// Answers a call whose path takes another credential; `None` for all others.
pub(super) fn answer(call: Call<'_>) -> Option<Answer> {
    Some(match takes(call.head.path())? {
        Takes::Token(owner) => with_token(call, owner),
        Takes::ProviderAsAccess => match owner_of(call, "access_token") {
            Some(Owner::Provider) => done(call, Platform::Wecom, &json!({"usertype": 1})),
            _ if call.head.param("access_token").is_none() => refused(call, Platform::Wecom, 41001),
            _ => refused(call, Platform::Wecom, 40014),
        },
        Takes::Downstream => downstream(call),
        Takes::Secret(owner) => with_secret(call, owner),
        Takes::WebhookKey => webhook(call),
        Takes::ResponseCode => response(call),
    })
}

/// Answers a token of no account. The component's own token on a path of accounts has a refusal of
/// its own.
pub(super) fn unknown_token(call: Call<'_>) -> Option<Answer> {
    if owner_of(call, "access_token") != Some(Owner::Component) {
        return None;
    }
    Some(if BOTH.contains(&call.head.path()) {
        done(call, Platform::Wechat, &json!({}))
    } else {
        refused(call, Platform::Wechat, 61015)
    })
}

/// Answers a call without `access_token` that carries a component's token where both are accepted.
pub(super) fn no_token(call: Call<'_>) -> Option<Answer> {
    let brings = call.head.param("component_access_token").is_some();
    (brings && BOTH.contains(&call.head.path())).then(|| with_token(call, Owner::Component))
}

/// Returns true if the path takes the account's token although it looks like the component's.
pub(super) fn is_for_accounts(path: &str) -> bool {
    BOTH.contains(&path)
        || matches!(
            path,
            "/cgi-bin/component/setprivacysetting"
                | "/cgi-bin/component/getprivacysetting"
                | "/cgi-bin/component/uploadprivacyextfile"
        )
}

/// Returns true if the path reads its JSON body.
pub(super) fn reads_body(path: &str) -> bool {
    path == DOWNSTREAM_TOKEN
        || matches!(
            takes(path),
            Some(Takes::Secret(_) | Takes::WebhookKey | Takes::ResponseCode)
        )
}

/// Path that returns the token of a downstream corp, for the token of the corp upstream.
pub(super) const DOWNSTREAM_TOKEN: &str = "/cgi-bin/corpgroup/corp/gettoken";

/// Answers `POST cgi-bin/corpgroup/corp/gettoken`.
pub(super) fn downstream_token(call: Call<'_>) -> Answer {
    let body = call.json().unwrap_or(Value::Null);
    if text(&body, "corpid").as_deref() != Some(DOWNSTREAM_CORP) {
        return call.error(40013);
    }
    account_token(call, Platform::Wecom, DOWNSTREAM_CORP, "access_token")
}

fn takes(path: &str) -> Option<Takes> {
    let own_secret = match path {
        "/cgi-bin/component/api_component_token" => Some(Owner::Component),
        "/cgi-bin/service/get_suite_token" => Some(Owner::Suite),
        "/cgi-bin/service/get_provider_token" => Some(Owner::Provider),
        "/cgi-bin/openhw/get_model_token" => Some(Owner::Model),
        _ => None,
    };
    if let Some(owner) = own_secret {
        return Some(Takes::Secret(owner));
    }
    if COMPONENT_PATHS.contains(&path) || path.starts_with("/componenttcb/") {
        return Some(Takes::Token(Owner::Component));
    }
    if path.starts_with("/wxa/servicemarket/service/get_service_buyer") {
        return Some(Takes::Token(Owner::Component));
    }
    let rest = path.strip_prefix("/cgi-bin/")?;
    let (first, behind) = rest.split_once('/')?;
    Some(match (first, behind) {
        ("service", "get_login_info") => Takes::ProviderAsAccess,
        ("service", behind) if SUITE_PATHS.contains(&behind) => Takes::Token(Owner::Suite),
        ("idconvert", "upgrade_chatid_for_new_corp") => Takes::Token(Owner::Suite),
        ("service" | "license" | "advanced_api" | "paytool", _)
        | ("hardware", "get_device_feature") => Takes::Token(Owner::Provider),
        ("openhw", "device/get_device_detail") => Takes::Token(Owner::Model),
        ("openhw", behind) if behind.starts_with("device/") => Takes::Token(Owner::Device),
        ("openhw", _) => Takes::Token(Owner::Model),
        ("miniprogram", "transfer_session") => Takes::Downstream,
        ("webhook", "send" | "upload_media") => Takes::WebhookKey,
        ("aibot", "response") => Takes::ResponseCode,
        _ => return None,
    })
}

impl Owner {
    fn platform(self) -> Platform {
        match self {
            Self::Component => Platform::Wechat,
            Self::Suite | Self::Provider | Self::Device | Self::Model => Platform::Wecom,
        }
    }

    fn parameter(self) -> &'static str {
        match self {
            Self::Component => "component_access_token",
            Self::Suite => "suite_access_token",
            Self::Provider => "provider_access_token",
            Self::Device => "device_access_token",
            Self::Model => "model_access_token",
        }
    }

    /// Returns the error code of a call without the token.
    fn missing(self) -> i64 {
        match self {
            Self::Suite => 41022,
            Self::Component | Self::Provider | Self::Device | Self::Model => 41001,
        }
    }

    /// Returns the error code of a token that is dead, made up, or of another owner.
    fn invalid(self) -> i64 {
        match self {
            Self::Component => 40001,
            Self::Suite | Self::Provider => 40082,
            Self::Device | Self::Model => 40014,
        }
    }
}

fn with_token(call: Call<'_>, owner: Owner) -> Answer {
    let mut found = owner_of(call, owner.parameter());
    let mut is_there = call.head.param(owner.parameter()).is_some();
    // Newer pages document the component's token under the common name, but not those of logins.
    if owner == Owner::Component && !is_there && !call.head.path().starts_with("/sns/") {
        is_there = call.head.param("access_token").is_some();
        found = owner_of(call, "access_token");
        if is_there && call.judged.account.is_some() {
            return refused(call, Platform::Wechat, 61014);
        }
    }
    if !is_there {
        return refused(call, owner.platform(), owner.missing());
    }
    if found != Some(owner) {
        return refused(call, owner.platform(), owner.invalid());
    }
    match call.head.path() {
        "/cgi-bin/component/api_query_auth" | "/cgi-bin/component/api_authorizer_token" => {
            let field = "authorizer_access_token";
            account_token(call, Platform::Wechat, AUTHORIZER, field)
        }
        "/cgi-bin/service/get_corp_token" => {
            account_token(call, Platform::Wecom, AUTHORIZED_CORP, "access_token")
        }
        "/cgi-bin/openhw/get_device_token" => issued(call, Owner::Device, "device_access_token"),
        "/cgi-bin/service/get_pre_auth_code" => {
            let code = call.shared.state.noise.text(64);
            let body = json!({"pre_auth_code": code, "expires_in": 1200});
            done(call, Platform::Wecom, &body)
        }
        _ => done(call, owner.platform(), &json!({})),
    }
}

fn with_secret(call: Call<'_>, owner: Owner) -> Answer {
    let Some(body) = call.json() else {
        return refused(call, owner.platform(), 47001);
    };
    let field = |name| text(&body, name).unwrap_or(Cow::Borrowed(""));
    // Each with the error code for a wrong value.
    let (id, own_id, unknown_id) = match owner {
        Owner::Component => (field("component_appid"), COMPONENT, 61011),
        Owner::Suite => (field("suite_id"), SUITE, 40083),
        Owner::Provider => (field("corpid"), PROVIDER, 40013),
        Owner::Device | Owner::Model => (field("model_id"), MODEL, 40013),
    };
    let (secret, wrong_secret) = match owner {
        Owner::Component => (field("component_appsecret"), 40125),
        Owner::Suite => (field("suite_secret"), 40080),
        Owner::Provider => (field("provider_secret"), 40001),
        Owner::Device | Owner::Model => (field("model_secret"), 40001),
    };
    let (ticket, no_ticket) = match owner {
        Owner::Component => (field("component_verify_ticket"), 61006),
        Owner::Suite => (field("suite_ticket"), 40085),
        Owner::Provider | Owner::Device | Owner::Model => (Cow::Borrowed("none"), 0),
    };
    if id != own_id {
        return refused(call, owner.platform(), unknown_id);
    }
    if secret != SECRET {
        return refused(call, owner.platform(), wrong_secret);
    }
    // The sandbox pushes no tickets, so any ticket is valid.
    if ticket.is_empty() {
        return refused(call, owner.platform(), no_ticket);
    }
    issued(call, owner, owner.parameter())
}

fn issued(call: Call<'_>, owner: Owner, field: &'static str) -> Answer {
    let token = call.shared.state.noise.text(120);
    let mut ledger = call.shared.state.ledger();
    if ledger.others.len() >= KEPT {
        ledger.others.clear();
    }
    ledger.others.insert(token.clone(), owner);
    drop(ledger);
    done(
        call,
        owner.platform(),
        &json!({field: token, "expires_in": 7200}),
    )
}

/// A token that works on ordinary paths, of an account that comes to be with the first call.
fn account_token(call: Call<'_>, platform: Platform, appid: &str, field: &'static str) -> Answer {
    let index = {
        let mut ledger = call.shared.state.ledger();
        if !ledger.knows(platform, appid) {
            ledger.put_account(&SandboxAccount {
                platform,
                ..SandboxAccount::new(appid, SECRET)
            });
        }
        let is_it = |account: &crate::sandbox::state::Account| {
            account.platform == platform && *account.appid == *appid
        };
        ledger.accounts.iter().position(is_it)
    };
    let Some(index) = index else {
        return refused(call, platform, -1);
    };
    let grant = match platform {
        Platform::Wechat => call.shared.state.grant_classic(index, None),
        Platform::Wecom => call.shared.state.grant_wecom(index, None),
    };
    let Grant::Token {
        token, expires_in, ..
    } = grant
    else {
        return refused(call, platform, 45009);
    };
    let given = json!({field: &*token, "expires_in": expires_in});
    match call.head.path() {
        "/cgi-bin/component/api_query_auth" => {
            done(call, platform, &json!({"authorization_info": given}))
        }
        _ => done(call, platform, &given),
    }
}

/// Answers `POST cgi-bin/miniprogram/transfer_session` with the downstream corp's token.
fn downstream(call: Call<'_>) -> Answer {
    match call.judged.account.as_deref() {
        Some(DOWNSTREAM_CORP) if call.judged.state.is_good() => {
            let session_key = format!("{}==", call.shared.state.noise.text(22));
            done(
                call,
                Platform::Wecom,
                &json!({"userid": "wmsandbox", "session_key": session_key}),
            )
        }
        _ if call.head.param("access_token").is_none() => refused(call, Platform::Wecom, 41001),
        _ => refused(call, Platform::Wecom, 40014),
    }
}

/// Answers `POST cgi-bin/webhook/send?key=`: any key that does not begin with `bad` is valid.
fn webhook(call: Call<'_>) -> Answer {
    match call.head.param("key") {
        Some(key) if !key.starts_with("bad") => done(call, Platform::Wecom, &json!({})),
        _ => refused(call, Platform::Wecom, 93000),
    }
}

/// Answers `POST cgi-bin/aibot/response?response_code=`: a code is valid once, unless it begins
/// with `bad`.
fn response(call: Call<'_>) -> Answer {
    let Some(code) = call.head.param("response_code") else {
        return refused(call, Platform::Wecom, 41008);
    };
    let is_new = call
        .shared
        .state
        .ledger()
        .used_codes
        .insert(format!("aibot {code}"));
    if code.starts_with("bad") || !is_new {
        return refused(call, Platform::Wecom, 40029);
    }
    done(call, Platform::Wecom, &json!({}))
}

fn owner_of(call: Call<'_>, parameter: &str) -> Option<Owner> {
    let token = call.head.param(parameter)?;
    call.shared.state.ledger().others.get(&token).copied()
}

/// Creates an error in the form of this platform, whichever platform the account's token belongs
/// to.
fn refused(call: Call<'_>, platform: Platform, code: i64) -> Answer {
    let text = message(platform, code, SEEN_IP, &call.shared.state.rid());
    Answer::error(code, &text, content_type(platform))
}

fn done(call: Call<'_>, platform: Platform, value: &Value) -> Answer {
    let mut whole = json!({"errcode": 0, "errmsg": "ok"});
    if let (Some(whole), Some(value)) = (whole.as_object_mut(), value.as_object()) {
        whole.extend(value.clone());
    }
    Answer::done_with(call.head.path(), &whole).with_content_type(content_type(platform))
}

fn content_type(platform: Platform) -> &'static str {
    match platform {
        Platform::Wechat => JSON_ENCODING,
        Platform::Wecom => JSON_CHARSET,
    }
}
