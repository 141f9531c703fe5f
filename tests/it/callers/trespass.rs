//! Ways past a check that a check by itself does not show: what hides a reason to deny, what
//! outlives a right, and which key could travel on to WeChat.

use std::time::Duration;

use wxgate::sandbox::{DEFAULT_APPID, Fault, Rule, TokenKind};

use crate::support::{
    Gate, header,
    raw::Wire,
    setup,
    token_tools::{Said, all, appid, get, joined, said, spawned, with_accounts},
};

const CRM: &str = "crm-key-0123456789";
const ERP: &str = "erp-key-0123456789";
const SECRET: &str = "sandbox0sandbox0sandbox0sandbox0";
/// Two clients with a key, and a second account whose token another server keeps, so that its
/// AppSecret is not known.
const HOUSE: &str = "[[account]]\nname = \"far\"\nappid = \"wxfar00000000000\"\napi = [\"{api}\"]\n\
     token = { from = \"http\", url = { value = \"http://127.0.0.1:9/token\" } }\n\
     [[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\", \"far\"]\n\
     [[client]]\nname = \"erp\"\nkey = { value = \"erp-key-0123456789\" }\naccounts = [\"shop\"]\n";

async fn with_key(gate: &Gate, target: &str, key: &str) -> Said {
    let request = gate.client.get(gate.url(target));
    said(if key.is_empty() {
        request
    } else {
        request.header("x-wxgate-key", key)
    })
    .await
}

/// What the token endpoint hands out for this secret.
async fn phantom(gate: &Gate, appid: &str, secret: &str) -> String {
    let target =
        format!("/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={secret}");
    let answer: serde_json::Value =
        serde_json::from_slice(&get(gate, &target).await.body).expect("JSON");
    answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// Waits until this many requests are under way.
async fn in_flight(gate: &Gate, count: usize) {
    let wanted = format!("wxgate_inflight_requests {count}\n");
    let seen = async {
        while !said(gate.client.get(gate.admin_url("/metrics")))
            .await
            .text()
            .contains(&wanted)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .expect("they arrive");
}

/// The default lets loopback in, which is where the proxy in front of wxgate stands.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_the_proxy_in_front_by_filling_its_header() {
    let gate = setup()
        .set("server", "trusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    for written in [
        "",
        "127.0.0.1, ",
        &"127.0.0.1, ".repeat(40),
        "junk, ",
        "\u{e9}, ",
    ] {
        let value =
            reqwest::header::HeaderValue::from_bytes(format!("{written}203.0.113.9").as_bytes())
                .unwrap();
        let request = gate
            .client
            .get(gate.url("/cgi-bin/user/info?openid=o"))
            .header("x-forwarded-for", value);
        assert_eq!(said(request).await.error, "client_unknown", "{written:?}");
    }
    assert_eq!(
        get(&gate, "/cgi-bin/user/info?openid=o").await.status,
        200,
        "the proxy itself, as it looks after us"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_a_client_is_known_by_the_address_that_the_proxy_wrote() {
    let clients = "[[client]]\nname = \"erp\"\nfrom = [\"192.0.2.0/24\"]\naccounts = [\"shop\"]\n\
                   [[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\nfrom = [\"198.51.100.7\"]\n\
                   accounts = [\"shop\"]\n";
    let trusting = "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]";
    let gate = setup().set("server", trusting).more(clients).start().await;
    for (forwarded, key, slug) in [
        ("192.0.2.9", "", ""),
        ("8.8.8.8, 192.0.2.9, 10.0.0.3", "", ""),
        ("192.0.2.9, 203.0.113.9", "", "client_unknown"),
        ("192.0.2.9, junk", "", "client_unknown"),
        ("10.0.0.3", "", "client_unknown"),
        ("198.51.100.7", CRM, ""),
        ("198.51.100.7", "", "client_unknown"),
        ("198.51.100.7, 203.0.113.9", CRM, "client_unknown"),
        ("192.0.2.9", CRM, "client_unknown"),
    ] {
        let request = gate
            .client
            .get(gate.url("/cgi-bin/user/info?openid=o"))
            .header("x-forwarded-for", forwarded);
        let request = if key.is_empty() {
            request
        } else {
            request.header("x-wxgate-key", key)
        };
        assert_eq!(said(request).await.error, slug, "{forwarded} {key}");
        // The same for a token: it says who asks, but not from where.
        let target = format!(
            "/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={key}"
        );
        let asked = said(
            gate.client
                .get(gate.url(&target))
                .header("x-forwarded-for", forwarded),
        )
        .await;
        assert_eq!(
            asked.text().contains("wxg1_"),
            slug.is_empty(),
            "{forwarded} {key}: {asked:?}"
        );
    }
}

/// A client on trial lacks the account, or the path; that is overlooked. What it must never get
/// stays denied.
#[tokio::test(flavor = "multi_thread")]
async fn on_trial_one_missing_right_does_not_hide_that_a_call_cannot_be_taken_back() {
    let trial = "[[client]]\nname = \"trial\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = []\n\
                 allow = [\"/cgi-bin/message/**\"]\nmay = [\"token\"]\nmode = \"report\"\n";
    let gate = setup().more(trial).start().await;
    for (target, slug) in [
        ("/@shop/cgi-bin/user/info?openid=o", ""),
        ("/-/accounts/shop/tickets/jsapi", ""),
        ("/-/accounts/shop/token", "account_denied"),
        ("/@shop/cgi-bin/clear_quota", "account_denied"),
        ("/@shop/cgi-bin/CLEAR_quota/v2", "account_denied"),
    ] {
        assert_eq!(with_key(&gate, target, CRM).await.error, slug, "{target}");
    }
    let file = gate
        .file()
        .replace("accounts = []", "accounts = [\"shop\"]");
    assert_eq!(gate.reload(&file).await.status(), 200);
    assert_eq!(
        with_key(&gate, "/cgi-bin/clear_quota", CRM).await.error,
        "path_denied"
    );
    assert_eq!(
        with_key(&gate, "/-/accounts/shop/token", CRM).await.status,
        200,
        "it may"
    );
    assert!(
        gate.control()
            .requests("/cgi-bin/clear_quota/**")
            .is_empty()
    );
    assert!(gate.control().requests("/cgi-bin/clear_quota").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_client_never_travels_to_wechat_in_place_of_a_secret() {
    let gate = setup().default_account("shop").more(HOUSE).start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    let phantom = phantom(&gate, DEFAULT_APPID, CRM).await;
    gate.control().clear_record();
    let login = |secret: &str| {
        format!("/sns/jscode2session?appid={DEFAULT_APPID}&js_code=c&secret={secret}")
    };
    for (target, key, slug) in [
        (login(CRM), "", ""),
        (login(ERP), CRM, "client_unknown"),
        (
            format!("{}&access_token={phantom}", login(ERP)),
            "",
            "client_unknown",
        ),
        (login(&CRM.replace('-', "%2D")), ERP, "client_unknown"),
        // An account whose AppSecret wxgate does not know, and calls into which wxgate puts none.
        (
            format!("/@far/sns/jscode2session?js_code=c&secret={CRM}"),
            "",
            "bad_request",
        ),
        (
            format!("/sns/oauth2/refresh_token?appid=a&secret={CRM}"),
            CRM,
            "bad_request",
        ),
        (
            format!("/cgi-bin/anything?secret={CRM}"),
            CRM,
            "bad_request",
        ),
        (
            format!("/cgi-bin/anything?secret=&appsecret={ERP}"),
            CRM,
            "bad_request",
        ),
        (
            format!("/wxa/gettemplatelist?code=c&key={CRM}"),
            CRM,
            "bad_request",
        ),
        (
            format!("{}&appid=wxffffffffffffffff", login(CRM)),
            "",
            "bad_request",
        ),
    ] {
        let answer = with_key(&gate, &target, key).await;
        assert_eq!(answer.error, slug, "{target}: {answer:?}");
        assert!(!answer.text().contains("-key-0123456789"), "{answer:?}");
    }
    let form = format!("appid={DEFAULT_APPID}&secret={CRM}&js_code=c");
    let posted = gate
        .post("/sns/jscode2session")
        .header("x-wxgate-key", CRM)
        .body(form);
    assert_eq!(said(posted).await.error, "bad_request");
    let mixed =
        format!("/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={ERP}");
    assert_eq!(
        with_key(&gate, &mixed, CRM).await.errcode(),
        Some(40125),
        "the keys of two clients"
    );
    let seen = gate.control().requests("/**");
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(
        seen[0]
            .query
            .as_deref()
            .is_some_and(|query| query.contains(SECRET)),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_token_keeps_nobody_from_calling() {
    let gate = setup().set("upstream", "max_in_flight = 2").start().await;
    let ticket = "/-/accounts/shop/tickets/jsapi";
    assert_eq!(get(&gate, ticket).await.status, 200);
    let wait = || {
        gate.client
            .get(gate.url(&format!("{ticket}?wait=60")))
            .header("if-none-match", "\"1\"")
    };
    let mut waiting = Vec::new();
    for count in 1..=6 {
        waiting.push(spawned(wait()));
        in_flight(&gate, count).await;
    }
    assert_eq!(get(&gate, "/cgi-bin/user/info?openid=o").await.status, 200);
    let held = gate
        .control()
        .fault(Rule::new("/cgi-bin/user/get", Fault::Pass).always().hold());
    let calls: Vec<_> = (0..2)
        .map(|_| spawned(gate.client.get(gate.url("/cgi-bin/user/get"))))
        .collect();
    gate.control()
        .until(|control| control.hits(held) == 2)
        .await;
    assert_eq!(
        get(&gate, "/cgi-bin/user/info?openid=o").await.error,
        "overloaded",
        "the limit itself holds"
    );
    gate.control().remove_fault(held);
    for call in calls {
        assert_eq!(joined(call).await.status, 200);
    }
    let (_, _) = gate.stop().await;
    for call in waiting {
        assert_eq!(joined(call).await.status, 304);
    }
}

/// The right to the next token must not outlive the client, nor the right to this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_ends_every_wait_so_that_nobody_gets_what_is_no_longer_his() {
    let client = "[[client]]\nname = \"ops\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n\
                  may = [\"token\"]\n";
    let gate = setup().more(client).start().await;
    let target = "/-/accounts/shop/token";
    assert!(
        with_key(&gate, "/cgi-bin/user/info?openid=o", CRM)
            .await
            .is_fine()
    );
    let first = with_key(&gate, target, CRM).await;
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    assert!(first.text().contains(&token), "{first:?}");
    let request = gate
        .client
        .get(gate.url(&format!("{target}?wait=60")))
        .header("x-wxgate-key", CRM);
    let waiting = spawned(request.header("if-none-match", "\"1\""));
    in_flight(&gate, 1).await;
    assert_eq!(
        gate.reload(&gate.file().replace("may = [\"token\"]", ""))
            .await
            .status(),
        200
    );
    gate.control().revoke(DEFAULT_APPID);
    assert_eq!(
        with_key(&gate, "/cgi-bin/user/info?openid=o", CRM)
            .await
            .attempts,
        "2",
        "there is another token"
    );
    let waited = joined(waiting).await;
    assert_eq!((waited.status, waited.body.len()), (304, 0), "{waited:?}");
    assert_eq!(with_key(&gate, target, CRM).await.error, "scope_denied");
}

/// What stands on a connection does not stand longer than the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_a_reload_takes_something_from_loses_it_on_standing_connections_too() {
    let gate = setup().default_account("shop").more(HOUSE).start().await;
    let mut wire = Wire::connect(gate.proxy).await;
    let phantom = phantom(&gate, DEFAULT_APPID, CRM).await;
    let file = gate.file();
    for (text, errcode, slug) in [
        (file.clone(), None, ""),
        (
            file.replace("accounts = [\"shop\", \"far\"]", "accounts = [\"far\"]"),
            Some(990_403),
            "account_denied",
        ),
        (
            file.replace("accounts = [\"shop\", \"far\"]", "deny = [\"/cgi-bin/**\"]"),
            Some(990_403),
            "path_denied",
        ),
        (
            file.replace("name = \"crm\"", "name = \"crm\"\nfrom = [\"10.0.0.0/8\"]"),
            Some(990_401),
            "client_unknown",
        ),
        (
            file.replace("name = \"crm\"", "name = \"other\""),
            Some(40001),
            "",
        ),
        (
            file.split("[[client]]").next().unwrap().to_owned(),
            Some(40001),
            "",
        ),
        (file.clone(), None, ""),
    ] {
        assert_eq!(gate.reload(&text).await.status(), 200, "{text}");
        let target = format!("/cgi-bin/user/info?openid=o&access_token={phantom}");
        let reply = wire
            .ask(format!("GET {target} HTTP/1.1\r\nHost: gate\r\n\r\n"))
            .await
            .expect("an answer");
        assert_eq!(
            (reply.json()["errcode"].as_i64(), reply.slug()),
            (errcode, slug),
            "{text}"
        );
    }
}

/// While there is no client a phantom names nobody in particular. The first client takes its worth.
#[tokio::test(flavor = "multi_thread")]
async fn a_phantom_from_before_the_first_client_is_worth_nothing_after() {
    let gate = setup().start().await;
    let phantom = phantom(&gate, DEFAULT_APPID, "anything").await;
    let call = format!("/cgi-bin/user/info?openid=o&access_token={phantom}");
    assert!(get(&gate, &call).await.is_fine());
    let open = gate.file();
    let client = "[[client]]\nname = \"crm\"\nfrom = [\"loopback\"]\naccounts = [\"shop\"]\n";
    assert_eq!(gate.reload(&format!("{open}{client}")).await.status(), 200);
    assert_eq!(get(&gate, &call).await.errcode(), Some(40001));
    assert_eq!(
        gate.reload(&open.replace("[server]\n", "[server]\nallow = [\"10.0.0.0/8\"]\n"))
            .await
            .status(),
        200
    );
    assert_eq!(
        get(&gate, &call).await.error,
        "client_unknown",
        "it does not replace the network"
    );
    assert_eq!(gate.reload(&open).await.status(), 200);
    assert!(get(&gate, &call).await.is_fine());
}

/// Each of these is an own path of wxgate's, an account that does not exist, or nothing; none is a
/// way around a right.
#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_the_service_api_or_of_a_guarded_call_reaches_wechat() {
    let gate = setup().default_account("shop").more(HOUSE).start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    gate.control().clear_record();
    let token = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable)
        .expect("a token");
    for path in [
        "/-/accounts/shop/token",
        "//-//accounts/shop/token",
        "/@shop/-/accounts/shop/token",
        "/@shop//-/accounts/shop/token",
        "/%2d/accounts/shop/token",
        "/-%2faccounts/shop/token",
        "/-/../cgi-bin/user/info",
        "/-/./accounts/shop/token",
        "/x/../-/accounts/shop/token",
        "/-/ACCOUNTS/shop/token",
        "/-/accounts/SHOP/token",
        "/-/accounts/shop/token;x",
        "/-/accounts/shop/token/.",
        "/@shop/@shop/-/accounts/shop/token",
        "/-",
        "/cgi-bin/clear_quota",
        "/CGI-BIN/Clear_Quota",
        "//cgi-bin//clear_quota//v2",
        "/cgi-bin/clear_quota/V2",
        "/@shop/cgi-bin/openapi/quota/clear",
        "/cgi-bin/openapi/../clear_quota",
        "/cgi-bin/clear%5fquota",
        "/cgi-bin/clear_quota/",
        "/cgi-bin/component/Api_Start_Push_Ticket",
        "/cgi-bin/component/clear_quota/v2",
    ] {
        for form in [path.to_owned(), format!("http://127.0.0.1{path}")] {
            let request =
                format!("GET {form} HTTP/1.1\r\nHost: gate\r\nX-Wxgate-Key: {CRM}\r\n\r\n");
            let mut wire = Wire::connect(gate.proxy).await;
            let reply = wire.ask(request).await.expect("an answer");
            assert!(
                (400..=404).contains(&reply.status) && !reply.slug().is_empty(),
                "{form}: {}",
                reply.text()
            );
            assert!(!reply.text().contains(&token), "{form}");
        }
    }
    assert!(gate.control().requests("/**").is_empty());
    let mut wire = Wire::connect(gate.proxy).await;
    let reply = wire
        .ask("GET /-/accounts/shop/token HTTP/1.1\r\nHost: gate\r\n\r\n")
        .await
        .expect("an answer");
    assert_eq!(
        (reply.status, reply.slug()),
        (401, "client_unknown"),
        "who nobody knows is told nothing more"
    );
    assert_eq!(
        header(&gate.get("/-/nothing").await, "x-wxgate-error"),
        "client_unknown"
    );
}

/// Pitfall: a token of account A used for B, or the rights of caller A for B's call (WxJava#1494
/// and its kin: state that hangs on a thread). Ten clients, each of one account only, call at once
/// over the same few connections.
#[tokio::test(flavor = "multi_thread")]
async fn callers_at_once_are_never_taken_for_each_other() {
    const CALLERS: usize = 10;
    let client = |n: usize| {
        format!(
            "[[client]]\nname = \"c{n}\"\nkey = {{ value = \"key-of-client-number-{n}\" }}\naccounts = [\"a{n}\"]\n"
        )
    };
    let clients: String = (0..CALLERS).map(client).collect();
    let gate = with_accounts(setup().set("server", "workers = 2"), CALLERS, "")
        .more(&clients)
        .start()
        .await;
    gate.control()
        .until(|control| control.fetches() == CALLERS as u64 + 1)
        .await;
    let mut phantoms = Vec::new();
    for n in 0..CALLERS {
        phantoms.push(phantom(&gate, &appid(n), &format!("key-of-client-number-{n}")).await);
    }
    gate.control().clear_record();
    let call = |n: usize| {
        let (own, other) = (n % CALLERS, (n + 3) % CALLERS);
        let target = match n % 3 {
            // The account of another client, which must not be lent.
            0 => format!(
                "/@a{other}/cgi-bin/user/info?openid={n}&access_token={}",
                phantoms[own]
            ),
            1 => format!(
                "/cgi-bin/user/info?openid={n}&access_token={}",
                phantoms[own]
            ),
            _ => format!("/cgi-bin/user/info?openid={n}"),
        };
        let request = gate.client.get(gate.url(&target));
        spawned(if n % 3 == 2 {
            request.header("x-wxgate-key", format!("key-of-client-number-{own}"))
        } else {
            request
        })
    };
    let answers = all((0..600).map(call).collect()).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(
            answer.error,
            if n % 3 == 0 { "account_conflict" } else { "" },
            "{n}: {answer:?}"
        );
    }
    let arrived = gate.control().requests("/cgi-bin/user/info");
    assert_eq!(arrived.len(), 400);
    for record in arrived {
        let query = record.query.as_deref().expect("a query");
        let n: usize = query
            .split("openid=")
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("a number");
        assert_eq!(record.account, Some(appid(n % CALLERS)), "{query}");
    }
}

/// A token endpoint reads the body before it knows who calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_sends_an_order_for_a_token_slowly_keeps_nobody_from_calling() {
    let clients = "[[client]]\nname = \"crm\"\nkey = { value = \"crm-key-0123456789\" }\naccounts = [\"shop\"]\n";
    let gate = setup()
        .set("upstream", "max_in_flight = 1")
        .more(clients)
        .start()
        .await;
    let mut strangers = Vec::new();
    for count in 1..=3 {
        let mut wire = Wire::connect(gate.proxy).await;
        wire.send(
            "POST /cgi-bin/stable_token HTTP/1.1\r\nHost: gate\r\nContent-Length: 100\r\n\r\n{",
        )
        .await;
        strangers.push(wire);
        in_flight(&gate, count).await;
    }
    let answer = with_key(&gate, "/cgi-bin/user/info?openid=o", CRM).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}
