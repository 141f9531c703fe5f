//! What an account has: followers, menu, templates, QR codes. The answers are fixed, nothing is
//! kept.

use serde_json::json;

use super::{Call, text};
use crate::sandbox::answer::Answer;

/// A call to one of these paths, `None` for all others.
pub(super) fn answer(call: Call<'_>) -> Option<Answer> {
    Some(match call.head.path() {
        "/cgi-bin/user/info" => user_info(call),
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

/// Whether the path reads its JSON body.
pub(super) fn reads_body(path: &str) -> bool {
    path == "/cgi-bin/qrcode/create"
}

fn user_info(call: Call<'_>) -> Answer {
    let Some(openid) = call.head.param("openid") else {
        return call.error(40003);
    };
    call.ok(&json!({
        "subscribe": 1, "openid": openid, "language": "zh_CN", "subscribe_time": 1_434_093_047, "remark": "",
        "groupid": 0, "tagid_list": [], "subscribe_scene": "ADD_SCENE_QR_CODE", "qr_scene": 0, "qr_scene_str": ""
    }))
}

/// `POST cgi-bin/qrcode/create`: a ticket for `showqrcode`; codes that last say no
/// `expire_seconds`.
fn qrcode(call: Call<'_>) -> Answer {
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
        // Thirty seconds when nothing is said, as the documentation has it.
        answer["expire_seconds"] = body["expire_seconds"].as_u64().unwrap_or(30).into();
    }
    call.ok(&answer)
}
