//! The half of a connection that reads and writes, polled by the task that waits for its answer.
//!
//! hyper wants this half to run in a task of its own. Here the request's task polls it, so that an
//! answer is read, parsed and passed on in one go while all of it is at hand, and no other task is
//! woken in between. No task polls an idle connection; its wakes are noted, and looked at when the
//! connection is next taken or reaped. Only the rest of an upload whose answer came early runs in a
//! task.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{super::body::OutBody, counted_stream::CountedStream};

/// Polls of a connection in a row before other tasks have their turn.
const MAX_TURNS: u32 = 16;

/// hyper's half of a connection with its waker. Dropping it closes the connection.
pub(super) struct ConnectionDriver {
    /// `None` once it has ended or is set apart.
    driven: Option<http1::Connection<TokioIo<CountedStream>, OutBody>>,
    state: Arc<ConnWaker>,
    /// Of `state`.
    waker: Waker,
    apart: Option<AbortHandle>,
}

/// Waker of a connection, which wakes the task that uses the connection.
///
/// All of it is on one thread. The atomics are there because [`Wake`] demands `Sync`, and ordered
/// so that a wake from another thread would not be lost either.
struct ConnWaker {
    /// The connection can go on; false again before it is polled.
    woken: AtomicBool,
    /// The connection is being polled, and `woken` is looked at afterwards.
    polled: AtomicBool,
    /// No request uses the connection.
    idle: AtomicBool,
    task: AtomicWaker,
    born: Instant,
    /// The first wake while the connection was idle, in nanoseconds after `born`; [`NEVER`] for
    /// none.
    idle_wake: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl ConnWaker {
    fn idle_wake(&self) -> Option<Instant> {
        let nanos = Some(self.idle_wake.load(SeqCst)).filter(|nanos| *nanos != NEVER);
        nanos.map(|nanos| self.born + Duration::from_nanos(nanos))
    }
}

impl Wake for ConnWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if self.polled.load(SeqCst) {
            return;
        }
        if !self.idle.load(SeqCst) {
            self.task.wake();
        } else if self.idle_wake.load(SeqCst) == NEVER {
            let nanos = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(NEVER - 1);
            self.idle_wake.store(nanos, SeqCst);
        }
    }
}

impl ConnectionDriver {
    pub(super) fn new(driven: http1::Connection<TokioIo<CountedStream>, OutBody>) -> Self {
        let state = Arc::new(ConnWaker {
            woken: AtomicBool::new(true),
            polled: AtomicBool::new(false),
            idle: AtomicBool::new(true),
            task: AtomicWaker::new(),
            born: Instant::now(),
            idle_wake: AtomicU64::new(NEVER),
        });
        let mut driver = Self {
            driven: Some(driven),
            waker: Waker::from(Arc::clone(&state)),
            state,
            apart: None,
        };
        // The first poll registers the waker, so that requests are heard of.
        driver.catch_up();
        driver
    }

    /// Polls `ask`, which waits for something that the connection brings, and the connection itself
    /// for as long as `ask` is pending and the connection goes on.
    pub(super) fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.polled.store(true, SeqCst);
        self.state.task.register(cx.waker());
        let mut polled = ask(&mut Context::from_waker(&self.waker));
        let mut turns = 0;
        while polled.is_pending() && turns < MAX_TURNS && self.state.woken.swap(false, SeqCst) {
            self.advance();
            polled = ask(&mut Context::from_waker(&self.waker));
            turns += 1;
        }
        self.state.polled.store(false, SeqCst);
        // Also for a wake after the last look.
        if polled.is_pending() && self.state.woken.load(SeqCst) {
            cx.waker().wake_by_ref();
        }
        polled
    }

    /// Polls a connection that was woken while it was idle. It is woken by its end, or by a message
    /// of TLS that brings no HTTP, such as a session ticket.
    pub(super) fn catch_up(&mut self) {
        if !self.state.woken.load(SeqCst) {
            return;
        }
        self.state.polled.store(true, SeqCst);
        for _ in 0..MAX_TURNS {
            if !self.state.woken.swap(false, SeqCst) {
                break;
            }
            self.advance();
        }
        self.state.polled.store(false, SeqCst);
        if self.driven.is_some() {
            self.state.idle_wake.store(NEVER, SeqCst);
        }
    }

    /// Notes that a request begins or has ceased to use the connection.
    pub(super) fn set_idle(&mut self, idle: bool) {
        self.catch_up();
        self.state.idle.store(idle, SeqCst);
        // The task that used it last must not be woken by what comes next.
        self.state.task.take();
    }

    /// Gives the connection a task of its own, which goes on without a request that polls.
    pub(super) fn set_apart(&mut self) {
        if let Some(driven) = self.driven.take() {
            self.apart = Some(spawn_local(async move { tell_end(driven.await) }).abort_handle());
        }
    }

    /// The moment of the first wake while the connection was idle: that of its end, if it has ended.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.state.idle_wake()
    }

    fn advance(&mut self) {
        let Some(driven) = &mut self.driven else {
            return;
        };
        if let Poll::Ready(ended) = Pin::new(driven).poll(&mut Context::from_waker(&self.waker)) {
            tell_end(ended);
            self.driven = None;
        }
    }
}

impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        if let Some(apart) = &self.apart {
            apart.abort();
        }
    }
}

fn tell_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "upstream connection ended");
    }
}
