//! Calls that carry their own credential or take none: forwarded once as they came, and judged by
//! nobody.

use serde_json::json;
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Fault, Rule};

use super::{KEY, keyed, second_account, started, target, two_platforms};
use crate::support::{
    Gate, header, setup,
    token_tools::{get, said},
};

/// The targets that arrived since the record was cleared, without calls for tokens.
fn arrived(gate: &Gate) -> Vec<String> {
    let requests = gate.control().requests("/**").into_iter();
    requests.map(|record| target(&record)).collect()
}

const USER_CALLS: [&str; 4] = [
    "/sns/userinfo?access_token=USER&openid=o",
    "/sns/auth?access_token=USER&openid=o",
    "/sns/oauth2/refresh_token?appid=wx1&grant_type=refresh_token&refresh_token=R",
    "/sns/unheard_of?access_token=USER",
];

/// Pitfall: every unmodified SDK that is known by its key loses web login, since the calls behind the
/// code exchange have no place for a key.
#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_users_token_need_neither_key_nor_account() {
    let clients = keyed() + &second_account();
    let gate = setup()
        .set("server", "allow = [\"loopback\"]")
        .more(&clients);
    let gate = started(gate, 2).await;
    for call in USER_CALLS {
        let answer = gate.get(call).await;
        assert_eq!(header(&answer, "x-wxgate-error"), "", "{call}");
        assert_eq!(header(&answer, "x-wxgate-account"), "", "{call}");
        assert_eq!(header(&answer, "x-wxgate-attempts"), "1", "{call}");
    }
    assert_eq!(arrived(&gate), USER_CALLS);
    let metrics = gate.metrics().await;
    assert!(
        metrics.contains("wxgate_requests_total{account=\"-\",client=\"-\",outcome=\"ok\"} 4"),
        "{metrics}"
    );
}

/// Only networks that the operator named make a call without a key, and no header can name another.
#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_key_come_from_named_networks_only() {
    let from = |networks: &str| {
        format!(
            "[[client]]\nname = \"erp\"\nkey = {{ value = \"erp-key-0123456789\" }}\nfrom = [\"{networks}\"]\n\
             allow = [\"/sns/**\"]\n"
        )
    };
    for (allow, client, forwarded_for, status) in [
        ("", keyed(), None, 401),
        ("allow = [\"loopback\"]", keyed(), None, 200),
        ("allow = [\"loopback\"]", keyed(), Some("127.0.0.1"), 401),
        ("allow = [\"0.0.0.0/0\"]", keyed(), None, 401),
        (
            "allow = [\"0.0.0.0/1\", \"128.0.0.0/1\"]",
            keyed(),
            None,
            401,
        ),
        ("allow = [\"10.0.0.0/8\"]", keyed(), None, 401),
        ("", from("127.0.0.0/8"), None, 200),
        ("", from("0.0.0.0/0"), None, 401),
    ] {
        let gate = started(setup().set("server", allow).more(&client), 1).await;
        let mut call = gate.client.get(gate.url(USER_CALLS[0]));
        if let Some(address) = forwarded_for {
            call = call.header("x-forwarded-for", address);
        }
        let answer = said(call).await;
        assert_eq!(answer.status, status, "{allow} {client} {forwarded_for:?}");
        // Of the client whose network this is, the paths count.
        let mut robot = gate.client.get(gate.url("/cgi-bin/webhook/send?key=k"));
        if let Some(address) = forwarded_for {
            robot = robot.header("x-forwarded-for", address);
        }
        let robot = said(robot).await;
        let is_let_in = status == 200 && !client.contains("/sns/**");
        assert_ne!(
            robot.error == "client_unknown" || robot.error == "path_denied",
            is_let_in
        );
        if robot.error == "client_unknown" {
            assert!(robot.text().contains("server.allow"), "{}", robot.text());
        }
    }
}

/// A program's own `Authorization`, meant for somebody else, takes nothing away.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_for_others_does_not_hinder_a_call_without_a_key() {
    let gate = started(
        setup()
            .set("server", "allow = [\"loopback\"]")
            .more(&keyed()),
        1,
    )
    .await;
    for (name, value, error) in [
        ("authorization", "Bearer their-own-token", ""),
        ("x-wxgate-key", "no-such-key-0123456789", "client_unknown"),
    ] {
        let call = gate.client.get(gate.url(USER_CALLS[0])).header(name, value);
        assert_eq!(said(call).await.error, error, "{name}");
    }
}

/// Pitfall: an alert is lost because the token that it does not need is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_robots_call_waits_for_no_token() {
    let gate = two_platforms();
    let sandbox = gate.start_sandbox().await;
    let refused = Rule::new("/cgi-bin/gettoken", Fault::errcode(60020)).always();
    sandbox.control().fault(refused);
    let gate = gate.start_with(sandbox).await;
    gate.control().until(|control| control.fetches() >= 2).await;
    gate.control().clear_record();
    for call in [
        "/cgi-bin/webhook/send?key=11111111-1111-1111-1111-111111111111",
        "/cgi-bin/webhook/upload_media?key=1&type=file",
        "/cgi-bin/aibot/response?response_code=c",
        "/@corp/cgi-bin/webhook/send?key=1",
        "/@shop/cgi-bin/webhook/send?key=1",
    ] {
        let answer = said(gate.post(call).json(&json!({"msgtype": "text"}))).await;
        assert_eq!(
            (answer.error.as_str(), answer.attempts.as_str()),
            ("", "1"),
            "{call}"
        );
        let seen = arrived(&gate).pop().expect("it arrived");
        assert_eq!(
            seen,
            call.trim_start_matches("/@corp")
                .trim_start_matches("/@shop")
        );
    }
    let ordinary = get(&gate, "/@corp/cgi-bin/user/get?userid=u").await;
    assert_eq!(ordinary.error, "token_unavailable");
}

/// Pitfall: the provider's dead token makes wxgate refresh the agent's, and the call is sent twice: a
/// one-time code is spent.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_of_somebody_else_is_left_alone() {
    let gate = started(two_platforms(), 2).await;
    for (path, parameter) in [
        (
            "/cgi-bin/service/corpid_to_opencorpid",
            "provider_access_token",
        ),
        ("/cgi-bin/service/get_permanent_code", "suite_access_token"),
        (
            "/cgi-bin/hardware/get_device_feature",
            "device_access_token",
        ),
        ("/cgi-bin/openhw/anything", "model_access_token"),
        ("/wxa/gettemplatelist", "access_token"),
        (
            "/cgi-bin/component/api_query_auth",
            "component_access_token",
        ),
        ("/cgi-bin/miniprogram/transfer_session", "access_token"),
        ("/wxa/anything", "authorizer_access_token"),
    ] {
        for code in [40001, 40014, 42001] {
            gate.control().clear_record();
            gate.control().fault(Rule::new(path, Fault::errcode(code)));
            let call = format!("{path}?{parameter}=THEIRS&a=1");
            let answer = said(gate.post(&call).json(&json!({}))).await;
            assert_eq!(answer.errcode(), Some(code), "{call}");
            assert_eq!(answer.replay, "", "{call}");
            assert_eq!(arrived(&gate), [call], "once, as it came");
            assert_eq!(gate.control().fetches(), 0);
        }
    }
}

/// Pitfall: a website's login of another appid is taken for the account's.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_another_appid_is_forwarded_with_its_own_secret() {
    let gate = started(setup().more(&second_account()), 2).await;
    let other = "/sns/oauth2/access_token?appid=wx9999999999999999&secret=own&code=c&grant_type=authorization_code";
    let answer = gate.get(other).await;
    assert_eq!(header(&answer, "x-wxgate-error"), "");
    assert_eq!(header(&answer, "x-wxgate-account"), "");
    let selected = format!("/@shop{other}");
    assert_eq!(header(&gate.get(&selected).await, "x-wxgate-error"), "");
    assert_eq!(arrived(&gate), [other, other]);

    let keyed = started(setup().more(&keyed()), 1).await;
    let with_key = other.replace("secret=own", &format!("secret={KEY}"));
    let answer = get(&keyed, &with_key).await;
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (400, "account_unknown")
    );
    let nobody = get(&keyed, other).await;
    assert_eq!(nobody.error, "client_unknown", "a secret needs a client");
    assert!(arrived(&keyed).is_empty());
}

/// Pitfall: an SDK that must be given some AppSecret is given any text, which goes to WeChat.
#[tokio::test(flavor = "multi_thread")]
async fn the_app_secret_replaces_texts_that_are_none() {
    let login = |secret: &str| {
        format!(
            "/sns/oauth2/access_token?appid={DEFAULT_APPID}{secret}&code=c&grant_type=authorization_code"
        )
    };
    let gate = started(setup(), 1).await;
    let own = "0123456789abcdef0123456789ABCDEF";
    for (secret, sent) in [
        ("&secret=any-text", DEFAULT_SECRET),
        ("&secret=", DEFAULT_SECRET),
        ("", DEFAULT_SECRET),
        (&format!("&secret={own}"), own),
    ] {
        gate.control().clear_record();
        get(&gate, &login(secret)).await;
        let seen = arrived(&gate).pop().expect("it arrived");
        assert!(seen.contains(&format!("secret={sent}")), "{secret}: {seen}");
        assert_eq!(seen.matches("secret=").count(), 1, "{seen}");
    }
    // A caller that is known by its key means what it sends.
    let keyed = started(setup().more(&keyed()), 1).await;
    let call = keyed.client.get(keyed.url(&login("&secret=any-text")));
    said(call.header("x-wxgate-key", KEY)).await;
    assert!(arrived(&keyed)[0].contains("secret=any-text"));
}

/// Pitfall: wrong secrets get the node's address banned by WeChat.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_bring_a_secret_need_a_client() {
    let gate = two_platforms()
        .set("server", "allow = [\"loopback\"]")
        .more(&keyed());
    let gate = started(gate, 2).await;
    for call in [
        "/wxa/anything?secret=s",
        "/cgi-bin/component/api_component_token",
        "/cgi-bin/service/get_suite_token",
        "/cgi-bin/service/anything?corpsecret=s&suite_access_token=t",
    ] {
        assert_eq!(get(&gate, call).await.error, "client_unknown", "{call}");
        let known = gate.client.get(gate.url(call)).header("x-wxgate-key", KEY);
        assert_eq!(said(known).await.error, "", "{call}");
    }
}

/// A key never goes to WeChat, under whatever name, whoever calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_call_without_an_account_stays_here() {
    let gate = two_platforms()
        .set("server", "allow = [\"loopback\"]")
        .more(&keyed());
    let gate = started(gate, 2).await;
    for call in [
        format!("/sns/userinfo?access_token={KEY}"),
        format!("/cgi-bin/webhook/send?key={KEY}"),
        format!("/cgi-bin/service/anything?suite_access_token={KEY}"),
    ] {
        assert_eq!(get(&gate, &call).await.error, "bad_request", "{call}");
    }
    assert!(arrived(&gate).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_key_are_few() {
    let gate = setup()
        .set("server", "allow = [\"loopback\"]")
        .set("upstream", "max_in_flight = 16")
        .more(&keyed());
    let gate = started(gate, 1).await;
    let mut too_fast = 0;
    for _ in 0..200 {
        let answer = get(&gate, USER_CALLS[0]).await;
        if answer.error == "rate_limited" {
            assert_eq!((answer.status, answer.retry_after.as_str()), (429, "1"));
            too_fast += 1;
        }
    }
    assert!(too_fast > 0, "200 calls take less than nine seconds");
    let known = gate
        .client
        .get(gate.url(USER_CALLS[0]))
        .header("x-wxgate-key", KEY);
    assert_eq!(said(known).await.error, "", "a client has no such limit");
}

/// An eighth of what may be in flight, so that strangers cannot take all of it.
#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_key_hold_an_eighth() {
    let gate = setup()
        .set("server", "allow = [\"loopback\"]")
        .set("upstream", "max_in_flight = 16")
        .more(&keyed());
    let gate = started(gate, 1).await;
    gate.control()
        .fault(Rule::new("/sns/**", Fault::Hang { executed: false }).always());
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let call = gate.client.get(gate.url(USER_CALLS[0]));
        waiting.push(tokio::spawn(call.send()));
    }
    gate.control()
        .until(|control| control.requests("/sns/**").len() == 2)
        .await;
    let third = get(&gate, USER_CALLS[0]).await;
    assert_eq!((third.status, third.error.as_str()), (503, "overloaded"));
    for call in waiting {
        call.abort();
    }
}
