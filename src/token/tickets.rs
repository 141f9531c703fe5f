//! Tickets of one account: one refresher for each type, started by the first request for a ticket
//! of that type.
//!
//! Starts the refreshers; `refresher::ticket` has the life of a ticket.

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

/// Ticket refreshers of one account, and the settings to start more.
pub(crate) struct Tickets {
    parts: TicketParts,
    runtime: Handle,
    token: TokenRefresher,
    refreshers: [OnceLock<TokenRefresher>; TicketType::ALL.len()],
}

/// Parts that all ticket refreshers of an account have in common.
pub(crate) struct TicketParts {
    /// Account of the tickets.
    pub account: AccountSettings,
    /// Settings of the table `[token]`.
    pub settings: TokenSettings,
    /// Client for the ticket endpoints.
    pub client: TokenClient,
    /// Store of the records.
    pub store: Arc<dyn TokenStore>,
    /// Metrics of all accounts.
    pub metrics: TokenMetrics,
}

impl Tickets {
    /// Tickets that are fetched with `token`. Refreshers run on the current runtime, from whichever
    /// thread they are asked for.
    pub(crate) fn new(parts: TicketParts, token: &TokenRefresher) -> Self {
        Self {
            parts,
            runtime: Handle::current(),
            token: token.clone(),
            refreshers: Default::default(),
        }
    }

    /// Returns the refresher of a ticket; `None` if the platform has no such ticket. The ticket is
    /// kept fresh until there has been no request for four hours.
    pub(crate) fn get(&self, kind: TicketType) -> Option<&TokenRefresher> {
        kind.endpoint(self.parts.account.platform)?;
        let refresher = self
            .refreshers
            .get(kind as usize)?
            .get_or_init(|| self.start(kind));
        refresher.want();
        Some(refresher)
    }

    /// Iterates over the status of each ticket that was asked for.
    pub(crate) fn statuses(&self) -> impl Iterator<Item = (TicketType, Status)> {
        self.started().map(|(kind, one)| (kind, one.status()))
    }

    /// Retires all refreshers, see [`TokenRefresher::retire`].
    pub(super) fn retire(&self) {
        for refresher in self.refreshers.iter().filter_map(OnceLock::get) {
            refresher.retire();
        }
    }

    /// Pauses all refreshers, see [`TokenRefresher::pause`].
    pub(crate) fn pause(&self) -> impl Future<Output = ()> + use<> {
        let pausing: Vec<_> = self.started().map(|(_, one)| one.pause()).collect();
        async move {
            for paused in pausing {
                paused.await;
            }
        }
    }

    /// Iterates over the refreshers of tickets that were asked for.
    pub(crate) fn started(&self) -> impl Iterator<Item = (TicketType, &TokenRefresher)> {
        TicketType::ALL
            .into_iter()
            .zip(&self.refreshers)
            .filter_map(|(kind, slot)| Some((kind, slot.get()?)))
    }

    fn start(&self, kind: TicketType) -> TokenRefresher {
        let TicketParts {
            account,
            settings,
            client,
            store,
            metrics,
        } = &self.parts;
        // Requests run on other runtimes, and the refresher spawns its tasks on the current one.
        let _entered = self.runtime.enter();
        let made_with = Arc::new(AtomicU64::new(0));
        let source = TicketSource::new(
            kind,
            account,
            client.clone().with_timeout(settings.fetch_timeout),
            self.token.clone(),
            Arc::clone(&made_with),
        );
        // Two calls for the ticket, and before each one a wait for the access token; one of these
        // waits may include a fetch of the token.
        let limit = settings.fetch_timeout * 3 + settings.wait * 2;
        TokenRefresher::spawn_ticket(
            kind,
            RefresherParts {
                account: account.clone(),
                settings: TokenSettings {
                    fetch_timeout: limit,
                    ..*settings
                },
                source: Arc::new(source),
                store: Arc::clone(store),
                metrics: metrics.for_ticket(&account.name, kind),
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
            .field("account", &self.parts.account.name)
            .finish_non_exhaustive()
    }
}
