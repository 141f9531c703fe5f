//! What happens on a connection, and how long it may go on like that.
//!
//! Looked at once a tick, so a limit is reached up to one tick late. Touches no socket.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

/// How often a connection is looked at, unless it is parked; also how long it must have been still
/// to be parked.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// The same once idle connections are to be closed: a stop need not wait for two long ticks.
const CLOSING_TICK: Duration = Duration::from_millis(50);
/// A handler that neither reads nor writes for so long is stuck behind every timeout of its own.
const HANDLER: Duration = Duration::from_secs(180);
/// A body has this long before its rate is looked at, and this long in between.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Deadlines of a connection, one set for each kind of listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the begin of a connection to the end of its first request head.
    pub first_head: Duration,
    /// From the first byte of a later head to its end.
    pub head: Duration,
    /// Keep-alive without a request, or a response that makes no progress.
    pub idle: Duration,
}

impl Default for Limits {
    /// Those of the data listeners.
    fn default() -> Self {
        Self {
            first_head: Duration::from_millis(9_500),
            head: Duration::from_secs(14),
            idle: Duration::from_secs(70),
        }
    }
}

/// What is looked at. Written by one thread; atomics only because the connection may move between
/// threads.
#[derive(Debug, Default)]
pub(super) struct Activity {
    pub(super) requests: AtomicU64,
    pub(super) handling: AtomicU32,
    /// Bodies of answers that hyper does not have whole.
    pub(super) delivering: AtomicU32,
    pub(super) read: AtomicU64,
    pub(super) read_when_idle: AtomicU64,
    pub(super) written: AtomicU64,
    /// Something was written since the last flush.
    pub(super) unflushed: AtomicBool,
    /// What was read ends where a request ends.
    pub(super) between: AtomicBool,
    /// The first request whose framing is odd; 0 for none.
    pub(super) odd: AtomicU64,
    pub(super) parked: AtomicBool,
    /// To be closed as soon as it is idle behind a request.
    pub(super) closing: AtomicBool,
    /// To be closed at once, to make room for another connection.
    pub(super) evicted: AtomicBool,
    /// Our sending side is closed; what still comes is thrown away.
    pub(super) shut: AtomicBool,
    /// The client has closed its sending side while it waits for an answer.
    pub(super) half_closed: AtomicBool,
    /// The last read found nothing: the next byte is up to the client.
    pub(super) starved: AtomicBool,
    /// The last write found no room: the client does not read.
    pub(super) blocked: AtomicBool,
    /// The body of the current request comes too slowly; its handler should give up.
    pub(super) too_slow: AtomicBool,
    /// A [`Cut`] as a number, once there is one.
    pub(super) cut: AtomicU8,
    pub(super) waker: AtomicWaker,
}

/// The reason why a connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing, or no whole head, came in time.
    Silent = 1,
    /// The body of a request came below the minimum rate.
    SlowRequest = 2,
    /// The client read an answer below the minimum rate.
    SlowReader = 3,
    /// The handler brought an answer below the minimum rate.
    SlowAnswer = 4,
}

impl Cut {
    /// The word for logs and metrics.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::SlowRequest => "slow_request",
            Self::SlowReader => "slow_reader",
            Self::SlowAnswer => "slow_answer",
        }
    }

    fn numbered(number: u8) -> Option<Self> {
        [
            Self::Silent,
            Self::SlowRequest,
            Self::SlowReader,
            Self::SlowAnswer,
        ]
        .into_iter()
        .find(|cut| *cut as u8 == number)
    }
}

impl Activity {
    /// Counts a request that has come, and says whether its framing is odd.
    pub(super) fn count_request(&self) -> bool {
        let number = self.requests.fetch_add(1, Relaxed) + 1;
        self.too_slow.store(false, Relaxed);
        (1..=number).contains(&self.odd.load(Relaxed))
    }

    /// Whether a request is being handled, or its answer is not with hyper as a whole yet.
    fn is_answering(&self) -> bool {
        self.handling.load(Relaxed) > 0 || self.delivering.load(Relaxed) > 0
    }

    /// Has the connection closed as it is.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Relaxed);
        self.waker.wake();
    }

    /// True while [`Activity::is_answering`] is, or the client has not taken all of the answer.
    pub(super) fn is_busy(&self) -> bool {
        self.is_answering() || self.unflushed.load(Relaxed)
    }

    /// Lets hyper see the end of a half-closed connection once nothing keeps that back any more.
    pub(super) fn wake_half_closed(&self) {
        if self.half_closed.load(Relaxed) {
            self.waker.wake();
        }
    }

    /// Time until the next look.
    pub(super) fn tick(&self) -> Duration {
        if self.closing.load(Relaxed) {
            CLOSING_TICK
        } else {
            TICK
        }
    }

    pub(super) fn cut(&self) -> Option<Cut> {
        Cut::numbered(self.cut.load(Relaxed))
    }

    /// The body that goes over the connection. `came` says whether any of it came since the last
    /// look: without that, and without a read that waits, it is this side that does not read.
    fn flow(&self, came: bool) -> Flow {
        if self.handling.load(Relaxed) > 0 {
            let waits = came || self.starved.load(Relaxed);
            if waits && !self.between.load(Relaxed) {
                Flow::Request
            } else {
                Flow::None
            }
        } else if self.delivering.load(Relaxed) > 0 || self.blocked.load(Relaxed) {
            Flow::Answer
        } else {
            Flow::None
        }
    }
}

/// See [`Activity::flow`].
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
    /// Whether a window has ended in which fewer bytes moved than `rate` per second allows.
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

/// What was seen at the last look.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
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

/// What follows from a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    /// The handler is asked to give up on the body of its request.
    TellHandler,
    Close(Cut),
}

impl Watch {
    pub(super) fn new(now: Instant, limits: Limits, is_late: bool) -> Self {
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
    pub(super) fn look(&mut self, activity: &Activity, min_rate: u64, now: Instant) -> Verdict {
        let is_new = activity.requests.load(Relaxed) != self.requests;
        let came = activity.read.load(Relaxed) != self.read;
        if self.must_close(activity, now) {
            return Verdict::Close(Cut::Silent);
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
            // It was told at the last look, and still waits for the body.
            Flow::Request if activity.too_slow.load(Relaxed) => Verdict::Close(Cut::SlowRequest),
            Flow::Request if is_below => Verdict::TellHandler,
            Flow::Answer if is_below && activity.blocked.load(Relaxed) => {
                Verdict::Close(Cut::SlowReader)
            }
            Flow::Answer if is_below => Verdict::Close(Cut::SlowAnswer),
            _ => Verdict::GoOn,
        }
    }

    fn must_close(&mut self, activity: &Activity, now: Instant) -> bool {
        let (requests, read, written) = (
            activity.requests.load(Relaxed),
            activity.read.load(Relaxed),
            activity.written.load(Relaxed),
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
        if activity.handling.load(Relaxed) > 0 {
            self.head_since = None;
            return now - self.still_since >= HANDLER;
        }
        let head_begun = requests == 0 || read > activity.read_when_idle.load(Relaxed);
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

    /// Whether nothing is under way, neither here nor in hyper: every byte that came belongs to a
    /// request whose answer has been written.
    pub(super) fn is_idle(&self, activity: &Activity) -> bool {
        self.still
            && self.requests > 0
            && !activity.is_busy()
            && activity.between.load(Relaxed)
            // Parked, it would wake for a request that cannot be answered any more.
            && !activity.shut.load(Relaxed)
    }

    /// When an idle connection is closed.
    pub(super) fn idle_until(&self) -> Instant {
        self.still_since + self.limits.idle
    }
}
