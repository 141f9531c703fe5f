//! The way from serving to stopped, as a value that every listener and connection can watch.
//!
//! Only the state; who moves it on and when is the business of the application.

use tokio::sync::watch;

/// How far a stop has come. It only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Business as usual.
    Serving,
    /// Readiness is gone, connections are still taken, each answer asks its client to close.
    Leaving,
    /// No connection is taken any more; idle ones are closed, requests in flight go on.
    Closing,
    /// Whatever is left is cut.
    Aborting,
}

/// The hand that moves the phase on.
#[derive(Debug)]
pub struct DrainControl(watch::Sender<Phase>);

/// The eye that watches it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<Phase>);

/// A fresh pair in phase [`Phase::Serving`]. Dropping the control aborts.
pub fn drain() -> (DrainControl, Drain) {
    let (tx, rx) = watch::channel(Phase::Serving);
    (DrainControl(tx), Drain(rx))
}

impl DrainControl {
    /// Moves on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let forward = phase > *current;
            if forward {
                *current = phase;
            }
            forward
        });
    }
}

impl Drain {
    /// Where the stop is now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether answers should ask their clients to close.
    pub fn is_leaving(&self) -> bool {
        self.phase() >= Phase::Leaving
    }

    /// Returns once `phase` or a later one is reached, or the control is gone.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|current| *current >= phase).await;
    }
}
