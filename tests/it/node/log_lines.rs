//! Lines of the log as a collector reads them: JSON by a parser of JSON, text by a parser of logfmt,
//! and in both the values that were meant.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;
use wxgate::sandbox::{self, Fault, Rule};

use crate::support::{
    client, logfmt,
    program::{LIMIT, Program, folder, serve},
    setup,
};

const CLIENT: &str =
    "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n";

/// Denied calls: no key, or a path that must be named in `allow`.
const DENIED: [(&str, &str); 4] = [
    ("/cgi-bin/clear_quota", "crm-key-0123456789"),
    ("/cgi-bin/menu/get", ""),
    ("/cgi-bin/a=b", ""),
    ("/cgi-bin/{'msg':'x'}", ""),
];

/// Asks over a connection of its own and waits for the whole answer.
fn ask(proxy: SocketAddr, path: &str, key: &str) {
    let mut stream = TcpStream::connect(proxy).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "POST {path}?openid=1&x=2 HTTP/1.1\r\nHost: h\r\nX-Wxgate-Key: {key}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
}

/// Everything that a program wrote while it was started, denied calls and was stopped.
async fn log(format: &str) -> String {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup().more(CLIENT), &sandbox);
    let program = Program::start(serve(folder.path()).env("WXGATE_LOG_FORMAT", format));
    let proxy = program.proxy();
    program.logged("new access token");
    tokio::task::spawn_blocking(move || {
        for (path, key) in DENIED {
            ask(proxy, path, key);
        }
    })
    .await
    .expect("no panic");
    let ended = program.stop();
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_paths_are_the_same_in_json_and_in_text() {
    let json: Vec<Value> = log("json")
        .await
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let text: Vec<(String, BTreeMap<String, String>)> = log("text")
        .await
        .lines()
        .map(|line| match logfmt::parse(line) {
            Ok(pairs) => (line.to_owned(), pairs),
            Err(error) => panic!("{error}: {line}"),
        })
        .collect();
    for target in ["audit", "access"] {
        let asked: Vec<&str> = DENIED.iter().map(|(path, _)| *path).collect();
        let in_json = json.iter().filter(|line| line["target"] == target);
        let paths: Vec<&str> = in_json.filter_map(|line| line["path"].as_str()).collect();
        assert_eq!(paths, asked, "{target} in JSON");
        let label = format!(" {target}: ");
        let in_text = text.iter().filter(|(line, _)| line.contains(&label));
        let paths: Vec<&str> = in_text.map(|(_, pairs)| pairs["path"].as_str()).collect();
        assert_eq!(paths, asked, "{target} in text");
    }
    let access = text.iter().find(|(line, _)| line.contains(" access: "));
    let (_, pairs) = access.expect("a line for each request");
    for (name, value) in [
        ("method", "POST"),
        ("query", "openid=…&x=…"),
        ("status", "403"),
        ("outcome", "endpoint_blocked"),
        ("client", "crm"),
    ] {
        assert_eq!(pairs[name], value, "{pairs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_names_the_id_and_the_account() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(serve(folder.path()).env("WXGATE_LOG_FORMAT", "json"));
    let base = format!("http://{}", program.proxy());
    program.logged("new access token");
    let reset = Fault::Reset { executed: false };
    sandbox
        .control()
        .fault(Rule::new("/cgi-bin/menu/get", reset).times(2));
    let cut = Fault::Cut {
        after: 9,
        chunked: false,
        end: sandbox::Ending::default(),
    };
    sandbox.control().fault(Rule::new("/cgi-bin/tags/get", cut));
    let foreign = format!("/cgi-bin/user/get?access_token={}", "f".repeat(100));
    let hops = ["proxy"; 40].join(", ");
    let calls = [
        (
            "reset-1",
            "/cgi-bin/menu/get",
            "",
            "upstream failed",
            "shop",
        ),
        ("cut-1", "/cgi-bin/tags/get", "", "upstream failed", "shop"),
        ("foreign-1", &foreign, "", "did not hand out", "shop"),
        ("loop-1", "/cgi-bin/user/get", &hops, "has come back", ""),
    ];
    for (id, path, hops, _, _) in calls {
        let mut request = client()
            .get(format!("{base}{path}"))
            .header("x-request-id", id);
        if !hops.is_empty() {
            request = request.header("cdn-loop", hops);
        }
        request.send().await.expect("an answer");
    }
    let ended = program.stop();
    for (id, _, _, message, account) in calls {
        let warned = ended.stderr.lines().find_map(|line| {
            let line: Value = serde_json::from_str(line).expect(line);
            (line["level"] == "WARN" && line["id"] == id).then_some(line)
        });
        let line = warned.unwrap_or_else(|| panic!("{id} is not in {}", ended.stderr));
        let text = line["message"].as_str().expect("a text");
        assert!(text.contains(message), "{line}");
        assert_eq!(
            line["account"].as_str().unwrap_or_default(),
            account,
            "{line}"
        );
    }
}
