//! WeChat's own host names, which say the platform and no account.

use super::{CORP, KEY, keyed, second_account, started, two_platforms};
use crate::support::{
    Gate, json, setup,
    token_tools::{Said, said},
};

async fn call(gate: &Gate, target: &str, host: &str) -> (Said, Option<String>) {
    let call = gate.client.get(gate.url(target)).header("host", host);
    let answer = call.send().await.expect("an answer");
    let account = answer.headers().get("x-wxgate-account");
    let account = account.map(|name| name.to_str().expect("a name").to_owned());
    (Said::of(answer).await, account)
}

/// Pitfall: with an account of each platform, calls under the host that only one of them has are
/// refused, or go to the default account of the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_says_which_platforms_account_is_meant() {
    for default in [None, Some("shop")] {
        let mut setup = two_platforms();
        if let Some(default) = default {
            setup = setup.default_account(default);
        }
        let gate = started(setup, 2).await;
        for (host, path, account) in [
            ("qyapi.weixin.qq.com", "/cgi-bin/user/get?userid=u", "corp"),
            (
                "QYAPI.weixin.qq.com:443",
                "/cgi-bin/user/get?userid=u",
                "corp",
            ),
            ("api.weixin.qq.com", "/cgi-bin/user/info?openid=o", "shop"),
            ("api2.weixin.qq.com", "/cgi-bin/user/info?openid=o", "shop"),
            (
                "gz.api.weixin.qq.com",
                "/cgi-bin/user/info?openid=o",
                "shop",
            ),
        ] {
            let (answer, seen) = call(&gate, path, host).await;
            assert_eq!(
                (answer.error.as_str(), seen.as_deref()),
                ("", Some(account)),
                "{host}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_of_the_other_platform_are_a_conflict_that_names_both() {
    let gate = started(two_platforms().more(&keyed()), 2).await;
    let token_call = format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret={KEY}");
    let phantom = json(gate.get(&token_call).await).await["access_token"].clone();
    let phantom = phantom.as_str().expect("a phantom");
    for target in [
        format!("/cgi-bin/user/info?access_token={phantom}"),
        format!("/@corp/cgi-bin/user/info?access_token={phantom}"),
    ] {
        let (answer, _) = call(&gate, &target, "api.weixin.qq.com").await;
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (400, "account_conflict")
        );
        let text = answer.text();
        assert!(text.contains("WeChat") && text.contains("WeCom"), "{text}");
    }
    let header = gate.client.get(gate.url("/cgi-bin/user/info"));
    let header = header
        .header("host", "qyapi.weixin.qq.com")
        .header("x-wxgate-key", KEY);
    let answer = said(header.header("x-wxgate-account", "shop")).await;
    assert_eq!(answer.error, "account_conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_without_an_account_is_named() {
    let gate = started(setup(), 1).await;
    let (answer, _) = call(&gate, "/cgi-bin/user/get?userid=u", "qyapi.weixin.qq.com").await;
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (400, "account_unknown")
    );
    assert!(answer.text().contains("WeCom"), "{}", answer.text());
}

/// The fall-backs are taken among the accounts of the platform.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_one_account_of_each_platform_needs_no_selector() {
    let client = format!(
        "[[client]]\nname = \"crm\"\nkey = {{ value = \"{KEY}\" }}\naccounts = [\"mall\", \"corp\"]\n"
    );
    let gate = two_platforms().more(&second_account()).more(&client);
    let gate = gate.start().await;
    for (host, path, account) in [
        ("qyapi.weixin.qq.com", "/cgi-bin/user/get?userid=u", "corp"),
        ("api.weixin.qq.com", "/cgi-bin/user/info?openid=o", "mall"),
    ] {
        let call = gate.client.get(gate.url(path)).header("host", host);
        let answer = call
            .header("x-wxgate-key", KEY)
            .send()
            .await
            .expect("an answer");
        assert_eq!(
            crate::support::header(&answer, "x-wxgate-account"),
            account,
            "{host}"
        );
    }
}
