//! State machine called directly: `table` has one row for each transition, `properties` the
//! invariants of all sequences of events.

mod properties;
mod rotation;
mod standby;
mod table;

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::token::{
    ProviderKind,
    clock::ClockReading,
    credential::CredentialType,
    refresher::{
        Refresh,
        tests::{NOON_MS, account},
    },
    source::{FetchError, Fetched, Probe},
};

/// State machine with a clock of its own, and the step that it has started.
struct Machine {
    life: Life,
    at: Moment,
}

impl Machine {
    /// Machine that has read an empty store.
    fn new(credential: CredentialType, kind: ProviderKind, shared: bool) -> Self {
        let at = Moment {
            time: ClockReading {
                now: Instant::now(),
                wall_ms: NOON_MS,
            },
            jitter: || 0.5,
            accepted: Generation(0),
        };
        let policy = Policy::of(credential, kind);
        let before = Duration::from_secs(300);
        let life = Life::new(&account(kind), policy, before, shared, at);
        Self { life, at }
    }

    fn on(&mut self, event: Event) -> Effects {
        let effects = self.life.on(self.at, event);
        if effects.clear_evidence {
            self.at.accepted = Generation(0);
        }
        effects
    }

    fn pass(&mut self, time: Duration) {
        self.at.time.now += time;
        self.at.time.wall_ms += u64::try_from(time.as_millis()).unwrap();
    }

    /// Handles an event and drops its effects.
    fn then(mut self, event: Event) -> Self {
        self.on(event);
        self
    }

    fn after(mut self, seconds: u64) -> Self {
        self.pass(Duration::from_secs(seconds));
        self
    }

    /// Notes that a request saw the current token accepted.
    fn accepted(mut self) -> Self {
        self.at.accepted = self.life.generation();
        self
    }
}

const DEADLINE: Event = Event::Deadline {
    unused_for: Duration::ZERO,
};

fn fetched(token: &str, sent: Instant, expires_in: u64) -> Event {
    let result = Ok(Fetched {
        token: crate::base::Secret::new(token.to_owned()),
        expires_in: Duration::from_secs(expires_in),
    });
    Event::StepEnded(StepOutcome::Fetched { sent, result })
}

fn failed(sent: Instant, error: FetchError) -> Event {
    let result = Err(error);
    Event::StepEnded(StepOutcome::Fetched { sent, result })
}

fn probed(probe: Probe) -> Event {
    Event::StepEnded(StepOutcome::Probed(probe))
}

fn written() -> Event {
    Event::StepEnded(StepOutcome::Written { newer: None })
}

fn rejected(caller: u64, generation: u64, path: &str) -> Event {
    Event::Rejected {
        caller: CallerId(caller),
        generation: Generation(generation),
        path: path.into(),
    }
}

fn ordered(operator: u64, force: bool) -> Event {
    let operator = OperatorId(operator);
    Event::Ordered { operator, force }
}
