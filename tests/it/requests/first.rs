//! The main job at a glance.

use crate::support::{header, json, setup, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_token_is_answered() {
    let gate = start().await;
    let answer = gate.get("/cgi-bin/user/info?openid=o6_b").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(header(&answer, "x-wxgate-account"), "shop");
    assert_eq!(header(&answer, "x-wxgate-attempts"), "1");
    assert_eq!(header(&answer, "x-request-id").len(), 16);
    assert_eq!(json(answer).await["openid"], "o6_b");
    assert_eq!(gate.control().fetches(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_in_flight_on_a_dead_token_cost_one_fetch_and_none_fails() {
    let gate = setup().start().await;
    gate.warm().await;
    gate.control()
        .revoke(wxgate::sandbox::TokenFilter::default());
    let calls = (0..1000).map(|user| {
        let message = gate.send_message(&format!("user-{user}"));
        tokio::spawn(async move {
            json(message.send().await.expect("an answer")).await["errcode"].as_i64()
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("no panic"), Some(0));
    }
    assert_eq!(
        gate.control().fetches(),
        2,
        "one at the start, one for all thousand"
    );
    assert_eq!(gate.control().deliveries().len(), 1000);
    for user in 0..1000 {
        assert_eq!(gate.control().delivered_to(&format!("user-{user}")), 1);
    }
}
