//! Replacement of the process, as far as the refreshers go: at any time those of one process fetch,
//! and those of the other one are on standby.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::refreshers::Refreshers;
use crate::token::{
    TokenRefresher,
    store::{CredentialType, RecordKey, TokenRecord, TokenStore},
};

/// Interval of looks at a store that another process writes.
const FOLLOW: Duration = Duration::from_millis(250);
/// Limit for one look, and for the looks at all records at the end of a standby.
const LOOK_TIME: Duration = Duration::from_secs(5);
/// Limit for looks at the same time.
const LOOKS: usize = 64;

/// Record of the store; `None` when there is none, or the store fails.
async fn load(store: &dyn TokenStore, key: &RecordKey, deadline: Instant) -> Option<TokenRecord> {
    let loaded = timeout_at(deadline, store.load(key)).await;
    loaded.ok().and_then(Result::ok).flatten()
}

impl Refreshers {
    /// Leaves the fetches to another process. Resolves once the store was read, and refreshes under
    /// way have ended and were stored.
    pub(super) fn pause(&mut self) -> impl Future<Output = ()> + use<> {
        self.on_standby = true;
        let tokens = self.running().iter().map(|(_, tokens)| tokens);
        let pausing: Vec<_> = tokens
            .map(|tokens| {
                let tickets = tokens.tickets.as_ref().map(|tickets| tickets.pause());
                (tokens.token.pause(), tickets)
            })
            .collect();
        async move {
            for (token, tickets) in pausing {
                token.await;
                if let Some(tickets) = tickets {
                    tickets.await;
                }
            }
        }
    }

    /// Fetches again, with the records that the other process has left in the store.
    pub(super) async fn resume(&mut self) {
        self.on_standby = false;
        // One limit for all, since a replacement waits for a store that hangs.
        let (store, deadline) = (self.store(), Instant::now() + LOOK_TIME);
        for credentials in self.credentials().chunks(LOOKS) {
            let loads = credentials.iter().map(async |(key, refresher)| {
                refresher.resume(load(&*store, key, deadline).await);
            });
            join_all(loads).await;
        }
    }

    /// Takes over the records that the other process writes, for as long as the future is polled.
    pub(super) fn follow_store(&self) -> impl Future<Output = ()> + use<> {
        let (mut credentials, store) = (self.credentials(), self.store());
        // The refreshers watch a shared store themselves.
        credentials.retain(|(key, _)| store.changes(key).is_none());
        async move {
            loop {
                tokio::time::sleep(FOLLOW).await;
                for (key, refresher) in &credentials {
                    let deadline = Instant::now() + LOOK_TIME;
                    if let Some(record) = load(&*store, key, deadline).await {
                        refresher.replicate(record);
                    }
                }
            }
        }
    }

    /// Refreshers of all tokens and tickets, with the keys of their records.
    fn credentials(&self) -> Vec<(RecordKey, TokenRefresher)> {
        let mut credentials = Vec::new();
        for (account, tokens) in self.running() {
            let account = account.name.clone();
            let tickets = tokens.tickets.iter().flat_map(|tickets| tickets.started());
            for (kind, refresher) in tickets {
                let key = RecordKey {
                    account: account.clone(),
                    credential: CredentialType::Ticket(kind),
                };
                credentials.push((key, refresher.clone()));
            }
            credentials.push((RecordKey::token(&account), tokens.token.clone()));
        }
        credentials
    }
}
