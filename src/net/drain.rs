//! The way from serving to stopped, as a value that every listener and connection can watch.
//!
//! Only the state; the application moves it on.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use tokio::sync::watch;

/// Progress of a stop. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Business as usual.
    Serving,
    /// Readiness is gone, connections are still taken, each answer asks its client to close.
    Leaving,
    /// The listeners are emptied and closed; requests in flight go on, and a connection without a
    /// request waits for one.
    Closing,
    /// Kept-alive connections without a request are closed too.
    ClosingIdle,
    /// The remaining connections are cut.
    Aborting,
}

/// Sender of the phase.
#[derive(Debug)]
pub(crate) struct DrainControl {
    phase: watch::Sender<Phase>,
    leaving: Arc<AtomicBool>,
    replaced: Arc<AtomicBool>,
}

/// Receiver of the phase. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    phase: watch::Receiver<Phase>,
    // Read once per answer, and `phase` would cost a lock.
    leaving: Arc<AtomicBool>,
    replaced: Arc<AtomicBool>,
}

/// A fresh pair in phase [`Phase::Serving`]. Dropping the control aborts.
pub(crate) fn drain() -> (DrainControl, Drain) {
    let (tx, rx) = watch::channel(Phase::Serving);
    let leaving = Arc::new(AtomicBool::new(false));
    let replaced = Arc::new(AtomicBool::new(false));
    (
        DrainControl {
            phase: tx,
            leaving: Arc::clone(&leaving),
            replaced: Arc::clone(&replaced),
        },
        Drain {
            phase: rx,
            leaving,
            replaced,
        },
    )
}

impl DrainControl {
    /// Begins the stop of a process that another one has replaced, which goes on with the listeners.
    pub(crate) fn replace(&self) {
        // Before the phase, whose change is what wakes the listeners.
        self.replaced.store(true, Release);
        self.advance(Phase::Leaving);
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.leaving.fetch_or(phase >= Phase::Leaving, Relaxed);
        self.phase.send_if_modified(|current| {
            let forward = phase > *current;
            if forward {
                *current = phase;
            }
            forward
        });
    }
}

impl Drain {
    /// Current phase.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// True if answers should ask their clients to close.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// True if another process goes on with the listeners. Does not change after
    /// [`Phase::Leaving`].
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Acquire)
    }

    /// True if callers should go to another node: on a stop without a process that goes on.
    pub(crate) fn is_out_of_service(&self) -> bool {
        self.is_leaving() && !self.is_replaced()
    }

    /// Returns once this process is to leave its listeners to the one that replaced it.
    pub(crate) async fn replaced(&mut self) {
        self.reached(Phase::Leaving).await;
        if !self.is_replaced() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns once `phase` or a later one is reached, or the control is gone.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        let _ = self.phase.wait_for(|current| *current >= phase).await;
    }
}
