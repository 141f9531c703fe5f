//! What is not worth a fetch: paths that lie, tokens that are always refused, errors that say
//! nothing about the token.
//!
//! The decision table of stable tokens, end to end: another token, the same one again, probe,
//! force, budget.

use std::time::Duration;

use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Fault, Revocation, Rule};

use crate::support::{
    Gate, setup,
    token_tools::{Said, all, call_until, get, joined, said, spawned, until},
};

const STABLE: &str = "/cgi-bin/stable_token";
const PROBE: &str = "/cgi-bin/get_api_domain_ip";
const LIAR: &str = "/wxa/liar";
const STALE: &str = "{\"errmsg\":\"invalid credential, access_token is invalid or not latest rid: 1\",\r\n\"errcode\":40001}";

async fn warm(lines: &str) -> Gate {
    let gate = setup().account(lines).start().await;
    gate.warm().await;
    gate
}

fn always_stale(gate: &Gate, path: &str) -> u64 {
    gate.control()
        .fault(Rule::new(path, Fault::respond(200, "text/plain", STALE)).always())
}

/// The next token call gives the dead token again, and so does every one that is not forced.
fn revoke_for_good(gate: &Gate) {
    let how = Revocation {
        sticky: true,
        ..Revocation::default()
    };
    assert_eq!(gate.control().revoke_with(DEFAULT_APPID, how), 1);
}

fn assert_given_back(answer: &Said, reasons: &[&str]) {
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.error.as_str()),
        (200, STALE, ""),
        "WeChat's own bytes"
    );
    match answer.attempts.as_str() {
        "2" => assert_eq!(answer.replay, ""),
        "1" => {
            let reason = answer
                .replay
                .strip_prefix("skipped; reason=")
                .expect("the reason stands in the header");
            assert!(reasons.contains(&reason), "{reason} is none of {reasons:?}");
        }
        other => panic!("{other} attempts"),
    }
}

/// Pitfall: a path that answers 40001 whatever it gets (a token of the wrong kind, a permission in
/// disguise) makes each call fetch: 2000 fetches are gone before noon, and every new token kills
/// the one that the others use.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_always_says_stale_costs_a_bounded_number_of_fetches_and_harms_no_other() {
    for (mode, most) in [("stable", 2), ("classic", 1)] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        gate.control().clear_record();
        always_stale(&gate, LIAR);
        for n in 0..60 {
            let lie = if n % 2 == 0 {
                get(&gate, LIAR).await
            } else {
                said(gate.post(LIAR).body("{}")).await
            };
            assert_given_back(&lie, &["same_token", "path_lies", "backoff", "budget"]);
            let truth = said(gate.send_message("somebody")).await;
            assert!(
                truth.is_fine() && truth.attempts == "1",
                "{mode}: {truth:?}"
            );
        }
        // And all at once.
        let calls = (0..100)
            .map(|_| spawned(gate.client.get(gate.url(LIAR))))
            .collect();
        for lie in all(calls).await {
            assert_given_back(&lie, &["path_lies"]);
            assert_eq!(lie.attempts, "1", "{mode}: it is known by now");
        }
        let counters = gate.control().counters();
        assert!(gate.control().fetches() <= most, "{mode}: {counters:?}");
        assert_eq!(counters.forced_fetches, 0, "{mode}: the token is good");
        assert!(gate.control().path(PROBE).requests <= 1, "{mode}");
        assert!(
            gate.control().path(LIAR).requests <= 162,
            "{mode}: {:?}",
            gate.control().path(LIAR)
        );
        assert_eq!(gate.control().deliveries().len(), 60, "{mode}");
    }
}

/// A path that lied once is not lost: when the token really dies, the others refresh it and the
/// liar gets the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_liar_that_mends_its_ways_is_served_like_any_other() {
    let gate = warm("").await;
    let fault = always_stale(&gate, LIAR);
    assert_given_back(&get(&gate, LIAR).await, &["same_token"]);
    assert_given_back(&get(&gate, LIAR).await, &["path_lies"]);
    gate.control().remove_fault(fault);
    assert!(get(&gate, LIAR).await.is_fine());
    gate.control().revoke(DEFAULT_APPID);
    assert!(
        said(gate.send_message("a")).await.is_fine(),
        "others refresh as ever"
    );
    let liar = get(&gate, LIAR).await;
    assert!(liar.is_fine() && liar.attempts == "1", "{liar:?}");
}

/// The first thing that an evaluator tries: start, end the token, call.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_token_that_ends_before_its_first_call_is_replaced_unseen() {
    for mode in ["stable", "classic"] {
        let gate = setup()
            .account(&format!("token = \"{mode}\""))
            .start()
            .await;
        // Waits for the token, and is no call with it.
        let login = format!(
            "/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}"
        );
        assert_eq!(gate.get(&login).await.status(), 200);
        gate.control().revoke(DEFAULT_APPID);
        let answer = said(gate.send_message("a")).await;
        assert!(
            answer.is_fine() && answer.attempts == "2",
            "{mode}: {answer:?}"
        );
    }
}

/// Pitfall: an account whose tokens are always refused (the wrong kind of account, a frozen one)
/// loops through refresh and replay for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_whose_every_token_is_refused_costs_next_to_nothing() {
    // The first token and one in its place, for which a stable token is asked for twice.
    for (mode, most) in [("stable", 3), ("classic", 2)] {
        let gate = setup()
            .account(&format!("token = \"{mode}\""))
            .start()
            .await;
        for path in ["/cgi-bin/user/*", "/wxa/**", PROBE] {
            always_stale(&gate, path);
        }
        for n in 0..100 {
            let path = ["/cgi-bin/user/info", "/cgi-bin/user/get", LIAR][n % 3];
            assert_given_back(
                &get(&gate, path).await,
                &["backoff", "budget", "same_token"],
            );
        }
        let calls = (0..100)
            .map(|n| spawned(gate.client.get(gate.url(&format!("/wxa/p{n}")))))
            .collect();
        for answer in all(calls).await {
            assert_given_back(&answer, &["backoff", "budget", "same_token"]);
        }
        assert!(
            gate.control().fetches() <= most,
            "{mode}: {:?}",
            gate.control().counters()
        );
    }
}

/// WeChat's second answer is passed on, whatever it says; there is no third attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_stale_again_is_answered_with_the_second_answer_and_never_sent_a_third_time()
 {
    for (mode, second) in [("stable", 40001), ("classic", 42001)] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        gate.control().clear_record();
        gate.control().revoke(DEFAULT_APPID);
        let answer = |code: i64, n: u8| format!("{{\"errcode\":{code},\"errmsg\":\"answer {n}\"}}");
        for (n, code) in [(1, 40001), (2, second), (3, 0)] {
            gate.control().fault(Rule::new(
                LIAR,
                Fault::respond(200, "application/json", answer(code, n)),
            ));
        }
        let said = said(gate.post(LIAR).body("{\"once\":1}")).await;
        assert_eq!(
            (said.status, said.text(), said.attempts.as_str()),
            (200, answer(second, 2), "2"),
            "{mode}"
        );
        assert_eq!(gate.control().path(LIAR).requests, 2, "{mode}");
        assert_eq!(gate.control().fetches(), 1, "{mode}");
    }
}

/// Pitfall: time-outs and "busy" are mapped to a retry, and templates are delivered several times
/// (WxJava).
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_executed_is_sent_once() {
    let gate = setup()
        .set("upstream", "response_timeout = \"1s\"")
        .start()
        .await;
    gate.warm().await;
    gate.control().clear_record();
    let respond = |status, body: &str| {
        Fault::Respond(wxgate::sandbox::Response {
            status,
            body: body.to_owned(),
            executed: true,
            ..wxgate::sandbox::Response::default()
        })
    };
    let rows = [
        (
            "busy",
            respond(200, "{\"errcode\":-1,\"errmsg\":\"system error\"}"),
            200,
            "",
        ),
        (
            "quota",
            respond(
                200,
                "{\"errcode\":45009,\"errmsg\":\"reach max api daily quota limit\"}",
            ),
            200,
            "",
        ),
        ("500", respond(500, STALE), 500, ""),
        ("502", respond(502, "<html>bad gateway</html>"), 502, ""),
        ("503", respond(503, ""), 503, ""),
        (
            "reset",
            Fault::Reset { executed: true },
            502,
            "upstream_failed",
        ),
        (
            "closed",
            Fault::Close { executed: true },
            502,
            "upstream_failed",
        ),
        (
            "silence",
            Fault::Hang { executed: true },
            504,
            "upstream_timeout",
        ),
    ];
    for (name, fault, status, error) in rows {
        // On a connection that has been used before, where a proxy is most tempted to try again.
        gate.warm().await;
        gate.control()
            .fault(Rule::new("/cgi-bin/message/custom/send", fault));
        let answer = said(gate.send_message(name)).await;
        assert_eq!(
            (
                answer.status,
                answer.error.as_str(),
                answer.attempts.as_str()
            ),
            (status, error, "1"),
            "{name}"
        );
        assert_eq!(answer.replay, "", "{name}: none was due");
        assert_eq!(gate.control().delivered_to(name), 1, "{name}");
    }
    assert_eq!(
        gate.control().path("/cgi-bin/message/custom/send").requests,
        8
    );
    assert_eq!(gate.control().fetches(), 0);
}

/// Stable tokens, row 3: the ordinary call gives the rejected token again and a cheap probe
/// confirms that it is dead, so one forced call is spent, for everybody together.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_token_that_wechat_hands_out_again_is_probed_and_forced_once_for_all() {
    let gate = warm("").await;
    gate.control().clear_record();
    revoke_for_good(&gate);
    let fetch = gate.control().fault(Rule::new(STABLE, Fault::Pass).hold());
    let calls: Vec<_> = (0..50)
        .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
        .collect();
    until(gate.control(), "50 refusals", |control| {
        control.counters().stale >= 50
    })
    .await;
    gate.control().release(fetch);
    for answer in all(calls).await {
        assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
    }
    let counters = gate.control().counters();
    assert_eq!(
        (counters.stable_fetches, counters.forced_fetches),
        (2, 1),
        "one ordinary, one forced"
    );
    assert_eq!(gate.control().path(PROBE).requests, 1);
    assert_eq!(gate.control().deliveries().len(), 50);
    // The same again at once: forced calls must be apart, so WeChat's answer goes back and nothing
    // is burnt.
    revoke_for_good(&gate);
    let (mut given_back, before) = (Vec::new(), gate.control().counters());
    for _ in 0..20 {
        let answer = get(&gate, "/cgi-bin/user/info?openid=a").await;
        assert_eq!(
            (answer.status, answer.errcode(), answer.attempts.as_str()),
            (200, Some(40001), "1"),
            "{answer:?}"
        );
        given_back.push(answer.replay);
    }
    assert_eq!(given_back[0], "skipped; reason=budget");
    assert!(
        given_back[1..]
            .iter()
            .all(|reason| reason == "skipped; reason=backoff"),
        "{given_back:?}"
    );
    let after = gate.control().counters();
    assert_eq!(
        (after.forced_fetches, after.stable_fetches),
        (1, before.stable_fetches + 1)
    );
}

/// Row 3, the other way: the ordinary call gives the rejected token again, and the probe finds it
/// good. Then the token is not the cause, nothing is forced, and the caller reads what WeChat said.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_that_the_probe_finds_good_is_kept() {
    let gate = warm("").await;
    gate.control().clear_record();
    always_stale(&gate, LIAR);
    let calls = (0..30)
        .map(|_| spawned(gate.client.get(gate.url(LIAR))))
        .collect();
    for answer in all(calls).await {
        assert_given_back(&answer, &["same_token", "path_lies"]);
        assert_eq!(answer.attempts, "1");
    }
    let counters = gate.control().counters();
    assert_eq!((counters.stable_fetches, counters.forced_fetches), (1, 0));
    assert_eq!(gate.control().path(PROBE).requests, 1);
    let other = get(&gate, "/cgi-bin/user/info?openid=a").await;
    assert!(other.is_fine() && other.attempts == "1");
}

/// Evidence comes before a probe: what another request has just seen costs nothing. (Pitfall:
/// WeChat's quota is spent to learn the token's health.)
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_accepted_elsewhere_in_the_meantime_is_not_even_probed() {
    let gate = warm("").await;
    gate.control().clear_record();
    always_stale(&gate, LIAR);
    let fetch = gate.control().fault(Rule::new(STABLE, Fault::Pass).hold());
    let lie = spawned(gate.client.get(gate.url(LIAR)));
    until(gate.control(), "the ordinary fetch", |control| {
        control.hits(fetch) == 1
    })
    .await;
    assert!(get(&gate, "/cgi-bin/user/info?openid=a").await.is_fine());
    gate.control().release(fetch);
    let lie = joined(lie).await;
    assert_given_back(&lie, &["same_token"]);
    assert_eq!(lie.attempts, "1");
    assert_eq!(gate.control().path(PROBE).requests, 0);
    assert_eq!(gate.control().counters().forced_fetches, 0);
}

/// A probe that says nothing (the network, a quota) condemns nothing: the token stays and nothing
/// is forced.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_without_a_verdict_forces_nothing() {
    let gate = warm("").await;
    gate.control().clear_record();
    revoke_for_good(&gate);
    gate.control()
        .fault(Rule::new(PROBE, Fault::errcode(45009)).always());
    let answer = get(&gate, "/cgi-bin/user/info?openid=a").await;
    assert_eq!(
        (answer.errcode(), answer.replay.as_str()),
        (Some(40001), "skipped; reason=same_token")
    );
    assert_eq!(gate.control().counters().forced_fetches, 0);
}

/// Row "the refresh itself failed with a fatal code": WeChat's answer to the caller goes back, the
/// refusal is remembered (pitfall: 40164 led to recursion until the stack was full), and when it is
/// cured nobody has to restart anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_is_refused_gives_wechats_answer_back_and_is_remembered() {
    for mode in ["stable", "classic"] {
        let gate = warm(&format!("token = \"{mode}\"")).await;
        gate.control().clear_record();
        gate.control().revoke(DEFAULT_APPID);
        let refusal = gate
            .control()
            .fault(Rule::new("/cgi-bin/*token", Fault::errcode(40164)).always());
        for n in 0..20 {
            let answer = get(&gate, &format!("/cgi-bin/user/info?openid={n}")).await;
            assert_eq!(
                (answer.status, answer.errcode(), answer.attempts.as_str()),
                (200, Some(40001), "1"),
                "{mode}"
            );
            assert_eq!(answer.replay, "skipped; reason=refresh_failed", "{mode}");
        }
        assert!(
            gate.control().fetches() <= 2,
            "{mode}: {:?}",
            gate.control().counters()
        );
        gate.control().remove_fault(refusal);
        let cured = call_until(&gate, "/cgi-bin/user/info?openid=a", Said::is_fine).await;
        assert!(cured.is_fine());
    }
}

/// The refresh hangs: a caller gets WeChat's own answer after a bounded time instead of none.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_hangs_is_not_waited_for_without_end() {
    let gate = setup()
        .set("token", "fetch_timeout = \"1s\"")
        .set("token", "wait = \"1s\"")
        .start()
        .await;
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    gate.control()
        .fault(Rule::new(STABLE, Fault::Hang { executed: false }).always());
    let call = joined(spawned(
        gate.client.get(gate.url("/cgi-bin/user/info?openid=a")),
    ));
    let answer = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .expect("within fetch_timeout and wait, about");
    assert_eq!(
        (answer.status, answer.errcode(), answer.attempts.as_str()),
        (200, Some(40001), "1")
    );
    let reason = answer
        .replay
        .strip_prefix("skipped; reason=")
        .expect("a reason");
    assert!(["timeout", "refresh_failed"].contains(&reason), "{reason}");
}
