//! Request and answer bodies: lengths, limits, encodings, callers that break off.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, time::timeout};
use wxgate::sandbox::{Fault, Framing, Response, Rule};

use crate::support::{
    fake::{Act, Fake},
    header, setup,
    wire::{Caller, DEADLINE},
};

const MENU: &str = "/cgi-bin/menu/create";
const SEND: &str = "/cgi-bin/message/custom/send";
const MESSAGE: &str = r#"{"touser":"o1","msgtype":"text","text":{"content":"hello"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_request_goes_out_with_a_length_however_it_came() {
    let gate = setup().start().await;
    gate.warm().await;
    let long = "x".repeat(200_000);
    let chunked = |body: &str, size: usize| {
        let pieces = body.as_bytes().chunks(size).map(|piece| {
            format!(
                "{:x};note=\"a\"\r\n{}\r\n",
                piece.len(),
                String::from_utf8_lossy(piece)
            )
        });
        format!(
            "Transfer-Encoding: chunked\r\n\r\n{}0\r\nX-Trailer: 1\r\n\r\n",
            pieces.collect::<String>()
        )
    };
    let stated = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let cases = [
        ("GET", "\r\n".to_owned(), None, 0),
        ("HEAD", "\r\n".to_owned(), None, 0),
        ("GET", stated(MESSAGE), Some(MESSAGE.len()), MESSAGE.len()),
        (
            "GET",
            chunked(MESSAGE, 7),
            Some(MESSAGE.len()),
            MESSAGE.len(),
        ),
        ("POST", "\r\n".to_owned(), Some(0), 0),
        ("POST", stated(""), Some(0), 0),
        ("POST", chunked("", 1), Some(0), 0),
        ("POST", stated(MESSAGE), Some(MESSAGE.len()), MESSAGE.len()),
        (
            "POST",
            chunked(MESSAGE, 1),
            Some(MESSAGE.len()),
            MESSAGE.len(),
        ),
        ("POST", chunked(&long, 3_000), Some(long.len()), long.len()),
        ("POST", stated(&long), Some(long.len()), long.len()),
        (
            "PUT",
            chunked(MESSAGE, 10),
            Some(MESSAGE.len()),
            MESSAGE.len(),
        ),
        ("DELETE", "\r\n".to_owned(), Some(0), 0),
    ];
    for (number, (method, rest, length, body)) in cases.into_iter().enumerate() {
        let path = format!("{MENU}{number}");
        let reply = Caller::connect(gate.proxy)
            .await
            .call(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{rest}"))
            .await;
        let case = format!("{number}: {method}");
        assert_eq!(reply.status, 200, "{case}: {}", reply.text());
        let requests = gate.control().requests(&path);
        let [request] = requests.as_slice() else {
            panic!("{case}: {} requests", requests.len())
        };
        assert_eq!(
            request.header("content-length").map(|n| n.parse().unwrap()),
            length,
            "{case}"
        );
        assert_eq!(request.header("transfer-encoding"), None, "{case}");
        assert!(
            request.framing != Framing::Chunked && request.complete,
            "{case}"
        );
        assert_eq!(request.body_length, body as u64, "{case}");
        if body == MESSAGE.len() {
            assert_eq!(request.body, MESSAGE, "{case}");
        }
        assert_eq!(request.header("x-trailer"), None, "{case}");
    }
    assert_eq!(gate.control().counters().chunked, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_framing_is_refused_and_nothing_whole_reaches_wechat() {
    let gate = setup().start().await;
    gate.warm().await;
    let cases = [
        (
            "chunk size that is no number",
            "Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "negative chunk size",
            "Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "endless chunk size",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "chunk longer than stated",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "bare line feed behind the size",
            "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        ),
        (
            "a length that is no number",
            "Content-Length: 5x\r\n\r\nhello",
        ),
        ("a signed length", "Content-Length: +5\r\n\r\nhello"),
        ("another coding", "Transfer-Encoding: gzip\r\n\r\nhello"),
        (
            "chunked not last",
            "Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
    ];
    for (case, rest) in cases {
        gate.control().clear_record();
        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write(format!("POST {SEND} HTTP/1.1\r\nHost: a\r\n{rest}"))
            .await;
        let reply = caller.reply(false).await;
        let reply = reply.unwrap_or_else(|| panic!("{case}: no answer"));
        assert_eq!(reply.status, 400, "{case}: {}", reply.text());
        assert!(
            caller.is_closed().await,
            "{case}: what follows could be read as another request"
        );
        assert_eq!(gate.control().requests("/**").len(), 0, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn length_and_chunks_together_never_make_two_requests_of_one() {
    let gate = setup().start().await;
    gate.warm().await;
    let hidden = "GET /cgi-bin/menu/get HTTP/1.1\r\nHost: a\r\n\r\n";
    let chunks = format!("2\r\n{{}}\r\n0\r\n\r\n{hidden}");
    for length in [5, chunks.len()] {
        for framing in [
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
            format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        ] {
            gate.control().clear_record();
            let mut caller = Caller::connect(gate.proxy).await;
            caller
                .write(format!(
                    "POST {MENU} HTTP/1.1\r\nHost: a\r\n{framing}\r\n{chunks}"
                ))
                .await;
            let reply = caller.reply(false).await.expect("an answer");
            assert!(caller.is_closed().await, "{framing}");
            assert_eq!(
                gate.control().path("/cgi-bin/menu/get").requests,
                0,
                "{framing}"
            );
            for request in gate.control().requests("/**") {
                assert_eq!(
                    (reply.status, request.body.as_ref()),
                    (200, b"{}".as_slice()),
                    "{framing}"
                );
                assert_eq!(
                    (
                        request.header("content-length"),
                        request.header("transfer-encoding")
                    ),
                    (Some("2"), None)
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_does_not_wait_for_the_rest_of_the_next_request() {
    let gate = setup().start().await;
    gate.warm().await;
    let mut caller = Caller::connect(gate.proxy).await;
    let request = "GET /cgi-bin/menu/get HTTP/1.1\r\nHost: a\r\n\r\n";
    let (begun, rest) = request.split_at(20);
    assert_eq!(caller.call(format!("{request}{begun}")).await.status, 200);
    assert_eq!(caller.call(format!("{rest}{request}")).await.status, 200);
    assert_eq!(
        caller.reply(false).await.expect("the pipelined one").status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_above_max_body_is_413_by_its_length_or_by_its_bytes() {
    let gate = setup().set("server", "max_body = \"100KiB\"").start().await;
    gate.warm().await;
    let limit = 100 * 1024;
    for (length, status) in [(limit, 200), (limit + 1, 413)] {
        let body = "x".repeat(length);
        gate.control().clear_record();
        let stated = format!("POST {MENU} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        let mut caller = Caller::connect(gate.proxy).await;
        caller.write(&stated).await;
        if status == 200 {
            caller.write(&body).await;
        }
        // Refused by its length alone: not one byte of the body was sent.
        let reply = caller.reply(false).await.expect("an answer");
        assert_eq!(reply.status, status, "length {length}: {}", reply.text());

        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write(format!(
                "POST {MENU} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            ))
            .await;
        for piece in body.as_bytes().chunks(10_000) {
            caller.write(format!("{:x}\r\n", piece.len())).await;
            caller.write(piece).await;
            caller.write("\r\n").await;
        }
        if status == 200 {
            caller.write("0\r\n\r\n").await;
        }
        let chunked = caller.reply(false).await.expect("an answer");
        assert_eq!(
            chunked.status,
            status,
            "chunks {length}: {}",
            chunked.text()
        );
        for reply in [reply, chunked] {
            if status == 413 {
                assert_eq!(reply.header("x-wxgate-error"), "body_too_large");
                assert!(
                    reply.text().contains("990413") && reply.text().contains("server.max_body"),
                    "{}",
                    reply.text()
                );
            }
        }
        assert_eq!(
            gate.control().path(MENU).requests,
            if status == 200 { 2 } else { 0 }
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_waits_to_be_asked_is_asked_only_when_the_checks_have_passed() {
    let gate = setup().set("server", "max_body = \"300KiB\"").start().await;
    gate.warm().await;
    let head = |target: &str, length: usize| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for (target, length, status) in [
        ("/cgi-bin/../secret", 10, 400),
        ("/cgi-bin/clear_quota", 10, 403),
        ("/@nobody/cgi-bin/menu/create", 10, 400),
        ("/cgi-bin/menu/create?ACCESS_TOKEN=x", 10, 400),
        (MENU, 300 * 1024 + 1, 413),
    ] {
        let mut caller = Caller::connect(gate.proxy).await;
        let reply = caller.call(head(target, length)).await;
        assert_eq!(
            (reply.status, reply.interim.as_slice()),
            (status, [].as_slice()),
            "{target}"
        );
        assert!(
            caller.is_closed().await,
            "{target}: the body may or may not follow"
        );
    }
    // Short bodies are read before anything is sent, long ones while it is sent.
    for length in [1_000, 200_000] {
        let mut caller = Caller::connect(gate.proxy).await;
        caller.write(head(MENU, length)).await;
        while caller.buffered().windows(4).all(|w| w != b"\r\n\r\n") {
            assert!(
                timeout(DEADLINE, caller.fill())
                    .await
                    .expect("it is asked for the body")
            );
        }
        assert!(
            caller.buffered().starts_with(b"HTTP/1.1 100 "),
            "{:?}",
            String::from_utf8_lossy(caller.buffered())
        );
        caller.write("x".repeat(length)).await;
        let reply = caller.reply(false).await.expect("an answer");
        assert_eq!(
            (reply.status, reply.interim.as_slice()),
            (200, [100].as_slice())
        );
        let request = gate.control().requests(MENU).pop().expect("recorded");
        assert_eq!(
            (request.body_length, request.complete),
            (length as u64, true)
        );
        // The promise has been kept here already.
        assert_eq!(request.header("expect"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_breaks_off_its_upload_takes_the_upstream_connection_with_it() {
    let gate = setup().start().await;
    gate.warm().await;
    for reset in [false, true] {
        gate.control().clear_record();
        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write(format!(
                "POST {MENU} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n"
            ))
            .await;
        caller.write(vec![b'x'; 1_000_000]).await;
        // Sent on already, or the rest of the test would show nothing.
        let open = gate.control().counters().open_connections;
        assert!(open >= 1);
        if reset {
            caller.reset();
        } else {
            drop(caller);
        }
        timeout(
            DEADLINE,
            gate.control()
                .until(|control| !control.requests(MENU).is_empty()),
        )
        .await
        .expect("recorded");
        let broken = gate.control().requests(MENU)[0].clone();
        assert!(!broken.complete && !broken.executed && broken.body_length < 5_000_000);
        assert_eq!(
            gate.get("/cgi-bin/user/info?openid=next").await.status(),
            200
        );
        let next = gate
            .control()
            .requests("/cgi-bin/user/info")
            .pop()
            .expect("recorded");
        assert_ne!(next.connection, broken.connection, "reset {reset}");
        assert_eq!(
            gate.control().path(MENU).requests,
            1,
            "reset {reset}: sent once"
        );
    }
    // Read whole before anything is sent: nothing arrives at all.
    for rest in [
        "Content-Length: 1000\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        gate.control().clear_record();
        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write(format!("POST {SEND} HTTP/1.1\r\nHost: a\r\n{rest}"))
            .await;
        caller.stream.shutdown().await.expect("half closed");
        if let Some(reply) = caller.reply(false).await {
            assert_eq!(reply.status, 400, "{}", reply.text());
        }
        assert_eq!(
            gate.get("/cgi-bin/user/info?openid=next").await.status(),
            200
        );
        assert_eq!(gate.control().path(SEND).requests, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_breaks_off_its_download_stops_the_reading_from_wechat() {
    let gate = setup().set("upstream", "warm = false").start().await;
    gate.warm().await;
    for reset in [false, true] {
        let mut caller = Caller::connect(gate.proxy).await;
        // At a gigabyte per second this takes longer than the deadline, so only a closed connection
        // ends it.
        caller
            .write("GET /cgi-bin/media/get?media_id=blob-100000000000 HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        for _ in 0..10 {
            assert!(
                timeout(DEADLINE, caller.fill())
                    .await
                    .expect("the download runs")
            );
        }
        assert!(gate.control().counters().open_connections >= 1);
        if reset {
            caller.reset();
        } else {
            drop(caller);
        }
        timeout(
            DEADLINE,
            gate.control()
                .until(|control| control.counters().open_connections == 0),
        )
        .await
        .expect(
            "the proxy hangs up; the connection of the token call goes after five idle seconds",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_wait_for_the_answer_ends_the_call_to_wechat() {
    let fake = Fake::start(|_| Act::Silent).await;
    let gate = setup().account(&fake.api()).start().await;
    for body in ["", "{}"] {
        let before = fake.seen.calls().len();
        let mut caller = Caller::connect(gate.proxy).await;
        let length = body.len();
        caller
            .write(format!(
                "POST {SEND} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        fake.seen
            .until(|seen| seen.calls().len() == before + 1 && seen.open() == 1)
            .await;
        // A plain close looks like a caller that has closed its sending side only.
        caller.reset();
        fake.seen.until(|seen| seen.open() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_longer_than_response_timeout_while_it_moves() {
    let gate = setup()
        .set("upstream", "response_timeout = \"300ms\"")
        .start()
        .await;
    gate.warm().await;
    let head = format!("POST {MENU} HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    let mut caller = Caller::connect(gate.proxy).await;
    caller.write(&head).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        caller.write("x".repeat(20_000)).await;
    }
    assert_eq!(caller.reply(false).await.expect("an answer").status, 200);
    assert_eq!(gate.control().requests(MENU)[0].body_length, 200_000);
    // One that has stopped is not waited for.
    let mut caller = Caller::connect(gate.proxy).await;
    caller.write(&head).await;
    caller.write("x".repeat(100_000)).await;
    let reply = caller.reply(false).await.expect("an answer");
    assert_eq!(reply.status, 400);
    timeout(
        DEADLINE,
        gate.control()
            .until(|control| control.requests(MENU).len() == 2),
    )
    .await
    .expect("recorded");
    assert!(!gate.control().requests(MENU)[1].complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_passes_byte_for_byte_and_before_it_is_whole() {
    let gate = setup().start().await;
    gate.warm().await;
    let plain = gate.client.get(format!(
        "{}/cgi-bin/media/get?media_id=blob-70000&access_token={}",
        gate.sandbox.http_url().unwrap(),
        gate.control().accounts()[0].tokens[0].access_token
    ));
    let plain = plain.send().await.unwrap().bytes().await.unwrap();
    assert_eq!(plain.len(), 70_000);
    let through = gate.get("/cgi-bin/media/get?media_id=blob-70000").await;
    assert_eq!(header(&through, "content-type"), "image/jpeg");
    assert_eq!(header(&through, "content-length"), "70000");
    assert!(through.bytes().await.unwrap() == plain);
    // Also one that is small enough to be looked at, and of which the rest does not come.
    for length in [500, 2_000] {
        let held = Fault::Drip {
            bytes: 100,
            every: Duration::from_secs(3600),
            chunked: false,
        };
        gate.control().fault(Rule::new("/cgi-bin/media/get", held));
        let mut caller = Caller::connect(gate.proxy).await;
        caller
            .write(format!(
                "GET /cgi-bin/media/get?media_id=blob-{length} HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await;
        let body = async {
            loop {
                let start = caller.buffered().windows(4).position(|w| w == b"\r\n\r\n");
                if let Some(start) = start
                    && caller.buffered().len() >= start + 104
                {
                    return caller.buffered()[start + 4..].to_vec();
                }
                assert!(caller.fill().await, "the connection ended");
            }
        };
        let body = timeout(DEADLINE, body)
            .await
            .expect("the first bytes come while the rest is still to come");
        assert_eq!(body.len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_passes_unchanged_to_callers_who_take_it_and_nothing_else_is_asked_for() {
    let gate = setup().start().await;
    gate.warm().await;
    let path = "/cgi-bin/user/info";
    for (theirs, ours) in [
        (None, None),
        (Some("gzip"), Some("gzip")),
        (Some("gzip, deflate, br, zstd"), Some("gzip")),
        (Some("br"), None),
        (Some("gzip;q=0, br"), None),
        (Some("*"), None),
        (Some("deflate"), None),
    ] {
        let mut request = gate.client.get(gate.url("/cgi-bin/user/info?openid=a"));
        if let Some(theirs) = theirs {
            request = request.header("accept-encoding", theirs);
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
        assert_eq!(
            gate.control()
                .requests(path)
                .last()
                .unwrap()
                .header("accept-encoding"),
            ours,
            "{theirs:?}"
        );
    }
    let body = "{\"errcode\":0}".repeat(1000);
    for (pad_to, chunked) in [(0, None), (0, Some(100)), (300_000, None)] {
        let response = Response {
            body: body.clone(),
            gzip: true,
            pad_to,
            chunked,
            ..Response::default()
        };
        gate.control()
            .fault(Rule::new(path, Fault::Respond(response)).times(2));
        let request =
            "GET /cgi-bin/user/info?openid=a HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
        let through = Caller::connect(gate.proxy).await.call(request).await;
        let direct = request.replace(
            "openid=a",
            &format!(
                "openid=a&access_token={}",
                gate.control().accounts()[0].tokens[0].access_token
            ),
        );
        let direct = Caller::connect(gate.sandbox.http_addr().unwrap())
            .await
            .call(direct)
            .await;
        assert_eq!(through.header("content-encoding"), "gzip");
        assert_eq!((through.status, through.whole), (200, true));
        assert!(through.body == direct.body && through.body.starts_with(&[0x1f, 0x8b]));
    }
}
