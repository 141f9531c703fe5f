//! Data of an account: followers, members, menu, templates, QR codes, drafts, balances, with fixed
//! answers and without state; and the look-up of failed calls.

use serde_json::{Value, json};

use super::{ApiCall, text};
use crate::sandbox::{answer::SandboxAnswer, settings::SandboxPlatform, shape::SEEN_IP};

/// Answers a call to a path of this module; `None` for all others.
pub(super) fn answer(call: ApiCall<'_>) -> Option<SandboxAnswer> {
    Some(match call.head.path() {
        "/cgi-bin/user/info" => user_info(call),
        "/cgi-bin/user/get" if call.judged.platform == SandboxPlatform::Wecom => member(call),
        "/cgi-bin/auth/getuserinfo" | "/cgi-bin/user/getuserinfo" => web_login(call),
        "/cgi-bin/draft/add" => draft(call),
        "/cgi-bin/openapi/rid/get" => failure(call),
        "/xpay/query_user_balance" => call.ok(&json!({
            "errcode": 0, "errmsg": "ok", "balance": 100, "present_balance": 20, "sum_save": 100,
            "sum_present": 20, "sum_balance": 120, "sum_cost": 0, "first_save_flag": true
        })),
        "/cgi-bin/user/get" => {
            let openids = ["o-sandbox-user-0001", "o-sandbox-user-0002"];
            call.ok(&json!({"total": 2, "count": 2, "data": {"openid": openids}, "next_openid": openids[1]}))
        }
        "/cgi-bin/menu/get" => call.ok(&json!({"menu": {"button": []}})),
        "/cgi-bin/template/get_all_private_template" => call.ok(&json!({"template_list": [{
            "template_id": "template-1", "title": "通知", "primary_industry": "", "deputy_industry": "",
            "content": "{{first.DATA}}", "example": ""
        }]})),
        "/cgi-bin/qrcode/create" => qrcode(call),
        "/card/getcolors" => {
            call.ok(&json!({"errcode": 0, "errmsg": "ok", "colors": [{"name": "Color010", "value": "#55bd47"}]}))
        }
        _ => return None,
    })
}

/// Returns true if the path reads its JSON body.
pub(super) fn reads_body(path: &str) -> bool {
    matches!(
        path,
        "/cgi-bin/qrcode/create" | "/cgi-bin/draft/add" | "/cgi-bin/openapi/rid/get"
    )
}

/// Answers WeCom's `GET cgi-bin/user/get?userid=`: a member.
fn member(call: ApiCall<'_>) -> SandboxAnswer {
    let Some(userid) = call.head.param("userid") else {
        return call.error(40003);
    };
    call.ok(&json!({
        "userid": userid, "name": "Sandbox", "department": [1], "order": [0], "position": "",
        "is_leader_in_dept": [0], "direct_leader": [], "alias": "", "telephone": "", "status": 1,
        "enable": 1, "isleader": 0, "hide_mobile": 0, "main_department": 1, "extattr": {"attrs": []},
        "external_profile": {"external_attr": []}
    }))
}

/// Answers WeCom's `GET cgi-bin/auth/getuserinfo?code=`: the member that logged in, with a ticket
/// for private data. The older path capitalises its fields.
fn web_login(call: ApiCall<'_>) -> SandboxAnswer {
    let code = call.head.param("code");
    if code.is_none_or(|code| code.starts_with("bad")) {
        return call.error(40029);
    }
    let ticket = call.shared.state.noise.text(64);
    if call.head.path() == "/cgi-bin/auth/getuserinfo" {
        return call.ok(&json!({"userid": "sandbox-member", "user_ticket": ticket}));
    }
    call.ok(&json!({
        "UserId": "sandbox-member", "DeviceId": "", "user_ticket": ticket, "expires_in": 1800
    }))
}

/// Answers `POST cgi-bin/draft/add`.
fn draft(call: ApiCall<'_>) -> SandboxAnswer {
    let Some(body) = call.json() else {
        return call.error(47001);
    };
    let is_article = |article: &Value| {
        text(article, "title").is_some()
            && (text(article, "thumb_media_id").is_some() || article["article_type"] == "newspic")
    };
    match body["articles"].as_array() {
        Some(articles) if !articles.is_empty() && articles.iter().all(is_article) => {
            call.ok(&json!({"media_id": call.shared.state.noise.text(64)}))
        }
        _ => call.error(40007),
    }
}

/// Answers `POST cgi-bin/openapi/rid/get`: the failed call, including its token.
fn failure(call: ApiCall<'_>) -> SandboxAnswer {
    let body = call.json().unwrap_or(Value::Null);
    let Some(rid) = text(&body, "rid") else {
        return call.error(76002);
    };
    let Some(failure) = call.shared.failures.find(&rid) else {
        return call.error(76001);
    };
    if failure.account != call.account() {
        return call.error(76003);
    }
    call.ok(&json!({"errcode": 0, "errmsg": "ok", "request": {
        "invoke_time": failure.at, "cost_in_ms": 30, "request_url": failure.query,
        "request_body": failure.request, "response_body": failure.response, "client_ip": SEEN_IP
    }}))
}

fn user_info(call: ApiCall<'_>) -> SandboxAnswer {
    let Some(openid) = call.head.param("openid") else {
        return call.error(40003);
    };
    call.ok(&json!({
        "subscribe": 1, "openid": openid, "language": "zh_CN", "subscribe_time": 1_434_093_047, "remark": "",
        "groupid": 0, "tagid_list": [], "subscribe_scene": "ADD_SCENE_QR_CODE", "qr_scene": 0, "qr_scene_str": ""
    }))
}

/// Answers `POST cgi-bin/qrcode/create`: a ticket for `showqrcode`; permanent codes have no
/// `expire_seconds`.
fn qrcode(call: ApiCall<'_>) -> SandboxAnswer {
    if call.head.method() != "POST" {
        return call.error(43002);
    }
    let Some(body) = call.json() else {
        return call.error(47001);
    };
    let ticket = call.shared.state.noise.text(96);
    let mut answer =
        json!({"ticket": ticket, "url": format!("http://weixin.qq.com/q/{}", &ticket[..24])});
    if text(&body, "action_name").is_some_and(|name| !name.contains("LIMIT")) {
        // Thirty seconds by default, as documented.
        answer["expire_seconds"] = body["expire_seconds"].as_u64().unwrap_or(30).into();
    }
    call.ok(&answer)
}
