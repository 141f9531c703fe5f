//! Tokens in the query that are not the account's, and SDKs whose cache holds one.

use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, TokenKind};

use super::{
    CORP, KEY, keyed, second_account, started, strange_token, target, token_call, two_platforms,
};
use crate::support::{
    Gate, header, json, setup,
    token_tools::{Said, get, said},
};

const CALL: &str = "/cgi-bin/menu/create";

async fn call(gate: &Gate, prefix: &str, token: &str, host: Option<&str>) -> Said {
    let url = gate.url(&format!("{prefix}{CALL}?access_token={token}&a=1"));
    let mut call = gate.client.get(url);
    if let Some(host) = host {
        call = call.header("host", host);
    }
    said(call).await
}

fn last(gate: &Gate) -> Option<String> {
    Some(target(&gate.control().requests(CALL).pop()?))
}

/// Pitfall: an authorizer's or a downstream corp's token is replaced in silence, and the call runs on
/// the wrong account.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_token_is_replaced_kept_or_refused() {
    const WECHAT: Option<&str> = Some("api.weixin.qq.com");
    let strange = strange_token();
    for (setting, prefix, host, outcome) in [
        ("", "", None, "replaced"),
        ("", "", WECHAT, "kept"),
        ("", "", Some("API.weixin.qq.com:443"), "kept"),
        ("", "", Some("sh.api.weixin.qq.com"), "kept"),
        ("", "/@shop", WECHAT, "replaced"),
        ("foreign_token = \"replace\"", "", WECHAT, "replaced"),
        ("foreign_token = \"keep\"", "", None, "kept"),
        ("foreign_token = \"refuse\"", "", None, "refused"),
        ("foreign_token = \"refuse\"", "/@shop", WECHAT, "refused"),
    ] {
        let gate = started(setup().plain().account(setting), 1).await;
        let answer = call(&gate, prefix, &strange, host).await;
        let own = gate
            .control()
            .current_token(DEFAULT_APPID, TokenKind::Stable)
            .expect("a token");
        let (error, sent) = match outcome {
            "replaced" => ("", Some(format!("{CALL}?access_token={own}&a=1"))),
            "kept" => ("", Some(format!("{CALL}?access_token={strange}&a=1"))),
            _ => ("foreign_token", None),
        };
        let case = format!("{setting} {prefix} {host:?}");
        assert_eq!(
            (answer.error.as_str(), last(&gate)),
            (error, sent),
            "{case}"
        );
        if outcome == "kept" {
            assert_eq!(
                answer.errcode(),
                Some(40001),
                "WeChat's own refusal: {case}"
            );
            assert_eq!(gate.control().requests(CALL).len(), 1, "not sent again");
        }
        let treatment = match outcome {
            "replaced" => "replace",
            "kept" => "keep",
            _ => "refuse",
        };
        let line =
            format!("wxgate_foreign_token_total{{account=\"shop\",treatment=\"{treatment}\"}} 1");
        assert!(gate.metrics().await.contains(&line), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn placeholders_and_the_accounts_own_tokens_are_not_foreign() {
    let gate = started(setup().plain().account("foreign_token = \"refuse\""), 1).await;
    gate.warm().await;
    let first = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    gate.control().revoke(DEFAULT_APPID);
    get(&gate, "/cgi-bin/user/info?openid=o").await;
    let second = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    assert_ne!(first, second);
    for token in ["", "ACCESS_TOKEN", &"x".repeat(63), &first, &second] {
        assert_eq!(call(&gate, "", token, None).await.error, "", "{token}");
    }
    assert_eq!(
        call(&gate, "", &"x".repeat(64), None).await.error,
        "foreign_token"
    );
}

/// Pitfall: the caller brings the token of another account here, and the call runs on this one.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_another_account_is_a_conflict() {
    for setting in ["replace", "keep", "refuse"] {
        let gate = two_platforms().account(&format!("foreign_token = \"{setting}\""));
        let gate = started(gate.default_account("shop"), 2).await;
        get(&gate, "/@corp/cgi-bin/user/get?userid=u").await;
        let corps = gate
            .control()
            .current_token(CORP, TokenKind::Wecom)
            .expect("a token");
        let answer = call(&gate, "", &corps, None).await;
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (400, "account_conflict"),
            "{setting} {corps}: {}",
            answer.text()
        );
        assert_eq!(last(&gate), None);
    }
}

/// Two accounts and no default: nothing says which account a strange token could be kept beside, and
/// none is needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_needs_no_account() {
    let gate = started(setup().more(&second_account()), 2).await;
    let strange = strange_token();
    let kept = call(&gate, "", &strange, Some("api.weixin.qq.com")).await;
    assert_eq!(kept.error, "");
    assert_eq!(
        last(&gate),
        Some(format!("{CALL}?access_token={strange}&a=1"))
    );
    assert_eq!(
        call(&gate, "", &strange, None).await.error,
        "account_unknown"
    );
}

/// Pitfall: an SDK with an old real token in its cache is down until that token ends, since it knows
/// WeChat's codes and not a 401.
#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_with_an_old_token_heals_itself() {
    let gate = started(two_platforms().default_account("shop").more(&keyed()), 2).await;
    let old = strange_token();
    for (prefix, host, code) in [
        ("", None, 40001),
        ("/@corp", None, 40014),
        ("", Some("qyapi.weixin.qq.com"), 40014),
    ] {
        let answer = call(&gate, prefix, &old, host).await;
        assert_eq!((answer.status, answer.errcode()), (200, Some(code)));
        assert_eq!(answer.error, "client_unknown");
    }
    let fourth = call(&gate, "", &old, None).await;
    assert_eq!(
        (fourth.status, fourth.error.as_str()),
        (401, "client_unknown")
    );
    assert!(fourth.text().contains("token call"), "{}", fourth.text());

    // Its token call arrives here, so it is told again.
    let phantom = json(gate.get(&token_call(KEY)).await).await["access_token"].clone();
    assert!(
        phantom
            .as_str()
            .is_some_and(|phantom| phantom.starts_with("wxg1_"))
    );
    assert_eq!(call(&gate, "", &old, None).await.errcode(), Some(40001));
    let cured = call(&gate, "", phantom.as_str().expect("a text"), None).await;
    assert_eq!(cured.error, "");
    let metrics = gate.metrics().await;
    assert!(
        metrics.contains("outcome=\"client_unknown\"} 5"),
        "{metrics}"
    );
}

/// Nothing else is told that its token is stale.
#[tokio::test(flavor = "multi_thread")]
async fn only_calls_that_bring_a_token_and_nothing_else_are_healed() {
    let gate = started(setup().more(&keyed()), 1).await;
    let old = strange_token();
    for target in [
        CALL.to_owned(),
        format!("{CALL}?access_token="),
        format!("/cgi-bin/clear_quota?access_token={old}"),
    ] {
        let answer = get(&gate, &target).await;
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (401, "client_unknown")
        );
    }
    let wrong = gate
        .client
        .get(gate.url(&format!("{CALL}?access_token={old}")));
    let wrong = said(wrong.header("x-wxgate-key", "no-such-key-0123456789")).await;
    assert_eq!(wrong.status, 401);
    // Where nobody has a key, nothing is healed by a token call.
    let from = "[[client]]\nname = \"far\"\nfrom = [\"192.0.2.0/24\"]\n";
    let keyless = started(setup().more(from), 1).await;
    assert_eq!(call(&keyless, "", &old, None).await.status, 401);
}

/// Which accounts exist says nothing where two platforms could be meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_nothing_says_heals_nobody() {
    let gate = started(two_platforms().more(&keyed()), 2).await;
    assert_eq!(call(&gate, "", &strange_token(), None).await.status, 401);
}

/// A call that is forwarded with a strange token is nobody's proof: neither for nor against the
/// account's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_is_not_judged() {
    let gate = started(setup().account("foreign_token = \"keep\""), 1).await;
    gate.control()
        .fault(Rule::new(CALL, Fault::errcode(42001)).always());
    let answer = gate
        .get(&format!("{CALL}?access_token={}", strange_token()))
        .await;
    assert_eq!(header(&answer, "x-wxgate-attempts"), "1");
    assert_eq!(gate.control().fetches(), 0);
}
