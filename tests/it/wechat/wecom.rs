//! WeCom (企业微信): its own codes, one account per agent, no forced refresh.

use std::collections::HashSet;

use serde_json::json;
use wxgate::sandbox::{
    Counters, DEFAULT_APPID, Fault, Revocation, Rule, SandboxAccount, SandboxControl,
};

use crate::support::{
    Gate, Setup, header, json, setup,
    token_tools::{Said, all, call_until, get, said, spawned, start_after},
};

const CORP: &str = "ww0123456789abcdef";
const GETTOKEN: &str = "/cgi-bin/gettoken";
const SEND: &str = "/@agent/cgi-bin/message/send";
const LIAR: &str = "/@agent/cgi-bin/liar";

/// The plain WeChat account `shop`, and the WeCom accounts `agent` and `other` of one corp.
fn corp() -> Setup {
    let account = |name: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"secret-of-{name}\" }}\napi = [\"{{api}}\"]\n"
        )
    };
    setup()
        .default_account("shop")
        .sandbox(|sandbox| {
            sandbox
                .accounts
                .push(SandboxAccount::wecom(CORP, "secret-of-agent"));
            sandbox
                .accounts
                .push(SandboxAccount::wecom(CORP, "secret-of-other"));
        })
        .more(&account("agent"))
        .more(&account("other"))
}

/// With every account's first token accepted once.
async fn warm() -> Gate {
    let gate = corp().start().await;
    gate.warm().await;
    for name in ["agent", "other"] {
        let answer = get(&gate, &format!("/@{name}/cgi-bin/user/get?userid=warm-up")).await;
        assert!(answer.is_fine(), "{answer:?}");
    }
    gate.control().clear_record();
    gate
}

fn to(user: &str) -> serde_json::Value {
    json!({"touser": user, "msgtype": "text", "agentid": 1, "text": {"content": "hello"}})
}

async fn send(gate: &Gate, path: &str, user: &str) -> Said {
    said(gate.post(path).json(&to(user))).await
}

/// The values of `access_token` that arrived at paths of this form.
fn tokens(control: &SandboxControl, pattern: &str) -> HashSet<String> {
    let queries = control
        .requests(pattern)
        .into_iter()
        .filter_map(|record| record.query);
    queries
        .map(|query| {
            query
                .split("access_token=")
                .nth(1)
                .expect("a token")
                .to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_an_agent_is_sent_with_its_token() {
    let gate = warm().await;
    let answer = gate.post(SEND).json(&to("u1")).send().await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-account").as_str()
        ),
        (200, "agent")
    );
    assert_eq!(json(answer).await["errcode"], 0);
    assert_eq!(gate.control().delivered_to("u1"), 1);
    assert_eq!(gate.control().fetches(), 0, "the token was there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_cured_by_one_fetch_for_all_and_one_replay_each() {
    let gate = warm().await;
    for code in [40014, 42001] {
        gate.control().clear_record();
        let how = Revocation {
            code: Some(code),
            ..Revocation::default()
        };
        assert_eq!(
            gate.control().revoke_with(CORP, how),
            2,
            "both agents have a token"
        );
        let calls = (0..50)
            .map(|n| spawned(gate.post(SEND).json(&to(&format!("u-{code}-{n}")))))
            .collect();
        let answers = all(calls).await;
        assert!(answers.iter().all(Said::is_fine), "{code}: {answers:?}");
        assert!(
            answers.iter().any(|answer| answer.attempts == "2"),
            "{code}"
        );
        assert_eq!(gate.control().counters().wecom_fetches, 1, "{code}");
        assert_eq!(gate.control().deliveries().len(), 50, "{code}: each once");
        assert!(
            get(&gate, "/@other/cgi-bin/user/get?userid=a")
                .await
                .is_fine()
        );
    }
}

/// On WeCom 40001 says that a secret is wrong. Taking it for a stale token would ask gettoken with
/// each call, and WeCom bans addresses that err too often.
#[tokio::test(flavor = "multi_thread")]
async fn a_40001_of_a_business_call_goes_back_without_a_fetch() {
    let gate = warm().await;
    let text = "{\"errcode\":40001,\"errmsg\":\"invalid credential, hint: [1576065934_28_a], from ip: 9.30.0.138\"}";
    gate.control().fault(
        Rule::new(
            "/cgi-bin/liar",
            Fault::respond(200, "application/json", text),
        )
        .always(),
    );
    for _ in 0..20 {
        let answer = get(&gate, LIAR).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, text));
        assert_eq!(
            (answer.attempts.as_str(), answer.replay.as_str()),
            ("1", ""),
            "none was due"
        );
    }
    assert_eq!(gate.control().fetches(), 0);
    assert_eq!(gate.control().path("/cgi-bin/liar").requests, 20);
}

/// The same number makes the difference: on one account it is stale, on the other it is not.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_code_means_different_things_on_two_platforms_side_by_side() {
    let gate = warm().await;
    assert_eq!(gate.control().revoke(DEFAULT_APPID), 1);
    let stale_once = Rule::new("/cgi-bin/user/get", Fault::errcode(40001));
    gate.control().fault(stale_once.account(CORP));
    let wecom = get(&gate, "/@agent/cgi-bin/user/get?userid=a").await;
    assert_eq!(
        (wecom.errcode(), wecom.attempts.as_str()),
        (Some(40001), "1")
    );
    let wechat = get(&gate, "/@shop/cgi-bin/user/info?openid=a").await;
    assert!(wechat.is_fine() && wechat.attempts == "2", "{wechat:?}");
    let Counters {
        wecom_fetches,
        stable_fetches,
        ..
    } = gate.control().counters();
    assert_eq!((wecom_fetches, stable_fetches), (0, 1));
}

/// A wrong secret is said once and remembered; calls do not ask again, and the answer names what to
/// correct.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_remembered_and_named() {
    let bad_secret = |control: &SandboxControl| {
        control.fault(
            Rule::new(GETTOKEN, Fault::errcode(40001))
                .account(CORP)
                .always(),
        );
    };
    let gate = start_after(corp(), bad_secret).await;
    let first = call_until(&gate, SEND, |answer| answer.text().contains("40001")).await;
    assert_eq!(
        (first.status, first.error.as_str()),
        (503, "token_unavailable")
    );
    assert!(
        first.text().contains("agent's secret is wrong"),
        "{}",
        first.text()
    );
    assert!(
        !first.text().contains("whitelist") && !first.text().contains("refused the IP"),
        "{}",
        first.text()
    );
    let calls = (0..200)
        .map(|_| spawned(gate.client.get(gate.url(SEND))))
        .collect();
    assert!(
        all(calls)
            .await
            .iter()
            .all(|answer| answer.error == "token_unavailable")
    );
    // Two accounts; the one that is called asked once, and once more should five seconds have passed
    // by now. The other one has its turn at this host a little later.
    let fetches = gate.control().counters().wecom_fetches;
    assert!((1..=4).contains(&fetches), "{fetches}");
    assert!(
        get(&gate, "/@shop/cgi-bin/user/info?openid=a")
            .await
            .is_fine(),
        "WeChat's account has nothing to do with it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_trusted_is_named() {
    let untrusted = |control: &SandboxControl| {
        let text = "{\"errcode\":60020,\"errmsg\":\"not allow to access from your ip, hint: [1576065934_28_a], \
                    from ip: 198.51.100.7, more info at https://open.work.weixin.qq.com/devtool/query?e=60020\"}";
        control.fault(Rule::new(GETTOKEN, Fault::respond(200, "application/json", text)).always());
    };
    let gate = start_after(corp(), untrusted).await;
    let answer = call_until(&gate, SEND, |answer| answer.text().contains("60020")).await;
    for part in ["198.51.100.7", "trusted IP", "企业可信IP"] {
        assert!(
            answer.text().contains(part),
            "{part} is not in {}",
            answer.text()
        );
    }
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (503, "token_unavailable")
    );
}

/// WeCom has no forced refresh: when it gives the refused token again, its own answer is all there
/// is.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_again_gives_wecoms_own_answer_back() {
    let gate = warm().await;
    gate.control().revoke_with(
        CORP,
        Revocation {
            sticky: true,
            ..Revocation::default()
        },
    );
    let answer = send(&gate, SEND, "u1").await;
    assert_eq!(
        (answer.status, answer.errcode(), answer.attempts.as_str()),
        (200, Some(40014), "1")
    );
    assert!(
        answer
            .text()
            .contains("more info at https://open.work.weixin.qq.com"),
        "{}",
        answer.text()
    );
    assert_eq!(
        (answer.replay.as_str(), answer.error.as_str()),
        ("skipped; reason=same_token", "")
    );
    for _ in 0..20 {
        let again = send(&gate, SEND, "u1").await;
        assert_eq!(
            (again.errcode(), again.replay.as_str()),
            (Some(40014), "skipped; reason=backoff")
        );
    }
    assert_eq!(
        gate.control().counters().wecom_fetches,
        1,
        "a refusal is remembered"
    );
    assert_eq!(gate.control().delivered_to("u1"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_of_one_corp_have_a_token_each() {
    let gate = warm().await;
    for name in ["agent", "other"] {
        for user in ["a", "b"] {
            assert!(
                send(&gate, &format!("/@{name}/cgi-bin/message/send"), user)
                    .await
                    .is_fine()
            );
        }
        assert_eq!(
            tokens(gate.control(), "/cgi-bin/message/send").len(),
            1,
            "{name}"
        );
        gate.control().clear_record();
    }
    let all = gate.control().accounts();
    let tokens: HashSet<_> = all
        .iter()
        .flat_map(|account| &account.tokens)
        .map(|token| &token.access_token)
        .collect();
    assert_eq!(tokens.len(), 3, "shop, agent and other");
}

/// A corpid that several agents share says nothing of which one is meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_corpid_that_agents_share_selects_none_of_them() {
    let gate = warm().await;
    let answer = get(&gate, &format!("/@{CORP}/cgi-bin/user/get?userid=a")).await;
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (400, "account_unknown")
    );
    assert!(
        get(
            &gate,
            &format!("/@{DEFAULT_APPID}/cgi-bin/user/info?openid=a")
        )
        .await
        .is_fine(),
        "one of its own does"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_by_hand_works_and_a_forced_one_says_that_it_cannot() {
    let gate = warm().await;
    let order = |force: bool| {
        let url = gate.admin_url("/api/accounts/agent/refresh");
        gate.client.post(url).json(&json!({"force": force})).send()
    };
    let refused = order(true).await.unwrap();
    assert_eq!(refused.status(), 409);
    let said = json(refused).await;
    assert!(
        said["message"]
            .as_str()
            .unwrap()
            .contains("no forced refresh"),
        "{said}"
    );
    assert_eq!(gate.control().fetches(), 0);
    assert_eq!(json(order(false).await.unwrap()).await["refreshed"], false);
    assert_eq!(gate.control().counters().wecom_fetches, 1);
}

/// Corpid and secret go into the query, as WeCom demands it, and nothing else does.
#[tokio::test(flavor = "multi_thread")]
async fn gettoken_is_asked_as_documented() {
    let gate = corp().start().await;
    assert!(
        get(&gate, "/@agent/cgi-bin/user/get?userid=a")
            .await
            .is_fine()
    );
    let queries: HashSet<_> = gate
        .control()
        .requests(GETTOKEN)
        .into_iter()
        .map(|record| (record.method, record.query))
        .collect();
    let expected = ["agent", "other"].map(|name| {
        (
            "GET".to_owned(),
            Some(format!("corpid={CORP}&corpsecret=secret%2Dof%2D{name}")),
        )
    });
    assert!(
        queries.contains(&expected[0]) && queries.is_subset(&HashSet::from(expected)),
        "{queries:?}"
    );
}
