//! The timer of a connection, and the end of its requests: whichever comes first of a stop, a
//! limit, idleness and hyper's own end.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};

use super::activity::{Activity, ConnectionLimits, ConnectionWatch, CutReason, TICK, WatchVerdict};

/// Coarse timer of a connection, with the watch that looks at each of its ticks.
pub(super) struct ConnectionTimer<'a> {
    activity: &'a Activity,
    /// Bytes per second; 0 = none.
    min_rate: &'a Cell<u64>,
    watch: ConnectionWatch,
    sleep: Pin<&'a mut Sleep>,
    /// `sleep` wakes this task.
    armed: bool,
    /// The shorter ticks of a stop have begun.
    closing: bool,
}

/// The way in which hyper's part of a connection ends.
pub(super) enum HyperEnd {
    Idle,
    Broken,
    /// What came is no request; it was answered by hyper, if at all.
    Malformed(hyper::Error),
    Over,
}

/// Consequence of a tick.
enum Tick {
    TellHandler,
    End(HyperEnd),
}

impl<'a> ConnectionTimer<'a> {
    /// `is_late` for a connection that is accepted during a stop.
    pub(super) fn new(
        activity: &'a Activity,
        min_rate: &'a Cell<u64>,
        limits: ConnectionLimits,
        is_late: bool,
        sleep: Pin<&'a mut Sleep>,
    ) -> Self {
        Self {
            activity,
            min_rate,
            watch: ConnectionWatch::new(Instant::now(), limits, is_late),
            sleep,
            armed: false,
            closing: false,
        }
    }

    /// Starts the ticks of a connection that is not parked.
    pub(super) fn start(&mut self) {
        self.set(Instant::now() + TICK);
        self.closing = false;
    }

    /// Starts the time in which a connection may be parked.
    pub(super) fn start_parked(&mut self) {
        self.set(self.watch.idle_until());
    }

    /// Ready at the end of the time in which a connection may be parked.
    pub(super) fn poll_parked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }

    /// Polls hyper, and looks at the connection at each tick.
    pub(super) fn poll_requests(
        &mut self,
        cx: &mut Context<'_>,
        mut poll_hyper: impl FnMut(&mut Context<'_>) -> Poll<hyper::Result<()>>,
    ) -> Poll<HyperEnd> {
        self.activity.waker.register(cx.waker());
        if self.activity.evicted.get() {
            return Poll::Ready(HyperEnd::Over);
        }
        self.notice_stop();
        loop {
            if let Poll::Ready(ended) = poll_hyper(cx) {
                return Poll::Ready(ended.map_or_else(end_of, |()| HyperEnd::Over));
            }
            match ready!(self.poll_tick(cx)) {
                Tick::End(end) => return Poll::Ready(end),
                // The handler hears of it when it is polled.
                Tick::TellHandler => self.activity.too_slow.set(true),
            }
        }
    }

    /// Has the next look come sooner once idle connections are to be closed.
    ///
    /// hyper's own graceful shutdown would close a connection that has said nothing yet, or half a
    /// head. Here it is closed where it would be parked, which only an idle one is.
    fn notice_stop(&mut self) {
        if !self.closing && self.activity.closing.get() {
            self.closing = true;
            self.set(Instant::now() + self.activity.tick());
        }
    }

    /// Ready with the first tick that has a consequence.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Tick> {
        // Asked once, it wakes this task. Asking it again at each of a thousand requests would only
        // cost.
        while (!self.armed || self.sleep.is_elapsed()) && self.sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let verdict = self.watch.look(self.activity, self.min_rate.get(), now);
            if let WatchVerdict::Close(reason) = verdict {
                self.activity.cut.set(Some(reason));
                return Poll::Ready(Tick::End(end_by_cut(reason)));
            }
            if self.watch.is_idle(self.activity) {
                return Poll::Ready(Tick::End(HyperEnd::Idle));
            }
            self.set(now + self.activity.tick());
            if verdict == WatchVerdict::TellHandler {
                return Poll::Ready(Tick::TellHandler);
            }
        }
        self.armed = true;
        Poll::Pending
    }

    fn set(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline);
        self.armed = false;
    }
}

fn end_of(error: hyper::Error) -> HyperEnd {
    tracing::debug!(%error, "connection ended early");
    // The handler never fails, so it is the body of an answer that did.
    if error.is_user() {
        HyperEnd::Broken
    } else if error.is_parse() {
        HyperEnd::Malformed(error)
    } else {
        HyperEnd::Over
    }
}

fn end_by_cut(reason: CutReason) -> HyperEnd {
    match reason {
        // An answer under way must not look as if it were whole.
        CutReason::SlowReader | CutReason::SlowAnswer => HyperEnd::Broken,
        CutReason::Silent | CutReason::SlowRequest => HyperEnd::Over,
    }
}
