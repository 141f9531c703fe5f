//! Queries, as the other end sees them: one token under every reading, all else as it came, and
//! none where none belongs.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use percent_encoding::percent_decode_str;
use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, TokenKind, TokenState};

use crate::support::{
    Gate,
    raw::{Reply, Wire},
    setup, start,
};

/// Spellings of the token's parameter that mean just that.
const OWN: [&str; 8] = [
    "access_token=STALE",
    "access_token",
    "access_token=",
    "access%5Ftoken=STALE",
    "access%5ftoken",
    "%61ccess_token=STALE",
    "%61%63%63%65%73%73%5f%74%6f%6b%65%6e=STALE",
    "access_token=a=b",
];

/// Pairs that are none of wxgate's business, however odd.
const FOREIGN: [&str; 12] = [
    "openid=o6_b",
    "a=%2F+%20'",
    "b=%E4%B8%AD%e6%96%87",
    "c",
    "=d",
    "",
    "e=%00%0d%0a",
    "f=%zz%",
    "g=x;y",
    "my_access_token=1&access_tokens=2",
    "url=http://h/?access_token=1",
    "h[]={i:1}|^`\\",
];

async fn get(gate: &Gate, wire: &mut Wire, target: &str) -> Reply {
    let reply = wire
        .ask(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n"))
        .await;
    let reply = reply.unwrap_or_else(|| panic!("no answer to {target}"));
    if reply.closes() {
        *wire = Wire::connect(gate.proxy).await;
    }
    reply
}

fn decode(name: &str) -> String {
    percent_decode_str(&name.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

fn names<'q>(query: &'q str, separators: &'q [char]) -> impl Iterator<Item = String> + 'q {
    query
        .split(separators)
        .map(|pair| decode(pair.split('=').next().expect("a part")))
}

/// As PHP and its likes: no case, brackets cut off, blanks and dots are underscores.
fn lenient(name: &str) -> String {
    let name = name.trim().to_lowercase();
    name.split('[')
        .next()
        .expect("a part")
        .trim()
        .replace([' ', '.'], "_")
}

fn tokens_by_reading(query: &str) -> [usize; 3] {
    [
        names(query, &['&'])
            .filter(|name| name == "access_token")
            .count(),
        names(query, &['&', ';'])
            .filter(|name| name == "access_token")
            .count(),
        names(query, &['&', ';'])
            .filter(|name| lenient(name) == "access_token")
            .count(),
    ]
}

/// What the caller sends, and what of it must arrive.
fn shapes() -> BTreeSet<(String, String)> {
    let mut shapes = BTreeSet::new();
    for own in OWN {
        for first in FOREIGN {
            for second in FOREIGN {
                let kept = format!("{first}&{second}");
                shapes.insert((format!("{own}&{kept}"), kept.clone()));
                shapes.insert((format!("{first}&{own}&{second}"), kept.clone()));
                shapes.insert((format!("{own}&{first}&{own}&{second}&{own}"), kept));
            }
        }
    }
    // A part will do: each pair still meets each spelling somewhere.
    shapes.into_iter().step_by(5).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_of_every_query_finds_one_token_and_all_else_as_it_came() {
    let gate = setup().plain().start().await;
    gate.warm().await;
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    let mut wire = Wire::connect(gate.proxy).await;
    let shapes = shapes();
    assert!(shapes.len() >= 500, "only {} shapes", shapes.len());
    gate.control().clear_record();
    for (sent, _) in &shapes {
        let reply = get(&gate, &mut wire, &format!("/cgi-bin/menu/get?{sent}")).await;
        assert_eq!(
            (reply.status, reply.slug()),
            (200, ""),
            "{sent}: {}",
            reply.text()
        );
    }
    let seen = gate.control().requests("/cgi-bin/menu/get");
    assert_eq!(seen.len(), shapes.len());
    for (record, (sent, kept)) in seen.iter().zip(&shapes) {
        let query = record.query.as_deref().expect("a query");
        assert_eq!(query, format!("access_token={token}&{kept}"), "{sent}");
        assert_eq!(tokens_by_reading(query), [1, 1, 1], "{sent}");
        assert_eq!(
            (record.token, record.token_params),
            (TokenState::Current, 1),
            "{sent}"
        );
    }
}

/// A caller's phantom where its token belongs: it says who calls and for which account, and goes no
/// further, wherever in the query it stands and whatever else does.
#[tokio::test(flavor = "multi_thread")]
async fn a_phantom_in_any_query_is_replaced_by_the_one_real_token() {
    let clients = "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n\
                   [[client]]\nname = \"erp\"\nkey = { value = \"erp-key-0123456789\" }\naccounts = [\"shop\"]\n";
    let gate = setup().plain().more(clients).start().await;
    let mut wire = Wire::connect(gate.proxy).await;
    let mut phantoms = Vec::new();
    for client in ["crm", "erp"] {
        let secret = format!("{client}-key-0123456789");
        let target = format!(
            "/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={secret}"
        );
        let answer = get(&gate, &mut wire, &target).await.json();
        phantoms.push(
            answer["access_token"]
                .as_str()
                .expect("a phantom")
                .to_owned(),
        );
    }
    gate.control().until(|control| control.fetches() == 1).await;
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    // Beside a phantom, `STALE` is any other value: it says nothing and goes.
    let spelt = |own: &str| {
        ["access_token", "access%5Ftoken", "%61ccess_token"].map(|name| own.replace("NAME", name))
    };
    let own = [
        spelt(&format!("NAME={}", phantoms[0])),
        spelt(&format!("NAME=STALE&NAME={}", phantoms[0])),
        spelt(&format!(
            "NAME={}&access_token={}",
            phantoms[0], phantoms[0]
        )),
    ];
    let mut shapes = BTreeSet::new();
    for own in own.as_flattened() {
        for first in FOREIGN {
            for second in FOREIGN {
                shapes.insert((
                    format!("{first}&{own}&{second}"),
                    format!("{first}&{second}"),
                ));
            }
        }
    }
    let shapes: Vec<_> = shapes.into_iter().step_by(2).collect();
    assert!(shapes.len() >= 500, "only {} shapes", shapes.len());
    gate.control().clear_record();
    for (sent, _) in &shapes {
        let reply = get(&gate, &mut wire, &format!("/cgi-bin/menu/get?{sent}")).await;
        assert_eq!(
            (reply.status, reply.slug()),
            (200, ""),
            "{sent}: {}",
            reply.text()
        );
    }
    let seen = gate.control().requests("/**");
    assert_eq!(seen.len(), shapes.len());
    for (record, (sent, kept)) in seen.iter().zip(&shapes) {
        let query = record.query.as_deref().expect("a query");
        assert_eq!(query, format!("access_token={token}&{kept}"), "{sent}");
        assert_eq!(tokens_by_reading(query), [1, 1, 1], "{sent}");
    }
    // Look-alikes are refused beside a phantom too; two phantoms, or one that is none, are no
    // reason to guess.
    gate.control().clear_record();
    let good = &phantoms[0];
    for (query, errcode) in [
        (format!("access_token={good}&ACCESS_TOKEN={good}"), 990_400),
        (
            format!("access_token={good}&x=1;access_token={good}"),
            990_400,
        ),
        (format!("access_token={good}&access_token[]=1"), 990_400),
        (
            format!("access_token={good}&access_token={}", phantoms[1]),
            990_400,
        ),
        (format!("access_token={good}&access_token={good}A"), 990_400),
        (format!("access_token={good}%41"), 40001),
        (format!("access_token={good}+"), 40001),
        (
            format!("access_token={}", good.replacen('_', "%5F", 1)),
            990_401,
        ),
        (format!("Access_Token={good}"), 990_401),
        (format!("token={good}"), 990_401),
    ] {
        let reply = get(&gate, &mut wire, &format!("/cgi-bin/menu/get?{query}")).await;
        assert_eq!(reply.json()["errcode"], errcode, "{query}");
    }
    assert!(gate.control().requests("/**").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_the_token_is_refused() {
    let gate = setup()
        .set("server", "error_style = \"http\"")
        .start()
        .await;
    gate.warm().await;
    let before = gate.control().counters().requests;
    let mut wire = Wire::connect(gate.proxy).await;
    for look_alike in [
        "ACCESS_TOKEN=x",
        "Access_Token=x",
        "access_tokeN",
        "ACCESS%5FTOKEN=x",
        "access_token[]=x",
        "access[token=x",
        "ACCESS%5Btoken=x",
        "%20access[token[0]=x",
        "access[token",
        "x%3Baccess_token=x",
        "access_token[0]=x",
        "access_token%5B%5D=x",
        "access_token%20=x",
        "access_token+=x",
        "+access_token=x",
        "%09access_token=x",
        "access_token%00=x",
        "access_token%00y=x",
        "access.token=x",
        "access+token=x",
        "access%20token=x",
        "access%2Etoken=x",
        "x=1;access_token=x",
        "x=1;%61ccess_token=x",
        "x;ACCESS_TOKEN",
        ";access_token=x",
        "access_token;x=1",
        "%ef%bd%81ccess_token=x",
        "%EF%BC%A1CCESS_TOKEN=x",
    ] {
        for query in [
            look_alike.to_owned(),
            format!("a=1&{look_alike}&b=2"),
            format!("access_token=x&{look_alike}"),
        ] {
            let reply = get(&gate, &mut wire, &format!("/cgi-bin/menu/get?{query}")).await;
            assert_eq!(
                (reply.status, reply.slug()),
                (400, "bad_request"),
                "{query}"
            );
        }
    }
    assert_eq!(gate.control().counters().requests, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_credential_of_their_own_get_no_token() {
    let gate = start().await;
    gate.warm().await;
    gate.control().clear_record();
    let mut wire = Wire::connect(gate.proxy).await;
    for target in [
        "/sns/userinfo?access_token=USER&openid=o",
        "/sns/auth?access_token=USER&openid=o",
        "/SNS/userinfo?access_token=USER&openid=o",
        "/sns/oauth2/refresh_token?appid=a&grant_type=refresh_token&refresh_token=r",
        "/sns/component/jscode2session?component_access_token=c",
        "/sns/oauth2/component/access_token?component_access_token=c",
        "/cgi-bin/component/api_component_token",
        "/cgi-bin/anything?secret=s&appid=a",
        "/cgi-bin/anything?a=1&appsecret=s",
        "/cgi-bin/anything?%73ecret=s",
        "/cgi-bin/component/api_query_auth?component_access_token=c",
        "/wxa/anything?cloudbase_access_token=c",
        "/wxa/anything?cloudbase%5Faccess_token=c",
    ] {
        get(&gate, &mut wire, target).await;
        let record = gate
            .control()
            .requests("**")
            .pop()
            .unwrap_or_else(|| panic!("{target} did not arrive"));
        let arrived = record.query.map_or_else(
            || record.path.clone(),
            |query| format!("{}?{query}", record.path),
        );
        assert_eq!(arrived, target);
        assert!(
            matches!(record.token, TokenState::None | TokenState::Unknown),
            "{target} got a token"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_own_token_reaches_the_login_endpoints_and_its_refusal_is_left_alone() {
    let gate = start().await;
    gate.warm().await;
    let login = format!(
        "/sns/oauth2/access_token?appid={DEFAULT_APPID}&secret={DEFAULT_SECRET}&code=c1&grant_type=authorization_code"
    );
    let mut wire = Wire::connect(gate.proxy).await;
    let login = get(&gate, &mut wire, &login).await.json();
    let (user, openid) = (
        login["access_token"].as_str().expect("a token"),
        login["openid"].as_str().expect("an openid"),
    );
    let info = get(
        &gate,
        &mut wire,
        &format!("/sns/userinfo?access_token={user}&openid={openid}"),
    )
    .await
    .json();
    assert_eq!(info["nickname"], "Sandbox");
    // 40001 here speaks of the user's token: a refresh would cure nothing.
    let refused = get(
        &gate,
        &mut wire,
        "/sns/userinfo?access_token=bogus&openid=o",
    )
    .await;
    assert_eq!(
        (
            refused.json()["errcode"].as_i64(),
            refused.header("x-wxgate-attempts")
        ),
        (Some(40001), "1")
    );
    assert_eq!(gate.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_raw_bytes_passes_as_it_came_or_not_at_all() {
    let gate = setup().plain().start().await;
    gate.warm().await;
    gate.control().clear_record();
    let mut passed = 0;
    for byte in 1..=255_u8 {
        let mut wire = Wire::connect(gate.proxy).await;
        let request = [
            b"GET /cgi-bin/menu/get?a=x",
            &[byte][..],
            b"y HTTP/1.1\r\nHost: gate\r\n\r\n",
        ]
        .concat();
        let reply = wire.ask(request).await;
        let before = passed;
        for record in gate.control().requests("/cgi-bin/menu/get") {
            passed += 1;
            let query = record.query.expect("a query");
            let wanted = match byte {
                b'#' => "a=x".to_owned(),
                b'&' => "a=x&y".to_owned(),
                _ => String::from_utf8_lossy(&[b"a=x", &[byte][..], b"y"].concat()).into_owned(),
            };
            assert_eq!(
                query.split_once('&').expect("more than the token").1,
                wanted,
                "{byte:#x}"
            );
        }
        gate.control().clear_record();
        let status = reply.expect("an answer").status;
        assert_eq!(status, if passed > before { 200 } else { 400 }, "{byte:#x}");
        if byte.is_ascii_alphanumeric() || b"'!()*,;:@/?$-_.~+=|^`[]{}\\%&#".contains(&byte) {
            assert_eq!(status, 200, "{byte:#x}");
        }
    }
    assert!(passed > 90, "only {passed} bytes passed");
}

/// Neither a key nor a phantom is anything to WeChat: under whatever name, a call that would take one
/// there is refused, and named by what stands there.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_or_a_phantom_under_another_name_is_not_sent_on() {
    const DIGESTED: &str = "digested-key-0123456789";
    let sha256 = digest(&SHA256, DIGESTED.as_bytes());
    let sha256: String = sha256
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let clients = format!(
        "[[client]]\nname = \"crm\"\nkey = {{ value = \"crm-key-0123456789\" }}\naccounts = [\"shop\"]\n\
         [[client]]\nname = \"erp\"\nkey = {{ sha256 = \"{sha256}\" }}\naccounts = [\"shop\"]\n"
    );
    let gate = setup()
        .plain()
        .set("server", "error_style = \"http\"")
        .more(&clients)
        .start()
        .await;
    let mut wire = Wire::connect(gate.proxy).await;
    gate.control().until(|control| control.fetches() == 1).await;
    for key in ["crm-key-0123456789", DIGESTED] {
        let target = format!(
            "/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={key}"
        );
        let phantom = get(&gate, &mut wire, &target).await.json()["access_token"].clone();
        let phantom = phantom.as_str().expect("a phantom");
        let encoded: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        gate.control().clear_record();
        let ask = async |wire: &mut Wire, target: &str| {
            let request =
                format!("GET {target} HTTP/1.1\r\nHost: gate\r\nX-Wxgate-Key: {key}\r\n\r\n");
            let reply = wire.ask(request).await.expect("an answer");
            if reply.closes() {
                *wire = Wire::connect(gate.proxy).await;
            }
            reply
        };
        for query in [
            format!("corpsecret={key}"),
            format!("a=1&corpsecret={encoded}&b=2"),
            format!("anything={key}"),
            format!("a=1&{key}"),
            format!("access_token={phantom}&corpsecret={key}"),
            format!("token={phantom}"),
            format!("a=1&corpsecret={}", phantom.replacen('_', "%5F", 1)),
            format!("secret={key}"),
            format!("component_access_token=c&a={key}"),
            format!(
                "component_access_token=c&access_token={}",
                phantom.replacen('_', "%5f", 1)
            ),
        ] {
            for path in ["/cgi-bin/menu/get", "/sns/userinfo"] {
                let reply = ask(&mut wire, &format!("{path}?{query}")).await;
                assert_eq!(
                    (reply.status, reply.slug()),
                    (400, "bad_request"),
                    "{path}?{query}"
                );
                assert!(!reply.text().contains(key) && !reply.text().contains(phantom));
            }
        }
        let login =
            format!("/sns/jscode2session?appid={DEFAULT_APPID}&secret={key}&js_code=c&x={key}");
        assert_eq!(ask(&mut wire, &login).await.status, 400);
        assert!(gate.control().requests("/**").is_empty());
        // What is removed in any case is no reason to refuse, and neither is a part of a value.
        for query in [
            format!("access_token={key}"),
            format!("a=x{key}"),
            format!("a={key}x"),
        ] {
            let reply = ask(&mut wire, &format!("/cgi-bin/menu/get?{query}")).await;
            assert_eq!((reply.status, reply.slug()), (200, ""), "{query}");
        }
    }
}
