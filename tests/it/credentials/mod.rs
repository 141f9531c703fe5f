//! Which credential a call is sent with: the account's, its own, or none.

mod carried;
mod foreign;
mod hostile;
mod hosts;
mod matrix;
mod sdk_tickets;

use wxgate::sandbox::{DEFAULT_APPID, DEFAULT_SECRET, RecordedRequest, SandboxAccount};

use crate::support::{Gate, Setup, setup};

pub(crate) const CORP: &str = "ww0123456789abcdef";
/// Key of the client `crm`.
pub(crate) const KEY: &str = "crm-key-0123456789";

/// The accounts `shop` of WeChat and `corp` of WeCom.
fn two_platforms() -> Setup {
    setup()
        .sandbox(|sandbox| {
            let corp = SandboxAccount::wecom(CORP, "secret-of-corp");
            sandbox.accounts.push(corp);
        })
        .more(&format!(
            "[[account]]\nname = \"corp\"\nplatform = \"wecom\"\nappid = \"{CORP}\"\n\
             secret = {{ value = \"secret-of-corp\" }}\napi = [\"{{api}}\"]\n"
        ))
}

/// A client that is known by its key only.
fn keyed() -> String {
    format!("[[client]]\nname = \"crm\"\nkey = {{ value = \"{KEY}\" }}\n")
}

/// The same accounts twice: without a default, nothing is fallen back to.
fn second_account() -> String {
    format!(
        "[[account]]\nname = \"mall\"\nappid = \"wx00000000000000aa\"\nsecret = {{ value = \"{DEFAULT_SECRET}\" }}\n\
         api = [\"{{api}}\"]\n"
    )
}

/// Starts with real statuses, and waits for the first token of each of `accounts`.
async fn started(setup: Setup, accounts: u64) -> Gate {
    let setup = setup.set("server", "error_style = \"http\"");
    let gate = setup.start().await;
    gate.control()
        .until(move |control| control.fetches() >= accounts)
        .await;
    gate.control().clear_record();
    gate
}

/// Path and query of a request as WeChat saw it.
fn target(record: &RecordedRequest) -> String {
    match &record.query {
        Some(query) => format!("{}?{query}", record.path),
        None => record.path.clone(),
    }
}

/// A text that looks like a token of WeChat's, and is none that anybody here knows.
fn strange_token() -> String {
    format!("65_{}", "s".repeat(133))
}

/// The target of a token call with this secret.
fn token_call(secret: &str) -> String {
    format!("/cgi-bin/token?grant_type=client_credential&appid={DEFAULT_APPID}&secret={secret}")
}
