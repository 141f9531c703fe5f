//! Sinks for log lines: the queue in front of standard error, or memory in tests.
//!
//! One write is one or more whole lines; lines of several threads never mix.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use super::{
    logging::Format,
    queue::{LogQueue, RawStderr},
};

/// A sink for log lines. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Output {
    /// A queue whose writer thread alone waits for the reader.
    Queue(Arc<LogQueue>),
    /// Kept, for whoever holds the other clone.
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Output {
    /// Standard error, behind a queue. `format` is that of the line that tells of lost ones.
    ///
    /// # Errors
    /// When the writer thread cannot be started.
    pub fn stderr(format: Format) -> io::Result<Self> {
        LogQueue::start(RawStderr, format).map(Self::Queue)
    }

    /// A sink in memory.
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Lines of a sink in memory so far; empty for others.
    pub fn contents(&self) -> String {
        match self {
            Self::Queue(_) => String::new(),
            Self::Memory(kept) => {
                String::from_utf8_lossy(&kept.lock().unwrap_or_else(PoisonError::into_inner))
                    .into_owned()
            }
        }
    }

    /// Takes whole lines. Lines that cannot be written are dropped and counted.
    pub fn write_lines(&self, lines: &[u8]) {
        match self {
            Self::Queue(queue) => queue.push(lines),
            Self::Memory(kept) => kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(lines),
        }
    }
}

impl Output {
    /// Waits until everything is out; see [`LogQueue::flush`].
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
