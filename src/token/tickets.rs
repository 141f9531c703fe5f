//! The tickets of one account: a refresher for each type, started when somebody first asks for it.
//!
//! Knows which there are and how to start one; their life is the refresher's.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use tokio::runtime::Handle;

use super::{
    AccountSettings, TokenSettings,
    metrics::TokenMetrics,
    refresher::{Chance, RefresherParts, Status, TokenRefresher},
    source::{TicketSource, TokenClient},
    store::TokenStore,
};
use crate::wechat::ticket::TicketType;

/// Everything it takes to start a refresher of a ticket, and those that were.
pub struct Tickets {
    account: AccountSettings,
    settings: TokenSettings,
    client: TokenClient,
    store: Arc<dyn TokenStore>,
    metrics: TokenMetrics,
    runtime: Handle,
    token: TokenRefresher,
    refreshers: [OnceLock<TokenRefresher>; TicketType::ALL.len()],
}

impl Tickets {
    /// For the account of `token`. Refreshers will run on the current runtime, whoever asks for
    /// them.
    pub fn new(
        account: AccountSettings,
        settings: TokenSettings,
        client: TokenClient,
        store: Arc<dyn TokenStore>,
        metrics: TokenMetrics,
        token: &TokenRefresher,
    ) -> Self {
        let (runtime, token) = (Handle::current(), token.clone());
        Self {
            account,
            settings,
            client,
            store,
            metrics,
            runtime,
            token,
            refreshers: Default::default(),
        }
    }

    /// The refresher of a ticket; `None` where the platform has no such ticket. From now on it is
    /// kept fresh, until nobody has asked for four hours.
    pub fn get(&self, kind: TicketType) -> Option<&TokenRefresher> {
        kind.endpoint(self.account.platform)?;
        let refresher = self
            .refreshers
            .get(kind as usize)?
            .get_or_init(|| self.start(kind));
        refresher.want();
        Some(refresher)
    }

    /// Those that somebody has asked for, and how they stand.
    pub fn statuses(&self) -> impl Iterator<Item = (TicketType, Status)> {
        TicketType::ALL
            .into_iter()
            .zip(&self.refreshers)
            .filter_map(|(kind, slot)| Some((kind, slot.get()?.status())))
    }

    /// See [`TokenRefresher::retire`].
    pub(super) fn retire(&self) {
        self.refreshers
            .iter()
            .filter_map(OnceLock::get)
            .for_each(TokenRefresher::retire);
    }

    fn start(&self, kind: TicketType) -> TokenRefresher {
        let _inside = self.runtime.enter();
        let made_with = Arc::new(AtomicU64::new(0));
        let client = self
            .client
            .clone()
            .with_timeout(self.settings.fetch_timeout);
        let source = TicketSource::new(
            kind,
            &self.account,
            client,
            self.token.clone(),
            Arc::clone(&made_with),
        );
        // Two calls for the ticket, and between them two waits for the token, one of which may
        // fetch it.
        let limit = self.settings.fetch_timeout * 3 + self.settings.wait * 2;
        TokenRefresher::spawn_ticket(
            kind,
            RefresherParts {
                account: self.account.clone(),
                settings: TokenSettings {
                    fetch_timeout: limit,
                    ..self.settings
                },
                source: Arc::new(source),
                store: Arc::clone(&self.store),
                metrics: self.metrics.for_ticket(&self.account.name, kind),
                chance: Chance::system(),
            },
            &self.token,
            made_with,
        )
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets")
            .field("account", &self.account.name)
            .finish_non_exhaustive()
    }
}
