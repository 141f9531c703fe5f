//! Reasons why the program was not replaced, in words for the log.

use std::{fmt, io, path::PathBuf, process::ExitStatus, time::Duration};

/// Reason why the program was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// Everything ends with the process.
    #[error(
        "wxgate is process 1, and with that process all others of its container end: start the new version beside it, \
         then stop this one, or restart the container"
    )]
    FirstProcess,
    /// systemd would not learn of the new process.
    #[error(
        "systemd would take the end of this process for the end of the service: set Type=notify and \
         NotifyAccess=all in the unit, and restart it once"
    )]
    NotNotified,
    /// This process does not serve yet, so that there is nothing to hand over.
    #[error("wxgate has not come to serve yet: send the signal again once it does")]
    Starting,
    /// A replacement goes on.
    #[error("another replacement is under way")]
    UnderWay,
    /// The process stops, or was replaced.
    #[error("wxgate is stopping")]
    Stopping,
    /// The path of the program is not known.
    #[error("the path of the program could not be found out at the start: restart instead")]
    NoProgram,
    /// The program does not start.
    #[error("{} cannot be started: {error}", path.display())]
    NotStarted {
        /// Path of the program.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The new process has ended.
    #[error("{} ended before it served ({status}): its own lines in the log say why", path.display())]
    Ended {
        /// Path of the program.
        path: PathBuf,
        /// Exit status.
        status: ExitStatus,
    },
    /// The new process took too long.
    #[error("{} did not serve within {} s and was ended: {stage}", path.display(), limit.as_secs_f32())]
    Late {
        /// Path of the program.
        path: PathBuf,
        /// The limit.
        limit: Duration,
        /// Stage that it was at.
        stage: Stage,
    },
    /// The dialogue failed.
    #[error("{} could not be talked to and was ended: {error}", path.display())]
    Dialogue {
        /// Path of the program.
        path: PathBuf,
        /// Error of the dialogue.
        error: io::Error,
    },
}

/// Stage of the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reads configuration and store.
    Preparing,
    /// Needs a token.
    Fetching,
    /// Takes the listeners over.
    Serving,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "it had not read its configuration and the store",
            Self::Fetching => "no account of it had a usable token",
            Self::Serving => "it had not taken the listeners over",
        })
    }
}
