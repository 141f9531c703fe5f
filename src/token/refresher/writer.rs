//! Writer of the record: one write at a time and always the latest, in a task of its own.
//!
//! A store that is slow or failing delays nobody for long: writes are bounded in time, tried again
//! until they succeed, counted, and complained about once.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    base::backoff::Backoff,
    token::{
        metrics::CredentialMetrics,
        store::{RecordKey, Saved, TokenRecord, TokenStore},
    },
};

/// Handle of the writer.
pub(super) struct RecordWriter {
    key: RecordKey,
    store: Arc<dyn TokenStore>,
    metrics: CredentialMetrics,
    latest: watch::Sender<Job>,
    outcome: watch::Receiver<WriteProgress>,
}

/// Receipt of a requested write.
pub(super) struct WriteReceipt {
    number: u64,
    outcome: watch::Receiver<WriteProgress>,
}

#[derive(Clone, Default)]
struct Job {
    number: u64,
    record: Option<TokenRecord>,
}

/// Progress of the writer. A failed attempt counts as progress, so that no refresh waits for a
/// broken store.
#[derive(Clone, Default)]
struct WriteProgress {
    number: u64,
    newer: Option<Box<TokenRecord>>,
}

/// Limit for one operation of the store.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
const RETRY: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(60),
};
/// Shorter pauses for a shared store: other nodes need the record as soon as the store is back.
/// Such a store logs its failures itself.
const SHARED_RETRY: Backoff = Backoff {
    min: Duration::from_millis(250),
    max: Duration::from_secs(1),
};

/// Starts the writer on the current runtime. It ends with the handle, after the last write.
pub(super) fn spawn(
    key: RecordKey,
    store: Arc<dyn TokenStore>,
    metrics: CredentialMetrics,
) -> RecordWriter {
    let (latest, jobs) = watch::channel(Job::default());
    let (report, outcome) = watch::channel(WriteProgress::default());
    tokio::spawn(write(
        key.clone(),
        Arc::clone(&store),
        metrics.clone(),
        jobs,
        report,
    ));
    RecordWriter {
        key,
        store,
        metrics,
        latest,
        outcome,
    }
}

impl RecordWriter {
    /// Record in the store; `None` when the store fails.
    pub(super) async fn load(&self) -> Option<TokenRecord> {
        let problem = match timeout(LIMIT, self.store.load(&self.key)).await {
            Ok(Ok(record)) => {
                self.metrics.store_works();
                return record;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it did not answer in time".to_owned(),
        };
        self.metrics.store_error("load");
        tracing::warn!(account = %self.key.account, kept = %self.key.credential, problem, "the token store cannot be read: starting without it");
        None
    }

    /// Receipt of the last requested write.
    pub(super) fn latest(&self) -> WriteReceipt {
        WriteReceipt {
            number: self.latest.borrow().number,
            outcome: self.outcome.clone(),
        }
    }

    /// Requests a write of this record, in place of a record that still waits.
    pub(super) fn save(&self, record: TokenRecord) -> WriteReceipt {
        // Number and record change together, under the lock of the channel.
        let mut number = 0;
        self.latest.send_modify(|job| {
            job.number += 1;
            number = job.number;
            job.record = Some(record);
        });
        WriteReceipt {
            number,
            outcome: self.outcome.clone(),
        }
    }
}

impl WriteReceipt {
    /// Waits until the write was tried, for at most `limit`. Returns the record of the store if
    /// that is newer.
    pub(super) async fn tried(mut self, limit: Duration) -> Option<Box<TokenRecord>> {
        let number = self.number;
        let outcome = timeout(
            limit,
            self.outcome.wait_for(|outcome| outcome.number >= number),
        )
        .await;
        outcome
            .ok()
            .and_then(Result::ok)
            .and_then(|outcome| outcome.newer.clone())
    }
}

async fn write(
    key: RecordKey,
    store: Arc<dyn TokenStore>,
    metrics: CredentialMetrics,
    mut jobs: watch::Receiver<Job>,
    report: watch::Sender<WriteProgress>,
) {
    let shared = store.changes(&key).is_some();
    let retry = if shared { SHARED_RETRY } else { RETRY };
    let mut failures = 0_u32;
    let mut open = true;
    while open {
        if failures == 0 {
            open = jobs.changed().await.is_ok();
        } else {
            // A newer record is tried at once; the same one again after a pause.
            tokio::select! {
                biased;
                changed = jobs.changed() => open = changed.is_ok(),
                () = sleep(retry.plain(failures)) => {}
            }
        }
        let Job { number, record } = jobs.borrow_and_update().clone();
        // Once the handle is gone, only a write that has failed is tried again.
        let Some(record) = record.filter(|_| open || failures > 0) else {
            continue;
        };
        let problem = match timeout(LIMIT, store.save(&key, record)).await {
            Ok(Ok(saved)) => {
                if failures > 0 && !shared {
                    tracing::info!(account = %key.account, kept = %key.credential, "the token store can be written again");
                }
                failures = 0;
                metrics.store_works();
                let newer = if let Saved::Newer(record) = saved {
                    Some(record)
                } else {
                    None
                };
                report.send_replace(WriteProgress { number, newer });
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it did not answer in time".to_owned(),
        };
        metrics.store_error("save");
        if failures == 0 && !shared {
            tracing::warn!(
                account = %key.account, kept = %key.credential, problem,
                "the token store cannot be written: going on from memory, a restart now would cost one fetch"
            );
        }
        failures = failures.saturating_add(1);
        report.send_replace(WriteProgress {
            number,
            newer: None,
        });
    }
}
