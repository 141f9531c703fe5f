//! The token endpoint's good and bad days, as callers live through them.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, ErrorShape, Fault, Rule, TokenKind};

use crate::support::{
    Gate, setup,
    token_tools::{
        Said, all, appid, call_until, get, joined, said, spawned, start_after,
        start_with_short_token, until, with_accounts,
    },
};

const ENDPOINTS: &str = "/cgi-bin/*token";
const USER: &str = "/cgi-bin/user/info?openid=a";

async fn get_in_time(gate: &Gate, target: &str, limit: u64) -> Said {
    let call = joined(spawned(gate.client.get(gate.url(target))));
    tokio::time::timeout(Duration::from_secs(limit), call)
        .await
        .unwrap_or_else(|_| panic!("{target}: no answer in {limit} s"))
}

fn assert_unavailable(answer: &Said, what: &str) {
    assert_eq!(
        (answer.status, answer.error.as_str(), answer.errcode()),
        (503, "token_unavailable", Some(990_503)),
        "{what}"
    );
    let retry_after: u64 = answer.retry_after.parse().expect("whole seconds");
    assert!((1..=600).contains(&retry_after), "{what}: {retry_after}");
    assert!(
        answer.text().contains("wxgate: "),
        "{what}: {}",
        answer.text()
    );
    assert_eq!(answer.attempts, "", "{what}: WeChat was not called");
}

/// The main job in the other mode: one fetch, many calls, the token in the query and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn classic_mode_does_the_main_job() {
    let gate = setup().account("token = \"classic\"").start().await;
    gate.warm().await;
    let calls = (0..50)
        .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
        .collect();
    assert!(
        all(calls)
            .await
            .iter()
            .all(|answer| answer.is_fine() && answer.attempts == "1")
    );
    let counters = gate.control().counters();
    assert_eq!(
        (
            counters.classic_fetches,
            counters.stable_fetches,
            counters.deliveries
        ),
        (1, 0, 50)
    );
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Classic)
        .expect("one");
    for record in gate.control().requests("/cgi-bin/message/**") {
        assert_eq!(record.query, Some(format!("access_token={token}")));
        assert!(
            record
                .headers
                .iter()
                .all(|(_, value)| !value.contains(&token))
        );
    }
}

/// Pitfall: the two kinds share a cache key, so an account switched to stable goes on with a
/// classic token.
#[tokio::test(flavor = "multi_thread")]
async fn classic_and_stable_accounts_of_one_appid_keep_tokens_of_their_own() {
    let twin = format!(
        "[[account]]\nname = \"twin\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ value = \"{DEFAULT_SECRET}\" }}\ntoken = \"classic\"\napi = [\"{{api}}\"]\n"
    );
    let gate = setup().more(&twin).start().await;
    let both = [
        "/@shop/cgi-bin/user/info?openid=a",
        "/@twin/cgi-bin/user/info?openid=a",
    ];
    for target in both {
        assert!(get(&gate, target).await.is_fine());
    }
    let counters = gate.control().counters();
    assert_eq!((counters.stable_fetches, counters.classic_fetches), (1, 1));
    gate.control().revoke(TokenKind::Classic);
    let answers = [get(&gate, both[0]).await, get(&gate, both[1]).await];
    assert!(answers.iter().all(Said::is_fine), "{answers:?}");
    assert_eq!(
        [answers[0].attempts.as_str(), answers[1].attempts.as_str()],
        ["1", "2"]
    );
    let counters = gate.control().counters();
    assert_eq!((counters.stable_fetches, counters.classic_fetches), (1, 2));
}

/// Pitfalls: a failed refresh throws away a token that still works; one network error ends the
/// timer; an expired token is sent because it was checked only when it was fetched (Envoy);
/// recovery needs a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_is_down_hurts_nobody_until_the_token_is_over_and_recovery_needs_nobody()
 {
    // The token is asked for after this moment, so for nine seconds from here it is good.
    let begun = Instant::now();
    let gate = start_with_short_token(setup(), 9).await;
    gate.warm().await;
    let down = gate
        .control()
        .fault(Rule::new(ENDPOINTS, Fault::Reset { executed: false }).always());
    let mut slow = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    let head = "POST /cgi-bin/menu/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.expect("sent");
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        let answer = get(&gate, USER).await;
        assert!(
            answer.is_fine() && answer.attempts == "1",
            "after {calls} calls: {answer:?}"
        );
        calls += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(gate.control(), "a refresh that fails", |control| {
        control.hits(down) >= 1
    })
    .await;
    // The sandbox would still take the old token; the proxy keeps to what the endpoint said of its
    // life.
    let first = call_until(&gate, USER, |answer| !answer.is_fine()).await;
    assert_unavailable(&first, "at the end of the token");
    for n in 0..20 {
        let answer = get_in_time(&gate, USER, 5).await;
        assert_unavailable(&answer, &format!("call {n}"));
    }
    // The token was good when this call began, and is over now that its body has come.
    slow.write_all(b"}").await.expect("sent");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("token_unavailable"),
        "{answer}"
    );
    assert!(
        gate.control().requests("/cgi-bin/menu/create").is_empty(),
        "WeChat was not called"
    );
    assert!(
        gate.control().hits(down) <= 12,
        "tried with growing pauses: {}",
        gate.control().hits(down)
    );
    gate.control().remove_fault(down);
    let cured = call_until(&gate, USER, Said::is_fine).await;
    assert_eq!(cured.attempts, "1");
}

/// Refusals that only a person can cure: each caller reads at once what to do, and WeChat is asked
/// once, not per call.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_fetch_tells_the_operator_what_to_do_and_is_not_repeated_per_call() {
    let with_ip = |code, ip: &str| ErrorShape {
        ip: Some(ip.to_owned()),
        ..ErrorShape::new(code)
    };
    let words = |code, words: &str| ErrorShape {
        message: Some(words.to_owned()),
        ..ErrorShape::new(code)
    };
    let rows: [(ErrorShape, &[&str]); 13] = [
        (
            with_ip(40164, "47.94.148.108"),
            &["40164", "47.94.148.108", "whitelist"],
        ),
        (
            words(
                40164,
                "invalid ip 101.45.43.1 ipv6 ::ffff:101.45.43.1, not in whitelist hint: [jotvMa01143580]",
            ),
            &["40164", "101.45.43.1"],
        ),
        (
            words(
                40164,
                "invalid ip 118.24.127.95, not in whitelist hint: [92.00884559]",
            ),
            &["40164", "118.24.127.95"],
        ),
        (with_ip(61004, "47.106.1.2"), &["61004", "47.106.1.2"]),
        (ErrorShape::new(40001), &["40001", "secret"]),
        (ErrorShape::new(40013), &["40013", "appid"]),
        (ErrorShape::new(40125), &["40125", "secret"]),
        (ErrorShape::new(40243), &["40243", "unfreeze"]),
        (ErrorShape::new(45009), &["45009", "quota"]),
        (ErrorShape::new(45011), &["45011"]),
        (ErrorShape::new(50007), &["50007"]),
        (ErrorShape::new(89503), &["89503", "administrator"]),
        (ErrorShape::new(99999), &["99999"]),
    ];
    let count = rows.len();
    let faults: Vec<_> = rows
        .iter()
        .map(|(shape, _)| Fault::Errcode(shape.clone()))
        .collect();
    let gate = start_after(with_accounts(setup(), count, ""), |control| {
        for (number, fault) in faults.into_iter().enumerate() {
            control.fault(Rule::new(ENDPOINTS, fault).account(appid(number)).always());
        }
    })
    .await;
    for (number, (_, parts)) in rows.iter().enumerate() {
        for n in 0..20 {
            let answer = get_in_time(&gate, &format!("/@a{number}{USER}"), 5).await;
            assert_unavailable(&answer, parts[0]);
            assert!(
                parts.iter().all(|part| answer.text().contains(part)),
                "{parts:?}, call {n}: {}",
                answer.text()
            );
        }
    }
    let fetches = |number: usize| {
        let records = gate.control().requests(ENDPOINTS);
        records
            .iter()
            .filter(|record| record.account.as_deref() == Some(&appid(number)))
            .count()
    };
    for (number, (_, parts)) in rows.iter().enumerate() {
        // One at the start, and as the table runs for a few seconds, perhaps the next of the
        // back-off.
        assert!(
            (1..=2).contains(&fetches(number)),
            "{}: {} fetches",
            parts[0],
            fetches(number)
        );
    }
    gate.control().clear_faults();
    let cured = call_until(&gate, "/@a0/cgi-bin/user/info?openid=a", Said::is_fine).await;
    assert!(
        cured.is_fine(),
        "the operator has added the IP; nobody had to restart anything"
    );
    assert!(
        get(&gate, &format!("/@shop{USER}")).await.is_fine(),
        "the account without trouble never had any"
    );
}

/// Pitfalls: an empty or malformed 200 is final (Envoy), an error answer is stored as a token, a
/// lifetime that is missing means for ever, one that is zero means for ever, a redirect is followed
/// with the secret in hand.
#[tokio::test(flavor = "multi_thread")]
async fn one_odd_answer_of_the_token_endpoint_is_neither_believed_nor_fatal() {
    let token = |expires_in: &str| Fault::Token {
        expires_in: Some(expires_in.to_owned()),
        access_token: None,
    };
    let named = |value: &str| Fault::Token {
        expires_in: None,
        access_token: Some(value.to_owned()),
    };
    let json = |body: &str| Fault::respond(200, "application/json", body);
    let rows = [
        ("busy", Fault::errcode(-1)),
        ("500", Fault::respond(500, "text/html", "<html>")),
        (
            "502 with a token",
            Fault::respond(
                502,
                "application/json",
                "{\"access_token\":\"POISON\",\"expires_in\":7200}",
            ),
        ),
        ("412", Fault::respond(412, "", "")),
        ("nothing", json("")),
        ("an empty object", json("{}")),
        ("no JSON", json("<html>{\"access_token\":\"POISON\"}")),
        (
            "an error and a token",
            json("{\"errcode\":-1,\"access_token\":\"POISON\",\"expires_in\":7200}"),
        ),
        ("no token", json("{\"expires_in\":7200}")),
        (
            "an empty token",
            json("{\"access_token\":\"\",\"expires_in\":7200}"),
        ),
        (
            "a token that is a number",
            json("{\"access_token\":7,\"expires_in\":7200}"),
        ),
        (
            "a token with a line end",
            json("{\"access_token\":\"POISON\\r\\nPOISON\",\"expires_in\":7200}"),
        ),
        ("no lifetime", token("")),
        ("lifetime 0", token("0")),
        ("lifetime -1", token("-1")),
        ("lifetime in a text", token("\"7200\"")),
        ("lifetime null", token("null")),
        ("lifetime without end", token("1e400")),
        (
            "a redirect",
            Fault::Redirect {
                status: 302,
                location: "http://127.0.0.1:9/steal".to_owned(),
            },
        ),
        (
            "garbage",
            Fault::Raw {
                text: None,
                end: wxgate::sandbox::Ending::Close,
            },
        ),
        (
            "half an answer",
            Fault::Cut {
                after: 30,
                chunked: false,
                end: wxgate::sandbox::Ending::Close,
            },
        ),
        ("closed", Fault::Close { executed: false }),
        (
            "reset after the token was issued",
            Fault::Reset { executed: true },
        ),
        (
            "more than anybody needs",
            Fault::Respond(wxgate::sandbox::Response {
                pad_to: 1 << 20,
                ..Default::default()
            }),
        ),
    ];
    let (count, odd) = (
        rows.len(),
        ["a b&c=d%2F+\u{e9}#", "x/../y?z", "&&access_token=1"],
    );
    let faults: Vec<_> = rows.iter().map(|(_, fault)| fault.clone()).collect();
    let gate = start_after(
        with_accounts(setup(), count + odd.len(), "token = \"classic\""),
        |control| {
            for (number, fault) in faults.into_iter().chain(odd.map(named)).enumerate() {
                control.fault(Rule::new(ENDPOINTS, fault).account(appid(number)));
            }
        },
    )
    .await;
    // The second attempt is due within a second, and callers wait up to three.
    let calls = (0..count + odd.len())
        .map(|n| spawned(gate.client.get(gate.url(&format!("/@a{n}{USER}")))))
        .collect();
    for (number, answer) in all(calls).await.into_iter().enumerate() {
        let name = rows.get(number).map_or("an odd token", |(name, _)| name);
        assert!(
            answer.is_fine() && answer.attempts == "1",
            "{name}: {answer:?}"
        );
    }
    for record in gate.control().requests("/cgi-bin/user/info") {
        let query = record.query.unwrap_or_default();
        assert!(!query.contains("POISON"), "{query}");
        assert_eq!(
            record.token_params, 1,
            "{query}: whatever the token is made of, it is one parameter"
        );
    }
}

/// Pitfall: a margin larger than the lifetime makes a hot loop (a token refresher), a lifetime of
/// years an old token.
#[tokio::test(flavor = "multi_thread")]
async fn a_very_short_lifetime_makes_no_hot_loop() {
    let short = Fault::Token {
        expires_in: Some("1".to_owned()),
        access_token: None,
    };
    let gate = start_after(setup(), |control| {
        drop_id(control.fault(Rule::new(ENDPOINTS, short).always()))
    })
    .await;
    let until_then = Instant::now() + Duration::from_secs(4);
    let mut answers = Vec::new();
    while Instant::now() < until_then {
        let call = spawned(gate.client.get(gate.url(USER)));
        answers.push(joined(call).await);
    }
    assert!(
        answers
            .iter()
            .all(|answer| answer.is_fine() || answer.error == "token_unavailable"),
        "{answers:?}"
    );
    assert!(
        gate.control().fetches() <= 3,
        "{} fetches in four seconds",
        gate.control().fetches()
    );
}

fn drop_id(_: u64) {}

/// Expiry as WeChat sees it, before the proxy's own clock does: 42001 is cured like 40001.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_early_is_replaced_unseen() {
    let gate = setup().start().await;
    gate.warm().await;
    gate.control().expire(DEFAULT_APPID);
    let calls = (0..50)
        .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
        .collect();
    assert!(all(calls).await.iter().all(Said::is_fine));
    assert_eq!(
        (gate.control().fetches(), gate.control().deliveries().len()),
        (2, 50)
    );
    let codes: Vec<_> = gate
        .control()
        .requests("/cgi-bin/message/**")
        .iter()
        .filter_map(|r| r.errcode)
        .collect();
    assert!(codes.contains(&42001), "it was WeChat that said so");
}

/// Somebody else fetches for this account. Within the overlap both tokens work, so nothing happens;
/// after it the proxy takes the new one over, which costs one ordinary call and kills nobody's
/// token.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_fetches_tokens_is_followed_and_not_fought() {
    let gate = setup().start().await;
    gate.warm().await;
    gate.control().rotate(DEFAULT_APPID, None);
    let within = get(&gate, USER).await;
    assert!(within.is_fine() && within.attempts == "1");
    let theirs = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("one");
    gate.control().advance(Duration::from_secs(301));
    let after = get(&gate, USER).await;
    assert!(after.is_fine() && after.attempts == "2");
    let now = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("one");
    assert!(
        theirs == now && gate.control().judge(&theirs).is_good(),
        "the stranger's token is the one in use"
    );
    assert_eq!(
        (
            gate.control().fetches(),
            gate.control().counters().forced_fetches
        ),
        (2, 0)
    );
}

/// Callers that come before the first token wait for it, and share one fetch.
#[tokio::test(flavor = "multi_thread")]
async fn calls_before_the_first_token_wait_for_one_fetch() {
    let gate = start_after(setup(), |control| {
        drop_id(control.fault(Rule::new(ENDPOINTS, Fault::Pass).hold()))
    })
    .await;
    until(gate.control(), "the first fetch", |control| {
        control.fetches() == 1
    })
    .await;
    let calls: Vec<_> = (0..100)
        .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
        .collect();
    gate.control().clear_faults();
    for answer in all(calls).await {
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    }
    assert_eq!(gate.control().fetches(), 1);
}

/// Nothing comes from the token endpoint at all: callers are told within `token.wait`, not after a
/// minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_token_endpoint_is_reported_within_the_wait() {
    let silent = Fault::Hang { executed: false };
    let setup = setup()
        .set("token", "wait = \"1s\"")
        .set("token", "fetch_timeout = \"2s\"");
    let gate = start_after(setup, |control| {
        drop_id(control.fault(Rule::new(ENDPOINTS, silent).always()))
    })
    .await;
    let calls: Vec<_> = (0..50)
        .map(|_| spawned(gate.client.get(gate.url(USER))))
        .collect();
    let answers = tokio::time::timeout(Duration::from_secs(8), all(calls))
        .await
        .expect("a bounded wait");
    for answer in &answers {
        assert_unavailable(answer, "silence");
    }
    gate.control().clear_faults();
    assert!(call_until(&gate, USER, Said::is_fine).await.is_fine());
    // The body of a refusal is for operators: it names the account and nothing secret.
    let text = answers[0].text();
    assert!(
        text.contains("shop") && !text.contains("127.0.0.1") && !text.contains("sandbox0"),
        "{text}"
    );
}

/// The same call answered through the WeChat style: status 200, and everything else as it was.
#[tokio::test(flavor = "multi_thread")]
async fn in_wechat_style_a_missing_token_is_an_errcode_with_status_200() {
    let setup = setup().set("server", "error_style = \"wechat\"");
    let gate = start_after(setup, |control| {
        drop_id(control.fault(Rule::new(ENDPOINTS, Fault::errcode(40125)).always()))
    })
    .await;
    let answer = said(gate.send_message("a")).await;
    assert_eq!(
        (answer.status, answer.errcode(), answer.error.as_str()),
        (200, Some(990_503), "token_unavailable")
    );
    assert_ne!(answer.retry_after, "");
}

/// The answer to a fetch is lost, and with it a token that WeChat has issued: the callers who wait
/// get the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_is_lost_is_asked_for_again_while_its_callers_wait() {
    for mode in ["stable", "classic"] {
        let gate = setup()
            .account(&format!("token = \"{mode}\""))
            .start()
            .await;
        gate.warm().await;
        gate.control().revoke(DEFAULT_APPID);
        gate.control().clear_record();
        let lost = gate
            .control()
            .fault(Rule::new(ENDPOINTS, Fault::Reset { executed: true }).hold());
        let calls = (0..20)
            .map(|n| spawned(gate.send_message(&format!("user-{n}"))))
            .collect();
        until(gate.control(), "20 refusals", |control| {
            control.counters().stale == 20
        })
        .await;
        gate.control().release(lost);
        for answer in all(calls).await {
            assert!(
                answer.is_fine() && answer.attempts == "2",
                "{mode}: {answer:?}"
            );
        }
        assert_eq!(
            gate.control().fetches(),
            2,
            "{mode}: the lost one, the one that came"
        );
    }
}

/// Pitfall: the first user after two hours pays for the refresh.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_before_it_is_over_and_no_caller_notices() {
    let gate = start_with_short_token(setup().account("token = \"classic\""), 11).await;
    gate.warm().await;
    let begun = Instant::now();
    while gate.control().fetches() < 2 {
        let answer = get(&gate, USER).await;
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it is never replaced"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fresh = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Classic)
        .expect("the second one");
    let uses_it = |record: &wxgate::sandbox::RecordedRequest| {
        record
            .query
            .as_ref()
            .is_some_and(|query| query.contains(&fresh))
    };
    let mut answer = get(&gate, USER).await;
    while !gate
        .control()
        .requests("/cgi-bin/user/info")
        .last()
        .is_some_and(uses_it)
    {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the new one is never used"
        );
        answer = get(&gate, USER).await;
        assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
    }
    assert_eq!(
        (answer.attempts.as_str(), gate.control().counters().stale),
        ("1", 0)
    );
}
