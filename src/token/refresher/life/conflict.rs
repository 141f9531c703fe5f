//! Detector of another program that fetches tokens for the same account: tokens that were good die
//! long before their time.
//!
//! One early death may have an honest reason, so each counts only when the next one follows.

use std::time::Duration;

use tokio::time::Instant;

use crate::token::value::Generation;

/// Early deaths of one account's tokens.
#[derive(Debug, Default)]
pub(super) struct ConflictDetector {
    count: u64,
    /// The last early death: the generation that replaced the token, and the time.
    last: Option<(Generation, Instant)>,
    warned: Option<Instant>,
}

/// Conflict that an early death has proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) count: u64,
    /// False if a warning was given a short time ago.
    pub(crate) warn: bool,
}

/// Two early deaths within this time make a conflict.
const WINDOW: Duration = Duration::from_secs(3600);
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(300);

impl ConflictDetector {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// A token died early, and `replacement` takes its place.
    pub(super) fn early_death(
        &mut self,
        replacement: Generation,
        now: Instant,
    ) -> Option<Conflict> {
        let (_, before) = self.last.replace((replacement, now))?;
        if now - before > WINDOW {
            return None;
        }
        self.count += 1;
        let warn = self.warned.is_none_or(|at| now - at >= QUIET);
        if warn {
            self.warned = Some(now);
        }
        Some(Conflict {
            count: self.count,
            warn,
        })
    }

    /// `generation` was rejected as well, so the path is to blame and not the token before it.
    pub(super) fn rejected_again(&mut self, generation: Generation) {
        if self
            .last
            .is_some_and(|(replacement, _)| replacement == generation)
        {
            self.last = None;
        }
    }
}
