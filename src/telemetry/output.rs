//! Sinks of log lines: standard error, or memory in tests.
//!
//! One write is one or more whole lines; lines of several threads never mix.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// A sink for log lines. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Output {
    /// Standard error.
    #[default]
    Stderr,
    /// Memory, which another clone reads.
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Output {
    /// A sink in memory.
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Lines of a sink in memory so far; empty for others.
    pub fn contents(&self) -> String {
        match self {
            Self::Stderr => String::new(),
            Self::Memory(kept) => {
                String::from_utf8_lossy(&kept.lock().unwrap_or_else(PoisonError::into_inner))
                    .into_owned()
            }
        }
    }

    /// Writes whole lines. Errors are dropped: a closed standard error must stop nothing.
    pub fn write_lines(&self, lines: &[u8]) {
        let _ = self.clone().write_all(lines);
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(buf)?,
            Self::Memory(kept) => kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(buf),
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Output {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
