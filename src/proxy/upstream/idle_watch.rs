//! Notes when something came on a connection that no request uses: nearly always its end.
//!
//! Looking costs nothing while nothing came, and the moment tells how long the other end keeps idle
//! connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use tokio::{task::coop::unconstrained, time::Instant};

use super::http1::Http1;

/// Watch over a connection while it is idle.
#[derive(Debug)]
pub(super) struct IdleWatch {
    wakes: Arc<FirstWake>,
    waker: Waker,
}

/// The first wake, in nanoseconds after `born`; [`NEVER`] for none. All of it is on one thread; the
/// atomic is there because [`Wake`] demands `Sync`.
#[derive(Debug)]
struct FirstWake {
    born: Instant,
    nanos: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Wake for FirstWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.nanos.load(SeqCst) == NEVER {
            let nanos = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(NEVER - 1);
            self.nanos.store(nanos, SeqCst);
        }
    }
}

impl IdleWatch {
    pub(super) fn new() -> Self {
        let wakes = Arc::new(FirstWake {
            born: Instant::now(),
            nanos: AtomicU64::new(NEVER),
        });
        Self {
            waker: Waker::from(Arc::clone(&wakes)),
            wakes,
        }
    }

    /// Begins to watch. Returns false if the connection has ended, or brings what was not asked for.
    pub(super) fn begin(&self, http: &mut Http1) -> bool {
        self.wakes.nanos.store(NEVER, SeqCst);
        let mut cx = Context::from_waker(&self.waker);
        // Without tokio's budget, at the end of which a wake would mean nothing.
        let unasked = std::future::poll_fn(|cx| http.poll_unasked(cx));
        let polled = std::pin::pin!(unconstrained(unasked)).poll(&mut cx);
        polled.is_pending()
    }

    /// Returns the moment when the connection ended. A message of TLS that brings no HTTP, such as a
    /// session ticket, is no end.
    pub(super) fn ended_at(&self, http: &mut Http1) -> Option<Instant> {
        let nanos = self.wakes.nanos.load(SeqCst);
        if nanos == NEVER || self.begin(http) {
            return None;
        }
        // For whoever asks again.
        self.wakes.nanos.store(nanos, SeqCst);
        Some(self.wakes.born + Duration::from_nanos(nanos))
    }
}
