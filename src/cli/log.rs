//! Log of the process from start to exit: no line is lost at an ordinary exit, and no exit waits
//! for a reader that has stalled.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Write as _,
    io, panic, thread,
    time::Duration,
};

use super::Cli;
use crate::telemetry::output::Output;

/// Time in which a reader can take the rest of the log of a service that stops.
const MAX_FLUSH_AT_EXIT: Duration = Duration::from_millis(500);
/// Time in which a reader can take the text of a panic, in case the process aborts next.
const MAX_FLUSH_AFTER_PANIC: Duration = Duration::from_millis(100);

/// Log that is flushed when dropped.
pub(super) struct LogAtExit {
    pub(super) output: Output,
    /// Time limit of the flush at the exit, if there is one.
    limit: Option<Duration>,
}

impl LogAtExit {
    pub(super) fn start(cli: &Cli) -> io::Result<Self> {
        Ok(Self {
            output: Output::stderr(cli.format())?,
            // No limit for commands such as `wxgate check`: their output may be read page by page.
            limit: cli.command.is_service().then_some(MAX_FLUSH_AT_EXIT),
        })
    }

    /// Installs a panic hook that writes to the queue. The standard hook writes to standard error,
    /// where a worker would wait for the reader.
    pub(super) fn install_panic_hook(&self) {
        let output = self.output.clone();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("<unnamed>");
            let mut text = format!("thread '{name}' {info}\n");
            let backtrace = Backtrace::capture();
            if backtrace.status() == BacktraceStatus::Captured {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{backtrace}");
            }
            output.write_lines(text.as_bytes());
            output.flush(Some(MAX_FLUSH_AFTER_PANIC));
        }));
    }
}

impl Drop for LogAtExit {
    fn drop(&mut self) {
        self.output.flush(self.limit);
    }
}
