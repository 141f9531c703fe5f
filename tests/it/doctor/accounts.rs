//! One token, and one harmless call with it.

use wxgate::sandbox::{
    DEFAULT_APPID, DEFAULT_SECRET, Fault, Rule, SandboxAccount, TokenFilter, TokenKind,
};

use super::Patient;
use crate::{
    support::{
        fake::{Act, Fake},
        program::{Program, finish, serve},
        redis::RedisServer,
    },
    upstream::egress::refusing,
};

fn fault(text: &str) -> Fault {
    serde_json::from_str(text).expect("a fault")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_wechat_says_against_an_account() {
    let token = "/cgi-bin/stable_token";
    let call = "/cgi-bin/get_api_domain_ip";
    for (case, path, code, parts) in [
        (
            "address not on the whitelist",
            token,
            r#"{"kind":"errcode","code":40164,"ip":"198.51.100.7"}"#,
            &["refused the IP 198.51.100.7", "40164", "whitelist"][..],
        ),
        (
            "wrong secret",
            token,
            r#"{"kind":"errcode","code":40125}"#,
            &["no token", "40125"],
        ),
        (
            "wrong appid",
            token,
            r#"{"kind":"errcode","code":40013}"#,
            &["no token", "40013"],
        ),
        (
            "call from an address that is not listed",
            call,
            r#"{"kind":"errcode","code":40164,"ip":"198.51.100.8"}"#,
            &["a call with the token", "198.51.100.8"],
        ),
        (
            "token that is dead at once",
            call,
            r#"{"kind":"errcode","code":40001}"#,
            &["rejects this token", "another program fetches tokens"],
        ),
    ] {
        let patient = Patient::new(|setup| setup).await;
        let control = patient.sandbox.control();
        // The first call of that path is the one without a token, for the clock.
        control.fault(Rule::new(path, fault(code)).always());
        patient.suffers_from(case, parts);
        if let Some(token) = control.current_token(DEFAULT_APPID, TokenKind::Stable) {
            assert!(!patient.check().stdout.contains(&token), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_account_has_a_sentence_of_its_own() {
    let more = |name: &str, more: &str| {
        format!("[[account]]\nname = \"{name}\"\napi = [\"{{api}}\"]\n{more}\n")
    };
    let wecom = |secret: &str| {
        format!(
            "platform = \"wecom\"\nappid = \"ww0123456789abcdef\"\nsecret = {{ value = \"{secret}\" }}"
        )
    };
    let patient = Patient::new(|setup| {
        setup
            .more(&more("agent", &wecom("agent")))
            .more(&more("wrong", &wecom("x")))
    })
    .await;
    let account = SandboxAccount::wecom("ww0123456789abcdef", "agent");
    patient.sandbox.control().add_account(&account);
    patient.suffers_from(
        "agent's secret",
        &["wrong: no token: WeCom refused with errcode 40001: the agent's secret is wrong"],
    );
    let ended = patient.check();
    for part in [
        "shop: WeChat accepts the token",
        "agent: WeCom gave a token",
        "agent: WeCom accepts the token",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_in_the_place_of_wechat() {
    let page = Fake::start(|_| {
        Act::Close(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops".into())
    })
    .await;
    let patient = Patient::new(|setup| setup.account(&page.api())).await;
    patient.suffers_from(
        "a page",
        &["a call with the token failed", "HTTP status 502"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_another_server_keeps() {
    let redis = RedisServer::start();
    redis.set("wx:token", "kept-token-1234567890");
    redis.run::<()>(&[
        "ACL", "SETUSER", "narrow", "on", ">pw", "~wx:*", "+get", "+pttl", "+hgetall",
    ]);
    let gone = RedisServer::start();
    let gone_url = gone.url("");
    drop(gone);
    let from = |url: String, key: &str| {
        format!("token = {{ from = \"redis\", url = {{ value = \"{url}\" }}, key = \"{key}\" }}")
    };
    let (_socket, refused) = refusing();
    let http = format!(
        "token = {{ from = \"http\", url = {{ value = \"http://{refused}/token\" }}, field = \"token\" }}"
    );
    for (case, line, parts) in [
        (
            "HTTP server down",
            http,
            &["server that keeps the token", "refuses the connection"][..],
        ),
        (
            "server down",
            from(gone_url, "wx:token"),
            &["server that keeps the token", "refuses the connection"],
        ),
        (
            "SELECT not allowed",
            from(redis.url("?db=1&user=narrow&pass=pw"), "wx:token"),
            &["refuses SELECT", "+select"],
        ),
        (
            "wrong password",
            from(redis.url("?user=narrow&pass=wrong"), "wx:token"),
            &["does not let wxgate read it"],
        ),
        (
            "no such key",
            from(redis.url(""), "wx:other"),
            &["keeps no token there"],
        ),
        (
            "dead token",
            from(redis.url(""), "wx:token"),
            &["WeChat rejects this token"],
        ),
    ] {
        let patient = Patient::new(|setup| setup.account(&line)).await;
        patient.suffers_from(case, parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_token_is_fetched_only_on_demand_and_the_stored_one_is_tried() {
    let patient = Patient::new(|setup| {
        setup
            .set("store", "kind = \"file\"")
            .account("token = \"classic\"")
    })
    .await;
    let control = patient.sandbox.control();
    patient.is_well(&["no token is stored that could be tried", "--fetch"]);
    assert_eq!(control.fetches(), 0);
    // Beside a running wxgate, which has the lock of the folder.
    let program = Program::start(&mut serve(patient.path()));
    program.logged("new access token");
    patient.is_well(&[
        "shop: the stored token is good for",
        "shop: WeChat accepts the token",
        "is writable, and a wxgate uses it",
    ]);
    assert_eq!(control.fetches(), 1, "the doctor fetched none");
    control.revoke(TokenFilter::default());
    patient.suffers_from("dead stored token", &["WeChat rejects this token"]);
    assert_eq!(program.stop().status, Some(0));
    let ended = finish(patient.command(&["check", "--live", "--fetch"]));
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("WeChat gave a token"), "{ended:?}");
    assert_eq!(control.fetches(), 2);
    assert!(!ended.stdout.contains(DEFAULT_SECRET));
}
