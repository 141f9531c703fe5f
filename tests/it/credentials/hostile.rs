//! Calls without a key that must not go out, although their address may make calls without a key.

use super::{CORP, KEY};
use crate::support::{
    fake::{Act, Fake},
    raw::Wire,
    setup,
};

/// Targets that use something of wxgate's, show a secret, name nobody, or are malformed.
const TARGETS: [&str; 35] = [
    // The account's token, its tickets, its AppSecret.
    "/cgi-bin/user/get",
    "/cgi-bin/menu/create?a=1",
    "/wxa/getwxacode",
    "/card/create",
    "/cgi-bin/openapi/rid/get",
    "/@shop/cgi-bin/user/get",
    "/@corp/cgi-bin/user/get?userid=u",
    "/cgi-bin/webhook/send",
    "/cgi-bin/webhook/send?keys=1",
    "/cgi-bin/ticket/getticket?type=jsapi",
    "/cgi-bin/get_jsapi_ticket",
    "/snsx/userinfo?openid=o",
    "/cgi-bin/sns/userinfo?openid=o",
    "/cgi-bin/clear_quota",
    "/cgi-bin/corpgroup/corp/gettoken",
    "/tcb/getqcloudtoken",
    "/sns/jscode2session?js_code=c",
    "/sns/jscode2session?js_code=c&appid=wx9&secret=s",
    "/sns/oauth2/access_token?code=c&appid=wx9&secret=s",
    // Secrets, and nothing at all.
    "/wxa/anything?secret=s",
    "/wxa/anything?appsecret=s",
    "/wxa/anything?%63orpsecret=s",
    "/cgi-bin/service/anything?suite_access_token=t&corpsecret=s",
    "/cgi-bin/component/api_component_token",
    "/cgi-bin/service/get_suite_token",
    "/cgi-bin/service/get_provider_token",
    "/cgi-bin/service/anything",
    "/cgi-bin/service/anything?suite_access_token=",
    // Paths that two servers could read in two ways.
    "/sns/../cgi-bin/user/get?access_token=u",
    "/sns/%2e%2e/cgi-bin/user/get?access_token=u",
    "/sns/userinfo/?access_token=u",
    "/sns/a;b?access_token=u",
    "/@none/sns/userinfo?access_token=u",
    "/sns/userinfo?access_token=crm-key-0123456789",
    "/sns/userinfo?access_token=wxg1_forged",
];

const FIELDS: [&str; 9] = [
    "",
    "X-Forwarded-For: 127.0.0.1\r\n",
    "Forwarded: for=127.0.0.1\r\n",
    "X-Real-IP: 127.0.0.1\r\n",
    "Authorization: Bearer junk\r\n",
    "Authorization: Basic anVuazpqdW5r\r\n",
    "X-Wxgate-Key: no-such-key-0123456789\r\n",
    "X-Wxgate-Account: shop\r\n",
    "Content-Length: 14\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn of_three_hundred_hostile_calls_without_a_key_none_goes_out() {
    let fake = Fake::start(|_| Act::ok(r#"{"errcode":0}"#)).await;
    let api = fake.api();
    let gate = setup()
        .set("server", "allow = [\"127.0.0.1\"]")
        .account(&api)
        .more(&format!(
            "[[account]]\nname = \"corp\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"secret-of-corp\" }}\n{api}\n\
             [[client]]\nname = \"crm\"\nkey = {{ value = \"{KEY}\" }}\n"
        ))
        .start()
        .await;
    fake.seen.until(|seen| seen.token_calls() == 2).await;
    let mut calls = 0;
    for target in TARGETS {
        for fields in FIELDS {
            let body = if fields.starts_with("Content-Length") {
                "access_token=u"
            } else {
                ""
            };
            let mut wire = Wire::connect(gate.proxy).await;
            let head =
                format!("GET {target} HTTP/1.1\r\nHost: api.weixin.qq.com\r\n{fields}\r\n{body}");
            wire.send(head).await;
            let reply = wire.reply().await.expect("an answer");
            assert_ne!(
                (reply.status, reply.header("x-wxgate-attempts")),
                (200, "1"),
                "{target} {fields}"
            );
            calls += 1;
        }
    }
    assert!(calls >= 300);
    let sent: Vec<String> = fake
        .seen
        .calls()
        .iter()
        .map(|call| call.target().to_owned())
        .collect();
    assert_eq!(sent, Vec::<String>::new());
}
