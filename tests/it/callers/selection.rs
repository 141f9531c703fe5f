//! Which account a request is for, as seen by the other end: by the token that arrives there.

use wxgate::sandbox::SandboxAccount;

use crate::support::{
    Gate, Setup,
    raw::{Reply, Wire},
    setup,
};

const SHOP: &str = "wx0123456789abcdef";
const NEWS: &str = "wxnews0000000000";
const GAME: &str = "wxgame0000000000";
const OTHER: &str = "wxother000000000";

/// Three accounts, each with an appid of its own; two of them can be selected by Host.
fn three() -> Setup {
    let account = |name: &str, appid: &str, more: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nappid = \"{appid}\"\nsecret = {{ value = \"s-{name}\" }}\napi = [\"{{api}}\"]\n{more}\n"
        )
    };
    setup()
        .sandbox(|s| {
            s.accounts.push(SandboxAccount::new(NEWS, "s-news"));
            s.accounts.push(SandboxAccount::new(GAME, "s-game"));
        })
        .more(&account(
            "news",
            NEWS,
            "hosts = [\"News.wx.internal\", \"10.1.2.3\"]",
        ))
        .more(&account("game", GAME, "hosts = [\"game.wx.internal\"]"))
}

async fn ask(gate: &Gate, target: &str, fields: &str) -> Reply {
    let mut wire = Wire::connect(gate.proxy).await;
    let request = format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n");
    wire.ask(request)
        .await
        .unwrap_or_else(|| panic!("no answer to {target} {fields}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_header_and_host_select_and_nothing_else_does() {
    let gate = three().start().await;
    let path = "/cgi-bin/menu/get";
    for (prefix, fields, appid) in [
        ("/@shop", "Host: gate", SHOP),
        ("/@news", "Host: gate", NEWS),
        (&format!("/@{GAME}")[..], "Host: gate", GAME),
        ("//@game/", "Host: gate", GAME),
        ("", "Host: gate\r\nX-Wxgate-Account: news", NEWS),
        ("", "Host: gate\r\nx-wxgate-account: wxgame0000000000", GAME),
        ("", "Host: news.wx.internal", NEWS),
        ("", "Host: NEWS.WX.INTERNAL:8080", NEWS),
        ("", "Host: 10.1.2.3:80", NEWS),
        ("", "host: game.wx.internal:", GAME),
        // Several that agree are no conflict.
        (
            "/@news",
            "Host: news.wx.internal\r\nX-Wxgate-Account: wxnews0000000000",
            NEWS,
        ),
        // What a caller could think up to lead it elsewhere.
        (
            "/@shop",
            "Host: gate\r\nX-Forwarded-Host: news.wx.internal\r\nForwarded: host=news.wx.internal",
            SHOP,
        ),
        (
            "/@shop",
            "Host: gate\r\nX-Original-URL: /@news/cgi-bin/token\r\nX-Rewrite-URL: /@news/cgi-bin/token",
            SHOP,
        ),
        (
            "/@shop",
            "Host: evil.example\r\nX-Host: news.wx.internal\r\nX-HTTP-Method-Override: POST",
            SHOP,
        ),
        ("http://localhost/@news", "Host: gate", NEWS),
    ] {
        gate.control().clear_record();
        let reply = ask(&gate, &format!("{prefix}{path}?appid=x"), fields).await;
        assert_eq!(
            (reply.status, reply.slug()),
            (200, ""),
            "{prefix} {fields}: {}",
            reply.text()
        );
        let records = gate.control().requests(path);
        assert_eq!(records.len(), 1, "{prefix} {fields}");
        assert_eq!(
            records[0].account.as_deref(),
            Some(appid),
            "{prefix} {fields}"
        );
        assert_eq!(
            (&*records[0].path, &*records[0].method),
            (path, "GET"),
            "{prefix} {fields}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_that_disagree_are_a_conflict_and_unknown_names_are_named() {
    let gate = three().start().await;
    gate.control().until(|control| control.fetches() == 3).await;
    gate.control().clear_record();
    for (prefix, fields, slug) in [
        ("/@shop", "Host: news.wx.internal", "account_conflict"),
        (
            "/@shop",
            "Host: gate\r\nX-Wxgate-Account: news",
            "account_conflict",
        ),
        (
            "",
            "Host: game.wx.internal\r\nX-Wxgate-Account: news",
            "account_conflict",
        ),
        (
            "/@news",
            "Host: news.wx.internal\r\nX-Wxgate-Account: game",
            "account_conflict",
        ),
        (
            "/@news",
            "Host: gate\r\nX-Wxgate-Account: news\r\nX-Wxgate-Account: game",
            "account_conflict",
        ),
        ("/@none", "Host: gate", "account_unknown"),
        ("/@", "Host: gate", "account_unknown"),
        ("/@SHOP", "Host: gate", "account_unknown"),
        ("/@shop%00", "Host: gate", "account_unknown"),
        ("/@none", "Host: news.wx.internal", "account_unknown"),
        (
            "/@news",
            "Host: gate\r\nX-Wxgate-Account: none",
            "account_unknown",
        ),
        (
            "",
            "Host: news.wx.internal\r\nX-Wxgate-Account: none",
            "account_unknown",
        ),
        (
            "",
            "Host: gate\r\nX-Wxgate-Account: News",
            "account_unknown",
        ),
        (
            "",
            "Host: gate\r\nX-Wxgate-Account: none",
            "account_unknown",
        ),
        ("", "Host: gate\r\nX-Wxgate-Account:", "account_unknown"),
        (
            "",
            "Host: gate\r\nX-Wxgate-Account: news, game",
            "account_unknown",
        ),
        // Three accounts and none selected.
        ("", "Host: gate", "account_unknown"),
        ("", "Host: other.wx.internal", "account_unknown"),
        (
            "",
            "Host: gate\r\nX-Forwarded-Host: news.wx.internal",
            "account_unknown",
        ),
        (
            "",
            "Host: gate\r\nReferer: http://gate/@news/a\r\nCookie: account=news",
            "account_unknown",
        ),
    ] {
        let reply = ask(&gate, &format!("{prefix}/cgi-bin/menu/get"), fields).await;
        assert_eq!(
            (reply.status, reply.slug()),
            (400, slug),
            "{prefix} {fields}: {}",
            reply.text()
        );
        assert_eq!(reply.json()["errcode"], 990_400, "{prefix} {fields}");
        assert_eq!(reply.header("x-wxgate-account"), "", "{prefix} {fields}");
    }
    assert_eq!(gate.control().counters().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_selectors_must_agree_whichever_account_it_is() {
    let gate = three().start().await;
    gate.control().until(|control| control.fetches() == 3).await;
    // `shop` has no Host of its own.
    let accounts = [
        ("shop", SHOP, None),
        ("news", NEWS, Some("news.wx.internal")),
        ("game", GAME, Some("game.wx.internal")),
    ];
    for (one, _, one_host) in accounts {
        for (other, appid, other_host) in accounts {
            let expected = if one == other {
                (200, "")
            } else {
                (400, "account_conflict")
            };
            let mut pairs = vec![
                (
                    format!("/@{one}"),
                    format!("Host: gate\r\nX-Wxgate-Account: {other}"),
                ),
                (
                    format!("/@{one}"),
                    format!("Host: gate\r\nX-Wxgate-Account: {appid}"),
                ),
                (
                    format!("/@{appid}"),
                    format!("Host: gate\r\nX-Wxgate-Account: {one}"),
                ),
                (
                    String::new(),
                    format!("Host: gate\r\nX-Wxgate-Account: {one}\r\nX-Wxgate-Account: {appid}"),
                ),
            ];
            pairs.extend(other_host.map(|host| (format!("/@{one}"), format!("Host: {host}"))));
            pairs.extend(one_host.map(|host| {
                (
                    String::new(),
                    format!("Host: {host}:80\r\nX-Wxgate-Account: {other}"),
                )
            }));
            for (prefix, fields) in pairs {
                let reply = ask(&gate, &format!("{prefix}/cgi-bin/menu/get"), &fields).await;
                assert_eq!(
                    (reply.status, reply.slug()),
                    expected,
                    "{prefix} {fields}: {}",
                    reply.text()
                );
                assert_eq!(
                    reply.header("x-wxgate-account"),
                    if one == other { one } else { "" },
                    "{prefix} {fields}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_read_once_and_needs_a_path_behind_it() {
    let gate = three().start().await;
    gate.control().until(|control| control.fetches() == 3).await;
    gate.control().clear_record();
    for target in [
        "/@news",
        "/@news/",
        "/@news/@game/cgi-bin/menu/get",
        "/cgi-bin/@news/menu/get",
        "/cgi-bin/menu/get/@news",
    ] {
        let reply = ask(&gate, target, "Host: gate\r\nX-Wxgate-Account: news").await;
        assert_eq!(
            (reply.status, reply.slug()),
            (400, "bad_request"),
            "{target}: {}",
            reply.text()
        );
    }
    assert_eq!(gate.control().counters().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_wins_over_an_appid_and_an_appid_of_two_selects_neither() {
    let account = |name: &str, appid: &str| {
        format!(
            "[[account]]\nname = \"{name}\"\nappid = \"{appid}\"\nsecret = {{ value = \"s-news\" }}\napi = [\"{{api}}\"]\n"
        )
    };
    let setup = setup().sandbox(|s| s.accounts.push(SandboxAccount::new(NEWS, "s-news")));
    // One account is named as the first one's appid is, and two share an appid.
    let gate = setup
        .more(&(account(SHOP, NEWS) + &account("again", NEWS)))
        .start()
        .await;
    for (name, account) in [("shop", "shop"), (SHOP, SHOP), ("again", "again")] {
        let reply = ask(&gate, &format!("/@{name}/cgi-bin/menu/get"), "Host: gate").await;
        assert_eq!(
            (reply.status, reply.header("x-wxgate-account")),
            (200, account),
            "{name}: {}",
            reply.text()
        );
    }
    assert_eq!(
        ask(&gate, &format!("/@{NEWS}/cgi-bin/menu/get"), "Host: gate")
            .await
            .slug(),
        "account_unknown"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_account_is_a_fall_back_and_never_conflicts() {
    let gate = three().default_account("game").start().await;
    for (prefix, fields, account) in [
        ("", "Host: gate", "game"),
        ("/@shop", "Host: gate", "shop"),
        ("", "Host: news.wx.internal", "news"),
        ("", "Host: gate\r\nX-Wxgate-Account: news", "news"),
        ("", "Host: other.wx.internal", "game"),
    ] {
        let reply = ask(&gate, &format!("{prefix}/cgi-bin/menu/get"), fields).await;
        assert_eq!(
            (reply.status, reply.header("x-wxgate-account")),
            (200, account),
            "{prefix} {fields}"
        );
    }
    for (prefix, fields) in [
        ("/@none", "Host: gate"),
        ("/@", "Host: gate"),
        ("", "Host: gate\r\nX-Wxgate-Account: none"),
    ] {
        let reply = ask(&gate, &format!("{prefix}/cgi-bin/menu/get"), fields).await;
        assert_eq!(
            (reply.status, reply.slug()),
            (400, "account_unknown"),
            "a wrong name is no missing one: {prefix}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_account_needs_no_mention_but_a_wrong_one_is_still_wrong() {
    let gate = setup().start().await;
    assert_eq!(
        ask(&gate, "/cgi-bin/menu/get", "Host: whatever.example")
            .await
            .header("x-wxgate-account"),
        "shop"
    );
    assert_eq!(
        ask(&gate, "/@news/cgi-bin/menu/get", "Host: gate")
            .await
            .slug(),
        "account_unknown"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_accounts_get_their_own_tokens_on_one_connection() {
    let gate = three().start().await;
    let mut wire = Wire::connect(gate.proxy).await;
    let accounts = [("shop", SHOP), ("news", NEWS), ("game", GAME)];
    let order: Vec<_> = (0..300_usize)
        .map(|n| accounts[(n * n + n / 3) % 3])
        .collect();
    for (n, (name, _)) in order.iter().enumerate() {
        let request = if n % 2 == 0 {
            format!("GET /@{name}/cgi-bin/menu/get HTTP/1.1\r\nHost: gate\r\n\r\n")
        } else {
            format!(
                "GET /cgi-bin/menu/get HTTP/1.1\r\nHost: gate\r\nX-Wxgate-Account: {name}\r\n\r\n"
            )
        };
        let reply = wire.ask(request).await.expect("an answer");
        assert_eq!(
            (reply.status, reply.header("x-wxgate-account")),
            (200, *name)
        );
    }
    let arrived: Vec<_> = gate
        .control()
        .requests("/cgi-bin/menu/get")
        .into_iter()
        .filter_map(|r| r.account)
        .collect();
    let wanted: Vec<_> = order.iter().map(|(_, appid)| (*appid).to_owned()).collect();
    assert_eq!(arrived, wanted);
    assert_eq!(gate.control().fetches(), 3, "one token each");
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_form_is_taken_for_the_accounts_own_hosts_only() {
    let gate = setup()
        .account("hosts = [\"shop.wx.internal\"]")
        .start()
        .await;
    let port = gate.sandbox.https_addr().expect("TLS").port();
    let path = "/cgi-bin/user/info?openid=o";
    for host in [
        "localhost".to_owned(),
        "LocalHost".to_owned(),
        format!("localhost:{port}"),
        "localhost:80".into(),
        "localhost:443".into(),
    ] {
        for scheme in ["http", "https"] {
            let reply = ask(
                &gate,
                &format!("{scheme}://{host}{path}"),
                &format!("Host: {host}"),
            )
            .await;
            assert_eq!(reply.status, 200, "{scheme}://{host}: {}", reply.text());
        }
    }
    for host in [
        "evil.example",
        "127.0.0.1",
        "169.254.169.254",
        "localhost.evil.example",
        "evil.example:443",
        "localhost:22",
        "localhost:99999",
        "[::1]",
        "localhost@evil.example",
        "evil.example@localhost",
        // A name that selects the account is no API host.
        "shop.wx.internal",
        &gate.proxy.to_string(),
    ] {
        gate.control().clear_record();
        let reply = ask(&gate, &format!("http://{host}{path}"), "Host: localhost").await;
        assert_eq!(
            (reply.status, gate.control().counters().requests),
            (400, 0),
            "{host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_form_serves_each_account_by_its_own_hosts() {
    let setup = three();
    let sandbox = setup.start_sandbox().await;
    let plain = sandbox.http_addr().expect("plain HTTP");
    let other = format!(
        "[[account]]\nname = \"other\"\nappid = \"{OTHER}\"\nsecret = {{ value = \"s-other\" }}\napi = [\"http://{plain}\"]\n"
    );
    sandbox
        .control()
        .add_account(&SandboxAccount::new(OTHER, "s-other"));
    let gate = setup.more(&other).start_with(sandbox).await;
    gate.control().until(|control| control.fetches() == 4).await;
    let path = "/cgi-bin/menu/get";
    for (host, prefix, fields, appid) in [
        ("localhost", "/@shop", "Host: localhost", SHOP),
        ("localhost", "/@wxnews0000000000", "Host: localhost", NEWS),
        (
            "localhost",
            "",
            "Host: localhost\r\nX-Wxgate-Account: game",
            GAME,
        ),
        ("LOCALHOST:80", "", "Host: game.wx.internal", GAME),
        ("127.0.0.1", "/@other", "Host: 127.0.0.1", OTHER),
        (
            &plain.to_string(),
            "",
            "Host: gate\r\nX-Wxgate-Account: other",
            OTHER,
        ),
    ] {
        gate.control().clear_record();
        let reply = ask(&gate, &format!("http://{host}{prefix}{path}"), fields).await;
        assert_eq!(
            reply.status,
            200,
            "{host}{prefix} {fields}: {}",
            reply.text()
        );
        assert_eq!(
            gate.control().requests(path)[0].account.as_deref(),
            Some(appid),
            "{host}{prefix} {fields}"
        );
    }
    gate.control().clear_record();
    for (host, account, slug) in [
        // The host of another account, and none selected.
        ("127.0.0.1", "shop", "bad_request"),
        ("localhost", "other", "bad_request"),
        ("localhost", "none", "account_unknown"),
    ] {
        let reply = ask(
            &gate,
            &format!("http://{host}/@{account}{path}"),
            &format!("Host: {host}"),
        )
        .await;
        assert_eq!(
            (reply.status, reply.slug()),
            (400, slug),
            "{host} {account}"
        );
    }
    assert_eq!(
        ask(&gate, &format!("http://localhost{path}"), "Host: localhost")
            .await
            .slug(),
        "account_unknown"
    );
    assert_eq!(gate.control().counters().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_caller_says_about_hosts_the_api_host_is_called_by_its_own_name() {
    let gate = setup().start().await;
    gate.warm().await;
    let port = gate.sandbox.https_addr().expect("TLS").port();
    for fields in [
        "Host: evil.example",
        "Host: 169.254.169.254",
        "Host: gate\r\nX-Forwarded-Host: evil.example",
        "Host: gate\r\nForwarded: for=1.2.3.4;host=evil.example;proto=http",
        "Host: gate\r\nX-Original-URL: http://evil.example/\r\nX-Rewrite-URL: //evil.example/",
        "Host: gate\r\nX-Forwarded-Server: evil.example\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Proto: http",
        "Host: gate\r\nConnection: host",
    ] {
        gate.control().clear_record();
        let reply = ask(
            &gate,
            "/cgi-bin/user/info?openid=o&url=http://evil.example",
            fields,
        )
        .await;
        assert_eq!(reply.status, 200, "{fields}");
        let records = gate.control().requests("**");
        assert_eq!(
            (records.len(), &*records[0].path),
            (1, "/cgi-bin/user/info"),
            "{fields}"
        );
        assert_eq!(
            records[0].header("host"),
            Some(&*format!("localhost:{port}")),
            "{fields}"
        );
        assert!(records[0].tls, "{fields}");
        for gone in [
            "x-forwarded-host",
            "forwarded",
            "x-forwarded-server",
            "x-forwarded-port",
            "x-forwarded-proto",
        ] {
            assert_eq!(records[0].header(gone), None, "{fields}");
        }
    }
}
