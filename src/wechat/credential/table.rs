//! Table of the endpoints that take another credential than the account's token, or return one.
//! Unlisted endpoints take the account's token.
//!
//! Sources: the API lists of SKIT.FlurlHttpClient.Wechat (general, advertising, WeCom), the
//! interface pages of the mini-program documentation, WeCom's pages 90605, 90628, 90593, 91039,
//! 91770, 93359, 96237, 97162 and 101138. `tests/data/wechat/credential-paths.tsv` has the 2,381
//! documented paths; a test holds this table against each of them.

use super::{Minting, PathKind, PathRow};
use crate::wechat::api::Platform::{self, Wechat, Wecom};

/// Paths, or families of paths (rows that end in `/`). A path's own row takes precedence over its
/// family's. Families end at the first segment, below `/cgi-bin/` at the second.
pub(super) const TABLE: &[PathRow] = &[
    // Answered by wxgate: each of these calls could replace the token that all callers use.
    row("/cgi-bin/token", PathKind::Minting(Minting::Classic)),
    row("/cgi-bin/stable_token", PathKind::Minting(Minting::Stable)),
    row("/cgi-bin/gettoken", PathKind::Minting(Minting::Wecom)),
    // Answered by wxgate for managed ticket types, forwarded for others.
    row(
        "/cgi-bin/ticket/getticket",
        PathKind::Minting(Minting::Ticket(Wechat)),
    ),
    row(
        "/cgi-bin/ticket/get",
        PathKind::Minting(Minting::Ticket(Wecom)),
    ),
    row(
        "/cgi-bin/get_jsapi_ticket",
        PathKind::Minting(Minting::JsapiTicket),
    ),
    // The ten clearings a month are shared by these calls (openApi management pages).
    guarded("/cgi-bin/clear_quota", CLEARS),
    guarded("/cgi-bin/clear_quota/v2", CLEARS),
    guarded("/cgi-bin/openapi/quota/clear", CLEARS),
    guarded("/cgi-bin/component/clear_quota", CLEARS),
    guarded("/cgi-bin/component/clear_quota/v2", CLEARS),
    guarded(
        "/cgi-bin/component/api_start_push_ticket",
        "starts the ticket push of a third-party platform",
    ),
    // An ordinary call with the account's token whose answer is a credential for use elsewhere.
    guarded(
        "/cgi-bin/corpgroup/corp/gettoken",
        "hands out the access token of another corp",
    ),
    guarded(
        "/tcb/getqcloudtoken",
        "hands out a secret key of Tencent Cloud",
    ),
    guarded("/tcb/getcodesecret", "hands out the code protection key"),
    guarded(
        "/retail/B2b/getappkey",
        "hands out the key that signs payments",
    ),
    guarded(
        "/cgi-bin/exmail/publicmail/get_auth_code_list",
        "hands out passwords of mail clients",
    ),
    // Login code exchanges: appid and AppSecret in the query.
    row("/sns/jscode2session", PathKind::Login),
    row("/sns/oauth2/access_token", PathKind::Login),
    // Below: tokens of users, and the component's token for the logins of authorizers.
    row("/sns/", PathKind::User),
    // A group robot's `key`; the one-time code of a robot's callback.
    row("/cgi-bin/webhook/", PathKind::Webhook),
    row("/cgi-bin/aibot/response", PathKind::ResponseCode),
    // The secret stands in the body.
    row(
        "/cgi-bin/component/api_component_token",
        PathKind::SecretInBody,
    ),
    row(
        "/cgi-bin/service/get_provider_token",
        PathKind::SecretInBody,
    ),
    row("/cgi-bin/service/get_suite_token", PathKind::SecretInBody),
    row("/cgi-bin/openhw/get_model_token", PathKind::SecretInBody),
    // The token of a third-party platform, as `component_access_token` or as `access_token`. The
    // rest of `/cgi-bin/component/` takes the token of the account.
    row("/cgi-bin/component/api_create_preauthcode", PathKind::Other),
    row("/cgi-bin/component/api_query_auth", PathKind::Other),
    row("/cgi-bin/component/api_authorizer_token", PathKind::Other),
    row(
        "/cgi-bin/component/api_get_authorizer_info",
        PathKind::Other,
    ),
    row(
        "/cgi-bin/component/api_get_authorizer_list",
        PathKind::Other,
    ),
    row("/cgi-bin/component/fastregisterweapp", PathKind::Other),
    row("/cgi-bin/component/get_domain_confirmfile", PathKind::Other),
    row(
        "/cgi-bin/component/modify_wxa_server_domain",
        PathKind::Other,
    ),
    row("/cgi-bin/component/modify_wxa_jump_domain", PathKind::Other),
    row("/componenttcb/", PathKind::Other),
    row("/wedata/wedata_get_login_config", PathKind::Other),
    row("/wedata/wedata_set_login_config", PathKind::Other),
    row("/wxa/addtotemplate", PathKind::Other),
    row("/wxa/deletetemplate", PathKind::Other),
    row("/wxa/gettemplatedraftlist", PathKind::Other),
    row("/wxa/gettemplatelist", PathKind::Other),
    row("/wxa/component/fastregisterbetaweapp", PathKind::Other),
    row("/wxa/component/fastregisterpersonalweapp", PathKind::Other),
    row("/wxa/security/applysetorderpathinfo", PathKind::Other),
    row("/wxa/servicemarket/get_paid_order_list", PathKind::Other),
    row(
        "/wxa/servicemarket/service/get_service_buyer",
        PathKind::Other,
    ),
    row(
        "/wxa/servicemarket/service/get_service_buyer_list",
        PathKind::Other,
    ),
    row("/wxa/servicemarket/service/login_auth", PathKind::Other),
    // Suites and providers of WeCom, device makers, and calls with a downstream corp's token. Of
    // `/cgi-bin/hardware/` and `/cgi-bin/miniprogram/` only these; the look-alikes
    // `/cgi-bin/advanced_feature/` and `/cgi-bin/devicedata/` take the corp's token.
    row("/cgi-bin/service/", PathKind::Other),
    row("/cgi-bin/license/", PathKind::Other),
    row("/cgi-bin/advanced_api/", PathKind::Other),
    row("/cgi-bin/paytool/", PathKind::Other),
    row("/cgi-bin/openhw/", PathKind::Other),
    row("/cgi-bin/hardware/get_device_feature", PathKind::Other),
    row(
        "/cgi-bin/idconvert/upgrade_chatid_for_new_corp",
        PathKind::Other,
    ),
    row("/cgi-bin/miniprogram/transfer_session", PathKind::Other),
    // The account's token in the query, beside the secret of the app in question.
    row("/donut/code2verifyinfo", PathKind::AccountBesideSecret),
    // Repeats the URL and the bodies of the call that failed.
    row("/cgi-bin/openapi/rid/get", PathKind::AccountRepeating),
];

/// Query parameters that carry an AppSecret.
pub(super) const SECRETS: [&str; 3] = ["secret", "appsecret", "corpsecret"];

/// Query parameters that carry a token of another kind than the account's.
pub(super) const TOKENS: [&str; 7] = [
    "component_access_token",
    "authorizer_access_token",
    "suite_access_token",
    "provider_access_token",
    "device_access_token",
    "model_access_token",
    "cloudbase_access_token",
];

/// First segments below `/cgi-bin/`, and paths below segments of both platforms, that only one
/// platform has. Paths outside `/cgi-bin/` are WeChat's.
pub(super) const PLATFORMS: &[(Platform, &[&str])] = &[
    (
        Wechat,
        &[
            "account",
            "business",
            "callback",
            "changeopenid",
            "clear_quota",
            "comment",
            "component",
            "customservice",
            "draft",
            "express",
            "freepublish",
            "get_current_autoreply_info",
            "get_current_selfmenu_info",
            "guide",
            "material",
            "media/getfeedbackmedia",
            "media/uploadnews",
            "media/uploadvideo",
            "media/voice",
            "menu/addconditional",
            "menu/delconditional",
            "menu/trymatch",
            "message/custom",
            "message/device",
            "message/mass",
            "message/subscribe",
            "message/template",
            "message/wxopen",
            "midas",
            "open",
            "openapi",
            "poi",
            "qrcode",
            "shorten",
            "shorturl",
            "soter",
            "stable_token",
            "tags",
            "template",
            "ticket/getticket",
            "token",
            "user/info",
            "user/tag",
            "wxaapp",
            "wxopen",
            "wxverify",
        ],
    ),
    (
        Wecom,
        &[
            "advanced_api",
            "advanced_feature",
            "agent",
            "aibot",
            "appchat",
            "auth",
            "batch",
            "card",
            "chatdata",
            "checkin",
            "corp",
            "corpgroup",
            "department",
            "devicedata",
            "dial",
            "exmail",
            "export",
            "externalcontact",
            "externalpay",
            "get_jsapi_ticket",
            "gettoken",
            "hardware",
            "health",
            "hr",
            "idconvert",
            "kf",
            "license",
            "linkedcorp",
            "living",
            "media/get/jssdk",
            "media/get_upload_by_url_result",
            "media/upload_attachment",
            "media/upload_by_url",
            "meeting",
            "message/get_statistics",
            "message/recall",
            "message/send",
            "message/update_taskcard",
            "message/update_template_card",
            "miniapppay",
            "miniprogram",
            "msgaudit",
            "oa",
            "openhw",
            "paytool",
            "pstncc",
            "report",
            "school",
            "security",
            "service",
            "sync",
            "tag",
            "ticket/get",
            "user/authsucc",
            "user/batchdelete",
            "user/check_member_auth",
            "user/convert_to_openid",
            "user/convert_to_userid",
            "user/create",
            "user/delete",
            "user/get_active_stat",
            "user/get_userid_by_email",
            "user/getuserid",
            "user/getuserinfo",
            "user/list",
            "user/list_id",
            "user/list_member_auth",
            "user/list_selected_ticket_user",
            "user/simplelist",
            "user/tfa_succ",
            "user/update",
            "webhook",
            "wedoc",
            "wedrive",
        ],
    ),
];

const CLEARS: &str = "clears a quota that all callers share, ten times a month";

const fn row(path: &'static str, kind: PathKind) -> PathRow {
    PathRow { path, kind }
}

const fn guarded(path: &'static str, does: &'static str) -> PathRow {
    row(path, PathKind::Guarded(does))
}
