//! `wxgate status`: one line per account of a running wxgate, and an exit status for scripts.
//!
//! 0: all accounts are well; 1: an account is not; 3: no account has a usable token, or no wxgate
//! tells.

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::Value;

use super::{
    CommandError,
    admin_client::{AdminArguments, AdminClient},
    background_runtime, print,
};

/// Exit status when no account can be used, as far as one knows.
const NONE_USABLE: u8 = 3;

pub(super) fn run(arguments: &AdminArguments) -> Result<(), CommandError> {
    let admin = AdminClient::new(arguments)?;
    let answer = background_runtime()?.block_on(admin.call(Method::GET, "/api/accounts", None));
    let answer = answer.map_err(|error| CommandError::Exit {
        message: error.to_string(),
        status: NONE_USABLE,
    })?;
    let accounts = answer.as_array().map_or(&[][..], Vec::as_slice);
    print(lines(accounts).as_bytes())?;
    let usable = accounts.iter().filter(|account| account["usable"] == true);
    let unwell = accounts.iter().filter(|account| account["state"] != "ok");
    match (usable.count(), unwell.count()) {
        (0, _) => Err(CommandError::Exit {
            message: "no account has a usable token".to_owned(),
            status: NONE_USABLE,
        }),
        (_, 0) => Ok(()),
        (_, unwell) => Err(CommandError::Running(format!(
            "{unwell} of {} account(s) need attention",
            accounts.len()
        ))),
    }
}

fn lines(accounts: &[Value]) -> String {
    let width = accounts
        .iter()
        .filter_map(|account| account["name"].as_str())
        .map(str::len)
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for account in accounts {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<width$}  {:<8}  {}",
            account["name"].as_str().unwrap_or_default(),
            account["state"].as_str().unwrap_or_default(),
            condition(account),
        );
    }
    text
}

/// What an operator asks first: how long the token is good, and what the last error was.
fn condition(account: &Value) -> String {
    let mut text = match account["expires_in"].as_u64() {
        Some(left) => format!("the token is good for {left} s"),
        None => "no token".to_owned(),
    };
    if let Some(next) = account["next_attempt_in"].as_u64() {
        let _ = write!(text, ", next fetch in {next} s");
    }
    if account["state"] != "ok"
        && let Some(sentence) = account["last_error"]["sentence"].as_str()
    {
        let _ = write!(text, "; {sentence}");
    }
    text
}
