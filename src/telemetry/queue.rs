//! Queue in front of standard error, so that no request waits for the reader of the log.
//!
//! Threads append whole lines to a buffer of bounded size. A writer thread takes the buffer and
//! writes the lines; a slow or dead reader blocks this thread alone. Lines that find the buffer
//! full are dropped and counted, and the log reports the count once lines can be written again.

use std::{
    fmt::Write as _,
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use memchr::memchr_iter;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::Instant;

use super::format::Format;

/// Bounded queue of log lines with a writer thread behind it.
#[derive(Debug)]
pub struct LogQueue {
    state: Mutex<QueueState>,
    /// Notified when lines are pending.
    filled: Condvar,
    /// Notified when all lines have been written.
    drained: Condvar,
    dropped: Family<DropLabels, Counter>,
    // Two counters of the family, held here so that a drop needs no look-up.
    full: Counter,
    failed: Counter,
}

#[derive(Debug, Default)]
struct QueueState {
    pending: Vec<u8>,
    /// Dropped lines that the log has not reported yet.
    unreported: u64,
    /// Start of the write that is under way.
    writing_since: Option<Instant>,
    /// Error of the latest write, if it failed.
    error: Option<String>,
}

/// Condition of the log, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogHealth {
    /// Lines are written.
    Flowing,
    /// The reader is too slow: lines are being dropped.
    Behind {
        /// Dropped lines that the log has not reported yet.
        dropped: u64,
    },
    /// The reader has stopped reading.
    Stalled {
        /// Time since the last progress.
        since: Duration,
        /// Dropped lines that the log has not reported yet.
        dropped: u64,
    },
    /// Standard error is closed, its disk is full, or the like.
    Failing {
        /// Error text of the system.
        error: String,
        /// Dropped lines that the log has not reported yet.
        dropped: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// State of the writer thread.
struct WriterThread<S> {
    queue: Arc<LogQueue>,
    sink: S,
    format: Format,
    /// Set if the latest write failed in the middle of a line.
    torn: bool,
}

/// Standard error without the lock of the standard library: a stalled write would hold that lock,
/// and block all other threads that print.
#[derive(Debug)]
pub(crate) struct RawStderr;

/// Bytes that wait while the writer is busy: about 6,000 lines of the access log.
const MAX_PENDING: usize = 1024 * 1024;
/// Bytes of a single write: the capacity of a pipe on Linux, so that progress shows after each.
const MAX_WRITE: usize = 64 * 1024;
/// Capacity above which a written buffer is freed instead of reused.
const MAX_KEPT_BUFFER: usize = 4 * MAX_WRITE;
/// Duration of a write from which on the reader counts as stalled.
const STALL_AFTER: Duration = Duration::from_secs(1);

impl LogQueue {
    /// Starts the writer thread, which lives as long as the process.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(sink: impl Write + Send + 'static, format: Format) -> io::Result<Arc<Self>> {
        let dropped = Family::<DropLabels, Counter>::default();
        let counter = |reason| dropped.get_or_create_owned(&DropLabels { reason });
        let queue = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            full: counter("full"),
            failed: counter("failed"),
            dropped,
        });
        let writer = WriterThread {
            queue: Arc::clone(&queue),
            sink,
            format,
            torn: false,
        };
        std::thread::Builder::new()
            .name("wxgate-log".to_owned())
            .spawn(move || writer.run())?;
        Ok(queue)
    }

    /// Adds the counter of dropped lines to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "wxgate_log_lines_dropped",
            "Log lines that were not written: the queue was full, or the write failed",
            self.dropped.clone(),
        );
    }

    /// Queues whole lines, or drops them if the queue is full. Never waits for the reader.
    pub fn push(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut state = self.lock();
        // Into an empty queue even lines larger than its limit are taken, or they could never pass.
        if !state.pending.is_empty() && state.pending.len() + lines.len() > MAX_PENDING {
            let count = lines_in(lines);
            state.unreported += count;
            self.full.inc_by(count);
            return;
        }
        state.pending.extend_from_slice(lines);
        // Unlocked first, so that the writer does not wake up only to wait for the lock.
        drop(state);
        self.filled.notify_one();
    }

    /// Queues the whole lines of a batch like [`LogQueue::push`], and leaves the batch empty.
    pub(crate) fn push_batch(&self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        let mut state = self.lock();
        if state.pending.is_empty() {
            // Nothing waits, so the buffers change places and no line is copied.
            mem::swap(&mut state.pending, batch);
            drop(state);
            self.filled.notify_one();
        } else {
            drop(state);
            self.push(batch);
            batch.clear();
        }
    }

    /// Waits until all lines are written, for `limit` at most. With a limit, returns at once if the
    /// reader has stalled.
    pub fn flush(&self, limit: Option<Duration>) {
        let started = Instant::now();
        let mut state = self.lock();
        while !state.is_drained() {
            let Some(limit) = limit else {
                state = self
                    .drained
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = limit.saturating_sub(started.elapsed());
            // Checked again after each wake-up: the reader may stall during the flush.
            if left.is_zero() || state.stalled_for().is_some() {
                return;
            }
            (state, _) = self
                .drained
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns the condition at this moment.
    pub fn health(&self) -> LogHealth {
        let state = self.lock();
        let dropped = state.unreported;
        if let Some(since) = state.stalled_for() {
            LogHealth::Stalled { since, dropped }
        } else if let Some(error) = state.error.clone() {
            LogHealth::Failing { error, dropped }
        } else if dropped > 0 {
            LogHealth::Behind { dropped }
        } else {
            LogHealth::Flowing
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.writing_since.is_none()
    }

    /// Duration of the write under way, if it counts as stalled.
    fn stalled_for(&self) -> Option<Duration> {
        self.writing_since
            .map(|since| since.elapsed())
            .filter(|since| *since >= STALL_AFTER)
    }
}

impl<S: Write> WriterThread<S> {
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            let lost = self.take(&mut lines);
            if let Err(error) = self.write(&lines, lost) {
                // No retry: the next lines come soon, and a closed pipe stays closed.
                self.queue.lock().error = Some(error.to_string());
            }
            if lines.capacity() > MAX_KEPT_BUFFER {
                lines = Vec::new();
            }
            lines.clear();
            let mut state = self.queue.lock();
            state.writing_since = None;
            if state.is_drained() {
                self.queue.drained.notify_all();
            }
        }
    }

    /// Waits for lines and swaps them into `lines`, which is empty. Returns the count of lines that
    /// were dropped after these.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let state = self.queue.lock();
        let mut state = self
            .queue
            .filled
            .wait_while(state, |state| state.pending.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        // A swap hands the emptied buffer back, so that no lines are copied under the lock.
        mem::swap(&mut state.pending, lines);
        state.writing_since = Some(Instant::now());
        state.unreported
    }

    /// Writes `lines`, and after them a line that reports `lost` dropped lines.
    fn write(&mut self, lines: &[u8], lost: u64) -> io::Result<()> {
        let mut left = lines;
        let written = self.write_all(&mut left);
        if written.is_err() {
            let count = lines_in(left);
            self.torn |=
                left.len() < lines.len() && !lines[..lines.len() - left.len()].ends_with(b"\n");
            self.queue.failed.inc_by(count);
            self.queue.lock().unreported += count;
            return written;
        }
        if lost > 0 {
            let notice = notice(self.format, lost);
            let mut left = notice.as_slice();
            self.write_all(&mut left).inspect_err(|_| {
                self.torn = left.len() < notice.len();
            })?;
        }
        let mut state = self.queue.lock();
        // Not set to zero: more lines may have been dropped in the meantime.
        state.unreported -= lost;
        state.error = None;
        Ok(())
    }

    /// Writes all of `left`, which becomes the rest that is not written yet.
    fn write_all(&mut self, left: &mut &[u8]) -> io::Result<()> {
        // Ends the torn line, which would swallow the first of these lines.
        if self.torn {
            self.write_some(b"\n")?;
            self.torn = false;
        }
        while !left.is_empty() {
            let chunk = &left[..left.len().min(MAX_WRITE)];
            let count = self.write_some(chunk)?;
            *left = &left[count..];
            // Progress, so the reader has not stalled: the time starts anew.
            self.queue.lock().writing_since = Some(Instant::now());
        }
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.sink.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }
}

impl Write for RawStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::{
            event::{PollFd, PollFlags, poll},
            io::{Errno, write},
        };
        let stderr = io::stderr();
        loop {
            match write(&stderr, bytes) {
                // A process that shares the pipe or terminal may have made it non-blocking.
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// Formats the line that reports `lost` dropped lines, like all other log lines.
fn notice(format: Format, lost: u64) -> Vec<u8> {
    // humantime panics for times before 1970, to which a wrong clock may be set.
    let now = humantime::format_rfc3339_micros(SystemTime::now().max(SystemTime::UNIX_EPOCH));
    let message =
        "log lines were dropped here: standard error was not read, or could not be written";
    let mut line = String::new();
    // Writing to a string cannot fail.
    let _ = match format {
        Format::Text => writeln!(line, "{now}  WARN wxgate::log: {message} dropped={lost}"),
        Format::Json => writeln!(
            line,
            r#"{{"timestamp":"{now}","level":"WARN","message":"{message}","dropped":{lost},"target":"wxgate::log"}}"#
        ),
    };
    line.into_bytes()
}

#[cfg(test)]
mod tests;
