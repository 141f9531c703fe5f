//! The headers that tell a caller what became of its request.

use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Fault, Response, Rule, TokenKind};

use crate::support::{
    header, setup,
    token_tools::{appid, get, said, warm_account, with_accounts},
};

const USER: &str = "/cgi-bin/user/info?openid=a";

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_request_id_is_adopted_if_it_is_one_and_replaced_if_it_is_not() {
    let gate = setup().start().await;
    gate.warm().await;
    let long = "x".repeat(64);
    for id in ["abc", "6aac0063-7ed08fb9-1250f724", "A_b.c-9", "1", &long] {
        let answer = gate
            .client
            .get(gate.url(USER))
            .header("x-request-id", id)
            .send()
            .await
            .expect("an answer");
        assert_eq!(header(&answer, "x-request-id"), id);
    }
    let too_long = "x".repeat(65);
    let mut made = std::collections::HashSet::new();
    for id in [
        "", "a b", "a\"b", "<script>", "a,b", "a;b", "\u{e9}", "../x", &too_long,
    ] {
        let request = gate
            .client
            .get(gate.url(USER))
            .header("x-request-id", id.as_bytes());
        let answer = request.send().await.expect("an answer");
        let ours = header(&answer, "x-request-id");
        assert_eq!(ours.len(), 16, "{id:?} -> {ours:?}");
        assert!(
            ours.bytes().all(|b| b.is_ascii_hexdigit()) && made.insert(ours),
            "each has its own"
        );
    }
    let (_, log) = gate.stop().await;
    assert!(
        log.contains("6aac0063-7ed08fb9-1250f724"),
        "the log can be found by the caller's own id"
    );
    assert!(made.iter().all(|id| log.contains(id)));
}

/// Answers that wxgate makes itself can be told apart and traced as well.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_its_own_carries_an_id_and_no_attempts() {
    let gate = setup().start().await;
    gate.warm().await;
    for (target, status, slug) in [
        ("/a/../b%2e", 400, "bad_request"),
        ("/-/x", 404, "not_found"),
    ] {
        let answer = gate
            .client
            .get(gate.url(target))
            .header("x-request-id", "mine")
            .send()
            .await
            .expect("an answer");
        assert_eq!(
            (
                answer.status().as_u16(),
                header(&answer, "x-wxgate-error").as_str()
            ),
            (status, slug)
        );
        assert_eq!(header(&answer, "x-request-id"), "mine");
        assert_eq!(
            (
                header(&answer, "x-wxgate-attempts"),
                header(&answer, "x-wxgate-replay")
            ),
            (String::new(), String::new())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_is_named_as_the_configuration_names_it() {
    let gate = with_accounts(setup(), 2, "").start().await;
    let id = appid(1);
    for (target, name) in [
        ("/@a0".to_owned(), "a0"),
        ("/@a1".to_owned(), "a1"),
        (format!("/@{id}"), "a1"),
    ] {
        let answer = gate.get(&format!("{target}{USER}")).await;
        assert_eq!(
            (
                answer.status().as_u16(),
                header(&answer, "x-wxgate-account").as_str()
            ),
            (200, name)
        );
    }
}

/// Attempts count what was sent to WeChat: 1, or 2 when a replay was made; the reason stands there
/// when one was due and not made.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_the_reason_for_a_missing_replay_are_told() {
    let gate = setup().start().await;
    gate.warm().await;
    let plain = get(&gate, USER).await;
    assert_eq!((plain.attempts.as_str(), plain.replay.as_str()), ("1", ""));
    gate.control().revoke(DEFAULT_APPID);
    let cured = get(&gate, USER).await;
    assert_eq!((cured.attempts.as_str(), cured.replay.as_str()), ("2", ""));
    gate.control()
        .fault(Rule::new("/wxa/liar", Fault::stale()).always());
    let lie = get(&gate, "/wxa/liar").await;
    assert_eq!(
        (lie.attempts.as_str(), lie.replay.as_str()),
        ("1", "skipped; reason=same_token")
    );
    let no_token = get(&gate, "/sns/auth?access_token=user&openid=o").await;
    assert_eq!(
        (no_token.attempts.as_str(), no_token.replay.as_str()),
        ("1", ""),
        "not ours to cure"
    );
}

/// WeChat, or whoever stands in its place, cannot speak with wxgate's voice.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_this_family_from_upstream_do_not_reach_the_caller() {
    let gate = with_accounts(setup(), 1, "").start().await;
    warm_account(&gate, 0).await;
    let forged = [
        ("X-Wxgate-Error", "token_unavailable"),
        ("x-wxgate-attempts", "7"),
        ("X-WXGATE-REPLAY", "skipped; reason=forged"),
        ("x-wxgate-account", "other"),
        ("x-request-id", "theirs"),
        ("LogicRet", "0"),
    ];
    let headers = forged
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let response = Response {
        headers,
        body: "{\"errcode\":0}".to_owned(),
        ..Response::default()
    };
    gate.control()
        .fault(Rule::new("/wxa/forged", Fault::Respond(response)));
    let raw = gate
        .client
        .get(gate.url("/@a0/wxa/forged"))
        .header("x-request-id", "mine")
        .send()
        .await
        .expect("one");
    let values = |name: &str| {
        raw.headers()
            .get_all(name)
            .iter()
            .map(|v| v.to_str().expect("ASCII"))
            .collect::<Vec<_>>()
    };
    assert_eq!(values("x-wxgate-error"), Vec::<&str>::new());
    assert_eq!(values("x-wxgate-replay"), Vec::<&str>::new());
    assert_eq!(
        (values("x-wxgate-attempts"), values("x-wxgate-account")),
        (vec!["1"], vec!["a0"])
    );
    assert_eq!(
        values("x-request-id"),
        ["mine"],
        "one id, and it is the caller's"
    );
    assert_eq!(values("logicret"), ["0"], "what is WeChat's passes");
    let next = said(gate.client.get(gate.url(&format!("/@a0{USER}")))).await;
    assert!(next.is_fine());
}

/// Servers echo what they were asked: neither the token of this call nor the one that it replaced, nor
/// the AppSecret, comes back in a header.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_headers_of_an_answer_are_masked() {
    let gate = setup().start().await;
    gate.warm().await;
    let current = || {
        let token = gate
            .control()
            .current_token(DEFAULT_APPID, TokenKind::Stable);
        token.expect("a token")
    };
    let former = current();
    gate.control().revoke(DEFAULT_APPID);
    gate.warm().await;
    let token = current();
    assert_ne!(former, token);
    let hex = |text: &str| {
        text.bytes()
            .map(|byte| format!("%25{byte:02x}"))
            .collect::<String>()
    };
    let echo = |name: &str, value: String| (name.to_owned(), value);
    let response = Response {
        status: 302,
        headers: vec![
            echo("location", format!("https://h/p?access_token={token}&a=1")),
            echo("x-request-uri", format!("/p?access_token={former}")),
            echo("set-cookie", format!("uri={}; path=/", hex(&token))),
            echo("set-cookie", "plain=1".to_owned()),
            echo("x-secret", format!("<{DEFAULT_SECRET}{token}>")),
            echo("x-other", "z".repeat(200)),
        ],
        body: "{\"errcode\":0}".to_owned(),
        ..Response::default()
    };
    gate.control()
        .fault(Rule::new("/**", Fault::Respond(response)).always());
    let stars = |text: &str| "*".repeat(text.len());
    for target in [
        "/wxa/echo".to_owned(),
        "/sns/userinfo?access_token=user".to_owned(),
        format!("/sns/jscode2session?appid={DEFAULT_APPID}&js_code=c"),
    ] {
        let answer = gate.get(&target).await;
        assert_eq!(
            header(&answer, "location"),
            format!("https://h/p?access_token={}&a=1", stars(&token)),
            "{target}"
        );
        assert_eq!(
            header(&answer, "x-request-uri"),
            format!("/p?access_token={}", stars(&former))
        );
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(
            cookies,
            [&*format!("uri={}; path=/", stars(&hex(&token))), "plain=1"]
        );
        assert_eq!(
            header(&answer, "x-secret"),
            format!("<{}{}>", stars(DEFAULT_SECRET), stars(&token))
        );
        assert_eq!(
            header(&answer, "x-other"),
            "z".repeat(200),
            "what is no secret passes"
        );
    }
}
