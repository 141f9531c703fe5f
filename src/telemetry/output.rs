//! Sinks for log lines: the queue in front of standard error, or memory in tests.
//!
//! Each write holds whole lines, so that lines of several threads never mix.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use super::{
    format::Format,
    queue::{LogQueue, RawStderr},
};

/// Sink for log lines. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Output {
    /// Standard error behind a queue: only the writer thread waits for the reader.
    Queue(Arc<LogQueue>),
    /// Memory that tests read with [`Output::contents`].
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Output {
    /// Starts a queue in front of standard error. `format` is for the line that reports dropped
    /// lines.
    ///
    /// # Errors
    /// If the writer thread cannot be started.
    pub fn stderr(format: Format) -> io::Result<Self> {
        LogQueue::start(RawStderr, format).map(Self::Queue)
    }

    /// Sink in memory.
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Returns the lines of a sink in memory so far; empty for other sinks.
    pub fn contents(&self) -> String {
        match self {
            Self::Queue(_) => String::new(),
            Self::Memory(lines) => {
                String::from_utf8_lossy(&lines.lock().unwrap_or_else(PoisonError::into_inner))
                    .into_owned()
            }
        }
    }

    /// Writes whole lines. Lines that cannot be written are dropped and counted.
    pub fn write_lines(&self, lines: &[u8]) {
        match self {
            Self::Queue(queue) => queue.push(lines),
            Self::Memory(memory) => memory
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(lines),
        }
    }

    /// Writes the whole lines of a batch like [`Output::write_lines`], and leaves the batch empty.
    pub(crate) fn write_batch(&self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        match self {
            Self::Queue(queue) => queue.push_batch(batch),
            Self::Memory(_) => {
                self.write_lines(batch);
                batch.clear();
            }
        }
    }

    /// Waits until all lines are written; see [`LogQueue::flush`].
    pub fn flush(&self, limit: Option<Duration>) {
        if let Self::Queue(queue) = self {
            queue.flush(limit);
        }
    }
}

impl Write for &Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.write_lines(lines);
        Ok(lines.len())
    }

    // Lines are in the queue already. The inherent `flush` is the one that waits for the reader.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Output {
    type Writer = &'w Self;

    fn make_writer(&'w self) -> &'w Self {
        self
    }
}
