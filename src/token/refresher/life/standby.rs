//! Transitions of a replacement of the process: at any time one of two processes fetches, and the
//! other one is on standby.

use std::time::Duration;

use super::{Life, LifePhase};
use crate::token::store::TokenRecord;

/// Time in which the token of the other process may come before this one fetches for requests that
/// wait.
const OTHER_PROCESS: Duration = Duration::from_secs(1);

impl Life {
    /// Begins on standby.
    pub(in crate::token::refresher) fn begin_on_standby(&mut self) {
        self.run = LifePhase::Standby;
    }

    /// Fetches no more by itself. A refresh under way goes on.
    pub(super) fn on_paused(&mut self) {
        if matches!(self.run, LifePhase::Active | LifePhase::Dormant) {
            self.run = LifePhase::Standby;
        }
    }

    /// Goes on by itself, with the record that the other process has left.
    pub(super) fn on_resumed(&mut self, record: Option<&TokenRecord>) {
        if self.run != LifePhase::Standby {
            return;
        }
        self.run = LifePhase::Active;
        self.on_replicated(record);
    }

    pub(super) fn is_on_standby(&self) -> bool {
        self.run == LifePhase::Standby
    }

    /// Postpones the fetch that a rejection asks for: the other process is about to find the same,
    /// and a second classic token would end its token.
    pub(super) fn leave_to_other_process(&mut self) {
        self.next_attempt = self.now() + OTHER_PROCESS;
    }
}
