//! The half of a connection that reads and writes, moved on by whoever waits for it.
//!
//! hyper wants it to run beside its user, in a task of its own. Here the request's task polls it,
//! so that an answer is read, parsed and passed on in one go while all of it is at hand, and nobody
//! is woken in between. While a connection is idle nobody polls it; what happens then is noted, and
//! looked at when the connection is next taken or reaped. Only what nobody waits for, the rest of
//! an upload whose answer came early, is moved on by a task.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{task::AbortHandle, time::Instant};

use super::{super::body::OutBody, link::Link};

/// How often it is moved on in a row before others have their turn.
const MOST_TURNS: u32 = 16;

/// See the module. Dropping it closes the connection.
pub(super) struct Driver {
    /// Until it has ended or is set apart.
    driven: Option<http1::Connection<TokioIo<Link>, OutBody>>,
    alarm: Arc<Alarm>,
    waker: Waker,
    apart: Option<AbortHandle>,
}

/// Whom it wakes when it can go on.
#[derive(Default)]
struct Alarm {
    rung: AtomicBool,
    /// It is being polled, and whoever polls looks at `rung` afterwards.
    busy: AtomicBool,
    task: AtomicWaker,
    /// Nobody uses the connection.
    idle: AtomicBool,
    /// When it first rang while the connection was idle.
    rang_at: Mutex<Option<Instant>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, SeqCst);
        if self.busy.load(SeqCst) {
            return;
        }
        if self.idle.load(SeqCst) {
            self.rang_at
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(Instant::now);
        } else if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl Driver {
    pub(super) fn new(driven: http1::Connection<TokioIo<Link>, OutBody>) -> Self {
        let alarm = Arc::new(Alarm::default());
        alarm.rung.store(true, SeqCst);
        alarm.idle.store(true, SeqCst);
        let mut driver = Self {
            driven: Some(driven),
            waker: Waker::from(Arc::clone(&alarm)),
            alarm,
            apart: None,
        };
        // From now on it hears of requests.
        driver.catch_up();
        driver
    }

    /// Waits for what the connection brings, and moves it on until then.
    pub(super) fn turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.alarm.busy.store(true, SeqCst);
        self.alarm.task.register(cx.waker());
        let mut polled = ask(&mut Context::from_waker(&self.waker));
        let mut turns = 0;
        while polled.is_pending() && turns < MOST_TURNS && self.alarm.rung.swap(false, SeqCst) {
            self.advance();
            polled = ask(&mut Context::from_waker(&self.waker));
            turns += 1;
        }
        self.alarm.busy.store(false, SeqCst);
        // Also what rang after the last look.
        if polled.is_pending() && self.alarm.rung.load(SeqCst) {
            cx.waker().wake_by_ref();
        }
        polled
    }

    /// Looks at what has happened since anybody waited. What a connection says of its own accord is
    /// nothing but its end, or a word between the two ends of TLS.
    pub(super) fn catch_up(&mut self) {
        if !self.alarm.rung.load(SeqCst) {
            return;
        }
        self.alarm.busy.store(true, SeqCst);
        for _ in 0..MOST_TURNS {
            if !self.alarm.rung.swap(false, SeqCst) {
                break;
            }
            self.advance();
        }
        self.alarm.busy.store(false, SeqCst);
        if self.driven.is_some() {
            *self
                .alarm
                .rang_at
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Whether anybody uses the connection from now on.
    pub(super) fn set_idle(&mut self, idle: bool) {
        self.catch_up();
        self.alarm.idle.store(idle, SeqCst);
        // Whoever used it last has no part in what comes next.
        self.alarm.task.take();
    }

    /// Moves on in a task of its own from now on, whether or not anybody waits.
    pub(super) fn set_apart(&mut self) {
        if let Some(driven) = self.driven.take() {
            self.apart = Some(tokio::spawn(async move { tell_end(driven.await) }).abort_handle());
        }
    }

    /// When it came to its end, if it was idle then.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        *self
            .alarm
            .rang_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

impl Drop for Driver {
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
