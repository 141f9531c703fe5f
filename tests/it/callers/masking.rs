//! No caller finds the account's credentials in an answer: JSON is masked, and the call that repeats
//! other calls is masked as a whole.

use std::io::Write as _;

use reqwest::RequestBuilder;
use serde_json::json;
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, Fault, Response, Rule, TokenKind};

use crate::support::{
    Gate,
    fake::{Act, FAKE_TOKEN, Fake},
    header, setup,
};

const RID: &str = "/cgi-bin/openapi/rid/get";
const MIB: usize = 1024 * 1024;
const CLIENTS: &str = r#"
[[client]]
name = "crm"
key = { value = "crm-key-0123456789" }

[[client]]
name = "ops"
key = { value = "ops-key-0123456789" }
may = ["token"]
"#;

/// An answer, read to its end.
struct Read {
    status: u16,
    encoding: String,
    length: String,
    etag: String,
    error: String,
    body: Vec<u8>,
}

async fn read(request: RequestBuilder) -> Read {
    let answer = request.send().await.expect("an answer");
    Read {
        status: answer.status().as_u16(),
        encoding: header(&answer, "content-encoding"),
        length: header(&answer, "content-length"),
        etag: header(&answer, "etag"),
        error: header(&answer, "x-wxgate-error"),
        body: answer.bytes().await.expect("a body").to_vec(),
    }
}

impl Read {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn token(gate: &Gate) -> String {
    gate.control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token")
}

fn stars(text: &str) -> String {
    "*".repeat(text.len())
}

fn holds(body: &[u8], text: &str) -> bool {
    memchr::memmem::find(body, text.as_bytes()).is_some()
}

fn json_escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("\\u{byte:04X}")).collect()
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("memory");
    encoder.finish().expect("memory")
}

/// Lets every call but those for a token be answered so.
fn respond(gate: &Gate, response: Response) {
    gate.control().clear_faults();
    gate.control().fault(
        Rule::new("/**", Fault::Respond(response))
            .business()
            .always(),
    );
}

fn json_response(body: String) -> Response {
    Response {
        content_type: "application/json".to_owned(),
        headers: vec![("ETag".to_owned(), "\"bytes\"".to_owned())],
        body,
        ..Response::default()
    }
}

/// A gate whose account has replaced a token a moment ago: the former one, and the current one.
async fn with_two_tokens() -> (Gate, String, String) {
    let gate = setup().start().await;
    gate.warm().await;
    let former = token(&gate);
    gate.control().revoke(DEFAULT_APPID);
    gate.warm().await;
    let current = token(&gate);
    assert_ne!(former, current);
    (gate, former, current)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_json_answers_are_masked_byte_for_byte() {
    let (gate, former, current) = with_two_tokens().await;
    let nested = json!({"url": format!("/p?access_token={current}")}).to_string();
    for (name, shown) in [
        ("the token", current.clone()),
        ("the one before", former.clone()),
        ("the AppSecret", DEFAULT_SECRET.to_owned()),
        ("JSON escapes", json_escaped(&current)),
        ("percent encoding", percent_encoded(&former)),
        ("both", json_escaped(&percent_encoded(&current))),
        ("all of them", format!("{current}{former}{DEFAULT_SECRET}")),
    ] {
        let body = |shown: &str| format!("{{\"errcode\":48001,\"echo\":\"<{shown}>\"}}");
        for response in [
            json_response(body(&shown)),
            Response {
                content_type: "text/plain".to_owned(),
                ..json_response(body(&shown))
            },
            Response {
                chunked: Some(50),
                ..json_response(body(&shown))
            },
            Response {
                status: 500,
                ..json_response(body(&shown))
            },
        ] {
            respond(&gate, response);
            for target in [
                "/wxa/echo".to_owned(),
                "/sns/userinfo?access_token=user".to_owned(),
                format!("/sns/jscode2session?appid={DEFAULT_APPID}&js_code=c"),
            ] {
                let answer = read(gate.client.get(gate.url(&target))).await;
                assert_eq!(answer.text(), body(&stars(&shown)), "{name} {target}");
                assert_eq!(answer.length, answer.body.len().to_string(), "{name}");
                assert_eq!(answer.etag, "", "{name}: of other bytes");
            }
        }
    }
    respond(
        &gate,
        json_response(json!({"errcode": 0, "more": nested}).to_string()),
    );
    let answer = read(gate.client.get(gate.url("/wxa/echo"))).await;
    assert!(!holds(&answer.body, &current) && holds(&answer.body, "access_token=***"));
}

/// A masked gzip answer goes on unpacked; any other one as it came.
#[tokio::test(flavor = "multi_thread")]
async fn a_masked_gzip_answer_is_sent_on_unpacked() {
    let (gate, former, current) = with_two_tokens().await;
    let call = || {
        gate.client
            .get(gate.url("/wxa/echo"))
            .header("accept-encoding", "gzip")
    };
    let body = |shown: &str| format!("{{\"a\":\"{shown}\"}}");
    for shown in [current.clone(), former.clone(), json_escaped(&current)] {
        for chunked in [None, Some(7)] {
            respond(
                &gate,
                Response {
                    gzip: true,
                    chunked,
                    ..json_response(body(&shown))
                },
            );
            let answer = read(call()).await;
            assert_eq!(answer.text(), body(&stars(&shown)));
            assert_eq!(
                (&*answer.encoding, &*answer.etag, answer.length.clone()),
                ("", "", answer.body.len().to_string())
            );
        }
    }
    respond(
        &gate,
        Response {
            gzip: true,
            ..json_response(body("nothing of ours"))
        },
    );
    let answer = read(call()).await;
    assert_eq!((&*answer.encoding, &*answer.etag), ("gzip", "\"bytes\""));
    assert!(answer.body.starts_with(b"\x1f\x8b"));
    assert_eq!(answer.length, answer.body.len().to_string());
}

/// A file is never looked into, nor is an answer that is longer than the error that it could be.
#[tokio::test(flavor = "multi_thread")]
async fn files_and_long_answers_pass_as_they_are() {
    let gate = setup().start().await;
    gate.warm().await;
    let token = token(&gate);
    let body = json!({"errcode": 40001, "echo": token}).to_string();
    let mut file = json_response(body.clone());
    let disposition = ("Content-Disposition", "attachment; filename=\"a.json\"");
    file.headers
        .push((disposition.0.to_owned(), disposition.1.to_owned()));
    respond(&gate, file);
    let answer = read(gate.client.get(gate.url("/cgi-bin/media/get?media_id=m"))).await;
    assert_eq!((answer.text(), &*answer.etag), (body.clone(), "\"bytes\""));
    for (pad_to, is_masked) in [(4096, true), (4097, false)] {
        let body = json!({"echo": token}).to_string();
        let long = Response {
            pad_to,
            ..json_response(body)
        };
        respond(&gate, long);
        let answer = read(gate.client.get(gate.url("/wxa/echo"))).await;
        assert_eq!(answer.body.len(), pad_to);
        assert_eq!(holds(&answer.body, &token), !is_masked, "{pad_to}");
    }
}

/// What failed is repeated by WeChat with its URL, whose token a client without the scope `token`
/// must not read.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_that_repeats_a_failed_call_holds_no_token() {
    let gate = setup().more(CLIENTS).start().await;
    let post = |path: &str| gate.post(path).header("x-wxgate-key", "crm-key-0123456789");
    // Refused for want of an openid, with the id of the request.
    let text = read(post("/cgi-bin/user/info")).await.text();
    let (_, rid) = text.split_once("rid: ").expect("a refusal");
    let rid = rid.trim_end_matches(['"', '}']);
    let token = token(&gate);
    let by_sandbox = reqwest_direct(&gate, &format!("{RID}?access_token={token}"), rid).await;
    assert!(
        by_sandbox.contains(&token),
        "WeChat repeats it: {by_sandbox}"
    );
    for (path, encoding) in [
        (RID, "identity"),
        (RID, "gzip"),
        ("//CGI-BIN/openapi/RID/get", "gzip"),
    ] {
        let call = post(path).header("accept-encoding", encoding);
        let answer = read(call.json(&json!({"rid": rid}))).await;
        assert!(!holds(&answer.body, &token), "{}", answer.text());
        if path == RID {
            let shown = format!("access_token={}", stars(&token));
            assert!(holds(&answer.body, &shown), "{}", answer.text());
        }
    }
}

/// Asks the sandbox itself.
async fn reqwest_direct(gate: &Gate, target: &str, rid: &str) -> String {
    let url = gate.sandbox.http_url().expect("the sandbox listens") + target;
    let call = gate.client.post(url).json(&json!({"rid": rid}));
    read(call).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_answer_that_repeats_a_call_is_masked_however_it_is_written() {
    let gate = setup().more(CLIENTS).start().await;
    let rid = |client: &str| {
        gate.post(RID)
            .header("x-wxgate-key", format!("{client}-key-0123456789"))
            .header("accept-encoding", "gzip")
            .json(&json!({"rid": "1-2-3"}))
    };
    read(rid("crm")).await;
    let token = token(&gate);
    let filler = "x".repeat(300_000);
    for shown in [
        token.clone(),
        json_escaped(&token),
        percent_encoded(&token),
        json_escaped(&percent_encoded(&token)),
    ] {
        // Not JSON, and much longer than what is looked into elsewhere.
        let body = |shown: &str| format!("[\"{filler}{shown}{filler}\"]");
        for (packed, chunked) in [(false, None), (true, None), (true, Some(50_000))] {
            let response = Response {
                gzip: packed,
                chunked,
                ..json_response(body(&shown))
            };
            respond(&gate, response);
            for client in ["crm", "ops"] {
                let answer = read(rid(client)).await;
                assert_eq!((answer.status, &*answer.encoding), (200, ""), "{client}");
                assert!(answer.body == body(&stars(&shown)).as_bytes(), "{client}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_repeats_a_call_and_cannot_be_masked_needs_the_scope_token() {
    let gate = setup().more(CLIENTS).start().await;
    let rid = |client: &str| {
        gate.post(RID)
            .header("x-wxgate-key", format!("{client}-key-0123456789"))
            .header("accept-encoding", "gzip")
            .json(&json!({"rid": "1-2-3"}))
    };
    read(rid("crm")).await;
    for (pad_to, packed, status) in [
        (MIB, false, 200),
        (MIB + 1, false, 502),
        (MIB, true, 200),
        (MIB + 1, true, 502),
    ] {
        let body = json!({"echo": token(&gate)}).to_string();
        for chunked in [None, Some(100_000)] {
            let response = Response {
                pad_to,
                gzip: packed,
                chunked,
                ..json_response(body.clone())
            };
            respond(&gate, response);
            let answer = read(rid("crm")).await;
            assert_eq!(answer.status, status, "{pad_to} {packed} {chunked:?}");
            assert!(!holds(&answer.body, &token(&gate)));
            if status == 502 {
                assert_eq!(answer.error, "upstream_failed");
                assert!(
                    answer.text().contains("may = [\\\"token\\\"]"),
                    "{}",
                    answer.text()
                );
            }
            assert_eq!(read(rid("ops")).await.status, 200);
        }
    }
    // In an encoding that cannot be read.
    let mut response = json_response("{}".to_owned());
    response
        .headers
        .push(("Content-Encoding".to_owned(), "br".to_owned()));
    respond(&gate, response);
    assert_eq!(read(rid("crm")).await.error, "upstream_failed");
    let answer = read(rid("ops")).await;
    assert_eq!((answer.status, answer.text()), (200, "{}".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_repeats_another_and_is_encrypted_needs_the_scope_token() {
    let fake = Fake::start(|call| {
        assert_eq!(
            (call.header("range"), call.header("if-range")),
            (None, None)
        );
        Act::ok(&json!({"request": {"request_url": FAKE_TOKEN}}).to_string())
    })
    .await;
    let gate = setup().account(&fake.api()).more(CLIENTS).start().await;
    let rid = |client: &str| {
        gate.post(RID)
            .header("x-wxgate-key", format!("{client}-key-0123456789"))
            .header("range", "bytes=0-50")
            .header("if-range", "\"a\"")
            .json(&json!({"rid": "1-2-3"}))
    };
    let answer = read(rid("crm")).await;
    assert_eq!(answer.status, 200);
    assert!(!holds(&answer.body, FAKE_TOKEN), "{}", answer.text());
    let before = fake.seen.calls().len();
    for name in ["Wechatmp-Signature", "Wechatmp-Appid"] {
        let answer = read(rid("crm").header(name, "x")).await;
        assert_eq!((answer.status, &*answer.error), (403, "scope_denied"));
        assert!(answer.text().contains("crm"), "{}", answer.text());
    }
    assert_eq!(fake.seen.calls().len(), before, "not sent");
    let answer = read(rid("ops").header("Wechatmp-Signature", "x")).await;
    assert_eq!(answer.status, 200);
}

/// With clients or without: by network nobody has the scope `token`.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_by_network_reads_no_token_in_a_repeated_call() {
    let fake = Fake::start(|_| {
        let body = gzip(format!("{{\"a\":\"{FAKE_TOKEN}\"}}").as_bytes());
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Act::Answer([head.into_bytes(), body].concat())
    })
    .await;
    let gate = setup().account(&fake.api()).start().await;
    let answer = read(gate.post(RID).json(&json!({"rid": "1-2-3"}))).await;
    assert_eq!(
        answer.text(),
        format!("{{\"a\":\"{}\"}}", stars(FAKE_TOKEN))
    );
    let answer = read(gate.post(RID).header("wechatmp-signature", "x").body("{}")).await;
    assert_eq!((answer.status, &*answer.error), (403, "scope_denied"));
}
