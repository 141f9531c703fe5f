//! Request bodies that are sent twice: byte for byte the same, or not at all and said so.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::{Body, RequestBuilder};
use wxgate::sandbox::{DEFAULT_APPID, Fault, Framing, RecordedRequest, Rule};

use crate::support::{
    Gate, Setup, setup,
    token_tools::{Said, get, joined, noise, said, sha256, spawned, until},
};

const UPLOAD: &str = "/cgi-bin/media/upload";
const ANY: &str = "/wxa/anything";
const MIB: usize = 1 << 20;

/// How the caller says where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Length,
    Chunks,
}

fn with_body(request: RequestBuilder, body: &[u8], sent: Sent) -> RequestBuilder {
    match sent {
        Sent::Length => request.body(body.to_vec()),
        Sent::Chunks => {
            let pieces: Vec<_> = body
                .chunks(10_007)
                .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
                .collect();
            request.body(Body::wrap(StreamBody::new(stream::iter(pieces))))
        }
    }
}

/// A file as a browser's form sends it, and its content.
fn form(length: usize) -> (Vec<u8>, Vec<u8>) {
    let file = noise(length);
    let head = format!(
        "--b0undary\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"; filelength={length}\r\nContent-Type: image/jpeg\r\n\r\n"
    );
    (
        [head.as_bytes(), &file, b"\r\n--b0undary--\r\n"].concat(),
        file,
    )
}

async fn upload(gate: &Gate, form: &[u8], sent: Sent) -> Said {
    let request = gate.post(&format!("{UPLOAD}?type=image"));
    let request = request.header("content-type", "multipart/form-data; boundary=b0undary");
    said(with_body(request, form, sent)).await
}

async fn revoked(setup: Setup) -> Gate {
    let gate = setup.start().await;
    gate.warm().await;
    gate.control().clear_record();
    gate.control().revoke(DEFAULT_APPID);
    gate
}

fn assert_sent_twice(records: &[RecordedRequest], body: &[u8], what: &str) {
    assert_eq!(records.len(), 2, "{what}");
    for record in records {
        assert!(record.complete, "{what}");
        // WeChat answers 412 to chunks.
        assert_eq!(record.framing, Framing::Length(body.len() as u64), "{what}");
        assert_eq!(record.body_length, body.len() as u64, "{what}");
        assert_eq!(record.body_sha256, sha256(body), "{what}");
        assert_eq!(record.header("transfer-encoding"), None, "{what}");
    }
    assert_eq!(
        (records[0].executed, records[1].executed),
        (false, true),
        "{what}"
    );
}

/// Pitfall: the replay sends an empty body, or the half that was not read yet (Caddy, PowerWeChat,
/// fastwego). The sizes stand on both sides of every border: nothing, one piece, streamed, memory,
/// disk.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_every_size_are_replayed_byte_for_byte() {
    // As many accounts' worth of refreshes as there are rows would empty the bucket of one account.
    for sent in [Sent::Length, Sent::Chunks] {
        let gate = setup().start().await;
        for size in [
            0,
            1,
            64 << 10,
            (64 << 10) + 1,
            300_000,
            MIB,
            MIB + 1,
            3 * MIB,
        ] {
            let body = noise(size);
            gate.warm().await;
            gate.control().clear_record();
            gate.control().revoke(DEFAULT_APPID);
            let answer = said(with_body(gate.post(ANY), &body, sent)).await;
            assert!(
                answer.is_fine() && answer.attempts == "2",
                "{sent:?} {size}: {answer:?}"
            );
            assert_sent_twice(
                &gate.control().requests(ANY),
                &body,
                &format!("{sent:?} {size}"),
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_eight_megabytes_is_replayed_byte_for_byte() {
    let (form, file) = form(8 * MIB);
    for sent in [Sent::Length, Sent::Chunks] {
        let gate = revoked(setup()).await;
        let answer = upload(&gate, &form, sent).await;
        assert!(
            answer.is_fine() && answer.attempts == "2",
            "{sent:?}: {answer:?}"
        );
        assert_sent_twice(
            &gate.control().requests(UPLOAD),
            &form,
            &format!("{sent:?}"),
        );
        let uploads = gate.control().uploads();
        assert_eq!(uploads.len(), 1, "{sent:?}: taken once");
        assert_eq!(
            (uploads[0].length, &uploads[0].sha256),
            (file.len() as u64, &sha256(&file)),
            "{sent:?}"
        );
        assert_eq!(gate.control().fetches(), 1, "{sent:?}");
    }
}

/// What the caller said of its body is what WeChat hears, the second time too.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_repeats_method_query_and_headers_and_changes_nothing_but_the_token() {
    let gate = revoked(setup()).await;
    let request = gate
        .post("/wxa/anything?a=1&b=%2F+%27&access_token=mine&a=2")
        .header("wechatmp-signature", "s+/=");
    let answer = said(
        request
            .header("content-type", "application/x-thing")
            .body("{\"x\": \"\u{4f60}\"}"),
    )
    .await;
    assert!(answer.is_fine() && answer.attempts == "2", "{answer:?}");
    let records = gate.control().requests(ANY);
    let rest = |record: &RecordedRequest| {
        let query = record.query.clone().expect("a query");
        let (token, rest) = query.split_once('&').expect("more than a token");
        (
            token
                .strip_prefix("access_token=")
                .expect("the token comes first")
                .to_owned(),
            rest.to_owned(),
        )
    };
    let ((first, rest_1), (second, rest_2)) = (rest(&records[0]), rest(&records[1]));
    assert_ne!(first, second, "another token");
    assert_eq!(
        (rest_1.as_str(), rest_2.as_str()),
        ("a=1&b=%2F+%27&a=2", "a=1&b=%2F+%27&a=2")
    );
    assert_eq!((records[0].token_params, records[1].token_params), (1, 1));
    assert_eq!(records[0].headers, records[1].headers);
    assert_eq!(records[1].header("wechatmp-signature"), Some("s+/="));
    assert_eq!(
        records[1].header("content-type"),
        Some("application/x-thing")
    );
    assert_eq!(
        (records[0].method.as_str(), records[1].method.as_str()),
        ("POST", "POST")
    );
}

/// Pitfall: above some size the retry is silently off (Envoy, Contour).
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_no_copy_can_be_kept_of_is_not_replayed_and_the_answer_says_why() {
    let gate = revoked(
        setup()
            .set("replay", "disk = \"0\"")
            .set("replay", "memory = \"256KiB\""),
    )
    .await;
    let stale = r#"{"errcode":40001,"errmsg":"invalid credential rid: 7"}"#;
    gate.control().fault(Rule::new(
        ANY,
        Fault::respond(200, "application/json", stale),
    ));
    let body = noise(2 * MIB);
    let answer = said(with_body(gate.post(ANY), &body, Sent::Length)).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, stale),
        "WeChat's own bytes"
    );
    assert_eq!(
        (answer.attempts.as_str(), answer.replay.as_str()),
        ("1", "skipped; reason=body_too_large")
    );
    let records = gate.control().requests(ANY);
    assert_eq!(
        (records.len(), records[0].body_sha256.as_str()),
        (1, sha256(&body).as_str()),
        "the stream was whole"
    );
    // All others need a token that works, so it is replaced without being asked for again.
    until(gate.control(), "the refresh", |control| {
        control.fetches() == 1
    })
    .await;
    let next = get(&gate, "/cgi-bin/user/info?openid=a").await;
    assert!(next.is_fine(), "{next:?}");
    assert_eq!(gate.control().fetches(), 1);
    // Small ones are replayed as ever.
    gate.control().revoke(DEFAULT_APPID);
    let small = said(with_body(gate.post(ANY), &noise(200_000), Sent::Length)).await;
    assert!(small.is_fine() && small.attempts == "2", "{small:?}");
}

/// A chunked body has to be read first to learn its length; one that does not fit is refused before
/// WeChat hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_that_cannot_be_kept_is_refused_with_the_settings_to_change() {
    let gate = setup()
        .set("replay", "disk = \"0\"")
        .set("replay", "memory = \"256KiB\"")
        .start()
        .await;
    gate.warm().await;
    let answer = said(with_body(gate.post(ANY), &noise(MIB), Sent::Chunks)).await;
    assert_eq!(
        (answer.status, answer.error.as_str(), answer.errcode()),
        (413, "body_too_large", Some(990_413))
    );
    for setting in ["replay.disk", "Content-Length"] {
        assert!(answer.text().contains(setting), "{}", answer.text());
    }
    assert_eq!(gate.control().path(ANY).requests, 0);
    let fits = said(with_body(gate.post(ANY), &noise(256 << 10), Sent::Chunks)).await;
    assert!(fits.is_fine(), "{fits:?}");
}

/// `memory_total` bounds all copies together; beyond it they go to disk, and without a disk they
/// are not kept.
#[tokio::test(flavor = "multi_thread")]
async fn copies_beyond_the_memory_of_all_together_go_to_disk() {
    for (disk, outcome) in [
        ("32MiB", ("2", "")),
        ("0", ("1", "skipped; reason=body_too_large")),
    ] {
        let setup = setup()
            .set("replay", "memory_total = \"1MiB\"")
            .set("replay", &format!("disk = \"{disk}\""));
        let gate = setup.start().await;
        gate.warm().await;
        let first = gate
            .control()
            .fault(Rule::new("/wxa/first", Fault::Pass).hold());
        let holder = spawned(with_body(
            gate.post("/wxa/first"),
            &noise(700 << 10),
            Sent::Length,
        ));
        until(gate.control(), "the first body", |control| {
            control.hits(first) == 1
        })
        .await;
        gate.control().revoke(DEFAULT_APPID);
        let body = noise(600 << 10);
        let second = said(with_body(gate.post(ANY), &body, Sent::Length)).await;
        assert_eq!(
            (second.attempts.as_str(), second.replay.as_str()),
            outcome,
            "disk = {disk}"
        );
        assert!(
            gate.control()
                .requests(ANY)
                .iter()
                .all(|record| record.body_sha256 == sha256(&body)),
            "disk = {disk}"
        );
        gate.control().release(first);
        assert!(joined(holder).await.is_fine());
        // What the first one took is free again.
        assert!(get(&gate, "/cgi-bin/user/info?openid=a").await.is_fine());
        gate.control().revoke(DEFAULT_APPID);
        let third = said(with_body(gate.post(ANY), &body, Sent::Length)).await;
        assert!(
            third.is_fine() && third.attempts == "2",
            "disk = {disk}: {third:?}"
        );
    }
}

/// Many uploads at once, all refused: each gets its own body back, none another one's.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_replayed_together_do_not_mix() {
    let gate = revoked(
        setup()
            .set("replay", "memory_total = \"2MiB\"")
            .set("replay", "memory = \"512KiB\""),
    )
    .await;
    let bodies: Vec<_> = (0..24)
        .map(|n| [vec![n; 7], noise(50_000 * usize::from(n))].concat())
        .collect();
    let calls: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| {
            let sent = if n % 2 == 0 {
                Sent::Length
            } else {
                Sent::Chunks
            };
            spawned(with_body(
                gate.post(&format!("/wxa/upload-{n}")),
                body,
                sent,
            ))
        })
        .collect();
    for call in calls {
        let answer = joined(call).await;
        assert!(answer.is_fine(), "{answer:?}");
    }
    for (n, body) in bodies.iter().enumerate() {
        let records = gate.control().requests(&format!("/wxa/upload-{n}"));
        assert!(
            records
                .iter()
                .all(|record| record.body_sha256 == sha256(body)),
            "upload {n}"
        );
        assert_eq!(
            records.iter().filter(|record| record.executed).count(),
            1,
            "upload {n}"
        );
    }
    assert_eq!(gate.control().fetches(), 1);
}
