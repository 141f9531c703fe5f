//! Cluster: the refreshers of one account on several nodes that share a store.
//!
//! Before a fetch a node asks for the lease and reads the record of the others; afterwards it
//! watches their changes. The lease only saves fetches: correctness comes from the comparison in
//! [`TokenStore::save`], and with the store gone a node goes on by itself.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    RefresherCommand,
    life::{Known, Preflight},
    writer::WriteReceipt,
};
use crate::token::{
    clock::WallClock,
    metrics::CredentialMetrics,
    source::BoxFuture,
    store::{Lease, RecordKey, ServerFault, StoreError, TokenStore},
};

/// The shared store, for one credential. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cluster {
    key: RecordKey,
    store: Arc<dyn TokenStore>,
    metrics: CredentialMetrics,
    clock: WallClock,
}

/// Failure of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreFailure {
    /// No answer in time.
    Silent,
    /// An error, or no connection.
    Failed,
}

/// Right of this node to fetch. Other nodes wait until it is released, or its time is over.
pub(super) struct LeaseGuard {
    cluster: Cluster,
    owner: String,
}

/// Limit for one call of the store. The lease saves a fetch and is not worth a longer wait.
const ASK: Duration = Duration::from_millis(500);
/// Interval of reads while another node fetches, in case the notification is lost.
const LOOK: Duration = Duration::from_millis(300);
/// Life of a lease beyond one fetch, for storing the cost before it and the result after it.
const MARGIN: Duration = Duration::from_secs(2);
/// Time in which the last write is awaited before a lease is given back.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// Interval of reads of the record, in case notifications are lost.
pub(super) const POLL: Duration = Duration::from_secs(5);

impl Cluster {
    /// The cluster around a store; `None` for a store that is private to the node.
    pub(super) fn of(
        key: &RecordKey,
        store: &Arc<dyn TokenStore>,
        metrics: &CredentialMetrics,
        clock: WallClock,
    ) -> Option<Self> {
        store.changes(key)?;
        Some(Self {
            key: key.clone(),
            store: Arc::clone(store),
            metrics: metrics.clone(),
            clock,
        })
    }

    /// Waits until this node may fetch or need not: at most for the lease of a node that died with
    /// it, and for that of the next one.
    pub(super) async fn preflight(
        self,
        known: Known,
        fetch: Duration,
    ) -> (Preflight, Option<LeaseGuard>) {
        let life = fetch + MARGIN;
        let end = Instant::now() + life * 2;
        let owner = owner();
        let mut changes = self.store.changes(&self.key);
        loop {
            let mut lease = self
                .bounded("lease", self.store.lease(&self.key, &owner, life))
                .await;
            if lease == Err(StoreFailure::Silent) {
                // A second attempt: an overloaded machine is slow too, and a fetch costs it more.
                lease = self
                    .bounded("lease", self.store.lease(&self.key, &owner, life))
                    .await;
            }
            if lease == Err(StoreFailure::Silent) {
                return (Preflight::default(), None);
            }
            let granted = lease == Ok(Lease::Granted);
            // Read also after the lease was granted: its last owner may have written meanwhile.
            let loaded = self.bounded("load", self.store.load(&self.key)).await;
            let heard = lease.is_ok() && loaded.is_ok();
            let record = loaded.ok().flatten().map(Box::new);
            let settled = record
                .as_ref()
                .is_some_and(|record| known.is_settled_by(record, self.clock.time()));
            let held = matches!(lease, Ok(Lease::Held { .. }));
            if settled || !held || Instant::now() >= end {
                let preflight = Preflight {
                    record,
                    settled,
                    leased: granted,
                    heard,
                };
                let cluster = self;
                return (preflight, granted.then(|| LeaseGuard { cluster, owner }));
            }
            tokio::select! {
                biased;
                () = changed(&mut changes) => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Posts the content of the store whenever it may have changed, until the refresher has gone.
    pub(super) async fn watch(
        self,
        mailbox: mpsc::WeakUnboundedSender<RefresherCommand>,
        jitter: fn() -> f64,
    ) {
        let mut changes = self.store.changes(&self.key);
        loop {
            tokio::select! {
                biased;
                () = changed(&mut changes) => {}
                () = sleep(POLL.mul_f64(1.0 + 0.2 * jitter())) => {}
            }
            // The mailbox is held weakly, since the task must not keep a dropped refresher alive.
            let Some(record) = self.unhurried("load", self.store.load(&self.key)).await else {
                if mailbox.upgrade().is_none() {
                    return;
                }
                continue;
            };
            let Some(mailbox) = mailbox.upgrade() else {
                return;
            };
            let _ = mailbox.send(RefresherCommand::Replicated(record.map(Box::new)));
        }
    }

    /// Asks for an answer that a refresh waits for.
    async fn bounded<T>(
        &self,
        operation: &'static str,
        asked: BoxFuture<'_, Result<T, StoreError>>,
    ) -> Result<T, StoreFailure> {
        let failure = match timeout(ASK, asked).await {
            Ok(Ok(answer)) => {
                self.metrics.store_works();
                return Ok(answer);
            }
            Ok(Err(StoreError::Server(ServerFault::Timeout))) | Err(_) => StoreFailure::Silent,
            Ok(Err(_)) => StoreFailure::Failed,
        };
        self.metrics.store_error(operation);
        Err(failure)
    }

    /// Asks for an answer that nothing waits for, so it may take longer.
    async fn unhurried<T>(
        &self,
        operation: &'static str,
        asked: BoxFuture<'_, Result<T, StoreError>>,
    ) -> Option<T> {
        let answer = timeout(ASK * 4, asked).await.ok().and_then(Result::ok);
        match answer {
            Some(_) => self.metrics.store_works(),
            None => self.metrics.store_error(operation),
        }
        answer
    }
}

impl LeaseGuard {
    /// Gives the lease back after the last write was tried, so that the next owner reads its
    /// result.
    pub(super) fn release(self, written: WriteReceipt) {
        let Self { cluster, owner } = self;
        tokio::spawn(async move {
            written.tried(RELEASE_WAIT).await;
            let released = cluster.store.release(&cluster.key, &owner);
            let _ = cluster.bounded("release", released).await;
        });
    }
}

/// Waits for the next change; for ever if there is no notifier.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    let heard = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !heard {
        std::future::pending::<()>().await;
    }
}

/// Makes the name of an owner. Each lease has another, so that a late release cannot end a later
/// lease of the same node.
fn owner() -> String {
    let (high, low) = (getrandom::u64(), getrandom::u64());
    format!(
        "{:016x}{:016x}",
        high.unwrap_or_default(),
        low.unwrap_or_default()
    )
}
