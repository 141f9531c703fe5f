//! `wxgate health`: one look at a probe of the admin listener, for images and units.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{
    CommandError,
    admin_client::{AdminArguments, AdminClient},
    background_runtime, print,
};

pub(super) fn run(arguments: &AdminArguments, ready: bool) -> Result<(), CommandError> {
    let admin = AdminClient::without_key(arguments)?;
    let (path, fine) = if ready {
        ("/readyz", "ready\n")
    } else {
        ("/livez", "alive\n")
    };
    let (status, body) = background_runtime()?.block_on(admin.send(Method::GET, path, None))?;
    if status == StatusCode::OK {
        return print(fine.as_bytes());
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    Err(CommandError::Running(not_ready(
        admin.address(),
        path,
        status,
        &body,
    )))
}

/// Sentence on a probe that failed: the reason of the node, and the accounts without a token.
fn not_ready(address: &str, path: &str, status: StatusCode, body: &Value) -> String {
    let mut text = format!("{address}{path} answers with HTTP status {status}");
    if let Some(message) = body["message"].as_str() {
        text = format!("{text}: {message}");
    }
    let lacking: Vec<&str> = body["lacking"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|account| account["account"].as_str().or(account["name"].as_str()))
        .collect();
    if !lacking.is_empty() {
        text = format!("{text}; without a token: {}", lacking.join(", "));
    }
    text
}
