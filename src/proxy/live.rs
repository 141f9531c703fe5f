//! What a reload replaces: everything of the configuration that a request reads, behind one
//! pointer.
//!
//! A request takes the pointer once and keeps what it got to its end, so nothing changes under its
//! feet. What only a restart can change (addresses, workers, the way out) is not here.

use std::{ops::Deref, sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{
    BuildError, Proxy,
    access::{Access, Client},
    bulkhead::{Limits, Load, Place},
    client_conn::ClientConn,
    error::ProxyError,
    metrics::Metrics,
    route::{Account, Accounts},
    settings::{ErrorStyle, KeyDigest, Replay, Settings},
    upstream::{DialSetupError, UpstreamOrigin, UpstreamOrigins},
};
use crate::{
    service::phantom::{Phantom, PhantomKey, Tag},
    token::{AccountSettings, AccountTokens, clock::WallClock},
    wechat::{api::Platform, credential},
};

/// The time that a body has before its rate is looked at.
const GRACE: Duration = Duration::from_secs(10);

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
    /// Of one client; for peer addresses too.
    pub(super) max_connections_per_client: usize,
    /// Bytes per second of a body; 0 = none.
    pub(super) min_rate: u64,
    limits: Limits,
    pub(super) load: Arc<Load>,
    /// Whether another configuration has taken its place.
    superseded: watch::Sender<bool>,
    /// By account and client, as they are needed.
    phantoms: DashMap<(Tag, Tag), Arc<PhantomKey>>,
}

/// A request under way, counted, and the configuration it began with, until its answer has been
/// delivered or dropped.
pub(super) struct InFlight(Arc<Live>);

/// The hand that changes a data path while it runs.
pub struct Control(Arc<Proxy>);

/// A configuration that is known to work, not yet in force.
pub struct Plan {
    settings: Settings,
    accounts: Vec<(AccountSettings, Vec<Arc<UpstreamOrigin>>)>,
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
        self.0.copies.resize(plan.settings.replay.memory_total);
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
        origins: &UpstreamOrigins,
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
                        None => {
                            let changed =
                                before.and_then(|before| before.accounts.by_name(&account.name));
                            let metrics = metrics.for_account(&account.name);
                            Arc::new(
                                Account::new(&account, tokens, metrics, origins)
                                    .continuing(changed.map(Arc::as_ref)),
                            )
                        }
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
            max_connections_per_client: settings.max_connections_per_client,
            min_rate: settings.min_rate,
            limits: Limits {
                in_flight: settings.upstream.max_in_flight,
                share: settings.upstream.max_share,
            },
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

    /// The longest time for which a small answer is held back to be looked at. One that is not there
    /// by then comes below `server.min_rate`, and is left to what watches the connection.
    pub(super) fn longest_hold(&self) -> Duration {
        if self.min_rate > 0 {
            self.response_timeout.min(GRACE)
        } else {
            self.response_timeout
        }
    }

    /// Counts a request.
    pub(super) fn begin(self: Arc<Self>) -> InFlight {
        self.load.under_way.inc();
        InFlight(self)
    }

    /// Takes a place among the requests in flight, for an account and for the caller.
    pub(super) fn enter(
        &self,
        account: &Account,
        client: &Client,
        conn: &ClientConn,
    ) -> Result<Place, ProxyError> {
        let caller = if self.access.is_open() {
            conn.peer_holder()
        } else {
            client.holder()
        };
        self.load
            .enter(self.limits, &account.holder, caller)
            .map_err(|full| {
                full.error(account.name.as_str(), || {
                    if self.access.is_open() {
                        format!("the address {}", conn.peer)
                    } else {
                        format!("client {}", client.name())
                    }
                })
            })
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
}

impl Deref for InFlight {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.under_way.dec();
    }
}
