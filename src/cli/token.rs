//! `wxgate token`: shows the state of an account's token from the admin API of a running wxgate,
//! but never the token.

use reqwest::Method;
use serde_json::Value;

use super::{
    CommandError,
    admin_client::{AdminArguments, AdminClient},
    background_runtime, print,
};
use crate::base::AccountName;

pub(super) fn run(
    arguments: &AdminArguments,
    account: &AccountName,
    refresh: bool,
) -> Result<(), CommandError> {
    let admin = AdminClient::new(arguments)?;
    background_runtime()?.block_on(async {
        if refresh {
            let path = format!("/api/accounts/{account}/refresh");
            let body = serde_json::json!({"force": false});
            return show(&admin.call(Method::POST, &path, Some(body)).await?);
        }
        let accounts = admin.call(Method::GET, "/api/accounts", None).await?;
        let found = accounts
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["name"] == account.as_str());
        match found {
            Some(entry) => show(entry),
            None => Err(CommandError::Running(format!(
                "the running wxgate has no account named {account}"
            ))),
        }
    })
}

/// Prints an answer of the API.
pub(super) fn show(value: &Value) -> Result<(), CommandError> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    print(text.as_bytes())
}
