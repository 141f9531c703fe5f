//! The keepers of the running configuration, and which of them the next one takes over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    base::AccountName,
    config::Config,
    token::{
        self, AccountSettings, AccountTokens, Accounts, Keeper, Tickets,
        source::{self, TokenClient},
        store::TokenStore,
    },
};

/// Everything a keeper is started with, and those that were.
pub(super) struct Keepers {
    client: TokenClient,
    store: Arc<dyn TokenStore>,
    metrics: token::metrics::Metrics,
    settings: token::Settings,
    running: Vec<(AccountSettings, AccountTokens)>,
}

/// Names of the accounts that were added, changed and removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
}

/// Keepers that nothing asks any more once the new configuration is in force.
pub(super) struct Leaving(Vec<(AccountSettings, AccountTokens)>);

impl Keepers {
    /// Empty, until [`Keepers::follow`].
    pub(super) fn new(
        client: TokenClient,
        store: Arc<dyn TokenStore>,
        metrics: token::metrics::Metrics,
    ) -> Self {
        Self {
            client,
            store,
            metrics,
            settings: token::Settings::default(),
            running: Vec::new(),
        }
    }

    /// Keeps the keepers of accounts that are unchanged and starts the others. With other token
    /// settings all are started anew; the store gives them their tokens back.
    pub(super) fn follow(&mut self, config: &Config) -> (Changes, Leaving) {
        let same_settings = self.settings == config.token;
        self.settings = config.token;
        let mut before: Vec<Option<(AccountSettings, AccountTokens)>> =
            std::mem::take(&mut self.running)
                .into_iter()
                .map(Some)
                .collect();
        let names = before.iter().flatten().map(|(old, _)| old.name.clone());
        let places: HashMap<AccountName, usize> = names.zip(0..).collect();
        let mut changes = Changes::default();
        for account in &config.accounts {
            let old = places.get(&account.name).and_then(|at| before.get_mut(*at));
            let existed = old.is_some();
            let reusable = |(old, _): &mut (AccountSettings, AccountTokens)| {
                same_settings && old.share_keeper(account)
            };
            let keeper = if let Some((_, keeper)) = old.and_then(|old| old.take_if(reusable)) {
                keeper
            } else {
                let list = if existed {
                    &mut changes.changed
                } else {
                    &mut changes.added
                };
                list.push(account.name.to_string());
                self.spawn(account)
            };
            self.running.push((account.clone(), keeper));
        }
        let leaving: Vec<_> = before.into_iter().flatten().collect();
        let stay: HashSet<&AccountName> = config.accounts.iter().map(|new| &new.name).collect();
        let gone = leaving.iter().filter(|(old, _)| !stay.contains(&old.name));
        changes.removed = gone.map(|(old, _)| old.name.to_string()).collect();
        (changes, Leaving(leaving))
    }

    /// Retires those that were replaced or removed, and drops the gauges of removed accounts.
    pub(super) fn dismiss(&self, leaving: Leaving) {
        let running: HashSet<&AccountName> = self.running.iter().map(|(on, _)| &on.name).collect();
        for (account, keeper) in leaving.0 {
            keeper.retire();
            if !running.contains(&account.name) {
                self.metrics.forget(&account.name);
            }
        }
    }

    /// Accounts in the order of the configuration.
    pub(super) fn running(&self) -> &[(AccountSettings, AccountTokens)] {
        &self.running
    }

    /// Accounts by name.
    pub(super) fn by_name(&self) -> Arc<Accounts> {
        Arc::new(
            self.running
                .iter()
                .map(|(account, keeper)| (account.name.clone(), keeper.clone()))
                .collect(),
        )
    }

    fn spawn(&self, account: &AccountSettings) -> AccountTokens {
        let source = source::for_account(
            account,
            self.client
                .clone()
                .with_timeout(self.settings.fetch_timeout),
        );
        let counters = self.metrics.for_account(&account.name);
        let store = || Arc::clone(&self.store);
        let token = Keeper::spawn(account.clone(), self.settings, source, store(), counters);
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let tickets = Tickets::new(
            account.clone(),
            self.settings,
            client,
            store(),
            metrics,
            &token,
        );
        AccountTokens {
            token,
            tickets: Some(Arc::new(tickets)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, time::Duration};

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{
        config, net::egress::Egress, token::store::MemoryStore, wechat::ticket::TicketType,
    };

    fn config(accounts: &[(&str, &str)], token: &str) -> Config {
        let account = |(name, more): &(&str, &str)| {
            let appid = format!("wx{:0>16x}", name.bytes().map(usize::from).sum::<usize>());
            format!(
                "[[account]]\nname = \"{name}\"\nappid = \"{appid}\"\napi = [\"http://127.0.0.1:9\"]\n{more}\n\
                 {}",
                if more.contains("secret") {
                    ""
                } else {
                    "secret = { value = \"s\" }\n"
                }
            )
        };
        let text = format!(
            "[token]\n{token}\n{}",
            accounts.iter().map(account).collect::<String>()
        );
        config::parse(
            &text,
            Path::new("/"),
            "test.toml",
            &BTreeMap::<String, String>::new(),
        )
        .unwrap()
    }

    fn keepers() -> Keepers {
        let client = TokenClient::new(&Egress::default(), Duration::from_secs(1)).unwrap();
        let metrics = token::metrics::Metrics::register(&mut Registry::default());
        Keepers::new(client, Arc::new(MemoryStore::default()), metrics)
    }

    fn changes(added: &[&str], changed: &[&str], removed: &[&str]) -> Changes {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Changes {
            added: owned(added),
            changed: owned(changed),
            removed: owned(removed),
        }
    }

    fn handles(keepers: &Keepers) -> Vec<AccountTokens> {
        keepers
            .running()
            .iter()
            .map(|(_, keeper)| keeper.clone())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_concerns_the_token_costs_an_account_its_keeper() {
        let mut keepers = keepers();
        assert_eq!(
            keepers.follow(&config(&[("a", ""), ("b", "")], "")).0,
            changes(&["a", "b"], &[], &[])
        );
        let before = handles(&keepers);
        let hosts = config(&[("b", ""), ("a", "hosts = [\"a.internal\"]")], "");
        assert_eq!(keepers.follow(&hosts).0, changes(&[], &[], &[]));
        let after = handles(&keepers);
        assert!(
            after[0].token.is_same_as(&before[1].token)
                && after[1].token.is_same_as(&before[0].token),
            "in another order"
        );
        for changed in [
            "secret = { value = \"t\" }",
            "token = \"classic\"",
            "secret = { value = \"t\" }",
        ] {
            assert_eq!(
                keepers.follow(&config(&[("a", changed), ("b", "")], "")).0,
                changes(&[], &["a"], &[])
            );
            assert!(
                !handles(&keepers)[0].token.is_same_as(&before[0].token)
                    && handles(&keepers)[1].token.is_same_as(&before[1].token)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_token_settings_renew_every_keeper() {
        let mut keepers = keepers();
        let _ = keepers.follow(&config(&[("a", ""), ("b", "")], ""));
        let renewed = keepers
            .follow(&config(&[("a", ""), ("b", "")], "wait = \"1s\""))
            .0;
        assert_eq!(renewed, changes(&[], &["a", "b"], &[]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_tickets_of_an_account_retire_with_it() {
        let mut keepers = keepers();
        let _ = keepers.follow(&config(&[("a", "")], ""));
        let keeper = handles(&keepers).remove(0);
        let pass = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        let failures = || {
            let tickets = keeper.tickets.as_ref().unwrap();
            assert!(tickets.get(TicketType::Jsapi).is_some());
            tickets
                .statuses()
                .next()
                .unwrap()
                .1
                .last_error
                .map_or(0, |error| error.failures)
        };
        assert_eq!(failures(), 0);
        pass(600).await;
        assert!(failures() > 3, "{} attempts", failures());
        let (_, leaving) = keepers.follow(&config(&[("b", "")], ""));
        keepers.dismiss(leaving);
        pass(60).await;
        let before = failures();
        pass(3600).await;
        assert_eq!(failures(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_gauges_of_an_account_go_with_it_and_stay_when_it_only_changes() {
        let mut registry = Registry::default();
        let mut keepers = keepers();
        keepers.metrics = token::metrics::Metrics::register(&mut registry);
        let page = |keepers: &mut Keepers, accounts: &[(&str, &str)]| {
            let (changes, leaving) = keepers.follow(&config(accounts, ""));
            keepers.dismiss(leaving);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            (changes, text)
        };
        let shown = |text: &str, account: &str| {
            text.contains(&format!("generation{{account=\"{account}\"}}"))
        };
        let (_, text) = page(&mut keepers, &[("a", ""), ("b", "")]);
        assert!(shown(&text, "a") && shown(&text, "b"));
        let (seen, text) = page(&mut keepers, &[("a", "secret = { value = \"t\" }")]);
        assert_eq!(seen, changes(&[], &["a"], &["b"]));
        assert!(shown(&text, "a") && !shown(&text, "b"), "{text}");
    }
}
