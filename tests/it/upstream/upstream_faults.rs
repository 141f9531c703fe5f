//! An upstream that breaks the rules: what the caller gets, what is sent again, and what is never
//! sent again.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::tcp::OwnedWriteHalf, task::JoinHandle};
use wxgate::sandbox::{AfterEarly, Ending, Fault, Rule};

use crate::support::{
    Gate,
    fake::{Act, Call, FAKE_TOKEN, Fake},
    setup,
    wire::{Caller, DEADLINE, Reply},
};

const INFO: &str = "/cgi-bin/user/info";
const SEND: &str = "/cgi-bin/message/custom/send";

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: wxgate\r\n\r\n")
}

fn post(target: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: wxgate\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn message(openid: &str) -> String {
    post(
        SEND,
        &format!(r#"{{"touser":"{openid}","msgtype":"text","text":{{"content":"hello"}}}}"#),
    )
}

fn info() -> String {
    get("/cgi-bin/user/info?openid=o6_b")
}

fn raw(text: &str, end: Ending) -> Fault {
    Fault::Raw {
        text: Some(text.to_owned()),
        end,
    }
}

fn token(gate: &Gate) -> String {
    gate.control().accounts()[0].tokens[0].access_token.clone()
}

/// The answer is wxgate's own, and tells nothing that it must not.
#[track_caller]
fn assert_own(reply: &Reply, status: u16, slug: &str, secrets: &[&str], case: &str) {
    let text = reply.text();
    assert_eq!(
        (reply.status, reply.header("x-wxgate-error")),
        (status, slug),
        "{case}: {text}"
    );
    assert!(reply.whole, "{case}");
    let body: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{case}: no JSON: {text}"));
    assert_eq!(body["errcode"], 990_000 + u64::from(status), "{case}");
    let message = body["errmsg"].as_str().expect("errmsg");
    assert!(message.starts_with("wxgate: "), "{case}: {message}");
    for bad in ["access_token", "://", INFO].iter().chain(secrets) {
        assert!(!message.contains(bad), "{case}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_becomes_502_and_is_asked_for_once() {
    let gate = setup().start().await;
    gate.warm().await;
    let token = token(&gate);
    let faults = [
        ("closed before the head", Fault::Close { executed: true }),
        ("reset before the head", Fault::Reset { executed: true }),
        (
            "closed within the head",
            raw("HTTP/1.1 200 OK\r\nContent-Le", Ending::Close),
        ),
        (
            "reset within the head",
            raw("HTTP/1.1 200 OK\r\nContent-Le", Ending::Reset),
        ),
        (
            "garbage",
            Fault::Raw {
                text: None,
                end: Ending::Close,
            },
        ),
        (
            "NUL in a header",
            raw(
                "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\n{}",
                Ending::Close,
            ),
        ),
        ("two lengths", Fault::TwoLengths),
        (
            "two lengths in one field",
            raw(
                "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{} ",
                Ending::Close,
            ),
        ),
        ("length and chunks", Fault::LengthAndChunked),
        (
            "chunks and length",
            raw(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
                Ending::Close,
            ),
        ),
        ("101 that nobody asked for", Fault::Switch),
        (
            "a header of a megabyte",
            Fault::BigHeader {
                bytes: 1 << 20,
                fields: 1,
            },
        ),
    ];
    for (case, fault) in faults {
        let rule = gate
            .control()
            .fault(Rule::new(SEND, fault.clone()).always());
        gate.control().clear_record();
        let reply = Caller::connect(gate.proxy)
            .await
            .call(message("once"))
            .await;
        assert_own(&reply, 502, "upstream_failed", &[&token], case);
        assert_eq!(reply.header("x-wxgate-attempts"), "1", "{case}");
        assert_eq!(gate.control().path(SEND).requests, 1, "{case}");
        gate.control().remove_fault(rule);

        let rule = gate.control().fault(Rule::new(INFO, fault).always());
        let reply = Caller::connect(gate.proxy).await.call(info()).await;
        assert_own(&reply, 502, "upstream_failed", &[&token], case);
        // One on the kept connection and, where that died without a word, one on a fresh one.
        assert!(
            (1..=2).contains(&gate.control().path(INFO).requests),
            "{case}"
        );
        gate.control().remove_fault(rule);
        let reply = Caller::connect(gate.proxy).await.call(info()).await;
        assert_eq!(
            (reply.status, reply.whole),
            (200, true),
            "{case}: the next call"
        );
    }
    assert_eq!(
        gate.control().fetches(),
        0,
        "no broken answer says anything about the token"
    );
    let (_, log) = gate.stop().await;
    assert!(!log.contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_never_looks_whole() {
    let gate = setup().start().await;
    gate.warm().await;
    let jpeg = "/cgi-bin/media/get?media_id=blob-300000";
    for (target, after) in [
        (INFO, 0),
        (INFO, 1),
        (INFO, 20),
        (jpeg, 0),
        (jpeg, 1),
        (jpeg, 5_000),
        (jpeg, 299_999),
    ] {
        let path = target.split('?').next().unwrap();
        let target = if path == INFO {
            "/cgi-bin/user/info?openid=o6_b"
        } else {
            target
        };
        for (chunked, end) in [
            (false, Ending::Close),
            (false, Ending::Reset),
            (true, Ending::Close),
            (true, Ending::Reset),
        ] {
            let case = format!("{target} cut after {after}, chunked {chunked}, {end:?}");
            gate.control().fault(Rule::new(
                path,
                Fault::Cut {
                    after,
                    chunked,
                    end,
                },
            ));
            let mut caller = Caller::connect(gate.proxy).await;
            caller.write(get(target)).await;
            // Up to 64 KiB nothing of it has gone to the caller yet.
            let is_held = path == INFO || (chunked && after < 64 * 1024);
            match caller.reply(false).await {
                Some(reply) if is_held => {
                    assert_own(&reply, 502, "upstream_failed", &[], &case);
                    assert_eq!(reply.header("x-wxgate-sent"), "maybe", "{case}");
                }
                // A reset may overtake the head.
                Some(reply) if reply.status == 502 && end == Ending::Reset => {}
                reply => {
                    assert!(
                        !is_held && reply.is_none_or(|reply| !reply.whole),
                        "{case}: it came as a whole, or not at all"
                    );
                    assert!(caller.is_closed().await, "{case}");
                }
            }
            assert_eq!(
                Caller::connect(gate.proxy).await.call(info()).await.status,
                200,
                "{case}: the next call"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_pass_when_their_meaning_is_plain() {
    let gate = setup()
        .set("upstream", "response_timeout = \"400ms\"")
        .start()
        .await;
    gate.warm().await;
    let json = r#"{"errcode":0,"errmsg":"ok"}"#;
    let faults = [
        (
            "bare line feeds",
            raw(
                &format!("HTTP/1.1 200 OK\nContent-Length: 27\n\n{json}"),
                Ending::Close,
            ),
            27,
        ),
        (
            "HTTP/1.0 until the close",
            raw(
                &format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{json}"),
                Ending::Close,
            ),
            27,
        ),
        (
            "HTTP/1.1 until the close",
            raw(&format!("HTTP/1.1 200 OK\r\n\r\n{json}"), Ending::Close),
            27,
        ),
        (
            "trailers",
            raw(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1b\r\n{\"errcode\":0,\"errmsg\":\"ok\"}\r\n0\r\nX-T: 1\r\n\r\n",
                Ending::Close,
            ),
            27,
        ),
        (
            "one 103",
            Fault::Interim {
                status: 103,
                times: 1,
            },
            0,
        ),
        (
            "100 that nobody asked for",
            Fault::Interim {
                status: 100,
                times: 1,
            },
            0,
        ),
        (
            "a header block of 60 kB",
            Fault::BigHeader {
                bytes: 60_000,
                fields: 20,
            },
            0,
        ),
        // Slower than response_timeout as a whole, which is only about the head.
        (
            "a byte every ten milliseconds",
            Fault::Drip {
                bytes: 3,
                every: Duration::from_millis(10),
                chunked: false,
            },
            0,
        ),
        (
            "a chunk every ten milliseconds",
            Fault::Drip {
                bytes: 3,
                every: Duration::from_millis(10),
                chunked: true,
            },
            0,
        ),
        ("a closed connection behind it", Fault::CloseAfter, 0),
    ];
    let plain = Caller::connect(gate.proxy).await.call(info()).await.body;
    for (case, fault, length) in faults {
        gate.control().fault(Rule::new(INFO, fault));
        let reply = Caller::connect(gate.proxy).await.call(info()).await;
        assert_eq!(
            (reply.status, reply.whole),
            (200, true),
            "{case}: {}",
            reply.text()
        );
        assert_eq!(reply.interim, Vec::<u16>::new(), "{case}");
        if length == 0 {
            assert_eq!(reply.body, plain, "{case}");
        } else {
            assert_eq!(reply.text(), json, "{case}");
        }
        assert_eq!(
            Caller::connect(gate.proxy).await.call(info()).await.body,
            plain,
            "{case}: the next call"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_hints_neither_stall_nor_pass() {
    let gate = setup().start().await;
    gate.warm().await;
    gate.control().fault(Rule::new(
        INFO,
        Fault::Interim {
            status: 103,
            times: 200,
        },
    ));
    let reply = Caller::connect(gate.proxy).await.call(info()).await;
    assert!(matches!(reply.status, 200 | 502), "{}", reply.status);
    assert_eq!(reply.interim, Vec::<u16>::new());
    assert_eq!(
        Caller::connect(gate.proxy).await.call(info()).await.status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_an_answer_reach_nobody_and_end_their_connection() {
    const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let answer =
        |head: &str, behind: &str| Act::Answer(format!("HTTP/1.1 {head}\r\n\r\n{behind}").into());
    let cases = [
        (
            "behind a length",
            "GET",
            answer("200 OK\r\nContent-Length: 2", &format!("{{}}{POISON}")),
        ),
        (
            "behind chunks",
            "GET",
            answer(
                "200 OK\r\nTransfer-Encoding: chunked",
                &format!("2\r\n{{}}\r\n0\r\n\r\n{POISON}"),
            ),
        ),
        (
            "junk",
            "GET",
            answer("200 OK\r\nContent-Length: 2", "{}junk"),
        ),
        ("body of 204", "GET", answer("204 No Content", POISON)),
        (
            "body of 304",
            "GET",
            answer("304 Not Modified\r\nContent-Length: 6", POISON),
        ),
        (
            "body of HEAD",
            "HEAD",
            answer("200 OK\r\nContent-Length: 50", POISON),
        ),
    ];
    // By its target: a request id is hexadecimal, and may spell "bad" as well.
    let is_bad = |call: &Call| {
        call.head
            .lines()
            .next()
            .is_some_and(|line| line.contains("openid=bad"))
    };
    for (case, method, act) in cases {
        let fake = Fake::start(move |call: &Call| {
            if is_bad(call) {
                act.clone()
            } else {
                Act::ok("{}")
            }
        })
        .await;
        let gate = setup().account(&fake.api()).start().await;
        for round in 0..5 {
            let mut caller = Caller::connect(gate.proxy).await;
            let bad = format!("{method} /cgi-bin/user/info?openid=bad HTTP/1.1\r\nHost: a\r\n\r\n");
            let reply = caller.call(bad).await;
            assert!(
                reply.whole && !reply.text().contains("poison"),
                "{case}: {}",
                reply.text()
            );
            if method == "HEAD" {
                assert_eq!(
                    reply.header("content-length"),
                    "50",
                    "what a GET would have brought"
                );
            }
            // At once and on the same connection, which is when a mix-up would show.
            let next = caller.call(message("next")).await;
            assert_eq!(
                (next.status, next.text().as_str()),
                (200, "{}"),
                "{case} in round {round}"
            );
        }
        let calls = fake.seen.calls();
        for bad in calls.iter().filter(|call| is_bad(call)) {
            let shared = calls
                .iter()
                .filter(|call| call.connection == bad.connection && call.nth > bad.nth)
                .count();
            assert_eq!(shared, 0, "{case}: the connection was used again");
        }
        assert_eq!(calls.len(), 10, "{case}: every call was sent once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_upload_ended_is_delivered() {
    let gate = setup().start().await;
    gate.warm().await;
    let body = vec![b'x'; 4 << 20];
    let head = format!(
        "POST {SEND} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for (status, sent) in [
        (413, body.len()),
        (413, 1 << 20),
        (200, body.len()),
        (200, 1 << 20),
    ] {
        for then in [AfterEarly::Close, AfterEarly::Read, AfterEarly::Reset] {
            let case = format!("{status} {then:?}, {sent} bytes sent");
            gate.control()
                .fault(Rule::new(SEND, Fault::Early { status, then }));
            gate.control().clear_record();
            // The caller stays until the next call is over; it still owes the rest.
            let (reply, _caller) = upload(&gate, &head, &body[..sent]).await;
            let reply = reply.unwrap_or_else(|| panic!("{case}: no answer"));
            // The reset may overtake the answer.
            if then != AfterEarly::Reset || reply.status != 502 {
                assert_eq!(
                    (reply.status, reply.whole),
                    (status, true),
                    "{case}: {}",
                    reply.text()
                );
                assert_eq!(
                    reply.header("x-wxgate-error"),
                    "",
                    "{case}: it is WeChat's own answer"
                );
            }
            assert_eq!(gate.control().path(SEND).requests, 1, "{case}");
            assert_eq!(
                Caller::connect(gate.proxy)
                    .await
                    .call(message("next"))
                    .await
                    .status,
                200,
                "{case}"
            );
            let requests = gate.control().requests(SEND);
            if sent < body.len() {
                // The rest of the body is owed on it, so anything else there would be taken for it.
                assert_ne!(requests[0].connection, requests[1].connection, "{case}");
            }
        }
    }
}

/// Writes and reads at the same time, as a caller must that may be told to stop.
async fn upload(
    gate: &Gate,
    head: &str,
    body: &[u8],
) -> (Option<Reply>, JoinHandle<OwnedWriteHalf>) {
    let caller = tokio::net::TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    let (reader, mut writer) = caller.into_split();
    let bytes = [head.as_bytes(), body].concat();
    let writing = tokio::spawn(async move {
        // It may well be cut off.
        let _ = writer.write_all(&bytes).await;
        writer
    });
    (crate::support::wire::read_reply(reader).await, writing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_is_504_in_time_and_not_asked_for_again() {
    let gate = setup()
        .set("upstream", "response_timeout = \"300ms\"")
        .start()
        .await;
    gate.warm().await;
    for (path, request) in [(SEND, message("slow")), (INFO, info())] {
        gate.control().clear_record();
        gate.control()
            .fault(Rule::new(path, Fault::Hang { executed: true }).always());
        let started = tokio::time::Instant::now();
        let reply = Caller::connect(gate.proxy).await.call(request).await;
        assert_own(&reply, 504, "upstream_timeout", &[&token(&gate)], path);
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(250) && took < Duration::from_secs(5),
            "{took:?}"
        );
        assert_eq!(gate.control().path(path).requests, 1, "{path}");
    }
    // A head that has begun is no head yet.
    let fake = Fake::start(|_| Act::Silent).await;
    let gate = setup()
        .set("upstream", "response_timeout = \"300ms\"")
        .account(&fake.api())
        .start()
        .await;
    let reply = Caller::connect(gate.proxy)
        .await
        .call(message("slow"))
        .await;
    assert_own(&reply, 504, "upstream_timeout", &[FAKE_TOKEN], "silent");
    fake.seen.until(|seen| seen.open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_passed_on_with_the_token_masked_and_never_followed() {
    let gate = setup().start().await;
    gate.warm().await;
    let token = token(&gate);
    let stars = "*".repeat(token.len());
    let elsewhere = Fake::start(|_| Act::ok("{}")).await;
    let base = format!("http://{}/x", elsewhere.address);
    for status in [301, 302, 303, 307, 308] {
        for query in [
            format!("?access_token={token}&a=1"),
            format!("?a=1&access_token={token}#f"),
            format!("?access_token={token}"),
            "?access_token=another&a=1".to_owned(),
            String::new(),
        ] {
            let left = query.replace(&token, &stars);
            let location = format!("{base}{query}");
            gate.control()
                .fault(Rule::new(SEND, Fault::Redirect { status, location }));
            let reply = Caller::connect(gate.proxy)
                .await
                .call(message("moved"))
                .await;
            assert_eq!(reply.status, status);
            assert_eq!(reply.header("location"), format!("{base}{left}"));
            assert!(!format!("{reply:?}").contains(&token));
        }
    }
    assert_eq!(elsewhere.seen.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_connection_that_dies_is_no_reason_to_send_again() {
    for (case, act) in [
        ("closes", Act::Close(Vec::new())),
        ("resets", Act::Reset(Vec::new())),
        ("closes after a byte", Act::Close(b"H".to_vec())),
    ] {
        let fake = Fake::start(move |_| act.clone()).await;
        let gate = setup().account(&fake.api()).start().await;
        for request in [info(), message("once")] {
            let before = fake.seen.calls().len();
            let reply = Caller::connect(gate.proxy).await.call(request).await;
            assert_own(&reply, 502, "upstream_failed", &[FAKE_TOKEN], case);
            assert_eq!(fake.seen.calls().len() - before, 1, "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_a_kept_connection_moves_only_where_nothing_can_be_executed_twice() {
    // The second request of every connection is read and then lost.
    for (case, lost) in [
        ("close", Act::Close(Vec::new())),
        ("reset", Act::Reset(Vec::new())),
    ] {
        let fake = Fake::start(move |call: &Call| {
            if call.nth == 1 {
                Act::ok("{}")
            } else {
                lost.clone()
            }
        })
        .await;
        let gate = setup().account(&fake.api()).start().await;
        let with_body =
            "GET /cgi-bin/user/info?openid=a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
        for (request, status, sent) in [
            (info(), 200, 2),
            (message("twice"), 502, 1),
            (with_body.to_owned(), 502, 1),
            (get("/cgi-bin/menu/get").replace("GET", "HEAD"), 200, 2),
        ] {
            // The first connection is fresh and is kept.
            let mut caller = Caller::connect(gate.proxy).await;
            while fake.seen.calls().last().is_none_or(|call| call.nth != 1) {
                assert_eq!(caller.call(info()).await.status, 200);
            }
            let before = fake.seen.calls().len();
            let reply = caller.call(request.clone()).await;
            assert_eq!(reply.status, status, "{case}: {request}");
            assert_eq!(fake.seen.calls().len() - before, sent, "{case}: {request}");
            if status == 502 {
                assert_own(&reply, 502, "upstream_failed", &[FAKE_TOKEN], case);
                assert_eq!(
                    Caller::connect(gate.proxy).await.call(info()).await.status,
                    200
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_on_which_an_answer_had_begun_is_no_reason_to_send_again() {
    let fake = Fake::start(|call: &Call| {
        if call.nth == 1 {
            Act::ok("{}")
        } else {
            Act::Close(b"HTTP/1.1 2".to_vec())
        }
    })
    .await;
    let gate = setup().account(&fake.api()).start().await;
    let mut caller = Caller::connect(gate.proxy).await;
    assert_eq!(caller.call(info()).await.status, 200);
    assert_own(
        &caller.call(info()).await,
        502,
        "upstream_failed",
        &[FAKE_TOKEN],
        "begun",
    );
    assert_eq!(fake.seen.calls().len(), 2);
    assert!(
        tokio::time::timeout(DEADLINE, fake.seen.until(|seen| seen.open() == 0))
            .await
            .is_ok()
    );
}
