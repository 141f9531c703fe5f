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
/// No first byte, or no complete first head.
const FIRST_HEAD: Duration = Duration::from_millis(9_500);
/// A later head that has begun and does not end.
const HEAD: Duration = Duration::from_secs(14);
/// Keep-alive without a request, or a response that makes no progress.
pub(super) const IDLE: Duration = Duration::from_secs(70);
/// A handler that neither reads nor writes for so long is stuck behind every timeout of its own.
const HANDLER: Duration = Duration::from_secs(180);

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
    pub(super) closing: AtomicBool,
    pub(super) waker: AtomicWaker,
}

impl Activity {
    /// Counts a request that has come, and says whether its framing is odd.
    pub(super) fn count_request(&self) -> bool {
        let number = self.requests.fetch_add(1, Relaxed) + 1;
        (1..=number).contains(&self.odd.load(Relaxed))
    }
}

/// What was seen at the last look.
#[derive(Debug)]
pub(super) struct Watch {
    requests: u64,
    read: u64,
    written: u64,
    still: bool,
    still_since: Instant,
    head_since: Option<Instant>,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
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
        let head_limit = if requests == 0 { FIRST_HEAD } else { HEAD };
        self.head_since
            .is_some_and(|since| now - since >= head_limit)
            || now - self.still_since >= IDLE
    }

    /// Whether nothing is under way, neither here nor in hyper: every byte that came belongs to a
    /// request whose answer has been written.
    pub(super) fn is_idle(&self, activity: &Activity) -> bool {
        self.still
            && self.requests > 0
            && activity.handling.load(Relaxed) == 0
            && activity.delivering.load(Relaxed) == 0
            && activity.between.load(Relaxed)
            && !activity.unflushed.load(Relaxed)
            && !activity.closing.load(Relaxed)
    }

    pub(super) fn still_since(&self) -> Instant {
        self.still_since
    }
}
