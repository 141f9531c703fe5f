//! Answers that break off: an error while the caller has nothing of them, a broken connection
//! behind that, and never a clean end.

use std::{io, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::support::{
    Gate,
    fake::{Act, Call, Fake},
    setup,
    wire::{Caller, DEADLINE},
};

const SEND: &str =
    "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";

fn get(version: &str) -> String {
    format!("GET /cgi-bin/media/get?media_id=a HTTP/{version}\r\nHost: a\r\n\r\n")
}

async fn gate(answer: Act) -> (Gate, Fake) {
    let fake = Fake::start(move |_: &Call| answer.clone()).await;
    let gate = setup().account(&fake.api()).start().await;
    (gate, fake)
}

fn answer(head: &str, body: usize) -> Vec<u8> {
    [
        format!("HTTP/{head}\r\n\r\n").into_bytes(),
        vec![b'x'; body],
    ]
    .concat()
}

/// Reads until the connection ends: what came, and whether it ended cleanly.
async fn read_all(caller: &mut Caller) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let ended = timeout(DEADLINE, caller.stream.read_to_end(&mut bytes))
        .await
        .expect("the connection ends");
    (bytes, ended.map(drop))
}

/// The lines of the access log, those of the warm-up left out.
async fn log_of(gate: Gate) -> Vec<Value> {
    let (_, log) = gate.stop().await;
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line));
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_within_64_kib_is_an_error_that_says_so() {
    let json = "1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100";
    let begun = format!("HTTP/{json}\r\n\r\n{{\"errcode\":0,\"ms");
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for (case, act) in [
        ("JSON, closed", Act::Close(begun.clone().into())),
        ("JSON, reset", Act::Reset(begun.into())),
        ("no body at all", Act::Close(answer(json, 0))),
        (
            "an image",
            Act::Close(answer(
                "1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 65536",
                65_535,
            )),
        ),
        (
            "an error",
            Act::Close(answer("1.1 500 No\r\nContent-Length: 9000", 8_999)),
        ),
        ("chunks, closed", Act::Close(chunks.into())),
        ("chunks, reset", Act::Reset(chunks.into())),
        ("no length", Act::Reset(answer("1.0 200 OK", 5_000))),
    ] {
        let (gate, fake) = gate(act).await;
        let reply = Caller::connect(gate.proxy).await.call(SEND).await;
        let text = reply.text();
        assert_eq!(
            (
                reply.status,
                reply.whole,
                reply.header("x-wxgate-error"),
                reply.header("x-wxgate-sent"),
                reply.header("x-wxgate-attempts"),
            ),
            (502, true, "upstream_failed", "maybe", "1"),
            "{case}: {text}"
        );
        assert!(text.contains("may have been executed"), "{case}: {text}");
        assert_eq!(fake.seen.calls().len(), 1, "{case}");
        let log = log_of(gate).await;
        assert_eq!(
            (&log[0]["outcome"], &log[0]["status"]),
            (&"upstream_failed".into(), &502.into()),
            "{case}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_behind_its_head_ends_in_a_reset_and_the_log_tells_it() {
    let long = "1.1 200 OK\r\nContent-Length: 300000";
    for (case, act) in [
        ("closed", Act::Close(answer(long, 200_000))),
        ("reset", Act::Reset(answer(long, 200_000))),
        ("no length", Act::Reset(answer("1.0 200 OK", 200_000))),
        (
            "chunks",
            Act::Close(
                [
                    answer("1.1 200 OK\r\nTransfer-Encoding: chunked", 0),
                    b"30d40\r\n".to_vec(),
                    vec![b'x'; 200_000],
                    b"\r\n".to_vec(),
                ]
                .concat(),
            ),
        ),
    ] {
        let (gate, _fake) = gate(act).await;
        for version in ["1.1", "1.0"] {
            let case = format!("{case}, HTTP/{version}");
            let mut caller = Caller::connect(gate.proxy).await;
            caller.write(get(version)).await;
            let (bytes, ended) = read_all(&mut caller).await;
            assert_eq!(
                ended.map_err(|error| error.kind()),
                Err(io::ErrorKind::ConnectionReset),
                "{case}: a clean end after {} bytes",
                bytes.len()
            );
        }
        let page = gate
            .client
            .get(gate.admin_url("/metrics"))
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text");
        assert!(
            page.contains("outcome=\"upstream_broken\"} 2"),
            "{case}: {page}"
        );
        for line in log_of(gate).await {
            assert_eq!(line["outcome"], "upstream_broken", "{case}: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_the_end_of_a_body_without_a_length() {
    for length in [0, 5, 4_097, 200_000] {
        for head in ["1.0 200 OK", "1.1 200 OK\r\nConnection: close"] {
            let (gate, _fake) = gate(Act::Close(answer(head, length))).await;
            let reply = Caller::connect(gate.proxy).await.call(get("1.1")).await;
            assert_eq!(
                (reply.status, reply.whole, reply.body.len()),
                (200, true, length),
                "{head}"
            );
            let mut caller = Caller::connect(gate.proxy).await;
            caller.write(get("1.0")).await;
            let (bytes, ended) = read_all(&mut caller).await;
            assert!(
                ended.is_ok() && bytes.ends_with(&vec![b'x'; length]),
                "{head}"
            );
            for line in log_of(gate).await {
                assert_eq!(line["outcome"], "ok", "{line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_is_not_held_back() {
    let event = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                 9\r\ndata: 1\n\n\r\n";
    let (gate, fake) = gate(Act::Linger(event.into(), Duration::from_secs(30))).await;
    let mut caller = Caller::connect(gate.proxy).await;
    caller.write(get("1.1")).await;
    while !caller
        .buffered()
        .windows(7)
        .any(|bytes| bytes == b"data: 1")
    {
        let more = timeout(DEADLINE, caller.fill()).await;
        assert!(more.expect("the event comes while more may follow"));
    }
    assert_eq!(fake.seen.open(), 1);
}
