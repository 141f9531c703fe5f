//! An SDK that signs its calls itself: nothing that it signed may change on the way, nor in a replay.

use serde_json::json;

use super::environments::{script, seen};
use crate::support::start;

#[tokio::test(flavor = "multi_thread")]
async fn signatures_of_wechat_xpay_fit_when_a_call_is_sent_again() {
    let gate = start().await;
    gate.warm().await;
    let mut script = script("wechat_xpay_calls.py");
    script.args([gate.url(""), gate.sandbox.http_url().expect("it listens")]);
    let seen = seen(script).await;
    assert_eq!(seen["balances"], json!([100, 100]), "{seen}");
    assert_eq!(
        seen["signed"],
        json!([true, true, true]),
        "one, and one with its replay"
    );
}
