//! Bodies, codes and content types of every endpoint.

use super::*;
use crate::sandbox::digest::sha256_hex;

const OVERWRITTEN: &str = "invalid credential, access_token is invalid or not latest, could get access_token by \
                           getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: RID";

fn classic(appid: &str, grant: &str, secret: &str) -> String {
    format!("/cgi-bin/token?grant_type={grant}&appid={appid}&secret={secret}")
}

#[tokio::test]
async fn the_classic_endpoint_issues_a_token_in_the_documented_form() {
    let world = TestSandbox::new().await;
    let reply = world
        .get(&classic(DEFAULT_APPID, "client_credential", DEFAULT_SECRET))
        .await;
    assert_eq!(
        (reply.status, reply.field("content-type")),
        (200, Some("application/json; encoding=utf-8"))
    );
    assert_eq!(
        (reply.field("connection"), reply.field("logicret")),
        (Some("keep-alive"), Some("0"))
    );
    let json = reply.json();
    let keys: Vec<_> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["access_token", "expires_in"]);
    assert_eq!(json["expires_in"], 7200);
    let token = json["access_token"].as_str().unwrap();
    assert!(
        (136..=142).contains(&token.len()) && token.as_bytes()[2] == b'_',
        "{token}"
    );
    let again = world
        .post(
            &classic(DEFAULT_APPID, "client_credential", DEFAULT_SECRET),
            "",
        )
        .await;
    assert_ne!(again.json()["access_token"], token);
    assert_eq!(world.control.counters().classic_fetches, 2);
}

#[tokio::test]
async fn token_errors_come_in_the_order_of_the_real_api() {
    let world = TestSandbox::with(SandboxSettings {
        accounts: vec![
            SandboxAccount::new("wx1", "s1"),
            SandboxAccount::new("wx2", "s2"),
        ],
        ..SandboxSettings::default()
    })
    .await;
    for (target, code, text) in [
        ("/cgi-bin/token".to_owned(), 41002, "appid missing rid: RID"),
        (
            classic("wxno", "wrong", "s1"),
            40013,
            "invalid appid rid: RID",
        ),
        (
            classic("wx1", "wrong", "s1"),
            40002,
            "invalid grant_type rid: RID",
        ),
        (
            classic("wx1", "client_credential", ""),
            41004,
            "appsecret missing rid: RID",
        ),
        (
            classic("wx1", "client_credential", "no"),
            40125,
            "invalid appsecret rid: RID",
        ),
        (
            classic("wx1", "client_credential", "s2"),
            40001,
            "invalid credential rid: RID",
        ),
        (
            "/cgi-bin/stable_token".to_owned(),
            43002,
            "require POST method rid: RID",
        ),
    ] {
        let reply = world.get(&target).await;
        assert_eq!(
            (reply.errcode(), without_rid(&reply.errmsg()).as_str()),
            (code, text),
            "{target}"
        );
        assert_eq!(reply.field("logicret").unwrap(), code.to_string());
    }
    let bad = world.post("/cgi-bin/stable_token", "not json").await;
    assert_eq!(bad.errcode(), 47001);
    let unknown = world
        .post("/cgi-bin/stable_token", r#"{"appid":"wxno"}"#)
        .await;
    assert_eq!(unknown.errcode(), 40013);
}

#[tokio::test]
async fn the_stable_endpoint_repeats_its_token_until_it_is_forced() {
    let world = TestSandbox::new().await;
    let first = world.token().await;
    world.control.advance(Duration::from_secs(1000));
    let again = world.stable(false).await.json();
    assert_eq!(
        (again["access_token"].as_str(), again["expires_in"].as_u64()),
        (Some(first.as_str()), Some(6200))
    );
    let forced = world.stable(true).await.json();
    assert_ne!(forced["access_token"], first);
    assert_eq!(
        world
            .get(&format!("/cgi-bin/user/get?access_token={first}"))
            .await
            .errcode(),
        40001
    );
    let counters = world.control.counters();
    assert_eq!(
        (
            counters.stable_fetches,
            counters.forced_fetches,
            world.control.fetches()
        ),
        (3, 1, 3)
    );
}

#[tokio::test]
async fn the_classic_quota_is_answered_with_the_advice_to_use_the_stable_one() {
    let world = TestSandbox::with(SandboxSettings {
        classic_per_day: 1,
        ..SandboxSettings::default()
    })
    .await;
    let target = classic(DEFAULT_APPID, "client_credential", DEFAULT_SECRET);
    assert_eq!(world.get(&target).await.errcode(), 0);
    let refused = world.get(&target).await;
    assert_eq!(
        (refused.errcode(), without_rid(&refused.errmsg()).as_str()),
        (
            45009,
            "reach max api daily quota limit, could get access_token by getStableAccessToken, more details at \
             https://mmbizurl.cn/s/JtxxFh33r rid: RID"
        )
    );
    let token = world.token().await;
    let body = format!(r#"{{"appid":"{DEFAULT_APPID}"}}"#);
    let cleared = world
        .post(&format!("/cgi-bin/clear_quota?access_token={token}"), &body)
        .await;
    assert_eq!(cleared.errcode(), 0);
    assert_eq!(world.get(&target).await.errcode(), 0);
    let v2 = format!("/cgi-bin/clear_quota/v2?appid={DEFAULT_APPID}&appsecret={DEFAULT_SECRET}");
    assert_eq!(world.post(&v2, "").await.errcode(), 0);
}

#[tokio::test]
async fn tokens_count_in_the_query_only() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let missing = world.get("/cgi-bin/menu/get").await;
    assert_eq!(
        (missing.errcode(), missing.field("content-type")),
        (41001, Some("text/plain"))
    );
    assert_eq!(
        without_rid(&missing.errmsg()),
        "access_token missing rid: RID"
    );
    let mut client = world.client().await;
    client
        .send(format!(
            "GET /cgi-bin/menu/get HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n"
        ))
        .await;
    assert_eq!(client.reply().await.unwrap().errcode(), 41001);
    let in_body = world
        .post(
            "/cgi-bin/tags/get",
            &format!(r#"{{"access_token":"{token}"}}"#),
        )
        .await;
    assert_eq!(in_body.errcode(), 41001);
    let wrong = world.get("/cgi-bin/menu/get?access_token=nonsense").await;
    assert_eq!(
        (wrong.errcode(), without_rid(&wrong.errmsg()).as_str()),
        (40001, OVERWRITTEN)
    );
    assert_eq!(
        world
            .get(&format!("/cgi-bin/menu/get?access_token={token}"))
            .await
            .errcode(),
        0
    );
    world.control.expire(DEFAULT_APPID);
    let expired = world
        .get(&format!("/cgi-bin/menu/get?access_token={token}"))
        .await;
    assert_eq!(
        (expired.errcode(), without_rid(&expired.errmsg()).as_str()),
        (42001, "access_token expired rid: RID")
    );
}

#[tokio::test]
async fn any_path_in_use_answers_ok_and_any_other_is_an_invalid_url() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    for path in [
        "/cgi-bin/tags/get",
        "/wxa/msg_sec_check",
        "/datacube/getusersummary",
        "/customservice/x/y",
    ] {
        let reply = world
            .post(&format!("{path}?access_token={token}"), "{}")
            .await;
        assert_eq!(
            reply.json(),
            serde_json::json!({"errcode": 0, "errmsg": "ok"}),
            "{path}"
        );
    }
    let unknown = world.get(&format!("/nowhere?access_token={token}")).await;
    assert_eq!(
        (unknown.errcode(), without_rid(&unknown.errmsg()).as_str()),
        (40066, "invalid url rid: RID")
    );
}

#[tokio::test]
async fn reading_endpoints_answer_in_their_own_shape() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let get = |rest: &str| format!("/cgi-bin/{rest}access_token={token}");
    assert_eq!(
        world.get(&get("user/info?openid=o1&")).await.json()["openid"],
        "o1"
    );
    assert_eq!(world.get(&get("user/info?")).await.errcode(), 40003);
    assert_eq!(
        world.get(&get("user/get?")).await.json()["data"]["openid"][0],
        "o-sandbox-user-0001"
    );
    assert!(world.get(&get("get_api_domain_ip?")).await.json()["ip_list"].is_array());
    assert!(world.get(&get("getcallbackip?")).await.json()["ip_list"].is_array());
    let ticket = world.get(&get("ticket/getticket?type=jsapi&")).await.json();
    assert_eq!(
        (ticket["errcode"].as_i64(), ticket["expires_in"].as_u64()),
        (Some(0), Some(7200))
    );
    assert_eq!(
        world.get(&get("ticket/getticket?type=jsapi&")).await.json()["ticket"],
        ticket["ticket"]
    );
    assert_ne!(
        world
            .get(&get("ticket/getticket?type=wx_card&"))
            .await
            .json()["ticket"],
        ticket["ticket"]
    );
    assert_eq!(world.control.counters().ticket_fetches, 3);
    assert_eq!(
        world
            .get(&get("component/api_create_preauthcode?"))
            .await
            .errcode(),
        61014
    );
}

#[tokio::test]
async fn what_an_account_has_is_listed_and_codes_get_a_ticket() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let target = |path: &str| format!("{path}?access_token={token}");
    let templates = world
        .get(&target("/cgi-bin/template/get_all_private_template"))
        .await
        .json();
    assert_eq!(templates["template_list"][0]["template_id"], "template-1");
    assert_eq!(
        world.get(&target("/card/getcolors")).await.json()["colors"][0]["name"],
        "Color010"
    );
    let create = target("/cgi-bin/qrcode/create");
    let passing = world
        .post(
            &create,
            r#"{"expire_seconds":60,"action_name":"QR_STR_SCENE"}"#,
        )
        .await
        .json();
    assert_eq!(
        (
            passing["expire_seconds"].as_u64(),
            passing["ticket"].as_str().unwrap().len()
        ),
        (Some(60), 96)
    );
    let lasting = world
        .post(&create, r#"{"action_name":"QR_LIMIT_SCENE"}"#)
        .await
        .json();
    assert!(
        lasting["ticket"].is_string() && lasting["expire_seconds"].is_null(),
        "{lasting}"
    );
    assert_eq!(world.get(&create).await.errcode(), 43002);
    assert_eq!(world.post(&create, "{").await.errcode(), 47001);
}

#[tokio::test]
async fn a_refused_message_is_not_delivered_and_an_accepted_one_is_once() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let message = r#"{"touser":"o1","msgtype":"text","text":{"content":"hello"}}"#;
    world.control.revoke(DEFAULT_APPID);
    let send = |token: &str| format!("/cgi-bin/message/custom/send?access_token={token}");
    assert_eq!(world.post(&send(&token), message).await.errcode(), 40001);
    assert_eq!(world.control.delivered_to("o1"), 0);
    let token = world.token().await;
    assert_eq!(world.post(&send(&token), message).await.errcode(), 0);
    let deliveries = world.control.deliveries();
    assert_eq!(deliveries.len(), 1);
    let delivery = &deliveries[0];
    assert_eq!(
        (
            delivery.openid.as_str(),
            delivery.kind.as_str(),
            delivery.content.as_str(),
            delivery.account.as_str()
        ),
        ("o1", "text", "hello", DEFAULT_APPID)
    );
    let path = world.control.path("/cgi-bin/message/custom/send");
    assert_eq!((path.requests, path.executed), (2, 1));
    assert_eq!(world.post(&send(&token), "{").await.errcode(), 47001);
    assert_eq!(world.post(&send(&token), "{}").await.errcode(), 40003);
}

fn multipart(content: &[u8], name: &str) -> Vec<u8> {
    let head = format!(
        "--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n"
    );
    [head.as_bytes(), content, b"\r\n--B--\r\n"].concat()
}

async fn upload(world: &TestSandbox, token: &str, body: &[u8]) -> WireReply {
    upload_to("/cgi-bin/media/upload", world, token, body).await
}

async fn upload_to(path: &str, world: &TestSandbox, token: &str, body: &[u8]) -> WireReply {
    let mut client = world.client().await;
    let head = format!(
        "POST {path}?type=image&access_token={token} HTTP/1.1\r\nContent-Length: {}\r\n\
         Content-Type: multipart/form-data; boundary=B\r\n\r\n",
        body.len()
    );
    client.send(head).await;
    client.send(body).await;
    client.reply().await.unwrap()
}

#[tokio::test]
async fn what_is_uploaded_can_be_downloaded() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let content: Vec<u8> = (0..100_000_u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let reply = upload(&world, &token, &multipart(&content, "media"))
        .await
        .json();
    assert_eq!(reply["type"], "image");
    let media_id = reply["media_id"].as_str().unwrap();
    let uploads = world.control.uploads();
    assert_eq!(
        (uploads[0].length, uploads[0].sha256.as_str()),
        (100_000, sha256_hex(&content).as_str())
    );
    let down = world
        .get(&format!(
            "/cgi-bin/media/get?media_id={media_id}&access_token={token}"
        ))
        .await;
    assert_eq!(
        (down.field("content-type"), &down.body),
        (Some("image/png"), &content)
    );
    assert_eq!(
        upload(&world, &token, &multipart(b"x", "other"))
            .await
            .errcode(),
        41005
    );
    let record = &world.control.requests("/cgi-bin/media/upload")[0];
    assert!(record.complete && record.body.len() == 65_536 && record.body_length > 100_000);
}

#[tokio::test]
async fn lasting_material_comes_back_by_post() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let add = "/cgi-bin/material/add_material";
    let added = upload_to(add, &world, &token, &multipart(b"picture", "media"))
        .await
        .json();
    let media_id = added["media_id"].as_str().unwrap();
    let get = format!("/cgi-bin/material/get_material?access_token={token}");
    let down = world
        .post(&get, &format!(r#"{{"media_id":"{media_id}"}}"#))
        .await;
    assert_eq!(
        (down.field("content-type"), down.body.as_slice()),
        (Some("image/png"), &b"picture"[..])
    );
    assert_eq!(
        world.post(&get, r#"{"media_id":"other"}"#).await.errcode(),
        40007
    );
    assert_eq!(world.get(&get).await.errcode(), 43002);
    assert_eq!(world.post(&get, "{").await.errcode(), 47001);
}

#[tokio::test]
async fn media_are_binary_or_a_link_or_an_error() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let get = |id: &str| format!("/cgi-bin/media/get?media_id={id}&access_token={token}");
    let blob = world.get(&get("blob-3000000")).await;
    assert_eq!(
        (blob.body.len(), blob.field("content-type")),
        (3_000_000, Some("image/jpeg"))
    );
    assert_eq!(
        blob.field("content-disposition"),
        Some("attachment; filename=\"blob-3000000.jpg\"")
    );
    assert!(world.get(&get("video-1")).await.json()["video_url"].is_string());
    let unknown = world.get(&get("none")).await;
    assert_eq!(
        (unknown.errcode(), unknown.errmsg().as_str()),
        (40007, "invalid media_id")
    );
}

#[tokio::test]
async fn codes_are_pictures_or_errors_in_json() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let target = format!("/wxa/getwxacodeunlimit?access_token={token}");
    let picture = world.post(&target, r#"{"scene":"a=1"}"#).await;
    assert_eq!(
        (picture.field("content-type"), &picture.body[..2]),
        (Some("image/jpeg"), &[0xff, 0xd8][..])
    );
    assert_eq!(world.post(&target, "{}").await.errcode(), 40169);
    assert_eq!(world.post(&target, "scene").await.errcode(), 47001);
    assert_eq!(
        world
            .post(&target, r#"{"scene":"a","page":"/index"}"#)
            .await
            .errcode(),
        41030
    );
}

#[tokio::test]
async fn logins_take_the_secret_and_a_code_that_works_once() {
    let world = TestSandbox::new().await;
    let login = |code: &str, secret: &str| {
        format!("/sns/jscode2session?appid={DEFAULT_APPID}&secret={secret}&js_code={code}")
    };
    let first = world.get(&login("c1", DEFAULT_SECRET)).await;
    assert_eq!(first.field("content-type"), Some("text/plain"));
    assert_eq!(first.json()["openid"].as_str().unwrap().len(), 28);
    assert_eq!(
        world.get(&login("c1", DEFAULT_SECRET)).await.errcode(),
        40163
    );
    let invalid = world.get(&login("bad", DEFAULT_SECRET)).await;
    assert_eq!(
        (invalid.errcode(), without_rid(&invalid.errmsg()).as_str()),
        (40029, "invalid code, rid: RID")
    );
    assert_eq!(world.get(&login("c2", "wrong")).await.errcode(), 40125);
    assert_eq!(world.get(&login("c2", "")).await.errcode(), 41004);

    let target =
        format!("/sns/oauth2/access_token?appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}&code=c3");
    let user = world.get(&target).await.json();
    let token = user["access_token"].as_str().unwrap();
    let info = world
        .get(&format!("/sns/userinfo?access_token={token}&openid=o1"))
        .await;
    assert_eq!(info.json()["openid"], "o1");
    let account_token = world.token().await;
    let wrong = world
        .get(&format!(
            "/sns/userinfo?access_token={account_token}&openid=o1"
        ))
        .await;
    assert_eq!(
        (wrong.errcode(), without_rid(&wrong.errmsg()).as_str()),
        (
            40001,
            "invalid credential, access_token is invalid or not latest, rid: RID"
        )
    );
}

#[tokio::test]
async fn a_web_login_is_refreshed_without_the_secret() {
    let world = TestSandbox::new().await;
    let target =
        format!("/sns/oauth2/access_token?appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}&code=c4");
    let first = world.get(&target).await.json();
    let refresh = |appid: &str, grant: &str, token: &str| {
        format!("/sns/oauth2/refresh_token?appid={appid}&grant_type={grant}&refresh_token={token}")
    };
    let good = first["refresh_token"].as_str().unwrap();
    let again = world
        .get(&refresh(DEFAULT_APPID, "refresh_token", good))
        .await
        .json();
    assert_eq!(
        (&again["openid"], &again["refresh_token"]),
        (&first["openid"], &first["refresh_token"])
    );
    assert_ne!(again["access_token"], first["access_token"]);
    let token = again["access_token"].as_str().unwrap();
    let checked = world
        .get(&format!("/sns/auth?access_token={token}&openid=o1"))
        .await;
    assert_eq!(checked.errcode(), 0);
    for (target, code) in [
        (refresh(DEFAULT_APPID, "refresh_token", "other"), 40030),
        (refresh("wx1", "refresh_token", good), 40030),
        (refresh(DEFAULT_APPID, "authorization_code", good), 40002),
    ] {
        assert_eq!(world.get(&target).await.errcode(), code, "{target}");
    }
}

#[tokio::test]
async fn wecom_speaks_its_own_dialect() {
    let accounts = vec![
        SandboxAccount::wecom("ww1", "agent1"),
        SandboxAccount::wecom("ww1", "agent2"),
    ];
    let world = TestSandbox::with(SandboxSettings {
        accounts,
        ..SandboxSettings::default()
    })
    .await;
    let fetch = |secret: &str| format!("/cgi-bin/gettoken?corpid=ww1&corpsecret={secret}");
    let reply = world.get(&fetch("agent1")).await;
    assert_eq!(
        reply.field("content-type"),
        Some("application/json; charset=UTF-8")
    );
    let json = reply.json();
    assert_eq!(
        (json["errcode"].as_i64(), json["errmsg"].as_str()),
        (Some(0), Some("ok"))
    );
    let token = json["access_token"].as_str().unwrap();
    assert_eq!(
        world.get(&fetch("agent1")).await.json()["access_token"],
        token
    );
    assert_ne!(
        world.get(&fetch("agent2")).await.json()["access_token"],
        token
    );
    assert_eq!(world.get(&fetch("wrong")).await.errcode(), 40001);
    assert_eq!(
        world
            .get("/cgi-bin/gettoken?corpid=no&corpsecret=x")
            .await
            .errcode(),
        40013
    );

    let list = world.get("/cgi-bin/getcallbackip?access_token=fake").await;
    assert_eq!(
        list.body,
        br#"{"ip_list":[],"errcode":40014,"errmsg":"invalid access_token"}"#
    );
    let user = world.get("/cgi-bin/user/get?access_token=fake").await;
    assert_eq!(user.errcode(), 40014);
    assert!(
        user.errmsg()
            .ends_with("more info at https://open.work.weixin.qq.com/devtool/query?e=40014")
    );
    assert_eq!(world.get("/nowhere").await.status, 404);
    let ticket = world
        .get(&format!("/cgi-bin/get_jsapi_ticket?access_token={token}"))
        .await
        .json();
    assert!(ticket["ticket"].is_string());
    let message = r#"{"touser":"u1","msgtype":"text","text":{"content":"hi"}}"#;
    world
        .post(
            &format!("/cgi-bin/message/send?access_token={token}"),
            message,
        )
        .await;
    assert_eq!(world.control.delivered_to("u1"), 1);
}
