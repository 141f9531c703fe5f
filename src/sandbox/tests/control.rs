//! The remote control, in process and over HTTP.

use serde_json::json;

use super::*;

const PATH: &str = "/cgi-bin/tags/get";

async fn order(world: &TestSandbox, path: &str, body: &Value) -> WireReply {
    world
        .post(&format!("/sandbox/{path}"), &body.to_string())
        .await
}

async fn errcode(world: &TestSandbox, token: &str) -> i64 {
    world
        .get(&format!("{PATH}?access_token={token}"))
        .await
        .errcode()
}

#[tokio::test]
async fn tokens_die_over_http() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    assert_eq!(
        order(&world, "revoke", &json!({"account": DEFAULT_APPID}))
            .await
            .json()["tokens"],
        1
    );
    assert_eq!(errcode(&world, &token).await, 40001);
    let token = world.token().await;
    order(
        &world,
        "revoke",
        &json!({"code": 40014, "sticky": true, "kind": "stable"}),
    )
    .await;
    assert_eq!(
        (errcode(&world, &token).await, world.token().await),
        (40014, token.clone())
    );
    let forced = world.stable(true).await.json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_ne!(forced, token);
    order(&world, "rotate", &json!({"overlap": "5m"})).await;
    assert_eq!(world.control.judge(&forced), TokenState::Overlapping);
    order(&world, "advance", &json!({"by": "5m"})).await;
    assert_eq!(errcode(&world, &forced).await, 40001);
    let token = world.token().await;
    order(&world, "remaining", &json!({"remaining": "10m"})).await;
    assert_eq!(world.stable(false).await.json()["expires_in"], 600);
    order(&world, "expire", &json!({})).await;
    assert_eq!(errcode(&world, &token).await, 42001);
    let token = world.token().await;
    order(&world, "revoke", &json!({"overlap": "1m"})).await;
    assert_eq!(errcode(&world, &token).await, 0);
    world.control.advance(Duration::from_secs(60));
    assert_eq!(errcode(&world, &token).await, 40001);
}

#[tokio::test]
async fn a_strangers_fetch_is_not_counted_as_ours() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    assert_eq!(world.control.rotate(DEFAULT_APPID, Some(Duration::ZERO)), 1);
    assert_eq!(world.control.judge(&token), TokenState::Stale(40001));
    assert_eq!(world.control.fetches(), 1);
}

#[tokio::test]
async fn faults_are_set_released_and_removed_over_http() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let rules = json!([
        {"path": PATH, "times": null, "fault": {"kind": "errcode", "code": 45011, "shape": "code_last"}},
        {"path": "/cgi-bin/menu/get", "hold": true}
    ]);
    let ids = order(&world, "faults", &rules).await.json()["ids"].clone();
    assert_eq!(ids.as_array().unwrap().len(), 2);
    assert_eq!(errcode(&world, &token).await, 45011);
    let list = world.get("/sandbox/faults").await.json();
    assert_eq!(
        (
            &list["faults"][0]["hits"],
            &list["faults"][0]["rule"]["fault"]["kind"]
        ),
        (&json!(1), &json!("errcode"))
    );

    let mut client = world.client().await;
    client
        .send(format!(
            "GET /cgi-bin/menu/get?access_token={token} HTTP/1.1\r\n\r\n"
        ))
        .await;
    let held = ids[1].as_u64().unwrap();
    timeout(PATIENCE, world.control.until(|c| c.hits(held) == 1))
        .await
        .unwrap();
    assert_eq!(
        world
            .post(&format!("/sandbox/faults/{held}/release"), "")
            .await
            .status,
        200
    );
    assert_eq!(client.reply().await.unwrap().status, 200);

    let mut client = world.client().await;
    client
        .send("DELETE /sandbox/faults/99 HTTP/1.1\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.unwrap().status, 404);
    client.send("DELETE /sandbox/faults HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.reply().await.unwrap().status, 200);
    assert_eq!(errcode(&world, &token).await, 0);
}

#[tokio::test]
async fn orders_that_cannot_be_read_say_why_and_change_nothing() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    for (path, body, word) in [
        ("revoke", json!({"acount": "x"}), "acount"),
        ("advance", json!({"by": "5"}), "unit"),
        (
            "faults",
            json!([{"path": PATH}, {"fault": {"kind": "explode"}}]),
            "explode",
        ),
        ("remaining", json!({}), "remaining"),
        ("accounts", json!({"appid": "wx9"}), "secret"),
    ] {
        let reply = order(&world, path, &body).await;
        let text = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(reply.status == 400 && text.contains(word), "{path}: {text}");
    }
    assert!(world.control.faults().is_empty());
    assert_eq!(errcode(&world, &token).await, 0);
    assert_eq!(world.post("/sandbox/nothing", "").await.status, 404);
    let mut client = world.client().await;
    client
        .send("PUT /sandbox/state HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.unwrap().status, 405);
}

#[tokio::test]
async fn the_record_shows_requests_as_they_came() {
    let world = TestSandbox::new().await;
    let token = world.token().await;
    let mut client = world.client().await;
    let query = format!("b=%41&access_token={token}&access_token=second&a");
    client
        .send(format!(
            "POST {PATH}?{query} HTTP/1.1\r\nhOsT: x\r\nContent-Length: 3\r\n\r\nabc"
        ))
        .await;
    client.reply().await.unwrap();
    let reply = world
        .get(&format!("/sandbox/requests?path={PATH}"))
        .await
        .json();
    let record = &reply["requests"][0];
    assert_eq!(record["query"], query);
    assert_eq!(record["headers"][0], json!(["hOsT", "x"]));
    assert_eq!(
        (
            &record["body"],
            &record["body_length"],
            &record["token_params"]
        ),
        (&json!("abc"), &json!(3), &json!(2))
    );
    assert_eq!(
        record["body_sha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(
        (&record["framing"], &record["length"]),
        (&json!("length"), &json!(3))
    );
    assert_eq!(
        (&record["token"]["state"], &record["executed"]),
        (&json!("current"), &json!(true))
    );
    let counters = world.get("/sandbox/counters").await.json();
    assert_eq!(
        (
            &counters["totals"]["requests"],
            &counters["paths"][PATH]["executed"]
        ),
        (&json!(2), &json!(1))
    );
    client.send("DELETE /sandbox/record HTTP/1.1\r\n\r\n").await;
    client.reply().await.unwrap();
    assert!(world.control.requests("/**").is_empty() && world.control.counters().requests == 0);
    assert!(world.control.counters().open_connections > 0);
}

#[tokio::test]
async fn the_record_is_bounded() {
    let world = TestSandbox::with(SandboxSettings {
        record_capacity: 3,
        ..SandboxSettings::default()
    })
    .await;
    let mut client = world.client().await;
    for number in 0..5 {
        client.get(&format!("/cgi-bin/menu/get?n={number}")).await;
    }
    let queries: Vec<_> = world
        .control
        .requests("/**")
        .into_iter()
        .filter_map(|record| record.query)
        .collect();
    assert_eq!(queries, ["n=2", "n=3", "n=4"]);
    assert_eq!(world.control.path("/cgi-bin/menu/get").requests, 5);
}

#[tokio::test]
async fn accounts_are_added_and_shown() {
    let world = TestSandbox::new().await;
    order(&world, "accounts", &json!({"appid": "wx9", "secret": "s9"})).await;
    let target = "/cgi-bin/token?grant_type=client_credential&appid=wx9&secret=s9";
    let token = world.get(target).await.json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let state = world.get("/sandbox/state").await.json();
    let account = &state["accounts"][1];
    assert_eq!(
        (&account["appid"], &account["tokens"][0]["access_token"]),
        (&json!("wx9"), &json!(token))
    );
    assert_eq!(
        (
            &account["tokens"][0]["kind"],
            &account["tokens"][0]["state"]
        ),
        (&json!("classic"), &json!("current"))
    );
    order(
        &world,
        "accounts",
        &json!({"appid": "wx9", "secret": "new"}),
    )
    .await;
    assert_eq!(world.get(target).await.errcode(), 40125);
}

#[tokio::test]
async fn the_index_and_the_root_are_for_reading() {
    let world = TestSandbox::new().await;
    assert!(
        world
            .get("/sandbox/")
            .await
            .body
            .starts_with(b"The sandbox of wxgate")
    );
    assert_eq!(
        world.get("/sandbox/ca.pem").await.body,
        world.control.ca_pem().as_bytes()
    );
    order(&world, "connections", &json!({"idle_close": "30ms"})).await;
    let mut client = world.client().await;
    assert!(client.rest().await.0.is_empty());
    assert_eq!(
        world.control.counters().requests,
        0,
        "the control is not on record"
    );
}

/// Finds every JSON object behind `marker` in the text.
fn objects<'d>(text: &'d str, marker: &str) -> Vec<&'d str> {
    let starts = text.match_indices(marker).map(|(at, _)| &text[at..]);
    starts
        .map(|rest| {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            values
                .next()
                .unwrap()
                .unwrap_or_else(|error| panic!("{error}: {}", &rest[..60.min(rest.len())]));
            &rest[..values.byte_offset()]
        })
        .collect()
}

#[tokio::test]
async fn the_manual_tells_the_truth() {
    let world = TestSandbox::new().await;
    let manual = include_str!("../../../docs/sandbox.md");
    let faults = objects(manual, "{\"kind\":");
    for fault in &faults {
        serde_json::from_str::<Fault>(fault).unwrap_or_else(|error| panic!("{error}: {fault}"));
    }
    let unit = Fault::UntilClose.label();
    assert!(faults.len() > 30 && faults.iter().any(|fault| fault.contains(unit)));
    let mut orders = 0;
    for line in manual
        .lines()
        .filter(|line| line.starts_with("curl -s $S/sandbox/"))
    {
        let Some((path, rest)) = line["curl -s $S".len()..].split_once(" -d '") else {
            continue;
        };
        let (body, _) = rest.split_once('\'').unwrap();
        assert_eq!(world.post(path, body).await.status, 200, "{line}");
        orders += 1;
    }
    assert!(orders > 15, "{orders}");
    for path in [
        "counters",
        "requests?path=/cgi-bin/**&limit=100",
        "deliveries?openid=o1",
        "uploads",
        "state",
        "faults",
    ] {
        assert!(manual.contains(&format!("/sandbox/{path}")), "{path}");
        assert_eq!(world.get(&format!("/sandbox/{path}")).await.status, 200);
    }
}

#[tokio::test]
async fn calls_from_addresses_that_are_not_listed_are_refused_by_kind_of_account() {
    const CORP: &str = "ww0123456789abcdef";
    let world = TestSandbox::with(SandboxSettings {
        accounts: vec![
            SandboxAccount::new(DEFAULT_APPID, DEFAULT_SECRET),
            SandboxAccount::wecom(CORP, "s"),
        ],
        ..SandboxSettings::default()
    })
    .await;
    let gettoken = format!("/cgi-bin/gettoken?corpid={CORP}&corpsecret=s");
    let token = world.token().await;
    let corp = world.get(&gettoken).await.json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let codes = async || {
        [
            world.stable(false).await.errcode(),
            errcode(&world, &token).await,
            world.get(&gettoken).await.errcode(),
            errcode(&world, &corp).await,
        ]
    };
    let list = async |account: &str, list: Value| {
        let body = json!({"account": account, "list": list});
        assert_eq!(order(&world, "whitelist", &body).await.status, 200);
    };
    assert_eq!(codes().await, [0; 4]);
    for account in [DEFAULT_APPID, CORP] {
        list(account, json!({"addresses": ["192.0.2.0/24"]})).await;
    }
    assert_eq!(codes().await, [40164, 40164, 0, 60020]);
    let said = world.stable(false).await.json()["errmsg"].to_string();
    assert!(said.contains("invalid ip 127.0.0.1 ipv6"), "{said}");
    list(
        DEFAULT_APPID,
        json!({"addresses": [], "checked": "with_secret"}),
    )
    .await;
    list(CORP, json!({"addresses": ["127.0.0.0/8"]})).await;
    assert_eq!(codes().await, [40164, 0, 0, 0]);
    list(
        DEFAULT_APPID,
        json!({"addresses": [], "checked": "except_tokens", "code": 61004}),
    )
    .await;
    assert_eq!(codes().await, [0, 61004, 0, 0]);
    list(DEFAULT_APPID, Value::Null).await;
    assert_eq!(codes().await, [0; 4]);
    let bad = json!({"account": CORP, "list": {"addresses": ["nonsense"]}});
    assert_eq!(order(&world, "whitelist", &bad).await.status, 400);
}
