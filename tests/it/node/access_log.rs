//! The access log: one request, one line, whatever the request looks like; and no value that a
//! caller sent.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::Value;
use wxgate::sandbox;

use crate::support::{
    header, logfmt,
    program::{LIMIT, Program, folder, serve},
    setup, start,
    wire::Caller,
};

/// What stands in every value that the clients below send; upper case, so that it cannot be part of
/// anything else.
const PLANTED: &str = "PLANTEDVALUE";

/// A hostile request as bytes; hyper takes most of them for HTTP.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![8 => Just("GET".to_owned()), 2 => Just("POST".to_owned()), 1 => "[A-Z!#$%&'*+.^_`|~-]{1,12}"];
    // Everything that may stand in a request target, quotes and bytes above ASCII among it, and
    // rarely what may not.
    let piece = prop_oneof![
        8 => "[a-z./@%'{}|~;:!$&()*+,=-]{0,20}".prop_map(String::into_bytes),
        1 => "[\u{80}-\u{2fff}\"]{1,4}".prop_map(String::into_bytes),
        4 => Just(b"cgi-bin/user/info".to_vec()),
        2 => Just(b"%0d%0aX:y%00%1b[31m".to_vec()),
        1 => Just(b"\xe2\x80\xa8".to_vec()),
        1 => "[ \\\\^`<>]{1,2}".prop_map(String::into_bytes),
    ];
    let query = prop_oneof![
        1 => Just(Vec::new()),
        3 => (piece.clone(), "[a-z_%'{}]{1,12}").prop_map(|(odd, name)| {
            let mut query = format!("?{name}={PLANTED}&access_token={PLANTED}&x%3D{PLANTED}&").into_bytes();
            query.extend(odd);
            query.extend(format!("={PLANTED}").into_bytes());
            query
        }),
    ];
    let value = prop_oneof![
        2 => "[ -~]{0,60}".prop_map(String::into_bytes),
        1 => prop::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8], 0..60),
        1 => Just(b"a\"b\\c".to_vec()),
    ];
    let name = prop_oneof![
        Just("X-Request-Id"),
        Just("User-Agent"),
        Just("X-Forwarded-For"),
        Just("Referer")
    ];
    (method, piece, query, name, value).prop_map(|(method, path, query, name, value)| {
        let mut request = format!("{method} /").into_bytes();
        request.extend(path);
        request.extend(query);
        request.extend(
            format!(" HTTP/1.1\r\nHost: x\r\nX-Secret: {PLANTED}\r\nContent-Length: 0\r\n{name}: ")
                .into_bytes(),
        );
        request.extend(value);
        request.extend(b"\r\n\r\n");
        request
    })
}

/// Sends requests over a kept connection, one after the other, and returns the ids of the answers
/// and how many connections it took: what is no HTTP at all is answered by closing.
fn send(proxy: SocketAddr, count: usize) -> (Vec<String>, usize) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = hostile();
    let (mut ids, mut connections) = (Vec::new(), 0);
    let mut stream = None;
    while ids.len() < count {
        let request = strategy.new_tree(&mut runner).expect("a request").current();
        let mut connection = stream.take().unwrap_or_else(|| {
            connections += 1;
            let stream = TcpStream::connect(proxy).expect("the proxy listens");
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        });
        connection.write_all(&request).expect("written");
        let (head, whole) = answer(&mut connection);
        if let Some(id) = head
            .lines()
            .find_map(|line| line.strip_prefix("x-request-id: "))
        {
            ids.push(id.to_owned());
        }
        if whole && !head.contains("\r\nconnection: close") {
            stream = Some(connection);
        }
    }
    (ids, connections)
}

/// The head of an answer, and whether its body came whole.
fn answer(stream: &mut TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_none_or(|length| bytes.len() >= end + 4 + length) {
                return (head, length.is_some());
            }
        }
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => bytes.extend_from_slice(&buffer[..count]),
            _ => return (String::from_utf8_lossy(&bytes).into_owned(), false),
        }
    }
}

fn keys(line: &Value) -> Vec<&str> {
    line.as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hostile_requests_make_ten_thousand_json_lines() {
    const COUNT: usize = 10_000;
    let gate = start().await;
    gate.warm().await;
    let proxy = gate.proxy;
    let (ids, connections) = tokio::task::spawn_blocking(move || send(proxy, COUNT))
        .await
        .expect("no panic");
    assert!(
        connections < COUNT / 4,
        "{connections} connections: too much of it was no HTTP"
    );
    let (_, log) = gate.stop().await;
    assert!(
        !log.contains(PLANTED),
        "{}",
        log.lines()
            .find(|line| line.contains(PLANTED))
            .unwrap_or_default()
    );
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert_eq!(lines.len(), COUNT + 1, "one for each, and the first call");
    let mut logged: Vec<&str> = lines
        .iter()
        .skip(1)
        .map(|line| line["id"].as_str().expect("an id"))
        .collect();
    let mut answered: Vec<&str> = ids.iter().map(String::as_str).collect();
    // Lines of several workers are written in batches.
    logged.sort_unstable();
    answered.sort_unstable();
    assert_eq!(logged, answered);
    let outcomes: HashSet<_> = lines
        .iter()
        .map(|line| line["outcome"].as_str().expect("an outcome"))
        .collect();
    assert!(
        outcomes.contains("ok") && outcomes.contains("bad_request"),
        "{outcomes:?}"
    );
    for line in &lines {
        let fields = keys(line);
        for key in [
            "timestamp",
            "method",
            "path",
            "status",
            "outcome",
            "account",
            "client",
            "attempts",
            "ms",
            "id",
        ] {
            assert!(fields.contains(&key), "{key} is not in {line}");
        }
        assert!(
            line.to_string()
                .bytes()
                .all(|b| (0x20..0x7f).contains(&b) || b >= 0x80),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_stay_one_line_each_in_text_too() {
    const COUNT: usize = 2000;
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(serve(folder.path()).env("WXGATE_LOG", "trace"));
    let proxy = program.proxy();
    program.logged("new access token");
    let (ids, _) = tokio::task::spawn_blocking(move || send(proxy, COUNT))
        .await
        .expect("no panic");
    let ended = program.stop();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(PLANTED));
    let mut logged = Vec::new();
    for line in ended.stderr.lines() {
        assert!(
            line.starts_with("20") && line.chars().all(|c| !c.is_control() && c != '\u{2028}'),
            "{line:?}"
        );
        assert!(
            logfmt::parse(line).is_ok(),
            "{:?}: {line}",
            logfmt::parse(line)
        );
        if line.contains(" access: ") {
            logged.push(line.rsplit_once(" id=").expect("an id").1.to_owned());
        }
    }
    let mut answered = ids;
    logged.sort_unstable();
    answered.sort_unstable();
    assert_eq!(logged, answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_tells_who_what_and_how_it_went() {
    let gate = start().await;
    gate.warm().await;
    gate.control().revoke(sandbox::TokenFilter::default());
    let request = gate
        .send_message("o1")
        .query(&[("lang", PLANTED)])
        .header("x-request-id", "mine-1");
    assert_eq!(
        header(&request.send().await.expect("an answer"), "x-request-id"),
        "mine-1"
    );
    gate.client
        .get(gate.url("/@nobody/cgi-bin/user/get"))
        .send()
        .await
        .expect("an answer");
    let (_, log) = gate.stop().await;
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let cured = &lines[1];
    for (key, value) in [
        ("method", "POST"),
        ("path", "/cgi-bin/message/custom/send"),
        ("query", "lang=…"),
        ("account", "shop"),
        ("client", "network"),
        ("caller", "127.0.0.1"),
        ("outcome", "ok"),
        ("id", "mine-1"),
        ("level", "INFO"),
        ("target", "access"),
    ] {
        assert_eq!(cured[key], value, "{cured}");
    }
    assert_eq!(
        (
            cured["status"].as_u64(),
            cured["attempts"].as_u64(),
            cured["errcode"].as_i64()
        ),
        (Some(200), Some(2), Some(0))
    );
    assert!(cured["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{cured}");
    assert_eq!(
        (&lines[2]["outcome"], &lines[2]["account"]),
        (&"account_unknown".into(), &"-".into()),
        "{}",
        lines[2]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_caller_went_away_is_logged_and_counted_too() {
    let gate = start().await;
    gate.warm().await;
    let rule = gate
        .control()
        .fault(sandbox::Rule::new("/cgi-bin/user/get", sandbox::Fault::Pass).hold());
    let mut caller = Caller::connect(gate.proxy).await;
    caller
        .write("GET /cgi-bin/user/get HTTP/1.1\r\nHost: gate\r\nX-Request-Id: gone\r\n\r\n")
        .await;
    let arrived = gate.control().until(|control| control.hits(rule) == 1);
    tokio::time::timeout(LIMIT, arrived)
        .await
        .expect("the request arrives");
    caller.reset();
    let counted =
        "wxgate_requests_total{account=\"shop\",client=\"network\",outcome=\"abandoned\"} 1";
    let asking = async {
        loop {
            let page = gate
                .client
                .get(gate.admin_url("/metrics"))
                .send()
                .await
                .expect("an answer");
            if page.text().await.expect("text").contains(counted) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, asking)
        .await
        .expect("it is counted");
    let (ended, log) = gate.stop().await;
    assert!(ended.is_ok());
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let gone = lines
        .iter()
        .filter(|line| line["id"] == "gone")
        .collect::<Vec<_>>();
    assert_eq!(gone.len(), 1, "{log}");
    assert_eq!(
        (&gone[0]["outcome"], &gone[0]["status"]),
        (&"abandoned".into(), &499.into())
    );
    assert_eq!(gone[0]["attempts"], 1, "WeChat may have executed it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_leaves_the_access_log_out() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    for (filter, access, info) in [
        (None, true, true),
        (Some("access=off"), false, true),
        (Some("info,access=off"), false, true),
        (Some("error"), false, false),
        (Some("error,access=info"), true, false),
    ] {
        let mut command = serve(folder.path());
        // Where it stands is not logged at every level.
        let place = folder.path().join("data.sock");
        command.env("WXGATE_SERVER__LISTEN", format!("unix:{}", place.display()));
        command
            .envs(filter.map(|filter| ("WXGATE_LOG", filter)))
            .args(["--log-format", "json"]);
        let program = Program::start(&mut command);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(
                (*wxgate::internals::net::egress::Egress::default()
                    .tls()
                    .expect("roots"))
                .clone(),
            )
            .unix_socket(place.clone())
            .build()
            .expect("a client");
        let asking = async {
            while client
                .get("http://localhost/cgi-bin/user/get")
                .send()
                .await
                .is_err()
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, asking)
            .await
            .expect("it serves");
        let ended = program.stop();
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let lines: Vec<Value> = ended
            .stderr
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        let any = |target: &str| {
            lines.iter().any(|line| {
                line["target"]
                    .as_str()
                    .is_some_and(|t| t.starts_with(target))
            })
        };
        assert_eq!(
            (any("access"), any("wxgate")),
            (access, info),
            "{filter:?}: {}",
            ended.stderr
        );
    }
}
