//! How the keepers of one account on several nodes stay out of each other's way, where their store
//! is shared.
//!
//! Before a fetch a keeper asks for the lease and looks what the others have; afterwards it hears
//! of their changes. None of this is needed to be right, which is decided when a record is written;
//! and with the store gone it steps aside.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{Command, persist::Persister};
use crate::{
    base::Secret,
    token::{
        Generation,
        clock::Clock,
        metrics::AccountMetrics,
        source::BoxFuture,
        store::{Identity, Key, Lease, Record, ServerFault, StoreError, TokenStore},
    },
};

/// The store, and what the keeper needs of it beyond its own record. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sharing {
    pub(super) key: Key,
    pub(super) store: Arc<dyn TokenStore>,
    pub(super) metrics: AccountMetrics,
}

/// What this keeper knows already.
pub(super) struct Known {
    pub(super) identity: Identity,
    pub(super) generation: Generation,
    pub(super) token: Option<Secret>,
    /// A person asks: a remembered refusal does not count.
    pub(super) insists: bool,
    pub(super) clock: Clock,
}

/// What came of asking whether WeChat may be asked.
#[derive(Default)]
pub(super) struct Clearance {
    /// What the others have, as far as it could be read.
    pub(super) record: Option<Box<Record>>,
    /// Whether that answers the question already.
    pub(super) settled: bool,
    /// The lease, if there was one to be had.
    pub(super) lease: Option<Held>,
    /// Whether the store answered, so that the others hear what is spent.
    pub(super) heard: bool,
}

/// The store has failed; whether by saying nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silent(bool);

/// A lease of this keeper.
pub(super) struct Held {
    owner: String,
}

/// For one question to the store; the lease saves a fetch and is not worth more.
const ASK: Duration = Duration::from_millis(500);
/// Between two looks at what another node's fetch has come to, should its message be lost.
const LOOK: Duration = Duration::from_millis(300);
/// What a lease lasts longer than one fetch: for noting what is spent, and for writing the result.
const MARGIN: Duration = Duration::from_secs(2);
/// Between two looks at the record, should messages be lost.
pub(super) const POLL: Duration = Duration::from_secs(5);

impl Known {
    /// Whether the record makes a fetch needless: by a token that is new here, or because WeChat
    /// has refused.
    fn is_settled_by(&self, record: &Record) -> bool {
        if record.identity != self.identity {
            return false;
        }
        let refused = !self.insists && record.refused(self.clock).is_some();
        let new = record.generation >= self.generation
            && record
                .token
                .as_ref()
                .is_some_and(|token| Some(&token.value) != self.token.as_ref());
        let unheard = self.token.is_some() && record.generation > self.generation;
        let token = || {
            if unheard {
                record.revive_as_news(self.clock)
            } else {
                record.revive(self.clock)
            }
        };
        refused || new && token().is_some()
    }
}

impl Sharing {
    /// The sharing that the store offers, if it does.
    pub(super) fn of(
        key: &Key,
        store: &Arc<dyn TokenStore>,
        metrics: &AccountMetrics,
    ) -> Option<Self> {
        store.changes(key)?;
        Some(Self {
            key: key.clone(),
            store: Arc::clone(store),
            metrics: metrics.clone(),
        })
    }

    /// Waits until this node may fetch or need not: at most for the lease of a node that died with
    /// it, and for that of the next one.
    pub(super) async fn clear(self, known: Known, fetch: Duration) -> Clearance {
        let life = fetch + MARGIN;
        let end = Instant::now() + life * 2;
        let owner = owner();
        let mut changes = self.store.changes(&self.key);
        loop {
            let mut lease = self
                .bounded("lease", self.store.lease(&self.key, &owner, life))
                .await;
            if lease == Err(Silent(true)) {
                // A machine that is overloaded needs its one fetch more than half a second.
                lease = self
                    .bounded("lease", self.store.lease(&self.key, &owner, life))
                    .await;
            }
            if lease == Err(Silent(true)) {
                return Clearance::default();
            }
            let granted = lease == Ok(Lease::Granted);
            // Also after the lease was granted: whoever had it before may have written meanwhile.
            let loaded = self.bounded("load", self.store.load(&self.key)).await;
            let heard = lease.is_ok() && loaded.is_ok();
            let record = loaded.ok().flatten().map(Box::new);
            let settled = record
                .as_ref()
                .is_some_and(|record| known.is_settled_by(record));
            let held = matches!(lease, Ok(Lease::Held { .. }));
            if settled || !held || Instant::now() >= end {
                let lease = granted.then(|| Held {
                    owner: owner.clone(),
                });
                return Clearance {
                    record,
                    settled,
                    lease,
                    heard,
                };
            }
            tokio::select! {
                biased;
                () = rung(&mut changes) => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Gives the lease back once everything that was to be written has been tried.
    pub(super) fn release(&self, held: Held, persister: &Persister) {
        let (this, written) = (self.clone(), persister.latest());
        tokio::spawn(async move {
            written.tried(Duration::from_secs(5)).await;
            let _ = this
                .bounded("release", this.store.release(&this.key, &held.owner))
                .await;
        });
    }

    /// Tells the keeper what is in the store, whenever it may have changed, until the keeper has
    /// gone.
    pub(super) async fn watch(
        self,
        mailbox: mpsc::WeakUnboundedSender<Command>,
        jitter: fn() -> f64,
    ) {
        let mut changes = self.store.changes(&self.key);
        loop {
            tokio::select! {
                biased;
                () = rung(&mut changes) => {}
                () = sleep(POLL.mul_f64(1.0 + 0.2 * jitter())) => {}
            }
            let Some(record) = self.unhurried("load", self.store.load(&self.key)).await else {
                if mailbox.upgrade().is_none() {
                    return;
                }
                continue;
            };
            let Some(mailbox) = mailbox.upgrade() else {
                return;
            };
            let _ = mailbox.send(Command::Stored(record.map(Box::new)));
        }
    }

    /// An answer that somebody waits for.
    async fn bounded<T>(
        &self,
        operation: &'static str,
        asked: BoxFuture<'_, Result<T, StoreError>>,
    ) -> Result<T, Silent> {
        let silent = |error| Silent(error == StoreError::Server(ServerFault::Timeout));
        let answer = timeout(ASK, asked)
            .await
            .map_or(Err(Silent(true)), |answer| answer.map_err(silent));
        answer.inspect_err(|_| self.metrics.store_error(operation))
    }

    /// An answer that nobody waits for, so it may take longer.
    async fn unhurried<T>(
        &self,
        operation: &'static str,
        asked: BoxFuture<'_, Result<T, StoreError>>,
    ) -> Option<T> {
        let answer = timeout(ASK * 4, asked).await.ok().and_then(Result::ok);
        if answer.is_none() {
            self.metrics.store_error(operation);
        }
        answer
    }
}

/// The next change; never, when there is nobody to tell of one.
async fn rung(changes: &mut Option<watch::Receiver<u64>>) {
    let heard = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !heard {
        std::future::pending::<()>().await;
    }
}

/// Another one for each lease, so that a late release cannot end a later lease of the same node.
fn owner() -> String {
    let (high, low) = (getrandom::u64(), getrandom::u64());
    format!(
        "{:016x}{:016x}",
        high.unwrap_or_default(),
        low.unwrap_or_default()
    )
}
