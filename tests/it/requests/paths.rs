//! Paths, end to end over raw sockets: no spelling of a blocked endpoint passes, and what passes is
//! sent as it came.

use std::collections::BTreeSet;

use wxgate::sandbox::DEFAULT_APPID;

use crate::support::{Gate, raw::Wire, setup, start};

/// What would mint, reset or spend what all callers share.
const BLOCKED: [&str; 9] = [
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/gettoken",
    "/cgi-bin/clear_quota",
    "/cgi-bin/clear_quota/v2",
    "/cgi-bin/openapi/quota/clear",
    "/cgi-bin/component/clear_quota",
    "/cgi-bin/component/clear_quota/v2",
    "/cgi-bin/component/api_start_push_ticket",
];

/// Put in front of and behind every slash: each means a slash, a dot, nothing or an end to some
/// parser.
const ODDITIES: [&str; 52] = [
    "/",
    "./",
    "../",
    ".",
    "..",
    "x/../",
    "%2e/",
    "%2E/",
    "%2e%2e/",
    ".%2e/",
    "%2e.",
    "%252e/",
    "..;/",
    "..;x=1/",
    ";",
    ";x=1",
    ";/",
    "%3b",
    "%2f",
    "%2F",
    "%252f",
    "%5c",
    "%5C",
    "\\",
    "\\..\\",
    "%00",
    "%0d%0a",
    "%0a",
    "%09",
    "%20",
    "%zz",
    "%",
    "%2",
    "%c0%ae",
    "%c0%af",
    "%c1%9c",
    "%e0%80%af",
    "%u002f",
    "%ef%bc%8f",
    "%ef%bc%8e",
    "%e2%88%95",
    "@",
    ":",
    "+",
    ",",
    "*",
    "$",
    "'",
    "!",
    "(",
    "&",
    "=",
];

/// In front of the whole path.
const BEFORE: [&str; 16] = [
    "",
    "/",
    "//",
    "/.",
    "/..",
    "/x/..",
    "/%2e",
    "/%2e%2e",
    "/;",
    "\\",
    "/@shop",
    "//@shop/",
    "/@shop/..",
    "/@shop/%2e",
    "/@shop;",
    "/@wx0123456789abcdef",
];

/// Behind it. None ends in another name, which would be another, lawful path.
const BEHIND: [&str; 16] = [
    "",
    "/",
    "//",
    "/.",
    "/..",
    "/./",
    ";",
    ";x=1",
    "/;",
    "%20",
    "%00",
    "%2f",
    "\\",
    "?",
    "?grant_type=client_credential",
    "#x",
];

fn spellings(path: &str) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    let upper = path.to_ascii_uppercase();
    let mixed: String = path
        .char_indices()
        .map(|(i, c)| {
            if i % 2 == 0 {
                c.to_ascii_uppercase()
            } else {
                c
            }
        })
        .collect();
    for path in [path, &upper, &mixed] {
        for before in BEFORE {
            all.extend(
                BEHIND
                    .iter()
                    .map(|behind| format!("{before}{path}{behind}").into_bytes()),
            );
        }
    }
    for (index, byte) in path.bytes().enumerate() {
        let (head, tail) = (&path[..index], &path[index + 1..]);
        for encoded in [
            format!("%{byte:02x}"),
            format!("%{byte:02X}"),
            format!("%25{byte:02x}"),
            format!("%u00{byte:02x}"),
        ] {
            all.insert(format!("{head}{encoded}{tail}").into_bytes());
        }
        // A high bit that a careless parser drops.
        all.insert([head.as_bytes(), &[byte | 0x80], tail.as_bytes()].concat());
    }
    for (slash, _) in path.match_indices('/') {
        for oddity in ODDITIES {
            all.insert(format!("{}{oddity}{}", &path[..slash], &path[slash..]).into_bytes());
            all.insert(format!("{}/{oddity}{}", &path[..slash], &path[slash + 1..]).into_bytes());
        }
        for raw in [0x80, 0xc0, 0xff, b'\t', 0x01, 0x7f] {
            all.insert([&path.as_bytes()[..slash], &[raw], &path.as_bytes()[slash..]].concat());
        }
    }
    all.retain(|spelling| !is_another_path(spelling, path.as_bytes()));
    all
}

/// Whether a spelling is a plain path of its own, as `/..cgi-bin/token` is: the grammar, stated
/// once more.
fn is_another_path(spelling: &[u8], blocked: &[u8]) -> bool {
    let segments: Vec<&[u8]> = spelling
        .split(|byte| *byte == b'/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let plain = |segment: &&[u8]| {
        !matches!(*segment, b"." | b"..")
            && segment
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"_.~-".contains(b))
    };
    spelling.starts_with(b"/")
        && !spelling.ends_with(b"/")
        && segments.iter().all(plain)
        && !segments.join(&b'/').eq_ignore_ascii_case(&blocked[1..])
}

/// `http_proxy=` style, for hosts of ours and of others.
fn absolute(gate: &Gate, path: &str) -> Vec<Vec<u8>> {
    let port = gate.sandbox.https_addr().expect("TLS").port();
    let hosts = [
        "localhost".to_owned(),
        format!("LOCALHOST:{port}"),
        "api.weixin.qq.com".to_owned(),
    ];
    let schemes = ["http", "https", "HTTP"];
    let all = schemes.iter().flat_map(|scheme| {
        hosts
            .iter()
            .map(move |host| format!("{scheme}://{host}{path}").into_bytes())
    });
    all.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_blocked_endpoint_reaches_wechat() {
    let gate = start().await;
    gate.warm().await;
    let before = gate.control().counters().requests;
    let (mut sent, mut blocked, mut refused) = (0, 0, 0);
    for path in BLOCKED {
        let mut targets = spellings(path);
        targets.extend(absolute(&gate, path));
        assert!(
            targets.len() >= 300,
            "only {} spellings of {path}",
            targets.len()
        );
        let mut wire = Wire::connect(gate.proxy).await;
        for (index, target) in targets.into_iter().enumerate() {
            // The method must not matter.
            let (method, rest) = if index % 2 == 0 {
                ("GET", "\r\n")
            } else {
                ("POST", "Content-Length: 2\r\n\r\n{}")
            };
            let mut request = format!("{method} ").into_bytes();
            request.extend_from_slice(&target);
            request.extend_from_slice(format!(" HTTP/1.1\r\nHost: gate\r\n{rest}").as_bytes());
            let shown = target.escape_ascii().to_string();
            let reply = wire
                .ask(&request)
                .await
                .unwrap_or_else(|| panic!("no answer to {method} {shown}"));
            match (reply.status, reply.slug()) {
                (403, "endpoint_blocked") => blocked += 1,
                // A token endpoint: answered here, in WeChat's shape.
                (200, "") if reply.header("x-wxgate-attempts").is_empty() => blocked += 1,
                (400, _) => refused += 1,
                other => panic!("{method} {shown} got {other:?}"),
            }
            if reply.closes() {
                wire = Wire::connect(gate.proxy).await;
            }
            sent += 1;
        }
    }
    assert!(
        sent >= 3000 && blocked >= 300 && refused >= 2000,
        "{sent} sent: {blocked} blocked, {refused} refused"
    );
    assert_eq!(
        gate.control().counters().requests,
        before,
        "{:?}",
        gate.control().paths()
    );
    assert_eq!(gate.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn harmless_spellings_of_a_blocked_endpoint_are_named_as_blocked() {
    let gate = start().await;
    gate.warm().await;
    gate.control().clear_record();
    for target in [
        "/CGI-BIN/clear_quota",
        "//cgi-bin///clear_quota",
        "/@shop//cgi-bin/clear_quota",
        &format!("/@{DEFAULT_APPID}/cgi-bin/clear_quota/V2"),
        "http://localhost/cgi-bin/openapi/quota/clear",
        "/cgi-bin/component/api_start_push_ticket#fragment",
    ] {
        let mut wire = Wire::connect(gate.proxy).await;
        let reply = wire
            .ask(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n"))
            .await
            .expect("an answer");
        assert_eq!(
            (reply.status, reply.slug()),
            (403, "endpoint_blocked"),
            "{target}"
        );
        assert_eq!(reply.json()["errcode"], 990_403, "{target}");
    }
    assert_eq!(gate.control().counters().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_sent_byte_for_byte() {
    let gate = setup().sandbox(|s| s.record_capacity = 2000).start().await;
    gate.warm().await;
    gate.control().clear_record();
    let mut wire = Wire::connect(gate.proxy).await;
    let letters: Vec<char> = ('a'..='z')
        .chain('A'..='Z')
        .chain('0'..='9')
        .chain("_.~-".chars())
        .collect();
    let mut wanted: Vec<String> = [
        "/cgi-bin/...",
        "/cgi-bin/.a",
        "/cgi-bin/a..b",
        "/cgi-bin/~",
        "/cgi-bin/-",
        "/cgi-bin/_",
    ]
    .map(str::to_owned)
    .into();
    wanted.push(format!("/cgi-bin/{}", "a".repeat(512 - "/cgi-bin/".len())));
    for n in 0..300_usize {
        let word = |salt: usize| {
            (0..1 + (n * salt) % 9)
                .map(|i| letters[(n * 31 + i * salt) % letters.len()])
                .collect::<String>()
        };
        wanted.push(format!("/wxa/{}x/{}x", word(7), word(13)));
    }
    for path in &wanted {
        let reply = wire
            .ask(format!("GET {path}?n=1 HTTP/1.1\r\nHost: gate\r\n\r\n"))
            .await
            .expect("an answer");
        assert_eq!((reply.status, reply.slug()), (200, ""), "{path}");
    }
    let seen: Vec<String> = gate
        .control()
        .requests("**")
        .into_iter()
        .map(|record| record.path)
        .collect();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn slashes_are_folded_and_the_account_prefix_is_removed() {
    let gate = start().await;
    gate.warm().await;
    for (target, path) in [
        ("//cgi-bin//user///info", "/cgi-bin/user/info"),
        ("/@shop/cgi-bin/user/info", "/cgi-bin/user/info"),
        ("///@shop///cgi-bin/user/info", "/cgi-bin/user/info"),
        (
            "/@wx0123456789abcdef/cgi-bin/user/info",
            "/cgi-bin/user/info",
        ),
        ("http://localhost//cgi-bin//user/info", "/cgi-bin/user/info"),
        // The fragment is no part of a request; nothing behind the mark is used.
        ("/cgi-bin/user/info#/cgi-bin/token", "/cgi-bin/user/info"),
    ] {
        gate.control().clear_record();
        let mut wire = Wire::connect(gate.proxy).await;
        let reply = wire
            .ask(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n"))
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200, "{target}: {}", reply.text());
        let seen: Vec<String> = gate
            .control()
            .requests("**")
            .into_iter()
            .map(|record| record.path)
            .collect();
        assert_eq!(seen, [path], "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_path_is_told_so() {
    let gate = start().await;
    gate.warm().await;
    gate.control().clear_record();
    let long = format!("/cgi-bin/{}", "a".repeat(513 - "/cgi-bin/".len()));
    for target in [
        "/@shop",
        "/@shop/",
        "/cgi-bin/",
        "/cgi-bin/user/./info",
        "/cgi-bin/a%41",
        &long,
    ] {
        let mut wire = Wire::connect(gate.proxy).await;
        let reply = wire
            .ask(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n"))
            .await
            .expect("an answer");
        assert_eq!(
            (reply.status, reply.slug()),
            (400, "bad_request"),
            "{target}"
        );
        assert!(
            reply.json()["errmsg"]
                .as_str()
                .expect("text")
                .starts_with("wxgate: the path "),
            "{target}"
        );
    }
    assert_eq!(gate.control().counters().requests, 0);
}
