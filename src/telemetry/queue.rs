//! The queue in front of standard error, so that nothing waits for the reader of the log.
//!
//! Threads append whole lines to one buffer of bounded size. A thread of its own takes the buffer
//! and writes it, and is the only one that a slow or dead reader can hold up. Lines that find the
//! buffer full are dropped and counted; the next line that can be written says how many.

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

use super::logging::Format;

/// Bytes that wait while the writer is busy: some six thousand lines of the access log.
const LIMIT: usize = 1024 * 1024;
/// The most that is written at once: what a pipe holds, so that progress shows.
const CHUNK: usize = 64 * 1024;
/// Buffers that grew beyond this are given back once they are written.
const KEEP: usize = 4 * CHUNK;
/// A write that takes longer than this has met a reader that stalls.
const STALLED: Duration = Duration::from_secs(1);

/// A bounded queue of log lines with a writer thread behind it.
#[derive(Debug)]
pub struct LogQueue {
    state: Mutex<State>,
    /// Notified when there are lines for the writer.
    filled: Condvar,
    /// Notified when everything has been written.
    drained: Condvar,
    dropped: Family<DropLabels, Counter>,
    // Of the family, so that a drop needs no look-up.
    full: Counter,
    failed: Counter,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Lines that were dropped and that the log has not told of yet.
    unreported: u64,
    /// Start of the write that is under way.
    writing_since: Option<Instant>,
    /// Reason of the latest write, if it failed.
    error: Option<String>,
}

/// Condition of the log, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogHealth {
    /// Lines come out.
    Flowing,
    /// The reader takes less than is written: lines are being dropped.
    Behind {
        /// Lines lost that the log has not told of yet.
        dropped: u64,
    },
    /// The reader takes nothing.
    Stalled {
        /// Time since the reader took something.
        since: Duration,
        /// Lines lost that the log has not told of yet.
        dropped: u64,
    },
    /// Standard error is closed, its disk is full, or the like.
    Failing {
        /// The system's words.
        error: String,
        /// Lines lost that the log has not told of yet.
        dropped: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

impl LogQueue {
    /// Starts the writer thread, which lives as long as the process.
    ///
    /// # Errors
    /// When the thread cannot be started.
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
        let writer = Writer {
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

    /// Queues whole lines, or drops them where the queue is full. Never waits for the reader.
    pub fn push(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut state = self.lock();
        // A single write larger than the queue still passes where nothing else waits.
        if !state.pending.is_empty() && state.pending.len() + lines.len() > LIMIT {
            let count = lines_in(lines);
            state.unreported += count;
            self.full.inc_by(count);
            return;
        }
        state.pending.extend_from_slice(lines);
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until everything is written, for `limit` at most; not at all where the reader is
    /// known to have stalled.
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
            if left.is_zero() || state.stalled_for().is_some() {
                return;
            }
            (state, _) = self
                .drained
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Condition at this moment.
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.writing_since.is_none()
    }

    fn stalled_for(&self) -> Option<Duration> {
        self.writing_since
            .map(|since| since.elapsed())
            .filter(|since| *since >= STALLED)
    }
}

/// The writer thread's part.
struct Writer<S> {
    queue: Arc<LogQueue>,
    sink: S,
    format: Format,
    /// The latest write failed in the middle of a line.
    torn: bool,
}

impl<S: Write> Writer<S> {
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            let lost = self.take(&mut lines);
            if let Err(error) = self.write(&lines, lost) {
                // No retry: the next lines come soon enough, and a closed pipe stays closed.
                self.queue.lock().error = Some(error.to_string());
            }
            if lines.capacity() > KEEP {
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

    /// Waits for lines and swaps them into `lines`, which is empty. Returns the count of lines
    /// that were dropped behind them.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let state = self.queue.lock();
        let mut state = self
            .queue
            .filled
            .wait_while(state, |state| state.pending.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut state.pending, lines);
        state.writing_since = Some(Instant::now());
        state.unreported
    }

    /// Writes `lines`, and behind them how many were lost.
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
        state.unreported -= lost;
        state.error = None;
        Ok(())
    }

    /// Writes everything; `left` is what is still to be written.
    fn write_all(&mut self, left: &mut &[u8]) -> io::Result<()> {
        if self.torn {
            self.write_some(b"\n")?;
            self.torn = false;
        }
        while !left.is_empty() {
            let chunk = &left[..left.len().min(CHUNK)];
            let count = self.write_some(chunk)?;
            *left = &left[count..];
            // The reader took something.
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

/// Standard error without the lock of the standard library, which a stalled write would keep from
/// everybody else.
#[derive(Debug)]
pub struct RawStderr;

impl Write for RawStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::{
            event::{PollFd, PollFlags, poll},
            io::{Errno, write},
        };
        let stderr = io::stderr();
        loop {
            match write(&stderr, bytes) {
                // Another holder of the same pipe or terminal may have made it non-blocking.
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

/// The line that tells of lost ones, in the form of the other lines.
fn notice(format: Format, lost: u64) -> Vec<u8> {
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
