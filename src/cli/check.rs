//! `wxgate check`: checks the configuration and, with `--live`, tries it at WeChat.
//!
//! Without `--live` nothing leaves the machine.

use std::fmt::Write as _;

use super::{Failure, background_runtime, print};
use crate::{
    app::{self, Names, descriptors},
    config::{self, Config},
    token::{
        Cause, ProviderKind,
        source::{self, FetchMode, TokenClient},
    },
};

pub(super) fn run(config: &Config, live: bool) -> Result<(), Failure> {
    let names = if live { Names::Ask } else { Names::Leave };
    app::check_loops(config, names).map_err(|error| Failure::Config(error.to_string()))?;
    let mut report = String::new();
    if let Some(shortage) = descriptors::shortage(&config.proxy) {
        let _ = writeln!(report, "warning: {shortage}");
    }
    report.push_str(&config::check_text(config));
    report.push('\n');
    let mut refused = 0;
    if live {
        let runtime = background_runtime()?;
        let client = TokenClient::new(&config.proxy.upstream.egress, config.token.fetch_timeout)
            .map_err(|error| Failure::Config(format!("upstream: {error}")))?;
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
            let _ = writeln!(report, "{}: {line}", account.name);
        }
    }
    print(report.as_bytes())?;
    match refused {
        0 => Ok(()),
        count => Err(Failure::Running(format!("{count} account(s) got no token"))),
    }
}
