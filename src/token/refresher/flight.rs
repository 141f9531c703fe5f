//! One step of a refresh under way, in a task of its own: the question to other nodes, a fetch, a
//! probe, or the wait for the store.
//!
//! A step never decides what follows from it. Should it panic, that is an outcome like any other.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    persist::Ticket,
    shared::{Clearance, Known, Sharing},
};
use crate::{
    base::Secret,
    token::{
        Generation,
        budget::Forcer,
        source::{FetchError, Fetched, Mode, Probe, TokenSource},
        store::Record,
        value::Token,
    },
};

/// Why WeChat is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The keeper has just started, and the store held nothing usable.
    Start,
    /// It is time.
    Timer,
    /// WeChat rejected the current token.
    Rejected,
    /// It did, and gives the same one again.
    Forced,
    /// A person wants it.
    Operator,
    /// It is time to look at a token that another server keeps. Costs nothing at WeChat.
    Poll,
}

/// A refresh under way.
pub(super) struct Flight {
    pub(super) trigger: Trigger,
    pub(super) mode: Mode,
    pub(super) who: Forcer,
    /// The token that was in use when WeChat was asked.
    pub(super) past: Generation,
    begun: Instant,
    step: JoinHandle<Landed>,
    kind: Kind,
}

/// How a step ended.
pub(super) enum Landed {
    Cleared(Clearance),
    Fetched {
        sent: Instant,
        result: Result<Fetched, FetchError>,
    },
    Probed(Probe),
    Stored {
        token: Token,
        newer: Option<Box<Record>>,
    },
}

#[derive(Clone, Copy)]
enum Kind {
    Clear,
    Fetch,
    Probe,
}

/// How long a fresh token waits until it is stored; after that, requests come first.
const STORED_WAIT: Duration = Duration::from_millis(250);
/// A source keeps its own limit; this is for one that does not.
const GRACE: Duration = Duration::from_secs(1);

impl Trigger {
    /// For metrics; bounded.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Timer => "timer",
            Self::Rejected => "rejected",
            Self::Forced => "forced",
            Self::Operator => "operator",
            Self::Poll => "poll",
        }
    }

    /// Whether WeChat's rejection is the reason.
    pub(super) fn is_passive(self) -> bool {
        matches!(self, Self::Rejected | Self::Forced)
    }
}

impl Flight {
    /// Asks the other nodes, as far as there are any.
    pub(super) fn clear(
        (trigger, mode, who): (Trigger, Mode, Forcer),
        past: Generation,
        sharing: Sharing,
        known: Known,
        limit: Duration,
    ) -> Self {
        let step = tokio::spawn(async move { Landed::Cleared(sharing.clear(known, limit).await) });
        Self {
            trigger,
            mode,
            who,
            past,
            begun: Instant::now(),
            step,
            kind: Kind::Clear,
        }
    }

    /// Asks the source, after what it spends is on record (`noted`, and how long to wait for that);
    /// for another token than `rejected`, if there is one.
    pub(super) fn fetch(
        (trigger, mode, who): (Trigger, Mode, Forcer),
        past: Generation,
        source: Arc<dyn TokenSource>,
        limit: Duration,
        noted: Option<(Ticket, Duration)>,
        rejected: Option<Secret>,
    ) -> Self {
        let step = tokio::spawn(async move {
            if let Some((ticket, patience)) = noted {
                ticket.tried(patience).await;
            }
            let sent = Instant::now();
            let asked = match &rejected {
                Some(rejected) => source.fetch_past(rejected),
                None => source.fetch(mode),
            };
            let result = timeout(limit + GRACE, asked)
                .await
                .unwrap_or(Err(FetchError::Timeout));
            Landed::Fetched { sent, result }
        });
        Self {
            trigger,
            mode,
            who,
            past,
            begun: Instant::now(),
            step,
            kind: Kind::Fetch,
        }
    }

    /// Asks WeChat about the token.
    pub(super) fn probe(
        &self,
        source: Arc<dyn TokenSource>,
        limit: Duration,
        token: Secret,
    ) -> Self {
        let step = tokio::spawn(async move {
            Landed::Probed(
                timeout(limit + GRACE, source.probe(&token))
                    .await
                    .unwrap_or(Probe::Unknown),
            )
        });
        self.next(step, Kind::Probe)
    }

    /// Waits for the store to have the token.
    pub(super) fn store(&self, token: Token, ticket: Ticket) -> Self {
        let step = tokio::spawn(async move {
            let newer = ticket.tried(STORED_WAIT).await;
            Landed::Stored { token, newer }
        });
        self.next(step, Kind::Fetch)
    }

    fn next(&self, step: JoinHandle<Landed>, kind: Kind) -> Self {
        let Self {
            trigger,
            mode,
            who,
            past,
            begun,
            ..
        } = *self;
        Self {
            trigger,
            mode,
            who,
            past,
            begun,
            step,
            kind,
        }
    }
}

/// Waits for the step to end, and takes the flight out; for ever when there is none. Can be
/// cancelled and called again.
pub(super) async fn landed(flight: &mut Option<Flight>) -> (Flight, Landed) {
    let Some(current) = flight.as_mut() else {
        return std::future::pending().await;
    };
    let outcome = (&mut current.step).await;
    let Some(current) = flight.take() else {
        return std::future::pending().await;
    };
    let landed = outcome.unwrap_or_else(|_| match current.kind {
        Kind::Clear => Landed::Cleared(Clearance::default()),
        Kind::Fetch => Landed::Fetched {
            sent: current.begun,
            result: Err(FetchError::Panicked),
        },
        Kind::Probe => Landed::Probed(Probe::Unknown),
    });
    (current, landed)
}
