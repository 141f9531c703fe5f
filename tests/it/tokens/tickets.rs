//! Tickets: fetched when somebody asks, kept like tokens, and outlived by no dead token.

use serde_json::Value;
use wxgate::sandbox::{self, Fault, Rule, SandboxAccount};

use crate::support::{
    Gate, header, json, setup, start,
    token_tools::{Said, all, get, said, spawned, until},
};

const JSAPI: &str = "/-/accounts/shop/tickets/jsapi";
const GETTICKET: &str = "/cgi-bin/ticket/getticket";

fn fetches(gate: &Gate) -> u64 {
    gate.control().path(GETTICKET).requests
}

fn field(said: &Said, name: &str) -> Value {
    serde_json::from_slice::<Value>(&said.body).unwrap_or_else(|_| panic!("{said:?}"))[name].clone()
}

fn answers(ticket: &str) -> Fault {
    Fault::respond(
        200,
        "application/json",
        format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{ticket}","expires_in":7200}}"#),
    )
}

/// Pitfall: every process of every service fetches a ticket of its own, and the small quota is gone
/// by noon.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_questions_cost_one_call_and_all_get_the_same_ticket() {
    let gate = start().await;
    assert_eq!(fetches(&gate), 0, "nobody has asked");
    let tickets = all((0..100)
        .map(|_| spawned(gate.client.get(gate.url(JSAPI))))
        .collect())
    .await;
    let first = field(&tickets[0], "ticket");
    assert!(
        first.as_str().is_some_and(|ticket| ticket.len() > 40),
        "{:?}",
        tickets[0]
    );
    for answer in &tickets {
        assert_eq!(
            (answer.status, field(answer, "ticket")),
            (200, first.clone())
        );
        assert!(
            field(answer, "expires_in")
                .as_u64()
                .is_some_and(|left| (7100..=7200).contains(&left)),
            "{answer:?}"
        );
        assert_eq!(
            serde_json::from_slice::<Value>(&answer.body)
                .unwrap()
                .as_object()
                .unwrap()
                .len(),
            2
        );
    }
    assert_eq!((fetches(&gate), gate.control().fetches()), (1, 1));
    let card = get(&gate, "/-/accounts/shop/tickets/wx_card").await;
    assert!(
        card.is_fine() && field(&card, "ticket") != first,
        "{card:?}"
    );
    assert_eq!(fetches(&gate), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_the_platform_does_not_have_is_not_there_and_asks_nobody() {
    let gate = start().await;
    for kind in [
        "agent_config",
        "JSAPI",
        "sdk",
        "..",
        "%6asapi",
        "jsapi.json",
    ] {
        let answer = get(&gate, &format!("/-/accounts/shop/tickets/{kind}")).await;
        assert_eq!(
            (answer.status, &*answer.error),
            (404, "not_found"),
            "{kind}"
        );
    }
    assert_eq!(fetches(&gate), 0);
}

/// Pitfall: fastweixin#5, TNWX#24: a lost answer leaves an empty ticket in the cache for two hours.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_ticket_is_never_given_to_anybody() {
    let gate = start().await;
    gate.warm().await;
    let rule = gate
        .control()
        .fault(Rule::new(GETTICKET, answers("")).always());
    let answer = get(&gate, JSAPI).await;
    assert_eq!(
        (answer.status, &*answer.error),
        (503, "token_unavailable"),
        "{answer:?}"
    );
    assert!(!answer.retry_after.is_empty());
    let text = answer.text();
    assert!(
        text.contains("no jsapi ticket for account shop") && text.contains("empty"),
        "{text}"
    );
    assert!(
        gate.get("/cgi-bin/user/info?openid=o").await.status() == 200,
        "the account itself is well"
    );
    gate.control().remove_fault(rule);
    let answer = crate::support::token_tools::call_until(&gate, JSAPI, Said::is_fine).await;
    assert!(
        field(&answer, "ticket")
            .as_str()
            .is_some_and(|ticket| !ticket.is_empty()),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_fetched_with_a_dead_token_costs_one_token_and_one_more_call() {
    for token in ["stable", "classic"] {
        let gate = setup()
            .account(&format!("token = \"{token}\""))
            .start()
            .await;
        gate.warm().await;
        let before = gate.control().fetches();
        gate.control().revoke(wxgate::sandbox::DEFAULT_APPID);
        let answers = all((0..20)
            .map(|_| spawned(gate.client.get(gate.url(JSAPI))))
            .collect())
        .await;
        assert!(answers.iter().all(Said::is_fine), "{:?}", answers[0]);
        assert_eq!(
            (gate.control().fetches() - before, fetches(&gate)),
            (1, 2),
            "{token}"
        );
        // What the ticket's call found out serves everybody.
        assert_eq!(
            get(&gate, "/cgi-bin/user/info?openid=o").await.attempts,
            "1"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_takes_its_ticket_along_and_one_that_is_replaced_in_time_does_not()
{
    let gate = setup().account("token = \"classic\"").start().await;
    gate.warm().await;
    gate.control().fault(Rule::new(GETTICKET, answers("first")));
    gate.control()
        .fault(Rule::new(GETTICKET, answers("second")).always());
    let first = gate.get(JSAPI).await;
    assert_eq!(header(&first, "etag"), "\"1\"");
    assert_eq!(json(first).await["ticket"], "first");
    // By hand, as on schedule: nobody refused the old token.
    let by_hand = gate
        .client
        .post(gate.admin_url("/api/accounts/shop/refresh"))
        .send()
        .await
        .unwrap();
    assert_eq!(json(by_hand).await["refreshed"], true);
    gate.warm().await;
    let waiting = tokio::spawn({
        let request = gate
            .client
            .get(gate.url(&format!("{JSAPI}?wait=60")))
            .header("if-none-match", "\"1\"");
        async move { request.send().await.expect("an answer") }
    });
    gate.control().revoke(wxgate::sandbox::DEFAULT_APPID);
    assert_eq!(
        get(&gate, "/cgi-bin/user/info?openid=o").await.attempts,
        "2"
    );
    until(gate.control(), "the second call for a ticket", |control| {
        control.path(GETTICKET).requests >= 2
    })
    .await;
    let second = waiting.await.unwrap();
    assert_eq!(
        (second.status().as_u16(), header(&second, "etag")),
        (200, "\"2\"".to_owned())
    );
    assert_eq!(json(second).await["ticket"], "second");
    assert_eq!(fetches(&gate), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_ticket_is_served_while_a_new_one_cannot_be_had() {
    let gate = start().await;
    gate.warm().await;
    let first = field(&get(&gate, JSAPI).await, "ticket");
    gate.control()
        .fault(Rule::new(GETTICKET, Fault::errcode(-1)).always());
    gate.control().revoke(wxgate::sandbox::DEFAULT_APPID);
    assert_eq!(
        get(&gate, "/cgi-bin/user/info?openid=o").await.attempts,
        "2"
    );
    until(gate.control(), "the second call for a ticket", |control| {
        control.path(GETTICKET).requests >= 2
    })
    .await;
    assert_eq!(field(&get(&gate, JSAPI).await, "ticket"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_remembered_and_says_what_to_do_about_tickets() {
    let gate = start().await;
    gate.warm().await;
    gate.control()
        .fault(Rule::new(GETTICKET, Fault::errcode(48001)).always());
    for _ in 0..5 {
        let answer = get(&gate, JSAPI).await;
        let text = answer.text();
        assert_eq!(
            (answer.status, &*answer.error),
            (503, "token_unavailable"),
            "{text}"
        );
        assert!(
            text.contains("48001") && text.contains("interface permissions"),
            "{text}"
        );
    }
    assert_eq!(fetches(&gate), 1, "answered from memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_accounts_own_error_is_told() {
    let account = "[[account]]\nname = \"news\"\nappid = \"wx0123456789abcdef\"\nsecret = { value = \"wrong\" }\n";
    let known = |s: &mut sandbox::SandboxSettings| {
        s.accounts
            .push(SandboxAccount::new("wx0123456789abcdef", "right"))
    };
    let gate = setup()
        .sandbox(known)
        .more(&format!("{account}api = [\"{{api}}\"]\n"))
        .start()
        .await;
    let answer = get(&gate, "/-/accounts/news/tickets/jsapi").await;
    let text = answer.text();
    assert_eq!(
        (answer.status, &*answer.error),
        (503, "token_unavailable"),
        "{text}"
    );
    assert!(
        text.contains("no access token for account news") && text.contains("40125"),
        "{text}"
    );
    assert_eq!(fetches(&gate), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_ticket_and_a_reload_its_refresher() {
    let on_disk = || {
        setup()
            .set("store", "kind = \"file\"")
            .set("store", "path = \"state\"")
    };
    let gate = on_disk().start().await;
    let first = field(&get(&gate, JSAPI).await, "ticket");
    let answer = gate
        .reload(&gate.file().replace("[store]", "[token]\n[store]"))
        .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(field(&get(&gate, JSAPI).await, "ticket"), first);
    let file = gate.folder.path().join("state/shop.jsapi.json");
    let ticket = first.as_str().unwrap().to_owned();
    crate::stores::restarts::file_until(&file, |bytes| {
        String::from_utf8_lossy(bytes).contains(&ticket)
    })
    .await;
    let (sandbox, folder) = crate::stores::restarts::stopped(gate).await;
    let gate = on_disk().start_in(sandbox, folder).await;
    assert_eq!(field(&get(&gate, JSAPI).await, "ticket"), first);
    assert_eq!(fetches(&gate), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_tickets_without_seeing_them() {
    let gate = start().await;
    let ticket = field(&get(&gate, JSAPI).await, "ticket");
    let list = said(gate.client.get(gate.admin_url("/api/accounts")))
        .await
        .text();
    let rows: Value = serde_json::from_str(&list).unwrap();
    let shown = &rows[0]["tickets"];
    assert_eq!(
        (shown[0]["type"].as_str(), shown[0]["state"].as_str()),
        (Some("jsapi"), Some("ok")),
        "{list}"
    );
    assert_eq!(
        (
            shown.as_array().map(Vec::len),
            shown[0]["generation"].as_u64()
        ),
        (Some(1), Some(1)),
        "{list}"
    );
    let page = said(gate.client.get(gate.admin_url("/metrics")))
        .await
        .text();
    let line = r#"wxgate_ticket_fetch_total{account="shop",type="jsapi",result="new"} 1"#;
    assert!(
        page.contains(line) && page.contains(r#"wxgate_token_generation{account="shop"} 1"#),
        "{page}"
    );
    for text in [list, page] {
        assert!(!text.contains(ticket.as_str().unwrap()), "{text}");
    }
}
