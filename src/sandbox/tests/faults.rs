//! Every fault as a client sees it.

use std::io::Read as _;

use futures_util::FutureExt as _;

use super::*;

const PATH: &str = "/cgi-bin/tags/get";

/// Starts a sandbox with one rule for [`PATH`]; returns a target that the rule hits.
async fn rigged(fault: Fault) -> (TestSandbox, String) {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    world.control.fault(Rule::new(PATH, fault));
    (world, format!("{PATH}?access_token={token}"))
}

/// Sends a GET and reads to the end.
async fn bytes(world: &TestSandbox, target: &str) -> (String, io::Result<()>) {
    let mut client = world.client().await;
    client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    let (bytes, end) = client.rest().await;
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

fn last(world: &TestSandbox) -> RecordedRequest {
    world.control.requests(PATH).pop().unwrap()
}

#[tokio::test]
async fn a_stale_burst_ends_by_itself_and_executes_nothing() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let id = world
        .control
        .fault(Rule::new("/cgi-bin/**", Fault::stale()).times(2));
    let target = format!("/cgi-bin/message/custom/send?access_token={token}");
    let message = r#"{"touser":"o1","msgtype":"text","text":{"content":"x"}}"#;
    let mut client = world.client().await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(client.post(&target, message).await.errcode());
    }
    assert_eq!(codes, [40001, 40001, 0]);
    assert_eq!(
        (world.control.delivered_to("o1"), world.control.hits(id)),
        (1, 2)
    );
    let records = world.control.requests("/cgi-bin/message/**");
    assert_eq!(
        (records[0].fault, records[0].executed, records[0].token),
        (Some("errcode"), false, TokenState::Current)
    );
}

#[tokio::test]
async fn an_error_comes_in_any_shape() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let odd = ErrorShape {
        shape: JsonShape::BaseResp,
        content_type: Some("image/jpeg".into()),
        prefix: "\u{feff} \n".into(),
        gzip: true,
        chunked: Some(1),
        pad_to: 300,
        ..ErrorShape::new(42001)
    };
    world.control.fault(Rule::new(PATH, Fault::Errcode(odd)));
    let reply = world.get(&format!("{PATH}?access_token={token}")).await;
    assert_eq!(reply.field("content-type"), Some("image/jpeg"));
    assert_eq!(
        (
            reply.field("content-encoding"),
            reply.field("transfer-encoding")
        ),
        (Some("gzip"), Some("chunked"))
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(&reply.body[..])
        .read_to_string(&mut text)
        .unwrap();
    assert!(
        text.starts_with("\u{feff} \n{\"base_resp\":{\"errcode\":42001,"),
        "{text}"
    );
    assert_eq!(text.trim_start_matches(['\u{feff}', ' ', '\n']).len(), 300);
}

#[tokio::test]
async fn the_token_endpoint_refuses_as_the_real_one_does() {
    let world = TestSandbox::new().await;
    for (code, text) in [
        (
            40164,
            "invalid ip 198.51.100.7 ipv6 ::ffff:198.51.100.7, not in whitelist rid: RID",
        ),
        (40125, "invalid appsecret rid: RID"),
        (40243, "AppSecret is frozen rid: RID"),
        (
            45011,
            "api minute-quota reach limit, must slower, retry next minute rid: RID",
        ),
        (-1, "system error"),
    ] {
        let shape = ErrorShape {
            ip: Some("198.51.100.7".into()),
            ..ErrorShape::new(code)
        };
        world
            .control
            .fault(Rule::new("/cgi-bin/*token", Fault::Errcode(shape)));
        let reply = world.stable(false).await;
        assert_eq!(
            (reply.errcode(), without_rid(&reply.errmsg()).as_str()),
            (code, text)
        );
        assert_eq!(reply.field("logicret").unwrap(), code.to_string());
    }
    assert_eq!(
        world.control.counters().stable_fetches,
        5,
        "a refused fetch is a fetch"
    );
}

#[tokio::test]
async fn the_token_endpoint_says_odd_things_about_a_token_that_works() {
    let world = TestSandbox::new().await;
    for odd in ["0", "-1", "1e400", "\"7200\"", "7200.5", "null", "true", ""] {
        let fault = Fault::Token {
            expires_in: Some(odd.into()),
            access_token: None,
        };
        world
            .control
            .fault(Rule::new("/cgi-bin/stable_token", fault));
        let text = String::from_utf8(world.stable(false).await.body).unwrap();
        let expected = if odd.is_empty() {
            "\"}".to_owned()
        } else {
            format!("\",\"expires_in\":{odd}}}")
        };
        assert!(
            text.starts_with("{\"access_token\":\"") && text.ends_with(&expected),
            "{text}"
        );
    }
    let fault = Fault::Token {
        expires_in: None,
        access_token: Some("a b&c%d=\n".into()),
    };
    world
        .control
        .fault(Rule::new("/cgi-bin/stable_token", fault));
    assert_eq!(
        world.stable(false).await.json()["access_token"],
        "a b&c%d=\n"
    );
    assert_eq!(
        world
            .get(&format!("{PATH}?access_token=a%20b%26c%25d%3D%0A"))
            .await
            .errcode(),
        0
    );
}

#[tokio::test]
async fn any_answer_can_be_given() {
    let fault = Fault::Respond(Response {
        headers: vec![("X-Odd".into(), "1".into())],
        pad_to: 1000,
        ..match Fault::respond(502, "text/html", "<html>") {
            Fault::Respond(response) => response,
            _ => unreachable!(),
        }
    });
    let (world, target) = rigged(fault).await;
    let reply = world.get(&target).await;
    assert_eq!(
        (reply.status, reply.field("x-odd"), reply.body.len()),
        (502, Some("1"), 1000)
    );
    assert!(!last(&world).executed);
    assert_eq!(world.get(&target).await.errcode(), 0);
}

#[tokio::test]
async fn a_redirect_names_its_target() {
    let (world, target) = rigged(Fault::Redirect {
        status: 302,
        location: "https://x.test/".into(),
    })
    .await;
    let reply = world.get(&target).await;
    assert_eq!(
        (reply.status, reply.field("location")),
        (302, Some("https://x.test/"))
    );
}

#[tokio::test]
async fn a_connection_is_reset_or_closed_before_the_answer() {
    let (world, target) = rigged(Fault::Reset { executed: false }).await;
    let (text, end) = bytes(&world, &target).await;
    assert_eq!(
        (text.as_str(), end.unwrap_err().kind()),
        ("", io::ErrorKind::ConnectionReset)
    );
    assert!(!last(&world).executed);
    let (world, target) = rigged(Fault::Close { executed: true }).await;
    let (text, end) = bytes(&world, &target).await;
    assert!(text.is_empty() && end.is_ok());
    assert!(
        last(&world).executed,
        "the answer is lost, the deed is done"
    );
}

#[tokio::test]
async fn a_minted_token_can_get_lost_on_its_way() {
    let world = TestSandbox::new().await;
    world.control.fault(Rule::new(
        "/cgi-bin/stable_token",
        Fault::Close { executed: true },
    ));
    let mut client = world.client().await;
    let body = format!(
        r#"{{"grant_type":"client_credential","appid":"{DEFAULT_APPID}","secret":"{DEFAULT_SECRET}"}}"#
    );
    client
        .send(format!(
            "POST /cgi-bin/stable_token HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert!(client.rest().await.0.is_empty());
    let minted = world
        .control
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .unwrap();
    assert_eq!(world.token().await, minted);
}

#[tokio::test]
async fn a_hanging_call_ends_with_its_client() {
    let (world, target) = rigged(Fault::Hang { executed: true }).await;
    let mut client = world.client().await;
    client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    timeout(
        PATIENCE,
        world.control.until(|c| c.path(PATH).executed == 1),
    )
    .await
    .unwrap();
    assert!(world.control.counters().open_connections >= 1);
    drop(client);
    timeout(
        PATIENCE,
        world.control.until(|c| c.counters().open_connections == 0),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_body_is_cut_short_in_every_framing() {
    for (chunked, end) in [
        (false, Ending::Close),
        (true, Ending::Close),
        (false, Ending::Reset),
    ] {
        let (world, target) = rigged(Fault::Cut {
            after: 5,
            chunked,
            end,
        })
        .await;
        let (text, closed) = bytes(&world, &target).await;
        // A reset may overtake the bytes sent before it.
        if end == Ending::Reset {
            assert!(closed.is_err());
            continue;
        }
        assert!(closed.is_ok() && !text.contains("errmsg"), "{text}");
        let expected = if chunked {
            "\r\n\r\n5\r\n{\"err\r\n"
        } else {
            "\r\n\r\n{\"err"
        };
        assert!(text.ends_with(expected), "{text}");
    }
}

#[tokio::test]
async fn a_body_drips() {
    let (world, target) = rigged(Fault::Drip {
        bytes: 1,
        every: Duration::from_millis(1),
        chunked: true,
    })
    .await;
    let mut client = world.client().await;
    client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    client.head().await.unwrap();
    for byte in b"{\"errcode\":0" {
        assert_eq!(client.line().await.unwrap(), "1");
        assert_eq!(client.line().await.unwrap().as_bytes(), [*byte]);
    }
}

#[tokio::test]
async fn garbage_is_no_http() {
    let (world, target) = rigged(Fault::Raw {
        text: None,
        end: Ending::Close,
    })
    .await;
    let (text, _) = bytes(&world, &target).await;
    assert!(!text.is_empty() && !text.starts_with("HTTP"));
    let (world, target) = rigged(Fault::Raw {
        text: Some("HTTP/1.1 200 OK\r\nA".into()),
        end: Ending::Close,
    })
    .await;
    assert_eq!(bytes(&world, &target).await.0, "HTTP/1.1 200 OK\r\nA");
}

#[tokio::test]
async fn an_answer_comes_before_the_upload_was_read() {
    for (status, then) in [(413, AfterEarly::Close), (200, AfterEarly::Read)] {
        let (world, target) = rigged(Fault::Early { status, then }).await;
        let mut client = world.client().await;
        client
            .send(format!(
                "POST {target} HTTP/1.1\r\nContent-Length: 100000\r\n\r\nabc"
            ))
            .await;
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.status, status);
        let record = last(&world);
        assert_eq!(
            (record.fault, record.complete, record.executed),
            (Some("early"), false, false)
        );
        if then == AfterEarly::Read {
            client.send(vec![b'x'; 99_997]).await;
            assert_eq!(
                client.get(&target).await.errcode(),
                0,
                "the connection goes on"
            );
        } else {
            assert!(client.rest().await.0.is_empty());
        }
    }
}

#[tokio::test]
async fn interim_answers_come_first_and_a_switch_comes_alone() {
    for (status, line) in [
        (103, "HTTP/1.1 103 Early Hints"),
        (100, "HTTP/1.1 100 Continue"),
    ] {
        let (world, target) = rigged(Fault::Interim { status, times: 200 }).await;
        let mut client = world.client().await;
        client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
        for _ in 0..200 {
            assert!(client.head().await.unwrap().starts_with(line));
        }
        assert_eq!(client.reply().await.unwrap().errcode(), 0);
    }
    let (world, target) = rigged(Fault::Switch).await;
    let mut client = world.client().await;
    client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
}

#[tokio::test]
async fn an_expectation_is_refused_or_passed_over() {
    for refuse in [true, false] {
        let (world, target) = rigged(Fault::Expect { refuse }).await;
        let mut client = world.client().await;
        assert_eq!(
            client.get(&target).await.errcode(),
            0,
            "calls that expect nothing are left alone"
        );
        client
            .send(format!(
                "POST {target} HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            ))
            .await;
        if refuse {
            assert_eq!(client.reply().await.unwrap().status, 417);
        } else {
            client.send("{}").await;
            assert_eq!(client.reply().await.unwrap().errcode(), 0);
        }
    }
}

#[tokio::test]
async fn framing_can_contradict_itself() {
    let (world, target) = rigged(Fault::TwoLengths).await;
    let mut client = world.client().await;
    client.send(format!("GET {target} HTTP/1.1\r\n\r\n")).await;
    let head = client.head().await.unwrap();
    assert_eq!(head.matches("Content-Length: ").count(), 2);
    let (world, target) = rigged(Fault::LengthAndChunked).await;
    let reply = world.get(&target).await;
    assert!(
        reply.field("content-length").is_some() && reply.errcode() == 0,
        "{}",
        reply.head
    );
}

#[tokio::test]
async fn a_header_block_can_be_big_in_one_field_or_in_many() {
    for fields in [1, 300] {
        let (world, target) = rigged(Fault::BigHeader {
            bytes: 60_000,
            fields,
        })
        .await;
        let reply = world.get(&target).await;
        assert!(
            reply.head.len() > 60_000 && reply.head.matches("X-Filler-").count() as u64 == fields
        );
        assert_eq!(reply.errcode(), 0);
    }
}

#[tokio::test]
async fn bytes_can_follow_an_answer_and_a_promise_can_be_broken() {
    let (world, target) = rigged(Fault::Trailing {
        text: "HTTP/1.1 200 OK\r\n\r\n".into(),
    })
    .await;
    let mut client = world.client().await;
    assert_eq!(client.get(&target).await.errcode(), 0);
    assert_eq!(client.head().await.unwrap(), "HTTP/1.1 200 OK\n");
    let (world, target) = rigged(Fault::CloseAfter).await;
    let mut client = world.client().await;
    assert_eq!(
        client.get(&target).await.field("connection"),
        Some("keep-alive")
    );
    let (rest, end) = client.rest().await;
    assert!(rest.is_empty() && end.is_ok());
}

#[tokio::test]
async fn a_body_can_end_with_its_connection() {
    let (world, target) = rigged(Fault::UntilClose).await;
    let (text, end) = bytes(&world, &target).await;
    assert!(
        end.is_ok()
            && !text.contains("Content-Length")
            && text.ends_with("{\"errcode\":0,\"errmsg\":\"ok\"}")
    );
}

#[tokio::test]
async fn an_answer_is_decided_before_it_is_held() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let id = world.control.fault(Rule::new(PATH, Fault::Pass).hold());
    let mut client = world.client().await;
    client
        .send(format!("GET {PATH}?access_token={token} HTTP/1.1\r\n\r\n"))
        .await;
    timeout(
        PATIENCE,
        world
            .control
            .until(|c| c.hits(id) == 1 && c.path(PATH).requests == 1),
    )
    .await
    .unwrap();
    world.control.revoke(DEFAULT_APPID);
    assert_eq!(
        world
            .get(&format!("{PATH}?access_token={token}"))
            .await
            .errcode(),
        40001,
        "others are not held"
    );
    assert!(
        client.more().now_or_never().is_none(),
        "the answer did not wait"
    );
    assert!(world.control.release(id));
    assert_eq!(client.reply().await.unwrap().errcode(), 0);
}

#[tokio::test]
async fn an_answer_is_late_by_its_delay() {
    let world = TestSandbox::new().await;
    world
        .control
        .fault(Rule::new(PATH, Fault::stale()).delay(Duration::from_millis(40)));
    let start = tokio::time::Instant::now();
    assert_eq!(world.get(PATH).await.errcode(), 40001);
    assert!(start.elapsed() >= Duration::from_millis(40));
}
