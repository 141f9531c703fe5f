//! The refreshers of the running configuration, and which of them the next one takes over.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    base::AccountName,
    config::Config,
    token::{
        self, AccountSettings, AccountTokens, PhantomKeys, RefresherParts, TicketParts, Tickets,
        Token, TokenRefresher, TokenRegistry, TokenSettings,
        source::{self, TokenClient, TokenSource},
        store::TokenStore,
    },
};

/// Everything a refresher is started with, and those that were.
pub(super) struct Refreshers {
    client: TokenClient,
    store: Arc<dyn TokenStore>,
    metrics: token::metrics::TokenMetrics,
    settings: token::TokenSettings,
    /// Another process fetches; refreshers begin on standby.
    pub(super) on_standby: bool,
    running: Vec<(AccountSettings, AccountTokens)>,
}

/// Names of the accounts that were added, changed and removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
}

/// Refreshers that have tried a changed AppSecret and are to take over.
#[derive(Default)]
pub(super) struct Successors(HashMap<AccountName, TokenRefresher>);

/// Refreshers that nothing asks any more once the new configuration is in force.
pub(super) struct Leaving(Vec<(AccountSettings, AccountTokens)>);

impl Successors {
    pub(super) fn new(refreshers: impl Iterator<Item = (AccountName, TokenRefresher)>) -> Self {
        Self(refreshers.collect())
    }

    /// Takes the refresher that follows on this account's, if its AppSecret changed.
    fn take(&mut self, account: &AccountName) -> Option<TokenRefresher> {
        self.0.remove(account)
    }
}

impl Refreshers {
    /// Empty, until [`Refreshers::follow`].
    pub(super) fn new(
        client: TokenClient,
        store: Arc<dyn TokenStore>,
        metrics: token::metrics::TokenMetrics,
    ) -> Self {
        Self {
            client,
            store,
            metrics,
            settings: token::TokenSettings::default(),
            on_standby: false,
            running: Vec::new(),
        }
    }

    /// Leaves the fetches to another process until [`Refreshers::resume`].
    #[must_use]
    pub(super) fn on_standby(mut self, on_standby: bool) -> Self {
        self.on_standby = on_standby;
        self
    }

    /// True if an account has a usable token.
    pub(super) fn is_any_usable(&self) -> bool {
        let mut tokens = self.running.iter().map(|(_, tokens)| &tokens.token);
        tokens.any(|token| token.status().usable)
    }

    /// Number of accounts with a usable token, and of all.
    pub(super) fn usable(&self) -> (usize, usize) {
        let tokens = self.running.iter().map(|(_, tokens)| &tokens.token);
        let usable = tokens.filter(|token| token.status().usable).count();
        (usable, self.running.len())
    }

    /// Keeps the refreshers of accounts that are unchanged and starts the others. With other token
    /// settings all are started anew; the store gives them their tokens back. Accounts whose
    /// AppSecret changed go on with their successors.
    pub(super) fn follow(
        &mut self,
        config: &Config,
        mut successors: Successors,
    ) -> (Changes, Leaving) {
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
            let former = old
                .as_ref()
                .and_then(|old| old.as_ref())
                .map(|(_, tokens)| Arc::clone(&tokens.phantoms));
            let reusable = |(old, _): &mut (AccountSettings, AccountTokens)| {
                same_settings && old.share_refresher(account)
            };
            let refresher = if let Some((_, refresher)) = old.and_then(|old| old.take_if(reusable))
            {
                refresher
            } else {
                let list = if former.is_some() {
                    &mut changes.changed
                } else {
                    &mut changes.added
                };
                list.push(account.name.to_string());
                let successor = successors.take(&account.name);
                self.spawn(account, successor, former)
            };
            self.running.push((account.clone(), refresher));
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
        for (account, refresher) in leaving.0 {
            refresher.retire();
            if !running.contains(&account.name) {
                refresher.phantoms.forget();
                self.metrics.forget(&account.name);
            }
        }
    }

    /// Accounts in the order of the configuration.
    pub(super) fn running(&self) -> &[(AccountSettings, AccountTokens)] {
        &self.running
    }

    /// Accounts by name.
    pub(super) fn by_name(&self) -> Arc<TokenRegistry> {
        Arc::new(
            self.running
                .iter()
                .map(|(account, refresher)| (account.name.clone(), refresher.clone()))
                .collect(),
        )
    }

    /// Resolves when the keys of all accounts' phantoms are known, as far as the store tells.
    pub(super) fn phantoms_loaded(&self) -> impl Future<Output = ()> + use<> {
        let phantoms: Vec<_> = self
            .running
            .iter()
            .map(|(_, tokens)| Arc::clone(&tokens.phantoms))
            .collect();
        async move {
            for phantoms in phantoms {
                phantoms.loaded().await;
            }
        }
    }

    /// Starts a refresher that tries another AppSecret of an account, see
    /// [`TokenRefresher::spawn_trial`].
    pub(super) fn spawn_trial(
        &self,
        account: &AccountSettings,
        settings: TokenSettings,
        current: Option<Arc<Token>>,
    ) -> TokenRefresher {
        let source = self.source(account, settings);
        let counters = self.metrics.for_account(&account.name);
        let parts = RefresherParts::of(account.clone(), settings, source, self.store(), counters);
        TokenRefresher::spawn_trial(parts, current)
    }

    fn source(&self, account: &AccountSettings, settings: TokenSettings) -> Arc<dyn TokenSource> {
        let client = self.client.clone().with_timeout(settings.fetch_timeout);
        source::for_account(account, client)
    }

    pub(super) fn store(&self) -> Arc<dyn TokenStore> {
        Arc::clone(&self.store)
    }

    /// Starts what an account needs, with the refresher that has tried its AppSecret, and with the
    /// keys of its phantoms until now.
    fn spawn(
        &self,
        account: &AccountSettings,
        successor: Option<TokenRefresher>,
        former: Option<Arc<PhantomKeys>>,
    ) -> AccountTokens {
        let token = if let Some(successor) = successor {
            successor.confirm();
            successor
        } else {
            let source = self.source(account, self.settings);
            let counters = self.metrics.for_account(&account.name);
            let (account, settings) = (account.clone(), self.settings);
            let parts = RefresherParts::of(account, settings, source, self.store(), counters);
            if self.on_standby {
                TokenRefresher::spawn_on_standby(parts)
            } else {
                TokenRefresher::spawn_from(parts)
            }
        };
        let phantoms = match former {
            Some(unchanged) if unchanged.are_of(account) => unchanged,
            former => PhantomKeys::start(account, self.store(), former.as_deref()),
        };
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let parts = TicketParts {
            account: account.clone(),
            settings: self.settings,
            client,
            store: self.store(),
            metrics,
        };
        let tickets = Tickets::new(parts, &token);
        AccountTokens {
            token,
            tickets: Some(Arc::new(tickets)),
            phantoms,
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

    fn refreshers() -> Refreshers {
        let client = TokenClient::new(&Egress::default(), Duration::from_secs(1)).unwrap();
        let metrics = token::metrics::TokenMetrics::register(&mut Registry::default());
        Refreshers::new(client, Arc::new(MemoryStore::default()), metrics)
    }

    fn changes(added: &[&str], changed: &[&str], removed: &[&str]) -> Changes {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Changes {
            added: owned(added),
            changed: owned(changed),
            removed: owned(removed),
        }
    }

    fn handles(refreshers: &Refreshers) -> Vec<AccountTokens> {
        refreshers
            .running()
            .iter()
            .map(|(_, refresher)| refresher.clone())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_concerns_the_token_costs_an_account_its_refresher() {
        let mut refreshers = refreshers();
        assert_eq!(
            refreshers
                .follow(&config(&[("a", ""), ("b", "")], ""), Successors::default())
                .0,
            changes(&["a", "b"], &[], &[])
        );
        let before = handles(&refreshers);
        let hosts = config(&[("b", ""), ("a", "hosts = [\"a.internal\"]")], "");
        assert_eq!(
            refreshers.follow(&hosts, Successors::default()).0,
            changes(&[], &[], &[])
        );
        let after = handles(&refreshers);
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
                refreshers
                    .follow(
                        &config(&[("a", changed), ("b", "")], ""),
                        Successors::default()
                    )
                    .0,
                changes(&[], &["a"], &[])
            );
            assert!(
                !handles(&refreshers)[0].token.is_same_as(&before[0].token)
                    && handles(&refreshers)[1].token.is_same_as(&before[1].token)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_token_settings_renew_every_refresher() {
        let mut refreshers = refreshers();
        let _ = refreshers.follow(&config(&[("a", ""), ("b", "")], ""), Successors::default());
        let renewed = refreshers
            .follow(
                &config(&[("a", ""), ("b", "")], "wait = \"1s\""),
                Successors::default(),
            )
            .0;
        assert_eq!(renewed, changes(&[], &["a", "b"], &[]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_tickets_of_an_account_retire_with_it() {
        let mut refreshers = refreshers();
        let _ = refreshers.follow(&config(&[("a", "")], ""), Successors::default());
        let refresher = handles(&refreshers).remove(0);
        let pass = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        let failures = || {
            let tickets = refresher.tickets.as_ref().unwrap();
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
        let (_, leaving) = refreshers.follow(&config(&[("b", "")], ""), Successors::default());
        refreshers.dismiss(leaving);
        pass(60).await;
        let before = failures();
        pass(3600).await;
        assert_eq!(failures(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_gauges_of_an_account_go_with_it_and_stay_when_it_only_changes() {
        let mut registry = Registry::default();
        let mut refreshers = refreshers();
        refreshers.metrics = token::metrics::TokenMetrics::register(&mut registry);
        let page = |refreshers: &mut Refreshers, accounts: &[(&str, &str)]| {
            let (changes, leaving) =
                refreshers.follow(&config(accounts, ""), Successors::default());
            refreshers.dismiss(leaving);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            (changes, text)
        };
        let shown = |text: &str, account: &str| {
            text.contains(&format!("generation{{account=\"{account}\"}}"))
        };
        let (_, text) = page(&mut refreshers, &[("a", ""), ("b", "")]);
        assert!(shown(&text, "a") && shown(&text, "b"));
        let (seen, text) = page(&mut refreshers, &[("a", "secret = { value = \"t\" }")]);
        assert_eq!(seen, changes(&[], &["a"], &["b"]));
        assert!(shown(&text, "a") && !shown(&text, "b"), "{text}");
    }
}
