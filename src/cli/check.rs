//! `wxgate check`: checks the configuration and, with `--live`, fetches a token for each account.
//!
//! Without `--live` nothing leaves the machine.

use std::fmt::Write as _;

use super::{CommandError, background_runtime, print};
use crate::{
    app::{self, NameLookup, descriptors},
    config::{self, Config},
    token::{
        Cause, ProviderKind,
        source::{self, FetchMode, TokenClient},
    },
};

pub(super) fn run(config: &Config, live: bool) -> Result<(), CommandError> {
    let names = if live {
        NameLookup::Resolve
    } else {
        NameLookup::Skip
    };
    app::check_loops(config, names).map_err(|error| CommandError::Config(error.to_string()))?;
    let mut report = String::new();
    if let Some(shortage) = descriptors::shortage(&config.proxy) {
        let _ = writeln!(report, "warning: {shortage}");
    }
    report.push_str(&config::check_text(config));
    report.push('\n');
    let refused = if live {
        fetch_tokens(config, &mut report)?
    } else {
        0
    };
    print(report.as_bytes())?;
    match refused {
        0 => Ok(()),
        count => Err(CommandError::Running(format!(
            "{count} account(s) got no token"
        ))),
    }
}

/// Fetches a token for each account and adds a line on the outcome to `report`. Returns the number
/// of accounts without a token.
fn fetch_tokens(config: &Config, report: &mut String) -> Result<usize, CommandError> {
    let runtime = background_runtime()?;
    let client = TokenClient::new(&config.proxy.upstream.egress, config.token.fetch_timeout)
        .map_err(|error| CommandError::Config(format!("upstream: {error}")))?;
    let mut refused = 0;
    for account in &config.accounts {
        let source = source::for_account(account, client.clone());
        let line = match runtime.block_on(source.fetch(FetchMode::Normal)) {
            Ok(fetched) => {
                let (who, note) = match account.kind() {
                    ProviderKind::Stable => ("WeChat gave", ""),
                    ProviderKind::Classic => (
                        "WeChat gave",
                        "; a running wxgate now holds the previous one and will replace it",
                    ),
                    ProviderKind::Wecom => ("WeCom gave", ""),
                    ProviderKind::External => ("the other server keeps", ""),
                };
                format!(
                    "{who} a token that is good for {} s{note}",
                    fetched.expires_in.as_secs()
                )
            }
            Err(error) => {
                refused += 1;
                format!("no token: {}", Cause::Fetch(error))
            }
        };
        // Writing to a string cannot fail.
        let _ = writeln!(report, "{}: {line}", account.name);
    }
    Ok(refused)
}
