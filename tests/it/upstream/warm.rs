//! Warm connections: one per API host in use, ready before it is asked for, and never a second.

use std::time::Duration;

use tokio::time::timeout;
use wxgate::sandbox::{Fault, Rule};

use crate::support::{Gate, setup, wire::DEADLINE};

const INFO: &str = "/cgi-bin/user/info";
const SEND: &str = "/cgi-bin/message/custom/send";

/// Waits until WeChat has accepted so many connections; returns the most that were open meanwhile.
async fn accepted(gate: &Gate, connections: u64) -> u64 {
    let mut most = 0;
    let enough = gate.control().until(|control| {
        most = most.max(control.counters().open_connections);
        control.connections() >= connections
    });
    timeout(DEADLINE, enough).await.expect("dialled");
    most
}

/// Makes a call; asserts that no connection was dialled for it.
async fn call_without_dial(gate: &Gate) {
    let before = gate.control().connections();
    gate.warm().await;
    let used = gate.control().requests(INFO).pop().unwrap().connection;
    assert_eq!(gate.control().connections(), before);
    assert!(used <= before, "{used} of {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_after_wechat_closed_the_last_connection_need_not_dial() {
    let gate = setup()
        .sandbox(|sandbox| sandbox.idle_close = Some(Duration::from_secs(2)))
        .start()
        .await;
    gate.warm().await;
    let first = gate.control().connections();
    accepted(&gate, first + 1).await;
    call_without_dial(&gate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_grows_old_is_replaced_before_it_is_closed() {
    let gate = setup().set("upstream", "pool_idle = \"1s\"").start().await;
    gate.sandbox.control().set_idle_close(None);
    gate.warm().await;
    let first = gate.control().connections();
    let most = accepted(&gate, first + 3).await;
    // That of the token call, the old one and the new one.
    assert!(most <= 3, "{most}");
    call_without_dial(&gate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_ready_beside_one_that_hangs_and_never_a_second() {
    let gate = setup().set("server", "workers = 1").start().await;
    gate.warm().await;
    let first = gate.control().connections();
    let held = gate
        .control()
        .fault(Rule::new(SEND, Fault::Pass).always().hold());
    let hanging = tokio::spawn(gate.send_message("u").send());
    accepted(&gate, first + 1).await;
    call_without_dial(&gate).await;
    // The spare one is taken for a moment and comes back: nothing is missing.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(gate.control().connections(), first + 1);
    gate.control().release(held);
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_warm_nothing_is_dialled_in_the_background() {
    let gate = setup()
        .set("upstream", "pool_idle = \"500ms\"\nwarm = false")
        .start()
        .await;
    gate.warm().await;
    let first = gate.control().connections();
    let closed = gate
        .control()
        .until(|control| control.counters().open_connections <= 1);
    timeout(DEADLINE, closed).await.expect("closed");
    gate.warm().await;
    assert_eq!(
        gate.control().connections(),
        first + 1,
        "for the call alone"
    );
}
