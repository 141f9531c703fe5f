//! Status of a credential for health checks, the admin API and requests that wait.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use crate::token::{
    error::Cause,
    source::FetchError,
    value::{Generation, Token},
};

/// State that the actor publishes besides the token.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PublishedState {
    pub(super) fault: Option<LastFailure>,
    pub(super) refreshing: bool,
    pub(super) next_attempt: Option<Instant>,
    pub(super) dead: bool,
    pub(super) classic_left: Option<u32>,
    pub(super) forced_left: Option<u32>,
    pub(super) conflicts: u64,
    /// The newest token that WeChat rejected and that was replaced for it; 0 for none.
    pub(super) refused: Generation,
}

/// The last failure, until the next success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastFailure {
    pub(super) cause: Cause,
    pub(super) transient: bool,
    /// Of this kind in a row.
    pub(super) failures: u32,
    /// No attempt before.
    pub(super) until: Instant,
}

/// Condition of an account, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// A good token and no trouble.
    Ok,
    /// The first token is on its way.
    Waiting,
    /// There is a token, but it cannot be renewed at present, or WeChat rejects it or the address
    /// of this node.
    Degraded,
    /// No token, and attempts fail in a way that may pass by itself.
    Failing,
    /// No token, and an operator has to act.
    Fatal,
}

impl Condition {
    /// All conditions, the healthiest first.
    pub(crate) const ALL: [Self; 5] = [
        Self::Ok,
        Self::Waiting,
        Self::Degraded,
        Self::Failing,
        Self::Fatal,
    ];

    /// Returns the word for answers and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Waiting => "waiting",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
            Self::Fatal => "fatal",
        }
    }
}

/// A snapshot for people and machines; holds no token.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// In one word.
    pub condition: Condition,
    /// True if a request would get a token right now.
    pub usable: bool,
    /// Number of the last token; 0 before the first.
    pub generation: u64,
    /// First eight hex digits of its SHA-256.
    pub fingerprint: Option<String>,
    /// Seconds for which it is still good.
    pub expires_in: Option<u64>,
    /// Seconds since it was asked for.
    pub age: Option<u64>,
    /// Last failure, until the next success. A refusal of the address in answers to requests comes
    /// before a failed renewal, since it fails requests now.
    pub last_error: Option<LastError>,
    /// Seconds until the next attempt; 0 while one is under way.
    pub next_attempt_in: Option<u64>,
    /// Classic fetches left today; only for that kind.
    pub classic_left: Option<u32>,
    /// Forced refreshes that wxgate would still do on its own today; only for stable tokens.
    pub forced_left: Option<u32>,
    /// Tokens that another program seems to have replaced.
    pub conflicts: u64,
}

/// A failure in words.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// The metric label.
    pub label: &'static str,
    /// WeChat's own code.
    pub errcode: Option<i64>,
    /// Source address as WeChat saw it, if that is what was refused.
    pub ip: Option<IpAddr>,
    /// Cause, and what to do.
    pub sentence: String,
    /// Failures of this kind in a row.
    pub failures: u32,
    /// Text of WeChat's answer, without credentials.
    pub words: Option<String>,
}

impl LastFailure {
    /// True for a ticket that waits for its access token.
    pub(super) fn lacks_token(&self) -> bool {
        self.cause == Cause::Fetch(FetchError::NoToken)
    }

    /// True if any other node of the account would be refused too.
    pub(super) fn holds_for_every_node(&self) -> bool {
        matches!(&self.cause, Cause::Fetch(error) if error.is_true_for_every_node())
    }
}

impl LastError {
    pub(super) fn new(cause: &Cause, failures: u32) -> Self {
        Self {
            label: cause.label(),
            errcode: cause.errcode(),
            ip: cause.ip(),
            sentence: cause.to_string(),
            failures,
            words: cause.words().map(ToOwned::to_owned),
        }
    }
}

impl Status {
    /// Describes the state. `refused` is the refusal of the address in answers to requests.
    pub(super) fn of(
        state: &PublishedState,
        token: Option<&Token>,
        refused: Option<LastError>,
    ) -> Self {
        let usable = token.is_some_and(Token::is_alive);
        let condition = match &state.fault {
            None if usable && !state.dead && refused.is_none() => Condition::Ok,
            _ if usable => Condition::Degraded,
            None => Condition::Waiting,
            Some(fault) if fault.transient => Condition::Failing,
            Some(_) => Condition::Fatal,
        };
        let now = Instant::now();
        let until = |next: Instant| seconds(next.saturating_duration_since(now));
        Self {
            condition,
            usable,
            generation: token.map_or(0, |token| token.generation().0),
            fingerprint: token.map(|token| token.fingerprint().to_owned()),
            expires_in: token.map(|token| seconds(token.expires_in())),
            age: token.map(|token| seconds(now.saturating_duration_since(token.sent()))),
            last_error: refused.filter(|_| usable).or_else(|| {
                let fault = state.fault.as_ref()?;
                Some(LastError::new(&fault.cause, fault.failures))
            }),
            next_attempt_in: if state.refreshing {
                Some(0)
            } else {
                state.next_attempt.map(until)
            },
            classic_left: state.classic_left,
            forced_left: state.forced_left,
            conflicts: state.conflicts,
        }
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs()
}
