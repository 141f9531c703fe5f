//! Callers that close their sending side behind the request (`nc -N`, `socat`, `shutdown(SHUT_WR)`)
//! and still read: they are answered. A caller that has gone altogether is noticed.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use wxgate::sandbox::{Fault, Rule};

use crate::{
    node::listeners::{certificates, dial, start_in},
    support::{
        fake::{Act, Fake},
        raw::Wire,
        setup, start,
        wire::{Caller, DEADLINE},
    },
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";
const SEND: &str = "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: gate\r\n";
const MESSAGE: &str = r#"{"touser":"o","msgtype":"text","text":{"content":"x"}}"#;

fn post() -> String {
    let length = MESSAGE.len();
    format!("{SEND}Content-Length: {length}\r\n\r\n{MESSAGE}")
}

fn chunked() -> String {
    let length = MESSAGE.len();
    format!("{SEND}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{MESSAGE}\r\n0\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_will_send_no_more_is_answered() {
    let gate = setup()
        .set("server", "listen = [\"127.0.0.1:0\", \"unix:gate.sock\"]")
        .start()
        .await;
    gate.warm().await;
    let socket = gate.folder.path().join("gate.sock");
    for (text, answers) in [
        (INFO.to_owned(), 1),
        (post(), 1),
        (chunked(), 1),
        (INFO.replace("1.1", "1.0"), 1),
        (INFO.replace("Host", "Connection: keep-alive\r\nHost"), 1),
        // Several requests, and a body between them.
        (format!("{INFO}{}{INFO}", post()), 3),
    ] {
        let mut tcp = Wire::connect(gate.proxy).await;
        tcp.send(&text).await;
        tcp.finish().await;
        let mut unix = Wire::over(UnixStream::connect(&socket).await.expect("it listens"));
        unix.send(&text).await;
        unix.finish().await;
        for _ in 0..answers {
            assert_eq!(tcp.reply().await.expect("an answer").status, 200, "{text}");
            assert_eq!(unix.reply().await.expect("an answer").status, 200, "{text}");
        }
        assert!(tcp.is_closed().await && unix.is_closed().await, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_may_come_while_the_answer_is_awaited_or_read() {
    let gate = start().await;
    gate.warm().await;
    let rule = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/info", Fault::Pass).hold());
    let mut wire = Wire::connect(gate.proxy).await;
    wire.send(INFO).await;
    timeout(
        DEADLINE,
        gate.control().until(|control| control.hits(rule) == 1),
    )
    .await
    .expect("the request arrives");
    wire.finish().await;
    assert!(
        wire.is_silent_for(Duration::from_millis(300)).await,
        "neither answered nor closed"
    );
    gate.control().release(rule);
    assert_eq!(wire.reply().await.expect("an answer").status, 200);
    assert!(wire.is_closed().await);

    // An answer that fills every buffer on the way.
    const LENGTH: usize = 30_000_000;
    let mut stream = TcpStream::connect(gate.proxy).await.expect("it listens");
    let target = format!("/cgi-bin/media/get?media_id=blob-{LENGTH}");
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n").as_bytes())
        .await
        .expect("it is read");
    let mut first = [0; 1000];
    stream
        .read_exact(&mut first)
        .await
        .expect("the answer begins");
    stream.shutdown().await.expect("half closed");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut rest = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut rest))
        .await
        .expect("an end")
        .expect("a clean one");
    let head = first
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head")
        + 4;
    assert_eq!(first.len() + rest.len() - head, LENGTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_alert_that_closes_one_side_is_the_same() {
    let tls = "tls = { cert = \"server.pem\", key = \"server.key\" }";
    let gate = start_in(setup().set("server", tls), certificates()).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = dial(&gate, None, version).await.expect("a handshake");
        let mut wire = Wire::over(stream);
        wire.send(INFO).await;
        wire.finish().await;
        assert_eq!(wire.reply().await.expect("an answer").status, 200);
        assert!(wire.is_closed().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_answers_half_closed_probes() {
    let gate = start().await;
    let mut wire = Wire::connect(gate.admin).await;
    wire.send("GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await;
    wire.finish().await;
    assert_eq!(wire.reply().await.expect("an answer").status, 200);
    assert!(wire.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_will_never_be_whole_is_dropped() {
    let gate = start().await;
    gate.warm().await;
    let before = gate.control().counters().requests;
    for text in [&INFO[..20], &post()[..post().len() - 1]] {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(text).await;
        wire.finish().await;
        if let Some(reply) = wire.reply().await {
            assert_eq!(reply.status, 400, "{text}");
        }
        assert!(wire.is_closed().await);
    }
    assert_eq!(gate.control().counters().requests, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_resets_its_connection_has_gone() {
    let fake = Fake::start(|_| Act::Silent).await;
    let gate = setup().account(&fake.api()).start().await;
    for half_closed_first in [false, true] {
        let before = fake.seen.calls().len();
        let mut caller = Caller::connect(gate.proxy).await;
        caller.write(INFO).await;
        fake.seen
            .until(|seen| seen.calls().len() == before + 1 && seen.open() == 1)
            .await;
        if half_closed_first {
            // Nobody can tell it from one that waits, so it is served: here until a stop.
            caller.stream.shutdown().await.expect("half closed");
            assert_eq!(fake.seen.open(), 1);
        } else {
            caller.reset();
            fake.seen.until(|seen| seen.open() == 0).await;
        }
    }
}
