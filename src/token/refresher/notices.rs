//! Notices: what the state machine has to say to operators, in log lines and counters.

use std::{sync::Arc, time::Duration};

use super::{life::conflict::Conflict, status::LastFailure, trigger::Trigger};
use crate::telemetry::events::{Event, Level};
use crate::token::{
    ProviderKind, Token, budget::BudgetKind, credential::RecordKey, error::Cause,
    metrics::CredentialMetrics, source::FetchError,
};

/// One thing worth a log line or a count.
#[derive(Debug, Clone)]
pub(super) enum Notice {
    /// The source has answered.
    Fetched {
        trigger: Trigger,
        result: FetchResult,
    },
    /// The first success after failures.
    EndpointWorks,
    NewToken {
        token: Arc<Token>,
        trigger: Trigger,
    },
    /// Another node fetched this token.
    TokenFromPeer(Arc<Token>),
    /// Another node was refused.
    PeerRefused(Cause),
    /// A fetch failed, `valid_for` before the end of the current token.
    Failed {
        fault: LastFailure,
        valid_for: Duration,
    },
    /// Half of the life that was left at the first failure is over.
    HalfLifeOver {
        fault: LastFailure,
        valid_for: Duration,
    },
    /// The token is rejected, and the endpoint has no way to get another one.
    NoOtherToken,
    /// The token is rejected and given again, and no forced refresh is left.
    NoForceLeft,
    OutOfBudget(BudgetKind),
    /// Another program fetches tokens for this account.
    Conflict(Conflict),
}

/// Result of a fetch, for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FetchResult {
    New,
    Same,
    /// Another node's token has come meanwhile.
    Late,
    Failed(FetchError),
}

/// Log and counters of one credential.
pub(super) struct Journal {
    pub(super) key: RecordKey,
    pub(super) kind: ProviderKind,
    pub(super) appid: String,
    pub(super) metrics: CredentialMetrics,
}

impl FetchResult {
    fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Same => "same",
            Self::Late => "late",
            Self::Failed(error) => error.label(),
        }
    }
}

impl Journal {
    pub(super) fn write(&self, notice: Notice) {
        let RecordKey {
            account,
            credential: kept,
        } = &self.key;
        match notice {
            Notice::Fetched { trigger, result } => {
                self.metrics.fetched(trigger.label(), result.label());
            }
            Notice::EndpointWorks => {
                tracing::info!(%account, %kept, "the token endpoint works again");
                self.metrics.event("recovered", Level::Info, |event| event);
            }
            Notice::NewToken { token, trigger } => {
                tracing::info!(
                    %account, generation = token.generation().0, token = token.fingerprint(),
                    expires_in = token.expires_in().as_secs(), trigger = trigger.label(), "new {kept}"
                );
                self.metrics.event("fetched", Level::Info, |event| {
                    of_token(event, &token).text("trigger", trigger.label())
                });
            }
            Notice::TokenFromPeer(token) => {
                tracing::info!(
                    %account, generation = token.generation().0, token = token.fingerprint(),
                    expires_in = token.expires_in().as_secs(), "new {kept} from another node"
                );
                let fill = |event| of_token(event, &token);
                self.metrics.event("fetched_by_peer", Level::Info, fill);
            }
            Notice::PeerRefused(cause) => {
                tracing::error!(%account, "another node was refused: {cause}");
                let fill = |event| described(event, &cause);
                self.metrics.event("refused_to_peer", Level::Error, fill);
            }
            Notice::Failed { fault, valid_for } => self.failed(&fault, valid_for),
            Notice::HalfLifeOver { fault, valid_for } => tracing::error!(
                %account, %kept, valid_for = valid_for.as_secs(), failures = fault.failures,
                "half of its remaining life is over and it still cannot be renewed: {}", fault.cause
            ),
            Notice::NoOtherToken => tracing::error!(
                %account,
                "WeCom rejects the token and gives no other: wait for its end, or reset the agent's secret"
            ),
            Notice::NoForceLeft => tracing::error!(
                %account,
                "WeChat rejects the token and gives no other, and no forced refresh is left for now: find out who \
                 makes tokens die, or force a refresh by hand"
            ),
            Notice::OutOfBudget(budget) => {
                let kind = budget.as_str();
                tracing::error!(%account, kind, "{}", Cause::Budget(budget));
                let fill = |event: Event| event.text("budget", kind);
                self.metrics.event("budget_spent", Level::Error, fill);
            }
            Notice::Conflict(conflict) => self.conflict(conflict),
        }
    }

    /// Logs an error when the first failure needs a person, else a warning.
    fn failed(&self, fault: &LastFailure, valid_for: Duration) {
        let RecordKey {
            account,
            credential: kept,
        } = &self.key;
        let (cause, failures, valid_for) = (&fault.cause, fault.failures, valid_for.as_secs());
        let level = if fault.transient {
            Level::Warning
        } else {
            Level::Error
        };
        self.metrics
            .event("refused", level, |event| described(event, cause));
        if failures == 1 && !fault.transient {
            tracing::error!(%account, %kept, valid_for, "{cause}");
        } else {
            tracing::warn!(%account, %kept, valid_for, failures, "{cause}");
        }
    }

    fn conflict(&self, Conflict { count, warn }: Conflict) {
        self.metrics.conflict();
        let fill = |event| event;
        self.metrics.event("conflict", Level::Warning, fill);
        if !warn {
            return;
        }
        let advice = match self.kind {
            ProviderKind::Wecom => {
                "look whether somebody changes the agent in the console of WeCom"
            }
            _ => {
                "somebody else fetches tokens for this appid. Let that program ask wxgate, and keep token = \"stable\""
            }
        };
        tracing::warn!(
            account = %self.key.account, appid = %self.appid, conflicts = count,
            "tokens of this account die long before their time: {advice}"
        );
    }
}

/// Adds the facts about a token, which is named by its fingerprint.
fn of_token(event: Event, token: &Token) -> Event {
    let generation = i64::try_from(token.generation().0).unwrap_or(i64::MAX);
    let expires_in = i64::try_from(token.expires_in().as_secs()).unwrap_or(i64::MAX);
    event
        .number("generation", generation)
        .text("fingerprint", token.fingerprint())
        .number("expires_in", expires_in)
}

/// Adds the cause of a failure.
pub(super) fn described(event: Event, cause: &Cause) -> Event {
    let event = event
        .text("label", cause.label())
        .text("sentence", &cause.to_string());
    match cause.errcode() {
        Some(errcode) => event.number("errcode", errcode),
        None => event,
    }
}
