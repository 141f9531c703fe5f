//! Keeps a store connected: opens the backend, watches it, and opens it again after a pause.
//!
//! While there is no connection, calls fail at once.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Backend, PROVEN};
use crate::{
    base::backoff::{Backoff, random_fraction},
    token::store::{ServerFault, notifier::ChangeNotifier},
};

/// Handle of the task that keeps the connection; dropping it ends all connections.
pub(super) struct Supervisor<B: Backend> {
    state: watch::Receiver<ConnectionState<B::Pool>>,
    doubt: Arc<Notify>,
    task: JoinHandle<()>,
}

enum ConnectionState<P> {
    /// The first attempt is under way.
    Connecting,
    Up(P),
    Down(ServerFault),
}

/// Time after which another attempt joins one that has no answer: what was asked of a network that
/// was broken then is not always sent again, and the next attempt finds it whole.
const JOIN_AFTER: Duration = Duration::from_secs(1);
const PAUSE: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(1),
};

impl<B: Backend> Supervisor<B> {
    /// Begins to connect, on the current runtime.
    pub(super) fn start(backend: Arc<B>, notifier: Arc<ChangeNotifier>) -> Self {
        let (publish, state) = watch::channel(ConnectionState::Connecting);
        let doubt = Arc::new(Notify::new());
        let task = tokio::spawn({
            let doubt = Arc::clone(&doubt);
            async move { run(&*backend, &notifier, &doubt, &publish).await }
        });
        Self { state, doubt, task }
    }

    /// Connection for one call. Waits for the first attempt to connect, and for the backend's pool
    /// as long as the server is up.
    pub(super) async fn checkout(&self, backend: &B) -> Result<B::Connection, ServerFault> {
        let mut state = self.state.clone();
        let pool = settled(&mut state).await?;
        tokio::select! {
            connection = backend.checkout(&pool) => connection,
            fault = down(&mut state) => Err(fault),
        }
    }

    /// Tells if there is a connection.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), ConnectionState::Up(_))
    }

    /// Has the backend look at its session after a call that failed.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }
}

/// Outcome of the latest attempt to connect; waits for the first one.
async fn settled<P: Clone>(
    state: &mut watch::Receiver<ConnectionState<P>>,
) -> Result<P, ServerFault> {
    let settled = state
        .wait_for(|state| !matches!(state, ConnectionState::Connecting))
        .await;
    match settled.as_deref() {
        Ok(ConnectionState::Up(pool)) => Ok(pool.clone()),
        Ok(ConnectionState::Down(fault)) => Err(*fault),
        Ok(ConnectionState::Connecting) | Err(_) => Err(ServerFault::Unreachable),
    }
}

/// Waits until the server is down.
async fn down<P>(state: &mut watch::Receiver<ConnectionState<P>>) -> ServerFault {
    match state
        .wait_for(|state| matches!(state, ConnectionState::Down(_)))
        .await
        .as_deref()
    {
        Ok(ConnectionState::Down(fault)) => *fault,
        _ => ServerFault::Broken,
    }
}

async fn run<B: Backend>(
    backend: &B,
    notifier: &ChangeNotifier,
    doubt: &Notify,
    state: &watch::Sender<ConnectionState<B::Pool>>,
) {
    let mut failures = 0_u32;
    let mut reported = None;
    let mut attempts = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        // `next` of an empty set gives `None`, which disables that branch until an attempt begins.
        let opened = tokio::select! {
            Some(opened) = attempts.next() => opened,
            () = sleep_until(next) => {
                attempts.push(timeout(B::OPEN_TIMEOUT, backend.open()));
                next = Instant::now() + JOIN_AFTER;
                continue;
            }
        };
        let fault = match opened.unwrap_or(Err(ServerFault::Timeout)) {
            Ok((pool, session)) => {
                attempts.clear();
                if reported.take().is_some() {
                    tracing::info!("the shared token store is there again");
                }
                let since = Instant::now();
                // Changes were missed while there was no connection. Told in the same step, so that
                // a subscriber who is woken finds the connection, and one who finds the connection
                // is not woken again.
                state.send_modify(|state| {
                    *state = ConnectionState::Up(pool);
                    notifier.notify_all();
                });
                let fault = backend.watch(session, doubt).await;
                // A server that ends each session soon after it began counts as failing.
                if since.elapsed() >= PROVEN {
                    failures = 0;
                }
                fault
            }
            Err(fault) => fault,
        };
        failures = failures.saturating_add(1);
        state.send_replace(ConnectionState::Down(fault));
        if reported.replace(fault) != Some(fault) {
            tracing::warn!("the shared token store is gone, going on from memory: {fault}");
        }
        if attempts.is_empty() {
            next = Instant::now() + PAUSE.jittered(failures, random_fraction());
        }
    }
}

impl<B: Backend> Drop for Supervisor<B> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
