//! Steps of a refresh as I/O, each in a task of its own: the question to the other nodes, a fetch,
//! a probe, or the wait for the store.
//!
//! A step never decides what follows from it.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    cluster::{Cluster, LeaseGuard},
    life::{Known, Preflight, Step, StepOutcome},
    writer::WriteReceipt,
};
use crate::base::Secret;
use crate::token::source::{FetchError, FetchMode, Probe, TokenSource};

/// Source and cluster that the steps use.
pub(super) struct Steps {
    pub(super) source: Arc<dyn TokenSource>,
    /// `None` unless other nodes use the store too.
    pub(super) cluster: Option<Cluster>,
    /// Limit of one call of the source.
    pub(super) limit: Duration,
}

/// End of a step, and the lease that it brought.
pub(super) struct StepEnd {
    pub(super) outcome: StepOutcome,
    pub(super) lease: Option<LeaseGuard>,
}

/// Limit for a fetch to wait until its cost is stored.
const COST_WAIT: Duration = Duration::from_secs(2);
/// Limit for the same wait on a shared store, which answers fast or not at all.
const SHARED_COST_WAIT: Duration = Duration::from_millis(250);
/// Limit for a fresh token to wait until it is stored; after that, requests come first.
const TOKEN_WAIT: Duration = Duration::from_millis(250);
/// Time beyond the limit of a source after which a fetch is given up, for a source without a limit.
const GRACE: Duration = Duration::from_secs(1);

impl Steps {
    /// Starts a step. `written` is the receipt of the last write of the record.
    pub(super) fn start(&self, step: Step, written: WriteReceipt) -> JoinHandle<StepEnd> {
        let (source, limit) = (Arc::clone(&self.source), self.limit);
        match step {
            Step::Preflight(known) => {
                tokio::spawn(preflight(self.cluster.clone(), known, self.limit))
            }
            Step::Fetch {
                mode,
                costs,
                rejected,
            } => {
                // A shared store that does not answer fast is in trouble and will hardly store it.
                let patience = match self.cluster {
                    Some(_) => SHARED_COST_WAIT,
                    None => COST_WAIT,
                };
                let cost = costs.then_some((written, patience));
                tokio::spawn(fetch(source, limit, mode, rejected, cost))
            }
            Step::Probe(token) => tokio::spawn(probe(source, limit, token)),
            Step::Write => tokio::spawn(async move {
                let newer = written.tried(TOKEN_WAIT).await;
                StepOutcome::Written { newer }.into()
            }),
        }
    }
}

impl From<StepOutcome> for StepEnd {
    fn from(outcome: StepOutcome) -> Self {
        Self {
            outcome,
            lease: None,
        }
    }
}

/// Waits for the end of the step under way and removes the step; for ever if there is none. Can be
/// cancelled and called again.
pub(super) async fn ended(step: &mut Option<JoinHandle<StepEnd>>) -> StepEnd {
    let Some(running) = step.as_mut() else {
        return std::future::pending().await;
    };
    let ended = running.await;
    *step = None;
    // A join error is a panic of the step, which must not end the actor.
    ended.unwrap_or_else(|_| StepOutcome::Panicked.into())
}

async fn preflight(cluster: Option<Cluster>, known: Known, limit: Duration) -> StepEnd {
    let (preflight, lease) = match cluster {
        Some(cluster) => cluster.preflight(known, limit).await,
        None => (Preflight::default(), None),
    };
    StepEnd {
        outcome: StepOutcome::Preflight(preflight),
        lease,
    }
}

/// Fetches a token after the cost of the fetch is stored. With `rejected`, asks for another token
/// than that.
async fn fetch(
    source: Arc<dyn TokenSource>,
    limit: Duration,
    mode: FetchMode,
    rejected: Option<Secret>,
    cost: Option<(WriteReceipt, Duration)>,
) -> StepEnd {
    if let Some((written, patience)) = cost {
        written.tried(patience).await;
    }
    // Before the call: the life of the token counts from here.
    let sent = Instant::now();
    let asked = match &rejected {
        Some(rejected) => source.fetch_past(rejected),
        None => source.fetch(mode),
    };
    let result = timeout(limit + GRACE, asked)
        .await
        .unwrap_or(Err(FetchError::Timeout));
    StepOutcome::Fetched { sent, result }.into()
}

async fn probe(source: Arc<dyn TokenSource>, limit: Duration, token: Secret) -> StepEnd {
    let probe = timeout(limit + GRACE, source.probe(&token))
        .await
        .unwrap_or(Probe::Unknown);
    StepOutcome::Probed(probe).into()
}
