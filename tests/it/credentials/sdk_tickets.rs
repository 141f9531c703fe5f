//! Ticket calls as SDKs make them, answered from the ticket that all share.

use serde_json::Value;
use wxgate::sandbox::{Fault, Rule};

use super::{CORP, started, strange_token, two_platforms};
use crate::support::{
    Gate, header, json, setup,
    token_tools::{all, get, spawned},
};

const GETTICKET: &str = "/cgi-bin/ticket/getticket";

fn fetches(gate: &Gate, path: &str) -> u64 {
    gate.control().path(path).requests
}

/// Pitfall: every process of every SDK fetches a ticket of its own, and the day's quota is gone.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_cost_one_fetch() {
    let gate = started(setup(), 1).await;
    let target = format!("{GETTICKET}?access_token=ACCESS_TOKEN&type=jsapi");
    let answers = all((0..20)
        .map(|_| spawned(gate.client.get(gate.url(&target))))
        .collect())
    .await;
    let first: Value = serde_json::from_slice(&answers[0].body).expect("JSON");
    assert_eq!(
        (&first["errcode"], &first["errmsg"]),
        (&0.into(), &"ok".into())
    );
    assert!(
        first["ticket"]
            .as_str()
            .is_some_and(|ticket| ticket.len() > 40),
        "{first}"
    );
    for answer in &answers {
        let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(answer["ticket"], first["ticket"]);
        let left = answer["expires_in"].as_u64().expect("a number");
        assert!((7100..=7200).contains(&left));
    }
    let ours = json(gate.get("/-/accounts/shop/tickets/jsapi").await).await;
    assert_eq!(ours["ticket"], first["ticket"]);
    assert_eq!(fetches(&gate, GETTICKET), 1);
    let card = json(gate.get(&format!("{GETTICKET}?type=wx_card")).await).await;
    assert_ne!(card["ticket"], first["ticket"]);
    assert_eq!(fetches(&gate, GETTICKET), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn wecom_has_its_own_two_calls() {
    let gate = started(two_platforms(), 2).await;
    for (call, path, kind) in [
        (
            "/@corp/cgi-bin/get_jsapi_ticket",
            "/cgi-bin/get_jsapi_ticket",
            "jsapi",
        ),
        (
            "/@corp/cgi-bin/ticket/get?type=agent_config",
            "/cgi-bin/ticket/get",
            "agent_config",
        ),
    ] {
        let first = json(gate.get(call).await).await;
        let again = json(gate.get(call).await).await;
        let ours = json(gate.get(&format!("/-/accounts/corp/tickets/{kind}")).await).await;
        assert!(first["ticket"].is_string(), "{CORP}: {first}");
        assert_eq!(
            (&first["ticket"], &first["ticket"]),
            (&again["ticket"], &ours["ticket"])
        );
        assert_eq!(fetches(&gate, path), 1);
    }
}

/// Other types, other platforms' paths, and calls whose own token is kept go to WeChat.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_is_forwarded() {
    let gate = two_platforms()
        .default_account("shop")
        .account("foreign_token = \"keep\"");
    let gate = started(gate, 2).await;
    for call in [
        format!("{GETTICKET}?type=sdk"),
        GETTICKET.to_owned(),
        format!("{GETTICKET}?type=jsapi&type=wx_card"),
        format!("{GETTICKET}?type=jsapi&access_token={}", strange_token()),
        "/cgi-bin/ticket/get?type=jsapi".to_owned(),
        "/@corp/cgi-bin/ticket/getticket?type=jsapi".to_owned(),
    ] {
        let answer = gate.get(&call).await;
        assert_eq!(header(&answer, "x-wxgate-attempts"), "1", "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_passed_on_with_wechats_code() {
    let gate = started(setup(), 1).await;
    gate.control()
        .fault(Rule::new(GETTICKET, Fault::errcode(48001)).always());
    let answer = get(&gate, &format!("{GETTICKET}?type=jsapi")).await;
    assert_eq!((answer.status, answer.errcode()), (200, Some(48001)));
    assert_eq!(answer.error, "");
    // In WeChat's words, with the id that its support asks for.
    let text = answer.text();
    assert!(
        text.contains("\"api unauthorized rid: ") && !text.contains("wxgate"),
        "{text}"
    );
}

/// Other methods would cost a fetch of the day's few.
#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_not_forwarded() {
    let gate = started(setup(), 1).await;
    let url = gate.url(&format!("{GETTICKET}?type=jsapi"));
    let head = gate.client.head(&url).send().await.expect("an answer");
    assert_eq!(head.status(), 200);
    let put = gate.client.put(&url).send().await.expect("an answer");
    assert_eq!(header(&put, "x-wxgate-error"), "endpoint_blocked");
    assert_eq!(fetches(&gate, GETTICKET), 1);
}

/// Whoever may not call the path gets no ticket.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_those_of_the_path() {
    let client =
        "[[client]]\nname = \"net\"\nfrom = [\"127.0.0.0/8\"]\ndeny = [\"/cgi-bin/ticket/**\"]\n";
    let gate = started(setup().more(client), 1).await;
    let answer = get(&gate, &format!("{GETTICKET}?type=jsapi")).await;
    assert_eq!(answer.error, "path_denied");
}
