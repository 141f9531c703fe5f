//! Activity of a connection, and the limits on silence, slowness and idleness.
//!
//! The watch looks once a tick, so a limit is reached up to one tick late. Touches no socket.

use std::{cell::Cell, fmt, task::Waker, time::Duration};

use tokio::time::Instant;

use super::malformed::Malformed;

/// Interval of the looks at a connection that is not parked, and the quiet time before parking.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// Interval once idle connections are to be closed: a stop need not wait for two long ticks.
const CLOSING_TICK: Duration = Duration::from_millis(50);
/// Limit for a handler that neither reads nor writes; its own timeouts are all shorter.
const MAX_HANDLER_SILENCE: Duration = Duration::from_secs(180);
/// Time before the first look at the rate of a body, and between two looks.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Deadlines of a connection, one set for each kind of listener.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// From the begin of a connection to the end of its first request head.
    pub first_head: Duration,
    /// From the first byte of a later head to its end.
    pub head: Duration,
    /// Keep-alive without a request, or a response that makes no progress.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    /// Deadlines of the data listeners.
    fn default() -> Self {
        Self {
            first_head: Duration::from_millis(9_500),
            head: Duration::from_secs(14),
            idle: Duration::from_secs(70),
        }
    }
}

/// Counters and conditions of a connection, shared by its stream, its handler and its watch, which
/// are on one thread.
#[derive(Debug, Default)]
pub(super) struct Activity {
    pub(super) requests: Cell<u64>,
    pub(super) handling: Cell<u32>,
    /// Bodies of answers that hyper does not have whole.
    pub(super) delivering: Cell<u32>,
    pub(super) read: Cell<u64>,
    pub(super) read_when_idle: Cell<u64>,
    pub(super) written: Cell<u64>,
    /// Something was written since the last flush.
    pub(super) unflushed: Cell<bool>,
    /// The bytes read so far end where a request ends.
    pub(super) between: Cell<bool>,
    /// The first request whose framing is odd; 0 for none.
    pub(super) odd: Cell<u64>,
    pub(super) parked: Cell<bool>,
    /// The connection is to be closed as soon as it is idle behind a request.
    pub(super) closing: Cell<bool>,
    /// The connection is to be closed at once, to make room for another one.
    pub(super) evicted: Cell<bool>,
    /// Our sending side is closed; what still comes is thrown away.
    pub(super) shut: Cell<bool>,
    /// The client has closed its sending side while it waits for an answer.
    pub(super) half_closed: Cell<bool>,
    /// The last read found nothing: the next byte is up to the client.
    pub(super) starved: Cell<bool>,
    /// The last write found no room: the client does not read.
    pub(super) blocked: Cell<bool>,
    /// The body of the current request comes too slowly; its handler should give up.
    pub(super) too_slow: Cell<bool>,
    pub(super) cut: Cell<Option<CutReason>>,
    /// The last bytes of the client are no request.
    pub(super) malformed: Cell<Option<Malformed>>,
    pub(super) waker: TaskWaker,
}

/// Waker of the task that polls a connection.
#[derive(Default)]
pub(super) struct TaskWaker(Cell<Option<Waker>>);

impl TaskWaker {
    /// Has [`TaskWaker::wake`] wake this task.
    pub(super) fn register(&self, waker: &Waker) {
        // Taken out and put back, so that nothing is borrowed while a waker is dropped.
        let registered = self.0.take().filter(|known| known.will_wake(waker));
        self.0
            .set(Some(registered.unwrap_or_else(|| waker.clone())));
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

impl fmt::Debug for TaskWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskWaker").finish_non_exhaustive()
    }
}

/// The reason why a connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutReason {
    /// Nothing, or no whole head, came in time.
    Silent,
    /// The body of a request came below the minimum rate.
    SlowRequest,
    /// The client read an answer below the minimum rate.
    SlowReader,
    /// The handler brought an answer below the minimum rate.
    SlowAnswer,
}

impl CutReason {
    /// The word for logs and metrics.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::SlowRequest => "slow_request",
            Self::SlowReader => "slow_reader",
            Self::SlowAnswer => "slow_answer",
        }
    }
}

impl Activity {
    /// Counts a request that has come, and says whether its framing is odd.
    pub(super) fn count_request(&self) -> bool {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        self.too_slow.set(false);
        (1..=number).contains(&self.odd.get())
    }

    /// True while a request is being handled, or hyper does not have its whole answer.
    fn is_answering(&self) -> bool {
        self.handling.get() > 0 || self.delivering.get() > 0
    }

    /// Has the connection closed as it is.
    pub(super) fn evict(&self) {
        self.evicted.set(true);
        self.waker.wake();
    }

    /// True while [`Activity::is_answering`] is, or the client has not taken all of the answer.
    pub(super) fn is_busy(&self) -> bool {
        self.is_answering() || self.unflushed.get()
    }

    /// Lets hyper see the end of a half-closed connection once nothing keeps that back any more.
    pub(super) fn wake_half_closed(&self) {
        if self.half_closed.get() {
            self.waker.wake();
        }
    }

    /// Time until the next look.
    pub(super) fn tick(&self) -> Duration {
        if self.closing.get() {
            CLOSING_TICK
        } else {
            TICK
        }
    }

    /// Direction in which a body is expected to move. `came` is true if bytes came since the last
    /// look: without any, and without a read that waits, this side does not read.
    fn flow(&self, came: bool) -> Flow {
        if self.handling.get() > 0 {
            let waits = came || self.starved.get();
            if waits && !self.between.get() {
                Flow::Request
            } else {
                Flow::None
            }
        } else if self.delivering.get() > 0 || self.blocked.get() {
            Flow::Answer
        } else {
            Flow::None
        }
    }
}

/// Direction in which a body goes over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    None,
    /// The rest of a request is waited for.
    Request,
    /// An answer is being sent.
    Answer,
}

/// The rate of a flow, window by window.
#[derive(Debug)]
struct RateWatch {
    flow: Flow,
    /// The begin of the window, and the bytes until then.
    since: Instant,
    bytes: u64,
    is_first: bool,
}

impl RateWatch {
    /// True if a window has ended in which fewer bytes moved than `rate` per second demands.
    fn is_below(&mut self, rate: u64, flow: Flow, bytes: u64, now: Instant) -> bool {
        let elapsed = now - self.since;
        let same = flow == self.flow;
        if same && elapsed < RATE_WINDOW {
            return false;
        }
        let moved = bytes.saturating_sub(self.bytes);
        let needed = u128::from(rate) * elapsed.as_millis() / 1000;
        let is_below = same && !self.is_first && u128::from(moved) < needed;
        *self = Self {
            flow,
            since: now,
            bytes,
            is_first: !same,
        };
        is_below && flow != Flow::None
    }
}

/// State of a connection at the last look, with its limits.
#[derive(Debug)]
pub(super) struct ConnectionWatch {
    limits: ConnectionLimits,
    /// Accepted during a stop: its first byte may come until the stop is over.
    is_late: bool,
    requests: u64,
    read: u64,
    written: u64,
    still: bool,
    still_since: Instant,
    head_since: Option<Instant>,
    rate: RateWatch,
}

/// Consequence of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WatchVerdict {
    GoOn,
    /// The handler is asked to give up on the body of its request.
    TellHandler,
    Close(CutReason),
}

impl ConnectionWatch {
    pub(super) fn new(now: Instant, limits: ConnectionLimits, is_late: bool) -> Self {
        Self {
            limits,
            is_late,
            requests: 0,
            read: 0,
            written: 0,
            still: false,
            still_since: now,
            head_since: Some(now),
            rate: RateWatch {
                flow: Flow::None,
                since: now,
                bytes: 0,
                is_first: true,
            },
        }
    }

    /// Looks, and says whether a limit is reached. `min_rate` is in bytes per second.
    pub(super) fn look(
        &mut self,
        activity: &Activity,
        min_rate: u64,
        now: Instant,
    ) -> WatchVerdict {
        let is_new = activity.requests.get() != self.requests;
        let came = activity.read.get() != self.read;
        if self.must_close(activity, now) {
            return WatchVerdict::Close(CutReason::Silent);
        }
        let flow = activity.flow(came);
        let bytes = if flow == Flow::Request {
            self.read
        } else {
            self.written
        };
        if is_new {
            // Also ends the window of the request before.
            self.rate.flow = Flow::None;
        }
        let is_below = self.rate.is_below(min_rate, flow, bytes, now);
        match flow {
            // The handler was told at the last look, and still waits for the body.
            Flow::Request if activity.too_slow.get() => WatchVerdict::Close(CutReason::SlowRequest),
            Flow::Request if is_below => WatchVerdict::TellHandler,
            Flow::Answer if is_below && activity.blocked.get() => {
                WatchVerdict::Close(CutReason::SlowReader)
            }
            Flow::Answer if is_below => WatchVerdict::Close(CutReason::SlowAnswer),
            _ => WatchVerdict::GoOn,
        }
    }

    fn must_close(&mut self, activity: &Activity, now: Instant) -> bool {
        let (requests, read, written) = (
            activity.requests.get(),
            activity.read.get(),
            activity.written.get(),
        );
        self.still = requests == self.requests && read == self.read && written == self.written;
        let new_request = requests != self.requests;
        let answering = written != self.written && !new_request;
        (self.requests, self.read, self.written) = (requests, read, written);
        if !self.still {
            self.still_since = now;
        }
        if self.is_late && read == 0 {
            self.head_since = Some(now);
            return false;
        }
        if activity.handling.get() > 0 {
            self.head_since = None;
            return now - self.still_since >= MAX_HANDLER_SILENCE;
        }
        let head_begun = requests == 0 || read > activity.read_when_idle.get();
        // Bytes that came behind a request wait while its answer goes on.
        self.head_since = if !head_begun || answering {
            None
        } else if new_request {
            Some(now)
        } else {
            self.head_since.or(Some(now))
        };
        let head_limit = if requests == 0 {
            self.limits.first_head
        } else {
            self.limits.head
        };
        self.head_since
            .is_some_and(|since| now - since >= head_limit)
            || now - self.still_since >= self.limits.idle
    }

    /// True if nothing is under way, neither here nor in hyper: every byte that came belongs to a
    /// request whose answer has been written.
    pub(super) fn is_idle(&self, activity: &Activity) -> bool {
        self.still
            && self.requests > 0
            && !activity.is_busy()
            && activity.between.get()
            // A parked connection would wake for a request that cannot be answered any more.
            && !activity.shut.get()
    }

    /// Moment at which an idle connection is closed.
    pub(super) fn idle_until(&self) -> Instant {
        self.still_since + self.limits.idle
    }
}
