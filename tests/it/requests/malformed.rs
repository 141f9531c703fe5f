//! Requests that two parsers could read differently, byte by byte over raw sockets.
//!
//! Whatever the verdict, the same must hold behind it: no more requests upstream than the client
//! made, no framing but our own, and the next ordinary request gets its own answer, on the same
//! connection if that stayed open.

use std::time::Duration;

use wxgate::sandbox::{Framing, RecordedRequest};

use crate::support::{Gate, json, raw::Wire, setup};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// This status, and nothing upstream.
    Refused(u16),
    /// The same, and the connection is of no further use.
    Ended(u16),
    /// The same, but the answer may be lost: the client was still sending when the connection was
    /// closed.
    Cut(u16),
    /// No answer at all.
    Closed,
    /// One ordinary request upstream, and its answer back.
    Passes,
    /// The same, and the connection ends.
    PassesOnce,
}

use Verdict::{Closed, Cut, Ended, Passes, PassesOnce, Refused};

/// A request for this path with these bytes behind the `Host` line.
fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /cgi-bin/menu/get HTTP/1.1\r\nHost: gate\r\n{fields}\r\n\r\n{body}").into_bytes()
}

fn get(fields: &[u8]) -> Vec<u8> {
    [
        b"GET /cgi-bin/menu/get HTTP/1.1\r\nHost: gate\r\n",
        fields,
        b"\r\n\r\n",
    ]
    .concat()
}

/// A whole head for this request line.
fn line(request_line: &str) -> Vec<u8> {
    format!("{request_line}\r\nHost: gate\r\n\r\n").into_bytes()
}

fn lengths() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    // What a proxy that believed the other length would take for the next request.
    let hidden = "0\r\n\r\nGET /cgi-bin/user/get HTTP/1.1\r\nHost: gate\r\n\r\n";
    vec![
        (
            "TE before CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 5", hidden),
            Ended(400),
        ),
        (
            "CL before TE",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked", hidden),
            Ended(400),
        ),
        (
            "CL around TE",
            post(
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
                hidden,
            ),
            Ended(400),
        ),
        (
            "TE and CL 0",
            post("Transfer-Encoding: chunked\r\nContent-Length: 0", hidden),
            Ended(400),
        ),
        (
            "TE and CL of GET",
            get(b"Transfer-Encoding: chunked\r\nContent-Length: 0"),
            Ended(400),
        ),
        (
            "equal CLs",
            post("Content-Length: 2\r\nContent-Length: 2", "{}"),
            Ended(400),
        ),
        ("CL list", post("Content-Length: 2, 2", "{}"), Ended(400)),
        (
            "different CLs",
            post("Content-Length: 2\r\nContent-Length: 3", "{} "),
            Ended(400),
        ),
        ("CL with plus", post("Content-Length: +2", "{}"), Ended(400)),
        ("CL in hex", post("Content-Length: 0x2", "{}"), Ended(400)),
        (
            "CL below zero",
            post("Content-Length: -1", "{}"),
            Ended(400),
        ),
        (
            "CL beyond 64 bits",
            post("Content-Length: 18446744073709551618", "{}"),
            Ended(400),
        ),
        (
            "CL with blank before the colon",
            post("Content-Length : 2", "{}"),
            Ended(400),
        ),
        ("CL empty", post("Content-Length:", "{}"), Ended(400)),
        (
            "CL with blank inside",
            post("Content-Length: 1 2", "{}"),
            Ended(400),
        ),
        (
            "CL with underscore",
            post("Content_Length: 99", ""),
            Refused(400),
        ),
        (
            "TE with underscore",
            post("Transfer_Encoding: chunked\r\nContent-Length: 2", "{}"),
            Ended(400),
        ),
        ("CL with zeros", post("Content-Length: 002", "{}"), Passes),
        (
            "CL longer than a line may be",
            post(&format!("Content-Length: {}2", "0".repeat(1100)), "{}"),
            Ended(400),
        ),
        ("folded CL", post("Content-Length:\r\n 2", "{}"), Ended(400)),
    ]
}

/// Where packets end must not decide what is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_cut_by_a_packet_is_refused_like_a_whole_one() {
    let gate = setup().start().await;
    gate.warm().await;
    let before = gate.control().counters().requests;
    let hidden = "GET /cgi-bin/user/get HTTP/1.1\r\nHost: gate\r\n\r\n";
    for twice in ["", "Content-Length: 2\r\n"] {
        let mut wire = Wire::connect(gate.proxy).await;
        let zeros = "0".repeat(1100);
        let head = "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: gate\r\n";
        wire.send(format!("{head}{twice}Content-Length: {zeros}"))
            .await;
        // The proxy must have read the first packet before the second one comes.
        assert!(wire.is_silent_for(Duration::from_millis(200)).await);
        wire.send(format!("{}\r\n\r\n{hidden}", hidden.len())).await;
        assert_eq!(wire.reply().await.expect("an answer").status, 400);
        assert!(wire.is_closed().await, "nothing behind it is served");
    }
    assert_eq!(gate.control().counters().requests, before);
}

fn codings() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let te = |value: &str| {
        post(
            &format!("Transfer-Encoding: {value}"),
            "2\r\n{}\r\n0\r\n\r\n",
        )
    };
    vec![
        ("gzip before chunked", te("gzip, chunked"), Ended(400)),
        ("unknown before chunked", te("cow, chunked"), Ended(400)),
        (
            "chunked twice in a line",
            te("chunked, chunked"),
            Ended(400),
        ),
        (
            "chunked in two lines",
            te("chunked\r\nTransfer-Encoding: chunked"),
            Ended(400),
        ),
        (
            "unknown line, then chunked",
            te("cow\r\nTransfer-Encoding: chunked"),
            Ended(400),
        ),
        (
            "chunked, then unknown line",
            te("chunked\r\nTransfer-Encoding: cow"),
            Ended(400),
        ),
        ("xchunked", te("xchunked"), Ended(400)),
        (
            "chunked before identity",
            te("chunked, identity"),
            Ended(400),
        ),
        ("identity", te("identity"), Ended(400)),
        (
            "identity and CL",
            te("identity\r\nContent-Length: 2"),
            Ended(400),
        ),
        ("vertical tab", te("\u{b}chunked"), Ended(400)),
        ("empty", te(""), Ended(400)),
        ("quoted", te("\"chunked\""), Ended(400)),
        ("parameter", te("chunked;a=b"), Ended(400)),
        ("comma behind", te("chunked,"), Ended(400)),
        ("folded", te("\r\n chunked"), Ended(400)),
        (
            "blank before the colon",
            post("Transfer-Encoding : chunked", "0\r\n\r\n"),
            Ended(400),
        ),
        (
            "in HTTP/1.0",
            b"POST /cgi-bin/menu/get HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
            Ended(400),
        ),
        ("upper case", te("CHUNKED"), Passes),
    ]
}

fn chunks() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let chunked = |body: &str| post("Transfer-Encoding: chunked", body);
    vec![
        (
            "extension",
            chunked("2;a=b;c=\"d\"\r\n{}\r\n0;e\r\n\r\n"),
            Passes,
        ),
        (
            "trailers",
            chunked("2\r\n{}\r\n0\r\nX-T: 1\r\n\r\n"),
            Passes,
        ),
        (
            "framing in trailers",
            chunked("2\r\n{}\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: cow\r\n\r\n"),
            Passes,
        ),
        ("no digits", chunked("zz\r\n{}\r\n0\r\n\r\n"), Ended(400)),
        ("0x", chunked("0x2\r\n{}\r\n0\r\n\r\n"), Ended(400)),
        ("minus", chunked("-2\r\n{}\r\n0\r\n\r\n"), Ended(400)),
        ("empty size", chunked("\r\n{}\r\n0\r\n\r\n"), Ended(400)),
        (
            "beyond 64 bits",
            chunked("10000000000000002\r\n{}\r\n0\r\n\r\n"),
            Ended(400),
        ),
        (
            "longer than said",
            chunked("2\r\n{}xx\r\n0\r\n\r\n"),
            Ended(400),
        ),
        (
            "lone LF behind the size",
            chunked("2\n{}\r\n0\r\n\r\n"),
            Ended(400),
        ),
        (
            "lone LF behind the data",
            chunked("2\r\n{}\n0\r\n\r\n"),
            Ended(400),
        ),
        (
            "lone CR behind the size",
            chunked("2\r{}\r\n0\r\n\r\n"),
            Ended(400),
        ),
    ]
}

fn fields() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let host = |lines: &str| format!("GET /cgi-bin/menu/get HTTP/1.1\r\n{lines}\r\n").into_bytes();
    vec![
        ("folded", get(b"A: b\r\n c"), Ended(400)),
        ("folded with tab", get(b"A: b\r\n\tc"), Ended(400)),
        ("blank before the first", b"GET /cgi-bin/menu/get HTTP/1.1\r\n Host: gate\r\n\r\n".into(), Ended(400)),
        ("lone CR in a value", get(b"A: b\rContent-Length: 5"), Ended(400)),
        ("NUL in a value", get(b"A: b\0c"), Ended(400)),
        ("NUL in a name", get(b"A\0: b"), Ended(400)),
        ("control in a value", get(b"A: b\x01c"), Ended(400)),
        ("DEL in a value", get(b"A: b\x7fc"), Ended(400)),
        ("blank in a name", get(b"A B: c"), Ended(400)),
        ("no name", get(b": c"), Ended(400)),
        ("no colon", get(b"A"), Ended(400)),
        ("letters beyond ASCII in a name", get("Ä: b".as_bytes()), Ended(400)),
        ("letters beyond ASCII in a value", get("A: ü".as_bytes()), Passes),
        ("bytes of no encoding in a value", get(b"A: \xff\xfe"), Passes),
        ("tab in a value", get(b"A: b\tc"), Passes),
        ("lone LFs", b"GET /cgi-bin/menu/get HTTP/1.1\nHost: gate\nA: b\n\n".into(), Passes),
        ("key with underscores", get(b"X_Wxgate_Key: k"), Refused(400)),
        ("key with one underscore", get(b"X-Wxgate_Key: k"), Refused(400)),
        ("account with underscores", get(b"x_wxgate_account: other"), Refused(400)),
        ("no Host", host(""), Refused(400)),
        ("two Hosts", host("Host: gate\r\nHost: gate\r\n"), Refused(400)),
        ("Host with a path", host("Host: x/../y\r\n"), Refused(400)),
        ("Host with a user", host("Host: a@gate\r\n"), Refused(400)),
        ("Host with a blank", host("Host: a b\r\n"), Refused(400)),
        ("Host list", host("Host: a, b\r\n"), Refused(400)),
        ("Host beyond ASCII", host("Host: gäte\r\n"), Refused(400)),
        ("empty Host", host("Host:\r\n"), Passes),
        ("Expect of something else", post("Expect: 200-ok\r\nContent-Length: 2", "{}"), Ended(400)),
        ("two expectations", post("Expect: 100-continue\r\nExpect: 200-ok\r\nContent-Length: 2", "{}"), Ended(400)),
        ("Expect: 100-continue", post("Expect: 100-continue\r\nContent-Length: 2", "{}"), Passes),
        (
            "Connection names framing and Host",
            post("Connection: host, content-length, a\r\nA: b\r\nContent-Length: 2", "{}"),
            Passes,
        ),
        ("Upgrade to websocket", get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k"), Passes),
        (
            "Upgrade to h2c",
            get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
            Passes,
        ),
        ("body of GET", get(b"Content-Length: 0"), Passes),
        ("100 fields", get((1..100).map(|n| format!("X-{n}: 1")).collect::<Vec<_>>().join("\r\n").as_bytes()), Passes),
        (
            "101 fields",
            get((0..100).map(|n| format!("X-{n}: 1")).collect::<Vec<_>>().join("\r\n").as_bytes()),
            Ended(431),
        ),
        ("60 KiB field", get(format!("A: {}", "a".repeat(60 << 10)).as_bytes()), Passes),
        ("64 KiB field", get(format!("A: {}", "a".repeat(64 << 10)).as_bytes()), Ended(431)),
        ("1 MiB field", get(format!("A: {}", "a".repeat(1 << 20)).as_bytes()), Ended(431)),
    ]
}

fn request_lines() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let long = "a".repeat(70 << 10);
    vec![
        ("HTTP/0.9", b"GET /cgi-bin/menu/get\r\n".into(), Ended(400)),
        (
            "HTTP/1.2",
            line("GET /cgi-bin/menu/get HTTP/1.2"),
            Ended(400),
        ),
        (
            "HTTP/2.0",
            line("GET /cgi-bin/menu/get HTTP/2.0"),
            Ended(400),
        ),
        (
            "http/1.1",
            line("GET /cgi-bin/menu/get http/1.1"),
            Ended(400),
        ),
        (
            "HTTP/1.10",
            line("GET /cgi-bin/menu/get HTTP/1.10"),
            Ended(400),
        ),
        (
            "preface of HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            Closed,
        ),
        (
            "TLS to a plain listener",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".into(),
            Ended(400),
        ),
        (
            "blank in front",
            line(" GET /cgi-bin/menu/get HTTP/1.1"),
            Ended(400),
        ),
        (
            "two blanks",
            line("GET  /cgi-bin/menu/get HTTP/1.1"),
            Ended(400),
        ),
        ("tabs", line("GET\t/cgi-bin/menu/get\tHTTP/1.1"), Ended(400)),
        (
            "blank in the target",
            line("GET /cgi-bin/menu/get ?a HTTP/1.1"),
            Ended(400),
        ),
        (
            "quote in the query",
            line("GET /cgi-bin/menu/get?a=\" HTTP/1.1"),
            Ended(400),
        ),
        (
            "lower-case method",
            line("get /cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "unknown method",
            line("FOO /cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "long method",
            line(&format!("{} /cgi-bin/menu/get HTTP/1.1", "A".repeat(1000))),
            Refused(400),
        ),
        (
            "method with a colon",
            line("GET: /cgi-bin/menu/get HTTP/1.1"),
            Ended(400),
        ),
        (
            "TRACE",
            line("TRACE /cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "CONNECT",
            line("CONNECT api.weixin.qq.com:443 HTTP/1.1"),
            Refused(400),
        ),
        (
            "CONNECT to our host",
            line("CONNECT localhost:443 HTTP/1.1"),
            Refused(400),
        ),
        ("OPTIONS *", line("OPTIONS * HTTP/1.1"), Refused(400)),
        ("GET *", line("GET * HTTP/1.1"), Refused(400)),
        ("authority", line("GET localhost:80 HTTP/1.1"), Refused(400)),
        ("no slash", line("GET admin HTTP/1.1"), Refused(400)),
        ("nothing but a query", line("GET ?a=b HTTP/1.1"), Ended(400)),
        (
            "foreign absolute form",
            line("GET http://169.254.169.254/cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "absolute form with a user",
            line("GET http://localhost@evil.example/cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "absolute form of another scheme",
            line("GET ftp://evil.example/cgi-bin/menu/get HTTP/1.1"),
            Refused(400),
        ),
        (
            "17 KiB of target",
            line(&format!(
                "GET /cgi-bin/menu/get?{} HTTP/1.1",
                &long[..17 << 10]
            )),
            Refused(400),
        ),
        (
            "70 KiB of target",
            line(&format!("GET /cgi-bin/menu/get?{long} HTTP/1.1")),
            Ended(431),
        ),
        (
            "line ends in front",
            [&b"\r\n\r\n"[..], &line("GET /cgi-bin/menu/get HTTP/1.1")].concat(),
            Passes,
        ),
        (
            "HTTP/1.0",
            b"GET /cgi-bin/menu/get HTTP/1.0\r\n\r\n".into(),
            PassesOnce,
        ),
        (
            "HTTP/1.0 kept alive",
            b"GET /cgi-bin/menu/get HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(),
            Passes,
        ),
        ("close", get(b"Connection: close"), PassesOnce),
    ]
}

fn check_sent(name: &str, record: &RecordedRequest) {
    let named = |name: &str| {
        record
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .count()
    };
    assert!(
        record.framing != Framing::Chunked && named("content-length") <= 1,
        "{name}: {:?}",
        record.headers
    );
    for gone in [
        "transfer-encoding",
        "connection",
        "upgrade",
        "http2-settings",
        "expect",
        "te",
        "trailer",
        "x-t",
    ] {
        assert_eq!(named(gone), 0, "{name}: {gone} was sent on");
    }
    assert!(
        record
            .header("host")
            .is_some_and(|host| host.starts_with("localhost:")),
        "{name}: {:?}",
        record.headers
    );
    assert_eq!((record.token_params, record.complete), (1, true), "{name}");
    if record.method == "POST" {
        assert_eq!(
            (&*record.body, record.framing),
            (&b"{}"[..], Framing::Length(2)),
            "{name}"
        );
    }
}

async fn judge(gate: &Gate, name: &str, bytes: &[u8], verdict: Verdict) {
    gate.control().clear_record();
    let mut wire = Wire::connect(gate.proxy).await;
    wire.send(bytes).await;
    let reply = wire.reply().await;
    let status = reply.as_ref().map(|reply| reply.status);
    let wanted = match verdict {
        Refused(status) | Ended(status) => Some(status),
        Cut(wanted) => status.map(|_| wanted),
        Closed => None,
        Passes | PassesOnce => Some(200),
    };
    assert_eq!(status, wanted, "{name}: {reply:?}");
    let records = gate.control().requests("**");
    let passes = matches!(verdict, Passes | PassesOnce);
    assert_eq!(records.len(), usize::from(passes), "{name}: {records:?}");
    records.iter().for_each(|record| check_sent(name, record));
    if matches!(verdict, Passes | Refused(_)) {
        let next = wire
            .ask("GET /cgi-bin/user/info?openid=next HTTP/1.1\r\nHost: gate\r\n\r\n")
            .await;
        assert_eq!(
            next.unwrap_or_else(|| panic!("{name}: no next answer"))
                .json()["openid"],
            "next",
            "{name}"
        );
    } else {
        assert!(
            wire.is_closed().await,
            "{name}: the connection is still open"
        );
    }
    let alive = json(
        gate.get(&format!("/cgi-bin/user/info?openid=alive-{}", bytes.len()))
            .await,
    )
    .await;
    assert_eq!(alive["openid"], format!("alive-{}", bytes.len()), "{name}");
}

async fn judge_all(cases: Vec<(&'static str, Vec<u8>, Verdict)>) {
    let gate = setup().start().await;
    gate.warm().await;
    for (name, bytes, verdict) in cases {
        judge(&gate, name, &bytes, verdict).await;
    }
    assert_eq!(gate.control().counters().malformed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_one_length_or_the_request_is_refused() {
    judge_all(lengths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_transfer_coding_is_chunked_and_it_stands_alone() {
    judge_all(codings()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_arrive_as_one_body_of_known_length_or_not_at_all() {
    judge_all(chunks()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_header_fields_are_refused_or_mean_nothing() {
    judge_all(fields()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_request_lines_are_refused() {
    judge_all(request_lines()).await;
}
