//! The way from serving to stopped, as a value that every listener and connection can watch.
//!
//! Only the state; the application moves it on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
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
}

/// Receiver of the phase. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    phase: watch::Receiver<Phase>,
    // Read once per answer, and `phase` would cost a lock.
    leaving: Arc<AtomicBool>,
}

/// A fresh pair in phase [`Phase::Serving`]. Dropping the control aborts.
pub(crate) fn drain() -> (DrainControl, Drain) {
    let (tx, rx) = watch::channel(Phase::Serving);
    let leaving = Arc::new(AtomicBool::new(false));
    (
        DrainControl {
            phase: tx,
            leaving: Arc::clone(&leaving),
        },
        Drain { phase: rx, leaving },
    )
}

impl DrainControl {
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

    /// Returns once `phase` or a later one is reached, or the control is gone.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        let _ = self.phase.wait_for(|current| *current >= phase).await;
    }
}
