//! SDKs that share a ticket, and an SDK that comes with a token from before wxgate.

use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, TokenKind};

use super::{
    CLIENT, KEY, USER,
    environments::{script, seen},
};
use crate::support::{Gate, json, setup};

const TICKET: &str = "/cgi-bin/ticket/getticket";
/// May ask for tickets at the service API too.
const MAY: &str = "may = [\"ticket\"]\n";

async fn started() -> Gate {
    let gate = setup().more(CLIENT).more(MAY).start().await;
    gate.control().until(|control| control.fetches() == 1).await;
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_two_sdks_share_one_ticket() {
    let gate = started().await;
    let with_key = |path| {
        let mut script = script(path);
        script.args([&gate.url(""), KEY]);
        script
    };
    let python = with_key("wechatpy_stored.py");
    let mut node = with_key("node/wechat_jssdk_ticket.js");
    node.arg(gate.folder.path());
    let (python, node) = tokio::join!(seen(python), seen(node));
    let ours = gate
        .client
        .get(gate.url("/-/accounts/shop/tickets/jsapi"))
        .header("x-wxgate-key", KEY);
    let ours = json(ours.send().await.expect("an answer")).await;
    assert!(ours["ticket"].is_string(), "{ours}");
    for seen in [python, node] {
        assert_eq!(seen["ticket"], ours["ticket"], "{seen}");
        assert_eq!(seen["signature"].as_str().map(str::len), Some(40), "{seen}");
    }
    assert_eq!(gate.control().path(TICKET).requests, 1);
    assert_eq!(gate.control().fetches(), 1, "and one token");
}

/// Pitfall: a service that moves to wxgate keeps its token storage, and where callers are known by
/// their key, a token of WeChat's says nothing about the caller.
#[tokio::test(flavor = "multi_thread")]
async fn wechatpy_with_a_real_token_in_its_storage_asks_again_by_itself() {
    let gate = started().await;
    let real = gate
        .control()
        .current_token(DEFAULT_APPID, TokenKind::Stable);
    let gone = format!("65_{}", "o".repeat(133));
    for old in [real.expect("a token"), gone] {
        gate.control().clear_record();
        let mut script = script("wechatpy_stored.py");
        script.args([&gate.url(""), KEY, &old]);
        let seen = seen(script).await;
        assert_eq!(seen["user"], USER);
        let token = seen["token"].as_str().expect("a token");
        assert!(token.starts_with("wxg1_"), "{token}");
        let calls = gate.control().requests("/cgi-bin/user/info");
        assert_eq!(calls.len(), 1, "the first was answered by wxgate");
    }
    assert_eq!(gate.control().fetches(), 0, "no token died");
    let log = gate.stop().await.1;
    assert!(!log.contains(DEFAULT_SECRET), "{log}");
    assert_eq!(log.matches("\"client_unknown\"").count(), 2, "{log}");
}
