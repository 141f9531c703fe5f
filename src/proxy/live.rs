//! What a reload replaces: everything of the configuration that a request reads, behind one
//! pointer.
//!
//! A request takes the pointer once and keeps what it got to its end, so nothing changes under its
//! feet. What only a restart can change (addresses, workers, the way out) is not here.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{
    BuildError, Proxy,
    access::{Access, Client},
    error::ProxyError,
    metrics::Metrics,
    route::{Account, Accounts},
    settings::{ErrorStyle, KeyDigest, Replay, Settings},
    upstream::{DialSetupError, Origin, Origins},
};
use crate::{
    service::phantom::{Phantom, PhantomKey, Tag},
    token::{AccountSettings, AccountTokens, clock::WallClock},
    wechat::{api::Platform, credential},
};

/// One configuration.
pub(super) struct Live {
    pub(super) access: Access,
    pub(super) accounts: Accounts,
    pub(super) replay: Replay,
    /// Bytes.
    pub(super) max_body: u64,
    pub(super) response_timeout: Duration,
    pub(super) error_style: ErrorStyle,
    /// For connections to come; those that stand keep what they agreed on.
    pub(super) tls: Option<TlsAcceptor>,
    max_in_flight: usize,
    load: Arc<Load>,
    /// Whether another configuration has taken its place.
    superseded: watch::Sender<bool>,
    /// By account and client, as they are needed.
    phantoms: DashMap<(Tag, Tag), Arc<PhantomKey>>,
}

/// How much is under way, over all configurations.
pub(super) struct Load {
    in_flight: AtomicUsize,
    gauge: Gauge<i64, AtomicI64>,
}

/// A request under way and the configuration it began with, until its answer has been delivered or
/// dropped.
pub(super) struct InFlight(Arc<Live>);

/// See [`Live::step_aside`].
pub(super) struct Aside<'l>(&'l Load);

/// The hand that changes a data path while it runs.
pub struct Control(Arc<Proxy>);

/// A configuration that is known to work, not yet in force.
pub struct Plan {
    settings: Settings,
    accounts: Vec<(AccountSettings, Vec<Arc<Origin>>)>,
    tls: Option<TlsAcceptor>,
}

impl Control {
    pub(super) fn of(proxy: &Arc<Proxy>) -> Self {
        Self(Arc::clone(proxy))
    }

    /// Reads certificates again and looks at the API hosts; changes nothing that is in force.
    /// Settings that only a restart can change are passed over; so is the step from or to
    /// `server.tls`.
    ///
    /// # Errors
    /// When certificates or an account's `api` cannot be used.
    pub fn plan(
        &self,
        settings: &Settings,
        accounts: &[AccountSettings],
    ) -> Result<Plan, BuildError> {
        let running = self.0.live.load().tls.clone();
        let tls = match (running, &settings.tls) {
            (Some(_), Some(tls)) => Some(tls.acceptor().map_err(BuildError::Tls)?),
            (running, _) => running,
        };
        Plan::new(settings, accounts, &self.0.origins, tls)
    }

    /// Puts the plan into force: requests that come from now on see it, those under way end as they
    /// began. `refreshers` are those of the plan's accounts, in its order. An account that still has
    /// the same refresher goes on unchanged.
    pub fn switch(&self, plan: Plan, refreshers: impl IntoIterator<Item = AccountTokens>) {
        self.0.spool.resize(plan.settings.replay.memory_total);
        let live = self.0.live.load_full();
        let next = Live::new(
            plan,
            refreshers,
            &self.0.metrics,
            Some(&live),
            Arc::clone(&live.load),
        );
        self.0.live.store(Arc::new(next));
        live.superseded.send_replace(true);
    }
}

impl Plan {
    pub(super) fn new(
        settings: &Settings,
        accounts: &[AccountSettings],
        origins: &Origins,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self, BuildError> {
        let place = |account: &AccountSettings| Ok((account.clone(), origins.of(&account.api)?));
        let accounts = accounts
            .iter()
            .map(place)
            .collect::<Result<_, DialSetupError>>();
        let accounts = accounts.map_err(|error| BuildError::Upstream(error.to_string()))?;
        Ok(Self {
            settings: settings.clone(),
            accounts,
            tls,
        })
    }
}

impl Live {
    /// `before` is what was in force until now.
    pub(super) fn new(
        plan: Plan,
        refreshers: impl IntoIterator<Item = AccountTokens>,
        metrics: &Metrics,
        before: Option<&Self>,
        load: Arc<Load>,
    ) -> Self {
        let Plan {
            settings,
            accounts,
            tls,
        } = plan;
        let routed = accounts
            .into_iter()
            .zip(refreshers)
            .map(|((account, origins), tokens)| {
                let route =
                    match before.and_then(|before| before.accounts.kept(&account.name, &tokens)) {
                        Some(unchanged) => Arc::clone(unchanged),
                        None => Arc::new(Account::new(
                            &account,
                            tokens,
                            metrics.for_account(&account.name),
                            origins,
                        )),
                    };
                (account, route)
            });
        Self {
            accounts: Accounts::new(routed.collect(), settings.default_account.as_ref()),
            access: Access::new(
                settings.allow,
                settings.trusted_proxies,
                settings.clients,
                before.map(|before| &before.access),
            ),
            replay: settings.replay,
            max_body: settings.max_body,
            response_timeout: settings.upstream.response_timeout,
            error_style: settings.error_style,
            tls,
            max_in_flight: settings.upstream.max_in_flight,
            load,
            superseded: watch::Sender::new(false),
            phantoms: DashMap::new(),
        }
    }

    /// The key of a client's phantoms on an account.
    pub(super) fn phantom_key(&self, account: &Account, client: &Client) -> Arc<PhantomKey> {
        let (account_name, client_name) = (account.name.as_str(), client.name().as_str());
        let key = || {
            let client_key = client.key().map(KeyDigest::as_bytes);
            Arc::new(PhantomKey::new(
                account_name,
                account.secret.as_ref(),
                client_name,
                client_key,
            ))
        };
        Arc::clone(
            &self
                .phantoms
                .entry((Tag::of(account_name), Tag::of(client_name)))
                .or_insert_with(key),
        )
    }

    /// The account and the client that a phantom names, if it is good; else the platform in whose
    /// words it is to be refused: that of its account, of the path, or of the default account.
    pub(super) fn phantom(
        &self,
        text: &str,
        path: Option<&str>,
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
        Err(path
            .and_then(credential::platform_of)
            .unwrap_or_else(|| self.accounts.likely_platform()))
    }

    fn client_of(&self, phantom: &Phantom, account: &Account) -> Option<&Arc<Client>> {
        let client = self.access.named(phantom.client())?;
        let known = self
            .phantoms
            .get(&(phantom.account(), phantom.client()))
            .map(|key| Arc::clone(&key));
        let key = known.unwrap_or_else(|| self.phantom_key(account, client));
        key.accepts(phantom, self.now()).then_some(client)
    }

    /// Time since 1970, by the wall clock: the windows of phantoms are the same on every node.
    #[allow(clippy::unused_self, reason = "one place to ask")]
    pub(super) fn now(&self) -> Duration {
        Duration::from_millis(WallClock::system().now_ms())
    }

    /// Takes a place among the requests in flight.
    pub(super) fn enter(self: Arc<Self>) -> Result<InFlight, ProxyError> {
        let before = self.load.in_flight.fetch_add(1, Relaxed);
        self.load.gauge.inc();
        let limit = self.max_in_flight;
        let guard = InFlight(self);
        if before >= limit {
            Err(ProxyError::Overloaded("upstream.max_in_flight"))
        } else {
            Ok(guard)
        }
    }

    /// Resolves when another configuration is in force: who waits for something should ask again,
    /// since it may no longer be his to have.
    pub(super) async fn superseded(&self) {
        // The sender is here, so it cannot go away meanwhile.
        let _ = self
            .superseded
            .subscribe()
            .wait_for(|superseded| *superseded)
            .await;
    }

    /// For a request that asks nothing of WeChat but may take long: until the guard is dropped it
    /// takes no place among those in flight. It is still counted as one.
    pub(super) fn step_aside(&self) -> Aside<'_> {
        self.load.in_flight.fetch_sub(1, Relaxed);
        Aside(&self.load)
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_add(1, Relaxed);
    }
}

impl Load {
    pub(super) fn new(metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            gauge: metrics.in_flight.clone(),
        })
    }
}

impl Deref for InFlight {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
        self.load.gauge.dec();
    }
}
