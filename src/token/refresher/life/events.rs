//! Events that go into the state machine, and effects that come out of it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::super::{GiveBackReason, Refresh, Refreshed, notices::Notice};
use crate::{
    base::Secret,
    token::{
        clock::ClockReading,
        error::Cause,
        limiter::RefreshDenied,
        source::{FetchError, FetchMode, Fetched, Probe},
        store::{AccountIdentity, TokenRecord},
        value::{Generation, Token},
    },
};

/// Clocks, chance and the word of the requests at the moment of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) time: ClockReading,
    /// Draws a number evenly between 0 and 1. Called only where chance decides, since a draw may
    /// cost a system call.
    pub(crate) jitter: fn() -> f64,
    /// Generation that a request saw accepted since [`Effects::clear_evidence`]; 0 for none.
    pub(crate) accepted: Generation,
}

/// Number of a request that waits for a newer token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallerId(pub(in crate::token::refresher) u64);

/// Number of an operator's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct OperatorId(pub(in crate::token::refresher) u64);

/// Something that happened outside.
#[derive(Debug)]
pub(crate) enum Event {
    /// The store was read for the first time.
    Loaded(Option<Box<TokenRecord>>),
    /// The deadline has passed. `unused_for` is the time since the last request for a ticket.
    Deadline { unused_for: Duration },
    /// A request's token was rejected on `path`, and the request waits for a newer one.
    Rejected {
        caller: CallerId,
        generation: Generation,
        path: Box<str>,
    },
    /// A replay on `path` was rejected too. `accepted` if another request saw that generation
    /// accepted before.
    ReplayRejected {
        generation: Generation,
        path: Box<str>,
        accepted: bool,
    },
    /// An operator ordered a refresh.
    Ordered { operator: OperatorId, force: bool },
    /// The account is gone or has another refresher.
    Retired,
    /// Another process fetches from now on.
    Paused,
    /// No other process fetches any more. The store holds this now.
    Resumed(Option<Box<TokenRecord>>),
    /// The AppSecret that was tried is in force.
    Confirmed,
    /// A trial of another AppSecret has ended in vain; this token was in force during it.
    Inherited(Arc<Token>),
    /// A ticket was asked for and is not there.
    Wanted,
    /// The token of a ticket was rejected and replaced, or is there at last.
    TokenReplaced,
    /// The shared store holds this now.
    Replicated(Option<Box<TokenRecord>>),
    /// The step under way has ended.
    StepEnded(StepOutcome),
}

/// I/O of a refresh, one step after the other; at most one is under way.
#[derive(Debug)]
pub(crate) enum Step {
    /// Asks the other nodes for the lease and for what they know.
    Preflight(Known),
    /// Asks the source. With `costs`, the record has to be written first, within some patience.
    Fetch {
        mode: FetchMode,
        costs: bool,
        rejected: Option<Secret>,
    },
    /// Asks WeChat whether it takes the token.
    Probe(Secret),
    /// Waits until the record is written, within some patience.
    Write,
}

/// End of a step.
#[derive(Debug)]
pub(crate) enum StepOutcome {
    Preflight(Preflight),
    Fetched {
        sent: Instant,
        result: Result<Fetched, FetchError>,
    },
    Probed(Probe),
    /// Written or not; `newer` is what the store holds instead.
    Written {
        newer: Option<Box<TokenRecord>>,
    },
    /// The step ended by a panic.
    Panicked,
}

/// Knowledge of this node, against which the record of another node is compared.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) identity: AccountIdentity,
    pub(crate) generation: Generation,
    pub(crate) token: Option<Secret>,
    /// True if a person asks, so that a remembered refusal does not count.
    pub(crate) insists: bool,
}

/// Answer of the other nodes.
#[derive(Debug, Default)]
pub(crate) struct Preflight {
    /// Their record, as far as it could be read.
    pub(crate) record: Option<Box<TokenRecord>>,
    /// True if that record makes the fetch needless.
    pub(crate) settled: bool,
    /// True if this node has the lease.
    pub(crate) leased: bool,
    /// True if the store answered, so that the other nodes learn what is spent.
    pub(crate) heard: bool,
}

/// Everything that follows from one event. The fields stand in the order in which they are carried
/// out.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Requests start to gather evidence anew. First, so that none for the new token gets lost.
    pub(crate) clear_evidence: bool,
    /// Token that requests get from now on.
    pub(crate) install: Option<Arc<Token>>,
    /// The record is written.
    pub(crate) save: bool,
    /// Log lines and counters. Their reader finds the token and the state in place already.
    pub(crate) notices: Vec<Notice>,
    /// Answers to requests that waited.
    pub(crate) replies: Vec<(CallerId, Refresh)>,
    /// Answers to operators.
    pub(crate) reports: Vec<(OperatorId, Result<Refreshed, Blocked>)>,
    /// Next step; never while another is under way.
    pub(crate) step: Option<Step>,
    /// The lease is given back once the record is written.
    pub(crate) release_lease: bool,
}

/// Reason why an operator's order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) cause: Cause,
    pub(crate) retry_after: Duration,
}

impl Known {
    /// True if the record makes a fetch needless: by a token that is new here, or because WeChat
    /// has refused.
    pub(crate) fn is_settled_by(&self, record: &TokenRecord, at: ClockReading) -> bool {
        if record.identity != self.identity {
            return false;
        }
        let refused = !self.insists && record.refused(at).is_some();
        let unheard = self.token.is_some() && record.generation > self.generation;
        let is_new = record.generation >= self.generation
            && record
                .token
                .as_ref()
                .is_some_and(|token| Some(&token.value) != self.token.as_ref());
        let revived = if unheard {
            record.revive_as_news(at)
        } else {
            record.revive(at)
        };
        refused || is_new && revived.is_some()
    }
}

impl From<RefreshDenied> for GiveBackReason {
    fn from(denied: RefreshDenied) -> Self {
        match denied {
            RefreshDenied::Backoff => Self::Backoff,
            RefreshDenied::Bucket => Self::Budget,
        }
    }
}
