//! The configuration that requests read, behind one pointer, which a reload replaces.
//!
//! A request loads the pointer once and keeps that configuration to its end. Settings that only a
//! restart can change (addresses, workers, egress) are not here.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dashmap::DashMap;
use hyper::header::HeaderName;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{
    BuildError, Proxy,
    access::{Access, AllowedNetworks, Client},
    bulkhead::{InFlightLimits, InFlightPermit, Load},
    client_conn::ClientConn,
    error::ProxyError,
    metrics::ProxyMetrics,
    route::{Account, Accounts, FormerOnlyAccount},
    settings::{ErrorStyle, ProxySettings, ReplaySettings, SigningSettings},
    upstream::{DialSetupError, UpstreamOrigin, UpstreamOrigins},
};
use crate::{
    base::{AccountName, Secret},
    net::tls::ServerTls,
    service::phantom::{Phantom, PhantomKey, Tag},
    token::{AccountSettings, AccountTokens, clock::WallClock},
    wechat::{api::Platform, credential},
};

/// A configuration in force, or one that was until a reload.
pub(super) struct RuntimeConfig {
    pub(super) access: Access,
    pub(super) accounts: Accounts,
    pub(super) replay: ReplaySettings,
    /// Longest request body, in bytes.
    pub(super) max_body: u64,
    pub(super) response_timeout: Duration,
    pub(super) error_style: ErrorStyle,
    /// Headers of callers that go on to WeChat besides those that always do.
    pub(super) headers: Vec<HeaderName>,
    /// One connection per API host in use is kept ready.
    pub(super) warm: bool,
    /// Acceptor of new connections; open ones keep the certificate they were given.
    pub(super) tls: Option<TlsAcceptor>,
    /// Limit per client, and per peer address.
    pub(super) max_connections_per_client: usize,
    /// Lowest rate of a body, in bytes per second; 0 = none.
    pub(super) min_rate: u64,
    limits: InFlightLimits,
    pub(super) load: Arc<Load>,
    /// True once another configuration is in force.
    superseded: watch::Sender<bool>,
    /// Keys of phantom tokens by account and client, derived when first needed: one for each key of
    /// the client, in their order.
    phantoms: DashMap<(Tag, Tag), Arc<[PhantomKey]>>,
}

/// A request under way, counted until its answer has been delivered or dropped, with the
/// configuration that it began with.
pub(super) struct InFlight(Arc<RuntimeConfig>);

/// Handle that changes the configuration of a running data path.
pub(crate) struct ProxyControl(Arc<Proxy>);

/// A configuration that was found to work and is not in force yet.
pub(crate) struct PreparedConfig {
    settings: ProxySettings,
    accounts: Vec<(AccountSettings, Vec<Arc<UpstreamOrigin>>)>,
    tls: Option<TlsAcceptor>,
    certificate_end: Option<SystemTime>,
}

impl ProxyControl {
    pub(super) fn of(proxy: &Arc<Proxy>) -> Self {
        Self(Arc::clone(proxy))
    }

    /// Reads certificates again and checks the API hosts; changes nothing that is in force.
    /// Settings that only a restart can change are passed over; so is the step from or to
    /// `server.tls`.
    ///
    /// # Errors
    /// When certificates or an account's `api` cannot be used.
    pub(crate) fn prepare(
        &self,
        settings: &ProxySettings,
        accounts: &[AccountSettings],
    ) -> Result<PreparedConfig, BuildError> {
        let running = self.0.config.load().tls.clone();
        let tls = match (running, &settings.tls) {
            (Some(_), Some(tls)) => Some(tls.acceptor().map_err(BuildError::Tls)?),
            (running, _) => running,
        };
        PreparedConfig::new(settings, accounts, &self.0.origins, tls)
    }

    /// Puts a configuration into force: new requests use it, those under way keep the one they began
    /// with. `refreshers` are those of its accounts, in the same order. An account that still has
    /// the same refresher goes on unchanged.
    pub(crate) fn switch(
        &self,
        prepared: PreparedConfig,
        refreshers: impl IntoIterator<Item = AccountTokens>,
    ) {
        self.0.copies.resize(prepared.settings.replay.memory_total);
        let config = self.0.config.load_full();
        let next = RuntimeConfig::new(
            prepared,
            refreshers,
            &self.0.metrics,
            Some(&config),
            Arc::clone(&config.load),
        );
        self.0.config.store(Arc::new(next));
        config.superseded.send_replace(true);
    }

    /// Returns the accounts that calls without a selector go to because of a reload alone.
    pub(crate) fn former_only_accounts(&self) -> Vec<FormerOnlyAccount> {
        self.0.config.load().accounts.former_only()
    }
}

/// Time that a body has before its rate is looked at.
const GRACE: Duration = Duration::from_secs(10);

impl PreparedConfig {
    pub(super) fn new(
        settings: &ProxySettings,
        accounts: &[AccountSettings],
        origins: &UpstreamOrigins,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self, BuildError> {
        let accounts = accounts
            .iter()
            .map(|account| Ok((account.clone(), origins.of(&account.api)?)))
            .collect::<Result<_, DialSetupError>>()
            .map_err(|error| BuildError::Upstream(error.to_string()))?;
        let listener = settings.tls.as_ref().filter(|_| tls.is_some());
        Ok(Self {
            settings: settings.clone(),
            accounts,
            certificate_end: listener.and_then(ServerTls::certificate_end),
            tls,
        })
    }
}

/// Pairs the settings of each account with the account itself: the one of `before`, if nothing of it
/// has changed.
fn routed(
    accounts: impl Iterator<Item = ((AccountSettings, Vec<Arc<UpstreamOrigin>>), AccountTokens)>,
    signing: &HashMap<AccountName, SigningSettings>,
    metrics: &ProxyMetrics,
    before: Option<&Accounts>,
) -> Vec<(AccountSettings, Arc<Account>)> {
    let route = |((account, origins), tokens): ((AccountSettings, _), AccountTokens)| {
        let signing = signing.get(&account.name);
        let kept = before
            .and_then(|before| before.kept(&account, &tokens))
            // Keys are not compared: a route with or for signing is made anew.
            .filter(|kept| kept.signing.is_none() && signing.is_none());
        let route = match kept {
            Some(unchanged) => Arc::clone(unchanged),
            None => {
                let changed = before.and_then(|before| before.by_name(&account.name));
                let metrics = metrics.for_account(&account.name);
                Arc::new(
                    Account::new(&account, tokens, metrics, origins)
                        .with_signing(signing)
                        .continuing(changed.map(Arc::as_ref)),
                )
            }
        };
        (account, route)
    };
    accounts.map(route).collect()
}

impl RuntimeConfig {
    /// Makes the next configuration from `before`, which was in force until now.
    pub(super) fn new(
        prepared: PreparedConfig,
        refreshers: impl IntoIterator<Item = AccountTokens>,
        metrics: &ProxyMetrics,
        before: Option<&Self>,
        load: Arc<Load>,
    ) -> Self {
        let PreparedConfig {
            settings,
            accounts,
            tls,
            certificate_end,
        } = prepared;
        metrics.set_certificate_end(certificate_end);
        let routed = routed(
            accounts.into_iter().zip(refreshers),
            &settings.signing,
            metrics,
            before.map(|before| &before.accounts),
        );
        Self {
            accounts: Accounts::new(
                routed,
                settings.default_account.as_ref(),
                before.map(|before| &before.accounts),
            ),
            access: Access::new(
                AllowedNetworks {
                    networks: settings.allow,
                    is_set: settings.allow_is_set,
                },
                settings.trusted_proxies,
                settings.clients,
                before.map(|before| &before.access),
            ),
            replay: settings.replay,
            max_body: settings.max_body,
            response_timeout: settings.upstream.response_timeout,
            error_style: settings.error_style,
            headers: settings.upstream.headers,
            warm: settings.upstream.warm,
            tls,
            max_connections_per_client: settings.max_connections_per_client,
            min_rate: settings.min_rate,
            limits: InFlightLimits {
                in_flight: settings.upstream.max_in_flight,
                share: settings.upstream.max_share,
            },
            load,
            superseded: watch::Sender::new(false),
            phantoms: DashMap::new(),
        }
    }

    /// Creates the phantom token of a client for an account, under the client's key at this place.
    pub(super) fn mint_phantom(&self, account: &Account, client: &Client, place: usize) -> String {
        let keys = self.phantom_keys(account, client);
        // Never empty, and the place is one of the client's own keys.
        keys.get(place)
            .or_else(|| keys.first())
            .map(|key| key.mint(self.now()))
            .unwrap_or_default()
    }

    fn phantom_keys(&self, account: &Account, client: &Client) -> Arc<[PhantomKey]> {
        let names = (
            Tag::of(account.name.as_str()),
            Tag::of(client.name().as_str()),
        );
        let keys = || phantom_keys(account, account.phantoms.root(), client).into();
        Arc::clone(&self.phantoms.entry(names).or_insert_with(keys))
    }

    /// Finds the account and the client of a phantom token.
    ///
    /// # Errors
    /// When the token is not good: the platform in whose words it is to be refused, which is that of
    /// its account, of the path, or of the default account.
    pub(super) fn phantom<'p>(
        &self,
        text: &str,
        path: impl FnOnce() -> Option<&'p str>,
    ) -> Result<(&Arc<Account>, &Arc<Client>), Platform> {
        let phantom = Phantom::parse(text);
        let account = phantom
            .as_ref()
            .and_then(|phantom| self.accounts.tagged(phantom.account()));
        if let (Some(phantom), Some(account)) = (phantom, account) {
            let client = self.client_of(&phantom, account);
            return client
                .map(|client| (account, client))
                .ok_or(account.platform);
        }
        Err(path()
            .and_then(credential::platform_of)
            .or_else(|| self.accounts.likely_platform())
            .unwrap_or(Platform::Wechat))
    }

    fn client_of(&self, phantom: &Phantom, account: &Account) -> Option<&Arc<Client>> {
        let client = self.access.named(phantom.client())?;
        let known = self
            .phantoms
            .get(&(phantom.account(), phantom.client()))
            .map(|keys| Arc::clone(&keys));
        let keys = known.unwrap_or_else(|| self.phantom_keys(account, client));
        let now = self.now();
        let is_good = keys.iter().any(|key| key.accepts(phantom, now))
            // Keys of another AppSecret are derived anew each time: they are few, and soon over.
            || account.phantoms.any_other(now, |root| {
                phantom_keys(account, Some(root), client)
                    .iter()
                    .any(|key| key.accepts(phantom, now))
            });
        is_good.then_some(client)
    }

    /// Returns the wall-clock time since 1970: validity windows of phantoms must agree on all nodes.
    #[allow(clippy::unused_self, reason = "one place to ask")]
    pub(super) fn now(&self) -> Duration {
        Duration::from_millis(WallClock::system().now_ms())
    }

    /// Returns the longest time for which a small answer is held back to be inspected. An answer
    /// that takes longer is below `server.min_rate`, which the connection enforces.
    pub(super) fn longest_hold(&self) -> Duration {
        if self.min_rate > 0 {
            self.response_timeout.min(GRACE)
        } else {
            self.response_timeout
        }
    }

    /// Counts a request as under way.
    pub(super) fn begin(self: Arc<Self>) -> InFlight {
        self.load.under_way.inc();
        InFlight(self)
    }

    /// Takes a permit for a request in flight, for its account and its client; `None` for a call that
    /// uses no account, and for a call without a key.
    pub(super) fn enter(
        &self,
        account: Option<&Account>,
        client: Option<&Client>,
        conn: &ClientConn,
    ) -> Result<InFlightPermit, ProxyError> {
        let holder = account.map_or(&self.load.without_account, |account| &account.holder);
        let caller = match client {
            Some(_) if self.access.is_open() => conn.peer_holder(),
            Some(client) => client.holder(),
            None => &self.load.keyless,
        };
        self.load
            .enter(self.limits, holder, caller)
            .map_err(|full| {
                let account = account.map_or("-", |account| account.name.as_str());
                full.error(account, || match client {
                    Some(client) if !self.access.is_open() => format!("client {}", client.name()),
                    _ => format!("the address {}", conn.peer),
                })
            })
    }

    /// Resolves when another configuration is in force. A call that waits should end then, since its
    /// rights may have changed.
    pub(super) async fn superseded(&self) {
        // Cannot fail: the sender is a field of `self`.
        let _ = self
            .superseded
            .subscribe()
            .wait_for(|superseded| *superseded)
            .await;
    }
}

/// Derives the keys of a client's phantom tokens for an account from a root of its AppSecret: one
/// for each key of the client, or a single one for a client that is known otherwise.
fn phantom_keys(account: &Account, root: Option<&Secret>, client: &Client) -> Vec<PhantomKey> {
    let (account, name) = (account.name.as_str(), client.name().as_str());
    match client.keys() {
        [] => vec![PhantomKey::new(account, root, name, None)],
        keys => keys
            .iter()
            .map(|key| PhantomKey::new(account, root, name, Some(key.digest.as_bytes())))
            .collect(),
    }
}

impl Deref for InFlight {
    type Target = RuntimeConfig;

    fn deref(&self) -> &RuntimeConfig {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.under_way.dec();
    }
}
