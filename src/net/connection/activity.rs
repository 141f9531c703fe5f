//! What happens on a connection, and how long it may go on like that.
//!
//! Looked at once a tick, so a limit is reached up to one tick late. Touches no socket.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
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
    /// To be closed at once.
    pub(super) cut: AtomicBool,
    /// Our sending side is closed; what still comes is thrown away.
    pub(super) shut: AtomicBool,
    /// The client has closed its sending side while it waits for an answer.
    pub(super) half_closed: AtomicBool,
    pub(super) waker: AtomicWaker,
}

impl Activity {
    /// Counts a request that has come, and says whether its framing is odd.
    pub(super) fn count_request(&self) -> bool {
        let number = self.requests.fetch_add(1, Relaxed) + 1;
        (1..=number).contains(&self.odd.load(Relaxed))
    }

    /// Whether a request is being handled, or its answer is not with hyper as a whole yet.
    fn is_answering(&self) -> bool {
        self.handling.load(Relaxed) > 0 || self.delivering.load(Relaxed) > 0
    }

    /// Has the connection closed as it is.
    pub(super) fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.waker.wake();
    }

    /// The same, or the client has not taken all of the answer.
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
        }
    }

    /// Looks, and says whether a limit is reached.
    pub(super) fn must_close(&mut self, activity: &Activity, now: Instant) -> bool {
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
