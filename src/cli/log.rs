//! The log of the process from its first line to its last: nothing of it is lost at an ordinary
//! exit, and nothing waits for a reader that has stalled.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Write as _,
    io, panic, thread,
    time::Duration,
};

use super::Cli;
use crate::telemetry::output::Output;

/// Time for a live reader to take the rest of the log of a service that stops.
const STOP: Duration = Duration::from_millis(500);
/// Time for the text of a panic to come out, in case the process aborts next.
const PANIC: Duration = Duration::from_millis(100);

/// The log; dropping it waits until the last line is out.
pub(super) struct LogAtExit {
    pub(super) output: Output,
    limit: Option<Duration>,
}

impl LogAtExit {
    pub(super) fn start(cli: &Cli) -> io::Result<Self> {
        Ok(Self {
            output: Output::stderr(cli.format())?,
            // What `wxgate check` says may be read page by page.
            limit: cli.command.is_service().then_some(STOP),
        })
    }

    /// Sends the text of panics through the queue: the standard hook writes to standard error
    /// itself, where a worker would wait for the reader.
    pub(super) fn take_panics(&self) {
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
            output.flush(Some(PANIC));
        }));
    }
}

impl Drop for LogAtExit {
    fn drop(&mut self) {
        self.output.flush(self.limit);
    }
}
