//! Task that shares the roots of one account's phantom keys with the store.
//!
//! The record is written once after a start, if the AppSecret has changed since, by a revocation,
//! and again every two hours; never because of another node's record. So nodes with different AppSecrets do not
//! replace each other's records without end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    Order, Roots,
    record::{self, StoredRoots},
};
use crate::{
    base::{Secret, backoff::Backoff},
    token::{
        AccountSettings, Generation,
        clock::WallClock,
        credential::{CredentialType, RecordKey},
        store::{Saved, StoreError, TokenRecord, TokenStore},
    },
};

/// The task.
pub(super) struct RootSync {
    key: RecordKey,
    appid: String,
    root: Secret,
    roots: Arc<Roots>,
    store: Arc<dyn TokenStore>,
    clock: WallClock,
}

/// Work that is to be done with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Take over what other nodes have written.
    Look,
    /// The same, and have the record name the root of this node.
    Claim,
    /// End the time of all other roots.
    Revoke,
    /// Leave nothing.
    Forget,
}

/// The store failed, or did not answer in time.
#[derive(Debug)]
struct Failed;

/// Limit for one operation of the store.
const LIMIT: Duration = Duration::from_secs(5);
const RETRY: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(60),
};
/// Interval of looks at a shared record while another root is good, in case a notification of its
/// end is lost.
const POLL: Duration = Duration::from_secs(5);
/// Interval of looks at any other time, when only a change of the AppSecret can be missed.
const SELDOM: Duration = Duration::from_secs(60);
/// Attempts to write over the records of other nodes before the next pause.
const MAX_TRIES: u32 = 8;

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

impl RootSync {
    /// Returns `None` for an account without an AppSecret.
    pub(super) fn new(
        account: &AccountSettings,
        roots: Arc<Roots>,
        store: Arc<dyn TokenStore>,
        clock: WallClock,
    ) -> Option<Self> {
        Some(Self {
            key: RecordKey {
                account: account.name.clone(),
                credential: CredentialType::PhantomKeys,
            },
            appid: account.appid.clone(),
            root: roots.current.clone()?,
            roots,
            store,
            clock,
        })
    }

    /// Runs until the last handle is gone, or the account.
    pub(super) async fn run(self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut changes = self.store.changes(&self.key);
        let is_shared = changes.is_some();
        let mut work = Work::Claim;
        let mut failures = 0_u32;
        let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
        loop {
            if self.carry_out(work).await.is_ok() {
                if work == Work::Forget {
                    return;
                }
                (work, failures) = (Work::Look, 0);
            } else {
                // A shared store logs its failures itself.
                if failures == 0 && !is_shared {
                    self.complain();
                }
                failures = failures.saturating_add(1);
            }
            self.roots.loaded.send_replace(true);
            for reply in waiting.drain(..) {
                let _ = reply.send(());
            }
            let pause = match failures {
                0 if self.roots.others.load().is_empty() => SELDOM,
                0 => POLL,
                failures => RETRY.plain(failures),
            };
            tokio::select! {
                biased;
                order = inbox.recv() => match order {
                    None => return,
                    Some(Order::Forget) => work = Work::Forget,
                    Some(Order::Revoke(reply)) => {
                        waiting.push(reply);
                        // An earlier order to forget is the stronger one.
                        if work != Work::Forget {
                            work = Work::Revoke;
                        }
                    }
                },
                () = changed(&mut changes) => {}
                // A store that is private to the node needs no second look.
                () = sleep(pause), if failures > 0 || is_shared => {}
            }
        }
    }

    async fn carry_out(&self, work: Work) -> Result<(), Failed> {
        if matches!(work, Work::Revoke | Work::Forget) {
            // Here at once, whatever the store does.
            self.roots.others.store(Arc::default());
        }
        for _ in 0..MAX_TRIES {
            let stored = self.load().await?;
            let now_ms = self.clock.now_ms();
            let held = stored
                .as_ref()
                .and_then(|record| StoredRoots::of(record, &self.appid));
            // An emptied record means that a node has removed the account: no grace is left.
            let is_emptied = stored.as_ref().is_some_and(|record| record.token.is_none());
            let others = match work {
                Work::Look | Work::Claim if !is_emptied => {
                    let known = self.roots.others.load();
                    record::succeeding(&self.root, &known, held.as_ref(), now_ms)
                }
                _ => Vec::new(),
            };
            // Else it would stay sealed with a key that is about to leave `store.encryption_key`.
            let is_recent = stored
                .as_ref()
                .and_then(|record| record.token.as_ref())
                .is_some_and(|token| token.expires_ms > now_ms);
            // In force before they are stored: a slow store must not refuse a phantom.
            self.roots.others.store(Arc::new(others.clone()));
            let own = StoredRoots {
                current: self.root.clone(),
                others,
            };
            let is_done = match (work, &held) {
                (Work::Forget, held) => held.is_none() && stored.is_some(),
                // The own record is written again now and then, and once the store has lost it.
                (Work::Look, Some(held)) => held.current != self.root || is_recent,
                (Work::Look, None) => stored.is_some(),
                (Work::Claim, Some(held)) => held.current == self.root && is_recent,
                (Work::Revoke, Some(held)) => *held == own,
                (_, None) => false,
            };
            if is_done {
                return Ok(());
            }
            let generation = stored.map_or(Generation(0), |record| record.generation);
            let content = (work != Work::Forget).then_some(&own);
            let next = record::following(generation, &self.appid, content, now_ms);
            match timeout(LIMIT, self.store.save(&self.key, next)).await {
                Ok(Ok(Saved::Written)) => return Ok(()),
                Ok(Ok(Saved::Newer(_))) => {}
                Ok(Err(_)) | Err(_) => return Err(Failed),
            }
        }
        Err(Failed)
    }

    async fn load(&self) -> Result<Option<TokenRecord>, Failed> {
        match timeout(LIMIT, self.store.load(&self.key)).await {
            Ok(Ok(record)) => Ok(record),
            // Sealed with a key that is gone: the next write replaces it.
            Ok(Err(StoreError::Sealed(_))) => Ok(None),
            Ok(Err(_)) | Err(_) => Err(Failed),
        }
    }

    fn complain(&self) {
        tracing::warn!(
            account = %self.key.account, kept = %self.key.credential,
            "the store does not take the keys of phantom tokens: going on from memory; after a restart with another \
             AppSecret, phantoms of the former one would be refused"
        );
    }
}
