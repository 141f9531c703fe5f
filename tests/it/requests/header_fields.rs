//! Header fields, as the other end sees them, in both directions.

use wxgate::sandbox::{Fault, Framing, Response, Rule};

use crate::support::{raw::Wire, setup, start};

/// Goes no further than wxgate: it speaks of this connection, of the caller and the inside, or is
/// the caller's secret.
const GONE: [&str; 33] = [
    "Connection: keep-alive, X-Internal, , x-second",
    "X-Internal: 1",
    "X-Second: 2",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic PLANTED",
    "Proxy-Authenticate: Basic",
    "TE: trailers",
    "Trailer: X-T",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "X-Forwarded-For: 10.9.8.7",
    "X-Forwarded-Host: PLANTED",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Anything: PLANTED",
    "Forwarded: for=10.9.8.7",
    "X-Real-IP: 10.9.8.7",
    "Via: 1.1 PLANTED",
    "Authorization: Bearer PLANTED",
    "X-Wxgate-Key: PLANTED",
    "X-Wxgate-Account: shop",
    "X-Wxgate-Anything: PLANTED",
    "x-wxgate-key: PLANTED-again",
    "Accept-Encoding: br, deflate, zstd",
    "Cookie: session=PLANTED",
    "Referer: http://crm.internal/PLANTED",
    "Origin: http://crm.internal",
    "X-Request-Id: caller-7",
    "traceparent: 00-PLANTED-01",
    "baggage: user=PLANTED",
    "X-B3-TraceId: PLANTED",
    "X-Empty:",
    "accept_encoding: br",
];

/// Passes, value for value.
const KEPT: [(&str, &str); 13] = [
    ("content-type", "application/json; charset=utf-8"),
    ("user-agent", "shop/1.0"),
    ("accept", "*/*"),
    ("accept-language", "zh-CN"),
    ("content-encoding", "identity"),
    ("content-language", "zh"),
    ("content-disposition", ""),
    ("if-none-match", "\"x\""),
    ("if-modified-since", "Sun, 22 Nov 2026 12:00:00 GMT"),
    ("if-range", "\"x\""),
    ("wechatmp-signature", "c2ln"),
    ("wechatmp-appid", "wx0123456789abcdef"),
    ("range", "bytes=0-9"),
];

fn request(method: &str, fields: &[String], body: &str) -> String {
    format!(
        "{method} /cgi-bin/menu/get HTTP/1.1\r\nHost: gate.internal\r\n{}\r\n\r\n{body}",
        fields.join("\r\n")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hop_by_hop_or_the_callers_own_ends_here() {
    let gate = start().await;
    gate.warm().await;
    gate.control().clear_record();
    let mut fields: Vec<String> = GONE.map(str::to_owned).into();
    fields.extend(KEPT.map(|(name, value)| format!("{name}: {value}")));
    fields.push("Content-Length: 2".to_owned());
    let mut wire = Wire::connect(gate.proxy).await;
    let reply = wire
        .ask(request("POST", &fields, "{}"))
        .await
        .expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-request-id"), "caller-7");
    let record = gate.control().requests("**").pop().expect("it arrived");
    let mut arrived: Vec<(String, String)> = record.headers.clone();
    arrived
        .iter_mut()
        .for_each(|(name, _)| name.make_ascii_lowercase());
    // What wxgate adds, so that it knows its own requests should they come back.
    let marks = arrived
        .extract_if(.., |(name, _)| name == "cdn-loop")
        .count();
    assert_eq!(marks, 1);
    arrived.sort();
    let port = gate.sandbox.https_addr().expect("TLS").port();
    let mut wanted: Vec<(String, String)> = KEPT
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    wanted.push(("host".to_owned(), format!("localhost:{port}")));
    wanted.push(("content-length".to_owned(), "2".to_owned()));
    wanted.sort();
    assert_eq!(arrived, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn named_headers_go_on_as_well_and_a_reload_changes_their_names() {
    let setup = setup().set("upstream", "headers = [\"X-Tenant\", \"x-request-id\"]");
    let gate = setup.start().await;
    gate.warm().await;
    let fields: Vec<String> = [
        "X-Tenant: a",
        "x-tenant: b",
        "X-Request-Id: caller-7",
        "X-Other: c",
        "Connection: x-hop",
        "X-Hop: d",
    ]
    .map(str::to_owned)
    .into();
    let named = async || {
        gate.control().clear_record();
        let mut wire = Wire::connect(gate.proxy).await;
        let reply = wire.ask(request("GET", &fields, "")).await;
        assert_eq!(reply.expect("an answer").status, 200);
        let record = gate.control().requests("**").pop().expect("it arrived");
        let headers = record.headers.into_iter();
        let mut named: Vec<_> = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|(name, _)| name.starts_with("x-"))
            .collect();
        named.sort();
        named
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let tenants = [pair("x-tenant", "a"), pair("x-tenant", "b")];
    let mut wanted = vec![pair("x-request-id", "caller-7")];
    wanted.extend(tenants);
    assert_eq!(named().await, wanted);
    let file = gate.file();
    let changed = file.replace("\"X-Tenant\", \"x-request-id\"", "\"x-hop\", \"x-other\"");
    assert_ne!(file, changed);
    assert_eq!(gate.reload(&changed).await.status(), 200);
    assert_eq!(
        named().await,
        [pair("x-other", "c")],
        "Connection names x-hop"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_body_is_sent_with_its_length_and_no_body_with_none() {
    let gate = start().await;
    gate.warm().await;
    for (method, fields, body, framing) in [
        ("GET", "A: b", "", Framing::None),
        ("HEAD", "A: b", "", Framing::None),
        ("GET", "Content-Length: 0", "", Framing::None),
        // WeChat's front answers 412 or 411 to a POST that says nothing about its length.
        ("POST", "A: b", "", Framing::Length(0)),
        ("POST", "Content-Length: 0", "", Framing::Length(0)),
        ("DELETE", "A: b", "", Framing::Length(0)),
        ("POST", "Content-Length: 2", "{}", Framing::Length(2)),
        ("GET", "Content-Length: 2", "{}", Framing::Length(2)),
        (
            "PUT",
            "Transfer-Encoding: chunked",
            "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            Framing::Length(2),
        ),
        (
            "GET",
            "Transfer-Encoding: chunked",
            "2\r\n{}\r\n0\r\n\r\n",
            Framing::Length(2),
        ),
        (
            "POST",
            "Transfer-Encoding: chunked",
            "0\r\n\r\n",
            Framing::Length(0),
        ),
    ] {
        gate.control().clear_record();
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(request(method, &[fields.to_owned()], body)).await;
        let reply = wire.reply_to(method).await.expect("an answer");
        assert_eq!(reply.status, 200, "{method} {fields}");
        let record = gate.control().requests("**").pop().expect("it arrived");
        assert_eq!(
            (&*record.method, record.framing),
            (method, framing),
            "{method} {fields} {body:?}"
        );
        let length = if let Framing::Length(length) = framing {
            length
        } else {
            0
        };
        assert_eq!(record.body_length, length, "{method} {fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_is_asked_for_when_the_caller_takes_it_and_nothing_else_ever() {
    let gate = start().await;
    gate.warm().await;
    for (theirs, ours) in [
        ("A: b", None),
        ("Accept-Encoding: gzip", Some("gzip")),
        ("Accept-Encoding: br, GZIP;q=0.1", Some("gzip")),
        ("Accept-Encoding: br\r\nAccept-Encoding: gzip", Some("gzip")),
        ("Accept-Encoding: br, zstd, deflate", None),
        ("Accept-Encoding: gzip;q=0", None),
        ("Accept-Encoding: identity", None),
        ("Connection: accept-encoding\r\nAccept-Encoding: br", None),
    ] {
        gate.control().clear_record();
        let mut wire = Wire::connect(gate.proxy).await;
        assert_eq!(
            wire.ask(request("GET", &[theirs.to_owned()], ""))
                .await
                .expect("an answer")
                .status,
            200
        );
        let record = gate.control().requests("**").pop().expect("it arrived");
        assert_eq!(record.header("accept-encoding"), ours, "{theirs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wechats_answer_loses_what_belongs_to_its_connection_and_keeps_the_rest() {
    let gate = setup().start().await;
    gate.warm().await;
    let pairs = [
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=20"),
        ("Proxy-Authenticate", "Basic"),
        ("Trailer", "X-T"),
        ("Upgrade", "h2c"),
        ("X-Wxgate-Error", "forged"),
        ("X-Wxgate-Account", "forged"),
        ("X-Wxgate-Attempts", "7"),
        ("X-Wxgate-Replay", "forged"),
        ("LogicRet", "40164"),
        ("Set-Cookie", "a=b"),
        ("Set-Cookie", "c=d"),
        ("Via", "1.1 edge"),
        ("Alt-Svc", "h3=\":443\""),
        ("ETag", "\"x\""),
    ];
    let mut headers: Vec<(String, String)> = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    headers.push(("Connection".to_owned(), "X-Hop".to_owned()));
    for chunked in [None, Some(3)] {
        let answer = Response {
            headers: headers.clone(),
            body: "{\"errcode\":0}".to_owned(),
            chunked,
            ..Response::default()
        };
        gate.control()
            .fault(Rule::new("/cgi-bin/menu/get", Fault::Respond(answer)));
        let mut wire = Wire::connect(gate.proxy).await;
        let reply = wire
            .ask(request("GET", &["A: b".to_owned()], ""))
            .await
            .expect("an answer");
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (200, "{\"errcode\":0}")
        );
        for gone in [
            "x-hop",
            "keep-alive",
            "proxy-authenticate",
            "trailer",
            "upgrade",
            "x-wxgate-error",
            "x-wxgate-replay",
        ] {
            assert_eq!(reply.header(gone), "", "{gone}");
        }
        assert_eq!(
            (
                reply.header("x-wxgate-account"),
                reply.header("x-wxgate-attempts")
            ),
            ("shop", "1")
        );
        for (name, value) in [
            ("logicret", "40164"),
            ("via", "1.1 edge"),
            ("alt-svc", "h3=\":443\""),
            ("etag", "\"x\""),
        ] {
            assert_eq!(reply.header(name), value);
        }
        let cookies: Vec<&str> = reply
            .headers
            .iter()
            .filter(|(n, _)| n == "set-cookie")
            .map(|(_, v)| v.as_str())
            .collect();
        assert_eq!(cookies, ["a=b", "c=d"]);
    }
}
