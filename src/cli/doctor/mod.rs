//! The doctor, `wxgate check --live`: looks at everything that calls to WeChat need, and says of each
//! broken thing what is wrong and what to do.
//!
//! Changes nothing that a running wxgate needs: tokens are asked for where that replaces none,
//! listeners of a wxgate count as free, and the folder of a file store is not locked.

mod account;
mod finding;
mod host;
mod listeners;
mod store;

use std::collections::HashMap;

use self::finding::{Findings, Mark};
use super::{CommandError, background_runtime};
use crate::{
    config::Config,
    net::address::BaseUrl,
    token::source::{ClientError, TokenClient},
};

/// Settings of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Fetch tokens also where that ends the one of a running wxgate (`token = "classic"`).
    pub(super) fetch: bool,
}

/// Looks at everything, adds the findings to `report`, and returns the number of broken things.
pub(super) fn run(
    config: &Config,
    options: Options,
    report: &mut String,
) -> Result<usize, CommandError> {
    let findings = background_runtime()?.block_on(examine(config, options));
    report.push_str(&findings.to_string());
    Ok(findings.broken())
}

async fn examine(config: &Config, options: Options) -> Findings {
    let mut findings = Findings::default();
    let egress = &config.proxy.upstream.egress;
    match TokenClient::new(egress, config.token.fetch_timeout) {
        Ok(client) => {
            let reachable = hosts(config, &mut findings).await;
            findings.extend(store::examine(config, &client).await);
            for account in &config.accounts {
                let can_call = account
                    .api
                    .iter()
                    .any(|base| reachable.get(base).copied().unwrap_or_default());
                let checked = account::AccountCheck {
                    config,
                    account,
                    client: &client,
                    can_call,
                    options,
                };
                findings.extend(checked.examine().await);
            }
        }
        Err(ClientError::Roots(error)) => findings.broken_at("TLS", error.to_string()),
        Err(error) => findings.broken_at("upstream", error.to_string()),
    }
    findings.extend(listeners::examine(config).await);
    findings
}

/// Looks at each API host once, and tells which of them a call can reach.
async fn hosts(config: &Config, findings: &mut Findings) -> HashMap<BaseUrl, bool> {
    let mut reachable = HashMap::new();
    for base in config.accounts.iter().flat_map(|account| &account.api) {
        if !reachable.contains_key(base) {
            let found = host::examine(&config.proxy.upstream.egress, base).await;
            let is_fine = !found.has(Mark::Broken) || found.only_clock();
            reachable.insert(base.clone(), is_fine);
            findings.extend(found);
        }
    }
    reachable
}
