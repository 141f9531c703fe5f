//! Calls that take another credential than the account's token: of third-party platforms, suites,
//! providers, devices, other corps, robots.
//!
//! There is one of each, with a fixed identity ([`SECRET`] is the secret of all). Their tokens are
//! recorded by owner only. Paths, parameters and refusals are those of WeChat's documentation.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{ApiCall, text};
use crate::sandbox::{
    answer::{JSON_CHARSET, JSON_ENCODING, SandboxAnswer, message},
    issue::Grant,
    settings::{SandboxAccount, SandboxPlatform},
    shape::SEEN_IP,
    state::TokenOwner,
};

/// Credential that a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathCredential {
    /// Token of this owner, in its own parameter.
    Token(TokenOwner),
    /// The provider's token, in the parameter `access_token`.
    ProviderAsAccess,
    /// Token of a downstream corp.
    Downstream,
    /// Secret in the body.
    Secret(TokenOwner),
    WebhookKey,
    ResponseCode,
}

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
const MAX_OTHER_TOKENS: usize = 10_000;

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

/// Path that returns the token of a downstream corp, for the token of the corp upstream.
pub(super) const DOWNSTREAM_TOKEN: &str = "/cgi-bin/corpgroup/corp/gettoken";

/// Answers a call whose path takes another credential; `None` for all others.
pub(super) fn answer(call: ApiCall<'_>) -> Option<SandboxAnswer> {
    Some(match takes(call.head.path())? {
        PathCredential::Token(owner) => with_token(call, owner),
        PathCredential::ProviderAsAccess => match owner_of(call, "access_token") {
            Some(TokenOwner::Provider) => {
                done(call, SandboxPlatform::Wecom, &json!({"usertype": 1}))
            }
            _ if call.head.param("access_token").is_none() => {
                refused(call, SandboxPlatform::Wecom, 41001)
            }
            _ => refused(call, SandboxPlatform::Wecom, 40014),
        },
        PathCredential::Downstream => downstream(call),
        PathCredential::Secret(owner) => with_secret(call, owner),
        PathCredential::WebhookKey => webhook(call),
        PathCredential::ResponseCode => response(call),
    })
}

/// Answers a token of no account. The component's own token on a path of accounts has a refusal of
/// its own.
pub(super) fn unknown_token(call: ApiCall<'_>) -> Option<SandboxAnswer> {
    if owner_of(call, "access_token") != Some(TokenOwner::Component) {
        return None;
    }
    Some(if BOTH.contains(&call.head.path()) {
        done(call, SandboxPlatform::Wechat, &json!({}))
    } else {
        refused(call, SandboxPlatform::Wechat, 61015)
    })
}

/// Answers a call without `access_token` that carries a component's token where both are accepted.
pub(super) fn no_token(call: ApiCall<'_>) -> Option<SandboxAnswer> {
    let brings = call.head.param("component_access_token").is_some();
    (brings && BOTH.contains(&call.head.path())).then(|| with_token(call, TokenOwner::Component))
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
            Some(
                PathCredential::Secret(_)
                    | PathCredential::WebhookKey
                    | PathCredential::ResponseCode
            )
        )
}

/// Answers `POST cgi-bin/corpgroup/corp/gettoken`.
pub(super) fn downstream_token(call: ApiCall<'_>) -> SandboxAnswer {
    let body = call.json().unwrap_or(Value::Null);
    if text(&body, "corpid").as_deref() != Some(DOWNSTREAM_CORP) {
        return call.error(40013);
    }
    account_token(
        call,
        SandboxPlatform::Wecom,
        DOWNSTREAM_CORP,
        "access_token",
    )
}

fn takes(path: &str) -> Option<PathCredential> {
    let own_secret = match path {
        "/cgi-bin/component/api_component_token" => Some(TokenOwner::Component),
        "/cgi-bin/service/get_suite_token" => Some(TokenOwner::Suite),
        "/cgi-bin/service/get_provider_token" => Some(TokenOwner::Provider),
        "/cgi-bin/openhw/get_model_token" => Some(TokenOwner::Model),
        _ => None,
    };
    if let Some(owner) = own_secret {
        return Some(PathCredential::Secret(owner));
    }
    if COMPONENT_PATHS.contains(&path) || path.starts_with("/componenttcb/") {
        return Some(PathCredential::Token(TokenOwner::Component));
    }
    if path.starts_with("/wxa/servicemarket/service/get_service_buyer") {
        return Some(PathCredential::Token(TokenOwner::Component));
    }
    let rest = path.strip_prefix("/cgi-bin/")?;
    let (first, behind) = rest.split_once('/')?;
    Some(match (first, behind) {
        ("service", "get_login_info") => PathCredential::ProviderAsAccess,
        ("service", behind) if SUITE_PATHS.contains(&behind) => {
            PathCredential::Token(TokenOwner::Suite)
        }
        ("idconvert", "upgrade_chatid_for_new_corp") => PathCredential::Token(TokenOwner::Suite),
        ("service" | "license" | "advanced_api" | "paytool", _)
        | ("hardware", "get_device_feature") => PathCredential::Token(TokenOwner::Provider),
        ("openhw", "device/get_device_detail") => PathCredential::Token(TokenOwner::Model),
        ("openhw", behind) if behind.starts_with("device/") => {
            PathCredential::Token(TokenOwner::Device)
        }
        ("openhw", _) => PathCredential::Token(TokenOwner::Model),
        ("miniprogram", "transfer_session") => PathCredential::Downstream,
        ("webhook", "send" | "upload_media") => PathCredential::WebhookKey,
        ("aibot", "response") => PathCredential::ResponseCode,
        _ => return None,
    })
}

impl TokenOwner {
    fn platform(self) -> SandboxPlatform {
        match self {
            Self::Component => SandboxPlatform::Wechat,
            Self::Suite | Self::Provider | Self::Device | Self::Model => SandboxPlatform::Wecom,
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

fn with_token(call: ApiCall<'_>, owner: TokenOwner) -> SandboxAnswer {
    let mut found = owner_of(call, owner.parameter());
    let mut is_there = call.head.param(owner.parameter()).is_some();
    // Newer pages document the component's token under the common name, but not those of logins.
    if owner == TokenOwner::Component && !is_there && !call.head.path().starts_with("/sns/") {
        is_there = call.head.param("access_token").is_some();
        found = owner_of(call, "access_token");
        if is_there && call.judged.account.is_some() {
            return refused(call, SandboxPlatform::Wechat, 61014);
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
            account_token(call, SandboxPlatform::Wechat, AUTHORIZER, field)
        }
        "/cgi-bin/service/get_corp_token" => account_token(
            call,
            SandboxPlatform::Wecom,
            AUTHORIZED_CORP,
            "access_token",
        ),
        "/cgi-bin/openhw/get_device_token" => {
            issued(call, TokenOwner::Device, "device_access_token")
        }
        "/cgi-bin/service/get_pre_auth_code" => {
            let code = call.shared.state.noise.text(64);
            let body = json!({"pre_auth_code": code, "expires_in": 1200});
            done(call, SandboxPlatform::Wecom, &body)
        }
        _ => done(call, owner.platform(), &json!({})),
    }
}

fn with_secret(call: ApiCall<'_>, owner: TokenOwner) -> SandboxAnswer {
    let Some(body) = call.json() else {
        return refused(call, owner.platform(), 47001);
    };
    let field = |name| text(&body, name).unwrap_or(Cow::Borrowed(""));
    // Each with the error code for a wrong value.
    let (id, own_id, unknown_id) = match owner {
        TokenOwner::Component => (field("component_appid"), COMPONENT, 61011),
        TokenOwner::Suite => (field("suite_id"), SUITE, 40083),
        TokenOwner::Provider => (field("corpid"), PROVIDER, 40013),
        TokenOwner::Device | TokenOwner::Model => (field("model_id"), MODEL, 40013),
    };
    let (secret, wrong_secret) = match owner {
        TokenOwner::Component => (field("component_appsecret"), 40125),
        TokenOwner::Suite => (field("suite_secret"), 40080),
        TokenOwner::Provider => (field("provider_secret"), 40001),
        TokenOwner::Device | TokenOwner::Model => (field("model_secret"), 40001),
    };
    let (ticket, no_ticket) = match owner {
        TokenOwner::Component => (field("component_verify_ticket"), 61006),
        TokenOwner::Suite => (field("suite_ticket"), 40085),
        TokenOwner::Provider | TokenOwner::Device | TokenOwner::Model => (Cow::Borrowed("none"), 0),
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

fn issued(call: ApiCall<'_>, owner: TokenOwner, field: &'static str) -> SandboxAnswer {
    let token = call.shared.state.noise.text(120);
    let mut ledger = call.shared.state.ledger();
    if ledger.others.len() >= MAX_OTHER_TOKENS {
        // Forgets all at once: no test needs that many, and the bound is all that counts.
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
fn account_token(
    call: ApiCall<'_>,
    platform: SandboxPlatform,
    appid: &str,
    field: &'static str,
) -> SandboxAnswer {
    let index = {
        let mut ledger = call.shared.state.ledger();
        // Created on first use, so that a fresh sandbox lists only the configured accounts.
        if !ledger.knows(platform, appid) {
            ledger.put_account(&SandboxAccount {
                platform,
                ..SandboxAccount::new(appid, SECRET)
            });
        }
        let is_it = |account: &crate::sandbox::state::AccountState| {
            account.platform == platform && *account.appid == *appid
        };
        ledger.accounts.iter().position(is_it)
    };
    let Some(index) = index else {
        return refused(call, platform, -1);
    };
    let grant = match platform {
        SandboxPlatform::Wechat => call.shared.state.grant_classic(index, None),
        SandboxPlatform::Wecom => call.shared.state.grant_wecom(index, None),
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
fn downstream(call: ApiCall<'_>) -> SandboxAnswer {
    match call.judged.account.as_deref() {
        Some(DOWNSTREAM_CORP) if call.judged.state.is_good() => {
            let session_key = format!("{}==", call.shared.state.noise.text(22));
            done(
                call,
                SandboxPlatform::Wecom,
                &json!({"userid": "wmsandbox", "session_key": session_key}),
            )
        }
        _ if call.head.param("access_token").is_none() => {
            refused(call, SandboxPlatform::Wecom, 41001)
        }
        _ => refused(call, SandboxPlatform::Wecom, 40014),
    }
}

/// Answers `POST cgi-bin/webhook/send?key=`: any key that does not begin with `bad` is valid.
fn webhook(call: ApiCall<'_>) -> SandboxAnswer {
    match call.head.param("key") {
        Some(key) if !key.starts_with("bad") => done(call, SandboxPlatform::Wecom, &json!({})),
        _ => refused(call, SandboxPlatform::Wecom, 93000),
    }
}

/// Answers `POST cgi-bin/aibot/response?response_code=`: a code is valid once, unless it begins
/// with `bad`.
fn response(call: ApiCall<'_>) -> SandboxAnswer {
    let Some(code) = call.head.param("response_code") else {
        return refused(call, SandboxPlatform::Wecom, 41008);
    };
    let is_new = call
        .shared
        .state
        .ledger()
        .used_codes
        .insert(format!("aibot {code}"));
    if code.starts_with("bad") || !is_new {
        return refused(call, SandboxPlatform::Wecom, 40029);
    }
    done(call, SandboxPlatform::Wecom, &json!({}))
}

fn owner_of(call: ApiCall<'_>, parameter: &str) -> Option<TokenOwner> {
    let token = call.head.param(parameter)?;
    call.shared.state.ledger().others.get(&token).copied()
}

/// Creates an error in the form of this platform, whichever platform the account's token belongs
/// to.
fn refused(call: ApiCall<'_>, platform: SandboxPlatform, code: i64) -> SandboxAnswer {
    let text = message(platform, code, SEEN_IP, &call.shared.state.rid());
    SandboxAnswer::error(code, &text, content_type(platform))
}

fn done(call: ApiCall<'_>, platform: SandboxPlatform, value: &Value) -> SandboxAnswer {
    let mut whole = json!({"errcode": 0, "errmsg": "ok"});
    if let (Some(whole), Some(value)) = (whole.as_object_mut(), value.as_object()) {
        whole.extend(value.clone());
    }
    SandboxAnswer::done_with(call.head.path(), &whole).with_content_type(content_type(platform))
}

fn content_type(platform: SandboxPlatform) -> &'static str {
    match platform {
        SandboxPlatform::Wechat => JSON_ENCODING,
        SandboxPlatform::Wecom => JSON_CHARSET,
    }
}
