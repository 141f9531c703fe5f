//! Calls that take another credential than the account's token, and the look-up of failed calls.

use serde_json::json;

use super::*;

const CORP: &str = "ww0000000000000001";

async fn with_corp() -> TestSandbox {
    TestSandbox::with(SandboxSettings {
        accounts: vec![
            SandboxAccount::new(DEFAULT_APPID, DEFAULT_SECRET),
            SandboxAccount::wecom(CORP, "agent"),
        ],
        ..SandboxSettings::default()
    })
    .await
}

async fn corp_token(world: &TestSandbox) -> String {
    let target = format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret=agent");
    field(&world.get(&target).await, "access_token")
}

fn field(reply: &WireReply, name: &str) -> String {
    let json = reply.json();
    let text = json[name].as_str();
    text.unwrap_or_else(|| panic!("no {name} in {json}"))
        .to_owned()
}

async fn component_token(world: &TestSandbox) -> String {
    let body = json!({"component_appid": COMPONENT, "component_appsecret": OTHERS_SECRET,
                      "component_verify_ticket": "t"});
    let target = "/cgi-bin/component/api_component_token";
    let reply = world.post(target, &body.to_string()).await;
    field(&reply, "component_access_token")
}

/// Checks the code of each target; 0 for a call that succeeds.
async fn assert_codes(world: &TestSandbox, rows: &[(String, i64)]) {
    for (target, code) in rows {
        let reply = world.post(target, "{}").await;
        assert_eq!(reply.errcode(), *code, "{target}");
    }
}

#[tokio::test]
async fn a_component_path_wants_the_token_of_the_component_under_either_name() {
    let world = TestSandbox::new().await;
    let (account, component) = (world.token().await, component_token(&world).await);
    let path = "/wxa/gettemplatelist";
    assert_codes(
        &world,
        &[
            (path.to_owned(), 41001),
            (format!("{path}?access_token={account}"), 61014),
            (format!("{path}?access_token=nonsense"), 40001),
            (format!("{path}?component_access_token={account}"), 40001),
            (format!("{path}?access_token={component}"), 0),
            (format!("{path}?component_access_token={component}"), 0),
            (
                format!("/componenttcb/describeenvs?access_token={component}"),
                0,
            ),
            // The component's token on paths of accounts, and on paths that accept both.
            (format!("/cgi-bin/menu/get?access_token={component}"), 61015),
            (
                format!("/cgi-bin/getcallbackip?access_token={component}"),
                0,
            ),
            (
                format!("/cgi-bin/getcallbackip?component_access_token={component}"),
                0,
            ),
            (format!("/cgi-bin/getcallbackip?access_token={account}"), 0),
            (
                format!("/cgi-bin/component/setprivacysetting?access_token={account}"),
                0,
            ),
            (
                format!("/sns/component/jscode2session?access_token={component}"),
                41001,
            ),
            (
                format!("/sns/component/jscode2session?component_access_token={component}"),
                0,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn secrets_of_components_suites_providers_and_models_are_refused_each_in_its_own_code() {
    let world = with_corp().await;
    for (path, body, code) in [
        (
            "/cgi-bin/component/api_component_token",
            json!({"component_appid": "wx", "component_appsecret": OTHERS_SECRET}),
            61011,
        ),
        (
            "/cgi-bin/component/api_component_token",
            json!({"component_appid": COMPONENT, "component_appsecret": "no"}),
            40125,
        ),
        (
            "/cgi-bin/component/api_component_token",
            json!({"component_appid": COMPONENT, "component_appsecret": OTHERS_SECRET}),
            61006,
        ),
        (
            "/cgi-bin/service/get_suite_token",
            json!({"suite_id": "no", "suite_secret": OTHERS_SECRET, "suite_ticket": "t"}),
            40083,
        ),
        (
            "/cgi-bin/service/get_suite_token",
            json!({"suite_id": SUITE, "suite_secret": "no", "suite_ticket": "t"}),
            40080,
        ),
        (
            "/cgi-bin/service/get_suite_token",
            json!({"suite_id": SUITE, "suite_secret": OTHERS_SECRET}),
            40085,
        ),
        (
            "/cgi-bin/service/get_provider_token",
            json!({"corpid": PROVIDER, "provider_secret": "no"}),
            40001,
        ),
        (
            "/cgi-bin/openhw/get_model_token",
            json!({"model_id": MODEL, "model_secret": "no"}),
            40001,
        ),
    ] {
        let reply = world.post(path, &body.to_string()).await;
        assert_eq!(reply.errcode(), code, "{path} {body}");
    }
}

#[tokio::test]
async fn the_paths_of_a_suite_and_a_provider_know_their_own_token_only() {
    let world = with_corp().await;
    let corp = corp_token(&world).await;
    let suite = json!({"suite_id": SUITE, "suite_secret": OTHERS_SECRET, "suite_ticket": "t"});
    let suite = world
        .post("/cgi-bin/service/get_suite_token", &suite.to_string())
        .await;
    let suite = field(&suite, "suite_access_token");
    let provider = json!({"corpid": PROVIDER, "provider_secret": OTHERS_SECRET});
    let provider = world
        .post("/cgi-bin/service/get_provider_token", &provider.to_string())
        .await;
    let provider = field(&provider, "provider_access_token");
    let model = json!({"model_id": MODEL, "model_secret": OTHERS_SECRET});
    let model = world
        .post("/cgi-bin/openhw/get_model_token", &model.to_string())
        .await;
    let model = field(&model, "model_access_token");
    let device = format!("/cgi-bin/openhw/get_device_token?model_access_token={model}");
    let device = field(&world.post(&device, "{}").await, "device_access_token");
    let auth = "/cgi-bin/service/get_auth_info";
    let convert = "/cgi-bin/service/corpid_to_opencorpid";
    let report = "/cgi-bin/openhw/device/report_device_status";
    assert_codes(
        &world,
        &[
            (format!("{auth}?access_token={corp}"), 41022),
            (format!("{auth}?suite_access_token={corp}"), 40082),
            (format!("{auth}?suite_access_token={provider}"), 40082),
            (format!("{auth}?suite_access_token={suite}"), 0),
            (format!("{convert}?access_token={corp}"), 41001),
            (format!("{convert}?provider_access_token={suite}"), 40082),
            (format!("{convert}?provider_access_token={provider}"), 0),
            (
                format!("/cgi-bin/license/list_order?provider_access_token={provider}"),
                0,
            ),
            (
                format!("/cgi-bin/service/get_login_info?access_token={corp}"),
                40014,
            ),
            (
                format!("/cgi-bin/service/get_login_info?access_token={provider}"),
                0,
            ),
            (format!("{report}?device_access_token={model}"), 40014),
            (format!("{report}?device_access_token={device}"), 0),
        ],
    )
    .await;
    let shown = world
        .post(&format!("{auth}?suite_access_token=x"), "{}")
        .await;
    assert!(
        shown.errmsg().contains("from ip: "),
        "in the words of WeCom"
    );
}

#[tokio::test]
async fn tokens_of_other_accounts_work_on_ordinary_paths_for_those_accounts() {
    let world = with_corp().await;
    let corp = corp_token(&world).await;
    let target = format!("/cgi-bin/corpgroup/corp/gettoken?access_token={corp}");
    let body = json!({"corpid": DOWNSTREAM_CORP, "agentid": 1, "business_type": 0});
    let downstream = field(
        &world.post(&target, &body.to_string()).await,
        "access_token",
    );
    assert_eq!(
        world.post(&target, r#"{"corpid":"no"}"#).await.errcode(),
        40013
    );
    let transfer = "/cgi-bin/miniprogram/transfer_session";
    assert_codes(
        &world,
        &[
            (transfer.to_owned(), 41001),
            (format!("{transfer}?access_token={corp}"), 40014),
            (format!("{transfer}?access_token={downstream}"), 0),
            (format!("/cgi-bin/user/list?access_token={downstream}"), 0),
        ],
    )
    .await;
    let record = world.control.requests("/cgi-bin/user/list").pop().unwrap();
    assert_eq!(record.account.as_deref(), Some(DOWNSTREAM_CORP));
    let component = component_token(&world).await;
    let target =
        format!("/cgi-bin/component/api_authorizer_token?component_access_token={component}");
    let authorizer = field(&world.post(&target, "{}").await, "authorizer_access_token");
    let menu = format!("/cgi-bin/menu/create?access_token={authorizer}");
    assert_codes(&world, &[(menu, 0)]).await;
    let record = world.control.requests("/cgi-bin/menu/create").pop();
    assert_eq!(record.unwrap().account.as_deref(), Some(AUTHORIZER));
}

#[tokio::test]
async fn robots_need_a_key_and_no_token() {
    let world = with_corp().await;
    assert_codes(
        &world,
        &[
            ("/cgi-bin/webhook/send".to_owned(), 93000),
            ("/cgi-bin/webhook/send?key=bad1".to_owned(), 93000),
            ("/cgi-bin/webhook/send?key=1111".to_owned(), 0),
            (
                "/cgi-bin/webhook/send?access_token=x&key=1111".to_owned(),
                0,
            ),
            ("/cgi-bin/aibot/response?response_code=c".to_owned(), 0),
            ("/cgi-bin/aibot/response?response_code=c".to_owned(), 40029),
            (
                "/cgi-bin/aibot/response?response_code=bad".to_owned(),
                40029,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_failed_call_is_told_to_the_account_that_made_it_with_its_token() {
    let world = with_corp().await;
    let token = world.token().await;
    let failed = world
        .get(&format!("/cgi-bin/user/info?access_token={token}"))
        .await;
    assert_eq!(failed.errcode(), 40003);
    let message = failed.errmsg();
    let (_, rid) = message.split_once("rid: ").unwrap();
    let ask = async |token: &str, rid: &str| {
        let target = format!("/cgi-bin/openapi/rid/get?access_token={token}");
        world.post(&target, &json!({"rid": rid}).to_string()).await
    };
    let request = ask(&token, rid).await.json()["request"].clone();
    assert_eq!(request["request_url"], format!("access_token={token}"));
    let response = request["response_body"].as_str().unwrap();
    assert!(response.contains("40003"), "{request}");
    assert_eq!(ask(&token, "").await.errcode(), 76002);
    assert_eq!(ask(&token, "1-2-3").await.errcode(), 76001);
    let other = corp_token(&world).await;
    assert_eq!(ask(&other, rid).await.errcode(), 76003);
}

#[tokio::test]
async fn an_address_may_be_refused_everywhere_but_at_the_token_endpoint() {
    let world = with_corp().await;
    let refusal = Fault::Errcode(ErrorShape {
        ip: Some("198.51.100.7".to_owned()),
        ..ErrorShape::new(60020)
    });
    let rule = Rule::new("/**", refusal).account(CORP).always().business();
    world.control.fault(rule);
    let token = corp_token(&world).await;
    let reply = world
        .get(&format!("/cgi-bin/user/list?access_token={token}"))
        .await;
    assert_eq!(reply.errcode(), 60020);
    assert!(reply.errmsg().contains("from ip: 198.51.100.7"));
}

#[tokio::test]
async fn members_drafts_balances_and_media_have_the_shapes_of_the_documentation() {
    let world = with_corp().await;
    let (token, corp) = (world.token().await, corp_token(&world).await);
    let member = world
        .get(&format!("/cgi-bin/user/get?access_token={corp}&userid=u1"))
        .await
        .json();
    assert_eq!(
        (&member["userid"], &member["errcode"]),
        (&json!("u1"), &json!(0))
    );
    let login = format!("/cgi-bin/auth/getuserinfo?access_token={corp}&code=c");
    let login = world.get(&login).await.json();
    assert!(login["userid"].is_string() && login["user_ticket"].is_string());
    let bad = format!("/cgi-bin/auth/getuserinfo?access_token={corp}&code=bad");
    assert_eq!(world.get(&bad).await.errcode(), 40029);
    let draft = format!("/cgi-bin/draft/add?access_token={token}");
    let article = r#"{"articles":[{"title":"t","content":"c","thumb_media_id":"m"}]}"#;
    assert!(!field(&world.post(&draft, article).await, "media_id").is_empty());
    let without = r#"{"articles":[{"title":"t","content":"c"}]}"#;
    assert_eq!(world.post(&draft, without).await.errcode(), 40007);
    let balance = format!("/xpay/query_user_balance?access_token={token}&pay_sig=s");
    assert_eq!(world.post(&balance, "{}").await.json()["balance"], 100);
    let custom = format!("/cgi-bin/message/custom/send?access_token={token}");
    let image = r#"{"touser":"o1","msgtype":"image","image":{"media_id":""}}"#;
    assert_eq!(world.post(&custom, image).await.errcode(), 40007);
    for refused in [
        r#"{"touser":"o1","msgtype":"voice","voice":{}}"#,
        r#"{"touser":"o1","msgtype":"music","music":{"thumb_media_id":""}}"#,
        r#"{"touser":"o1","msgtype":"miniprogrampage","miniprogrampage":{"appid":"a"}}"#,
    ] {
        assert_eq!(
            world.post(&custom, refused).await.errcode(),
            40007,
            "{refused}"
        );
    }
    let corp_send = format!("/cgi-bin/message/send?access_token={corp}");
    let articles = |picture: &str| {
        format!(
            r#"{{"touser":"u1","msgtype":"mpnews","mpnews":{{"articles":[{{"title":"t","thumb_media_id":"{picture}"}}]}}}}"#
        )
    };
    assert_eq!(world.post(&corp_send, &articles("")).await.errcode(), 40007);
    assert_eq!(world.post(&corp_send, &articles("m")).await.errcode(), 0);
    assert_eq!(world.control.delivered_to("o1"), 0);
    for (token, is_text) in [(&token, false), (&corp, true)] {
        let part = "--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"\r\n\r\nx\r\n--b--\r\n";
        let target = format!("/cgi-bin/media/upload?access_token={token}&type=image");
        let mut client = world.client().await;
        client
            .send(format!(
                "POST {target} HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n{part}",
                part.len()
            ))
            .await;
        let created = client.reply().await.unwrap().json()["created_at"].clone();
        assert_eq!(created.is_string(), is_text, "{created}");
    }
}
