//! Every shape in which WeChat says that a token is stale, and everything that looks like it and is
//! not.
//!
//! The first are cured unseen, the second reach the caller byte for byte and cost no fetch.

use std::io::Read as _;

use wxgate::sandbox::{DEFAULT_APPID, ErrorShape, Fault, JsonShape, Response, Rule, TokenKind};

use crate::support::{
    Gate, setup,
    token_tools::{Said, appid, get, said, warm_account, with_accounts},
};

/// What WeChat has said over the years for one and the same thing.
const WORDINGS: [(i64, &str); 8] = [
    (
        40001,
        "invalid credential, access_token is invalid or not latest, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 6aac0063-7ed08fb9-1250f724",
    ),
    (
        40001,
        "invalid credential, access_token is invalid or not latest rid: 6141b79a-7c6e812d-5514c622",
    ),
    (
        40001,
        "invalid credential, access_token is invalid or not latest hint: [9.ZaUa0975vr21]",
    ),
    (
        42001,
        "access_token expired rid: 68aeab00-00000000-00000000",
    ),
    (42001, "access_token expired hint: [xJzlnA0121vr63!]"),
    (
        42001,
        "access_token expired, hint: [1576065934_28_x], from ip: 9.30.0.138, more info at https://open.work.weixin.qq.com/devtool/query?e=42001",
    ),
    (40014, "invalid access_token"),
    (40001, ""),
];

fn shaped(shape: JsonShape) -> ErrorShape {
    ErrorShape {
        shape,
        ..ErrorShape::new(40001)
    }
}

fn typed(content_type: &str) -> ErrorShape {
    ErrorShape {
        content_type: Some(content_type.to_owned()),
        ..ErrorShape::new(42001)
    }
}

fn with_prefix(prefix: &str) -> ErrorShape {
    ErrorShape {
        prefix: prefix.to_owned(),
        ..ErrorShape::new(40001)
    }
}

fn chunked(size: u64) -> ErrorShape {
    ErrorShape {
        chunked: Some(size),
        ..ErrorShape::new(40001)
    }
}

/// Name, shape.
fn cured() -> Vec<(String, Fault)> {
    let gzip = ErrorShape {
        gzip: true,
        ..ErrorShape::new(42001)
    };
    let shapes = [
        ("errcode first", shaped(JsonShape::Plain)),
        ("errcode last", shaped(JsonShape::CodeLast)),
        ("errcode as a string", shaped(JsonShape::StringCode)),
        (
            "errcode with a fraction of zero",
            shaped(JsonShape::FloatCode),
        ),
        (
            "in base_resp, as device APIs have it",
            shaped(JsonShape::BaseResp),
        ),
        ("behind data", shaped(JsonShape::AfterData)),
        ("an escaped key", shaped(JsonShape::EscapedKey)),
        ("blanks and line ends", shaped(JsonShape::Spaced)),
        (
            "raw control characters in a text",
            shaped(JsonShape::ControlCharacters),
        ),
        (
            "the key twice, the last one counts",
            shaped(JsonShape::Twice),
        ),
        ("text/plain", typed("text/plain")),
        ("an error that claims to be a picture", typed("image/jpeg")),
        ("an error that claims to be sound", typed("audio/amr")),
        ("no content type", typed("")),
        (
            "application/json; encoding=utf-8",
            typed("application/json; encoding=utf-8"),
        ),
        ("text/html", typed("text/html")),
        ("gzip that nobody asked for", gzip.clone()),
        (
            "gzip in chunks",
            ErrorShape {
                chunked: Some(7),
                ..gzip
            },
        ),
        ("chunks of one byte", chunked(1)),
        ("one chunk", chunked(4096)),
        ("a byte order mark", with_prefix("\u{feff}")),
        ("blanks before", with_prefix(" \r\n\t ")),
        (
            "4096 bytes, padded before the code",
            ErrorShape {
                pad_to: 4096,
                pad_first: true,
                ..ErrorShape::new(40001)
            },
        ),
        (
            "4096 bytes, padded behind the code",
            ErrorShape {
                pad_to: 4096,
                ..ErrorShape::new(40001)
            },
        ),
    ];
    let shapes = shapes
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), Fault::Errcode(shape)));
    let wordings = WORDINGS.into_iter().map(|(code, message)| {
        (
            message.to_owned(),
            Fault::Errcode(ErrorShape {
                message: Some(message.to_owned()),
                ..ErrorShape::new(code)
            }),
        )
    });
    shapes.chain(wordings).collect()
}

/// Pitfalls: the code is looked for by content type, by a parser that fails on control characters,
/// by the words of one year, in plain text only, as a number only.
#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_a_stale_answer_is_cured_unseen() {
    let rows = cured();
    let gate = with_accounts(setup(), rows.len(), "").start().await;
    // Those of the rows, and `shop`.
    let all = u64::try_from(rows.len()).expect("a few") + 1;
    gate.control()
        .until(|control| control.fetches() >= all)
        .await;
    for (number, (name, fault)) in rows.into_iter().enumerate() {
        // The caller that takes gzip and the one that does not must fare alike.
        for (round, coding) in ["identity", "gzip, deflate, br"].into_iter().enumerate() {
            warm_account(&gate, number).await;
            gate.control().clear_record();
            gate.control().revoke(appid(number).as_str());
            gate.control()
                .fault(Rule::new("/cgi-bin/user/info", fault.clone()).account(appid(number)));
            let url = gate.url(&format!("/@a{number}/cgi-bin/user/info?openid=o6_b"));
            let answer = said(gate.client.get(url).header("accept-encoding", coding)).await;
            assert!(
                answer.is_fine() && answer.attempts == "2",
                "{name}, {coding}: {}",
                answer.text()
            );
            assert!(
                answer.text().contains("\"openid\":\"o6_b\""),
                "{name}: {}",
                answer.text()
            );
            assert_eq!(answer.replay, "", "{name}");
            assert_eq!(gate.control().fetches(), 1, "{name}, round {round}");
            let asked = gate.control().requests("/cgi-bin/user/info");
            let taken: Vec<_> = asked
                .iter()
                .map(|record| record.header("accept-encoding"))
                .collect();
            // An encoding that cannot be looked into would hide the next stale answer.
            let expected = if coding == "identity" {
                None
            } else {
                Some("gzip")
            };
            assert_eq!(taken, [expected, expected], "{name}");
        }
    }
}

/// A stale answer that trickles in is held back until it can be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_that_comes_byte_by_byte_is_cured_unseen() {
    let gate = setup().start().await;
    for chunked in [false, true] {
        gate.warm().await;
        gate.control().revoke(DEFAULT_APPID);
        let every = std::time::Duration::from_millis(2);
        gate.control().fault(Rule::new(
            "/cgi-bin/menu/get",
            Fault::Drip {
                bytes: 1,
                every,
                chunked,
            },
        ));
        let answer = get(&gate, "/cgi-bin/menu/get").await;
        assert!(
            answer.is_fine() && answer.attempts == "2",
            "chunked {chunked}: {}",
            answer.text()
        );
    }
}

/// A download that fails: a stale answer in place of a picture must not be stored as a .jpg, and
/// the picture of the replay comes whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_gets_its_picture_although_the_token_was_dead() {
    let gate = setup().start().await;
    gate.warm().await;
    let picture = get(&gate, "/cgi-bin/media/get?media_id=blob-300000").await;
    assert_eq!((picture.status, picture.body.len()), (200, 300_000));
    gate.control().revoke(DEFAULT_APPID);
    let again = get(&gate, "/cgi-bin/media/get?media_id=blob-300000").await;
    assert_eq!(again.attempts, "2");
    assert!(again.body == picture.body, "the same bytes");
    gate.control().revoke(DEFAULT_APPID);
    let code = said(
        gate.post("/wxa/getwxacodeunlimit")
            .json(&serde_json::json!({"scene": "a=1"})),
    )
    .await;
    assert_eq!((code.status, code.attempts.as_str()), (200, "2"));
    assert!(code.body.starts_with(&[0xff, 0xd8, 0xff]), "a picture");
}

fn plain(body: &str) -> Response {
    Response {
        body: body.to_owned(),
        content_type: "application/json".to_owned(),
        ..Response::default()
    }
}

fn file(body: &str, disposition: &str) -> Response {
    Response {
        headers: vec![("Content-Disposition".to_owned(), disposition.to_owned())],
        ..plain(body)
    }
}

const STALE: &str = r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest rid: 1"}"#;

/// Name, answer. None of them says that our token is stale.
fn let_through() -> Vec<(&'static str, Response)> {
    let large = format!(r#"{{"data":"{}","errcode":40001}}"#, "x".repeat(4100));
    let mut rows = vec![
        (
            "deeper inside",
            plain(r#"{"errcode":0,"errmsg":"ok","data":{"errcode":40001}}"#),
        ),
        (
            "in a list",
            plain(r#"{"list":[{"errcode":40001},{"errcode":42001}]}"#),
        ),
        (
            "two levels of base_resp",
            plain(r#"{"base_resp":{"base_resp":{"errcode":40001}}}"#),
        ),
        // A cloud function's own answer travels as text in resp_data.
        (
            "in a text",
            plain(
                r#"{"errcode":0,"errmsg":"ok","resp_data":"{\"errcode\":40001,\"errmsg\":\"x\"}"}"#,
            ),
        ),
        (
            "in a text without a code outside",
            plain(r#"{"resp_data":"{\"errcode\":40001}"}"#),
        ),
        (
            "in the words of an article",
            plain(r#"{"content":"errcode 40001 access_token expired 42001","errcode":0}"#),
        ),
        ("a list at the top", plain(r#"[{"errcode":40001}]"#)),
        (
            "a page",
            Response {
                content_type: "text/html".to_owned(),
                ..plain("<html>\"errcode\":40001</html>")
            },
        ),
        ("more than 4 KiB", plain(&large)),
        (
            "the code first, then more than 4 KiB",
            Response {
                pad_to: 5000,
                ..plain(STALE)
            },
        ),
        (
            "more than 4 KiB in chunks",
            Response {
                chunked: Some(100),
                ..plain(&large)
            },
        ),
        (
            "binary with the words in it",
            Response {
                content_type: "image/png".to_owned(),
                ..plain("\u{7f}PNG\u{1}\u{0} {\"errcode\":40001}")
            },
        ),
        (
            "a gzip bomb that begins as an error",
            Response {
                gzip: true,
                pad_to: 4 << 20,
                ..plain(STALE)
            },
        ),
        (
            "status 500",
            Response {
                status: 500,
                ..plain(STALE)
            },
        ),
        (
            "status 404",
            Response {
                status: 404,
                ..plain(STALE)
            },
        ),
        (
            "status 403",
            Response {
                status: 403,
                ..plain(STALE)
            },
        ),
        ("an empty answer", plain("")),
        ("an empty object", plain("{}")),
        (
            "a file that somebody uploaded",
            file(STALE, "attachment; filename=\"token.json\""),
        ),
        (
            "a file in gzip",
            Response {
                gzip: true,
                ..file(STALE, "Attachment")
            },
        ),
        // Advertising and data interfaces have codes of their own under this name.
        ("a ret", plain(r#"{"ret":40001,"err_msg":"x"}"#)),
        (
            "a ret in base_resp",
            plain(r#"{"base_resp":{"ret":42001,"err_msg":"x"}}"#),
        ),
        ("not quite a code", plain(r#"{"errcode":400010}"#)),
        ("another key", plain(r#"{"Errcode":40001,"code":42001}"#)),
    ];
    // Codes around the three: another token, a user's code, a permission, a quota, a busy WeChat.
    const OTHERS: [&str; 16] = [
        "0", "-1", "41001", "42002", "42003", "42006", "42007", "42009", "40029", "40163", "40013",
        "40164", "45009", "48001", "61007", "61014",
    ];
    rows.extend(OTHERS.into_iter().map(|code| {
        (
            code,
            plain(&format!(r#"{{"errcode":{code},"errmsg":"no"}}"#)),
        )
    }));
    rows
}

/// Pitfalls: a substring match for the code, a refresh on every error, a download held in memory, a
/// bomb unpacked.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_stale_answer_reaches_the_caller_unchanged_and_costs_nothing() {
    let gate = setup().start().await;
    gate.warm().await;
    for (name, response) in let_through() {
        gate.control().clear_record();
        gate.control().fault(Rule::new(
            "/tcb/invokecloudfunction",
            Fault::Respond(response.clone()),
        ));
        let answer = said(
            gate.post("/tcb/invokecloudfunction?env=e&name=n")
                .body("{}"),
        )
        .await;
        assert_eq!(
            (answer.attempts.as_str(), answer.replay.as_str()),
            ("1", ""),
            "{name}"
        );
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (response.status, ""),
            "{name}"
        );
        assert_eq!(
            unpacked(&answer, response.gzip),
            expected(&response),
            "{name}"
        );
        let control = gate.control();
        assert_eq!(
            (
                control.fetches(),
                control.path("/tcb/invokecloudfunction").requests
            ),
            (0, 1),
            "{name}"
        );
        assert_eq!(
            control.path("/cgi-bin/get_api_domain_ip").requests,
            0,
            "{name}: no probe either"
        );
    }
    let after = get(&gate, "/cgi-bin/user/info?openid=a").await;
    assert!(
        after.is_fine() && after.attempts == "1",
        "the token is still the first one: {after:?}"
    );
    assert_eq!(gate.control().fetches(), 0);
}

fn expected(response: &Response) -> Vec<u8> {
    let mut body = response.body.clone().into_bytes();
    body.resize(body.len().max(response.pad_to), b' ');
    body
}

fn unpacked(answer: &Said, gzip: bool) -> Vec<u8> {
    if !gzip {
        return answer.body.clone();
    }
    let mut body = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..])
        .read_to_end(&mut body)
        .expect("the bytes that WeChat sent");
    body
}

/// `sns/userinfo` takes a *user's* token under the same name. Its 40001 says nothing about the
/// account's token.
#[tokio::test(flavor = "multi_thread")]
async fn a_users_own_token_is_kept_and_its_refusal_refreshes_nothing() {
    let gate = setup().start().await;
    gate.warm().await;
    let login = get(&gate, "/sns/oauth2/access_token?appid=wx0123456789abcdef&secret=sandbox0sandbox0sandbox0sandbox0&code=c1&grant_type=authorization_code").await;
    let login: serde_json::Value = serde_json::from_slice(&login.body).expect("JSON");
    let user_token = login["access_token"]
        .as_str()
        .expect("a user's token")
        .to_owned();
    let good = format!("/sns/userinfo?access_token={user_token}&openid=o1&lang=zh_CN");
    let answer = get(&gate, &good).await;
    assert!(
        answer.is_fine() && answer.text().contains("\"openid\":\"o1\""),
        "{answer:?}"
    );
    let bad = get(&gate, "/sns/userinfo?access_token=user_dead&openid=o1").await;
    assert_eq!(
        (bad.status, bad.errcode(), bad.attempts.as_str()),
        (200, Some(40001), "1")
    );
    assert_eq!(bad.replay, "");
    let auth = get(&gate, "/sns/auth?access_token=user_dead&openid=o1").await;
    assert_eq!((auth.errcode(), auth.attempts.as_str()), (Some(40001), "1"));
    assert_eq!(gate.control().fetches(), 1, "only the one at the start");
    let queries: Vec<_> = gate
        .control()
        .requests("/sns/*")
        .into_iter()
        .filter_map(|record| record.query)
        .collect();
    assert_eq!(
        queries,
        [
            format!("access_token={user_token}&openid=o1&lang=zh_CN"),
            "access_token=user_dead&openid=o1".to_owned(),
            "access_token=user_dead&openid=o1".to_owned(),
        ]
    );
    let ours = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("there is one");
    assert!(
        queries.iter().all(|query| !query.contains(&ours)),
        "the account's token went nowhere"
    );
}

/// The answer that could not be cured is WeChat's own, in the shape in which it came.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_that_cannot_be_cured_keeps_its_bytes_and_headers() {
    let gate = setup().start().await;
    gate.warm().await;
    for (name, response) in [
        ("plain", plain(STALE)),
        (
            "odd spacing",
            plain("\u{feff} {\r\n\"errmsg\":\"a\u{1}b\",\"errcode\" : \"40001\" }\r\n"),
        ),
        (
            "text/plain",
            Response {
                content_type: "text/plain".to_owned(),
                ..plain(STALE)
            },
        ),
        (
            "gzip",
            Response {
                gzip: true,
                ..plain(STALE)
            },
        ),
        (
            "byte by byte",
            Response {
                chunked: Some(1),
                ..plain(STALE)
            },
        ),
    ] {
        let with_header = Response {
            headers: vec![("LogicRet".to_owned(), "40001".to_owned())],
            ..response.clone()
        };
        // A path of its own each time: one that lied before is not asked about again.
        let path = format!("/wxa/{}", name.replace([' ', '/'], "_"));
        gate.control()
            .fault(Rule::new(&path, Fault::Respond(with_header)).always());
        let raw = gate
            .client
            .get(gate.url(&path))
            .send()
            .await
            .expect("the proxy answers");
        assert_eq!(raw.headers()["logicret"], "40001", "{name}");
        assert_eq!(
            raw.headers()["content-type"],
            response.content_type,
            "{name}"
        );
        let answer = Said::of(raw).await;
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(
            unpacked(&answer, response.gzip),
            expected(&response),
            "{name}"
        );
        assert!(
            answer.replay.starts_with("skipped; reason="),
            "{name}: {answer:?}"
        );
        warm_again(&gate).await;
    }
}

async fn warm_again(gate: &Gate) {
    let answer = get(gate, "/cgi-bin/user/info?openid=between").await;
    assert!(answer.is_fine() && answer.attempts == "1", "{answer:?}");
}
