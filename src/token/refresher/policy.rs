//! Policies: one row for each kind of credential, one column for each thing in which they differ.
//!
//! A new kind of credential is a row here and a source; the state machine asks the columns only.

use std::time::Duration;

use tokio::time::Instant;

use super::trigger::Trigger;
use crate::token::{
    ProviderKind,
    budget::{BudgetKind, DailyBudget, Exhausted},
    credential::CredentialType,
    limiter::RefreshLimiter,
    schedule,
    source::FetchMode,
    value::Token,
};

/// Behaviour of one kind of credential.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Daily budget that pays for fetches.
    pub(crate) budget: Option<BudgetKind>,
    /// Fetches that replace a token although the endpoint would give it again.
    pub(crate) force: Force,
    /// Next step when the endpoint gives the rejected token again.
    pub(crate) given_again: GivenAgain,
    /// Schedule of refreshes.
    pub(crate) renewal: Renewal,
    /// Sign of another program that fetches for the same account.
    pub(crate) conflict: ConflictSign,
    /// True if the token is stored, so that other nodes can read it.
    pub(crate) stored: bool,
    /// True if a refusal of one node holds for all.
    pub(crate) shares_refusals: bool,
    /// Time without a request after which the credential is not renewed any more.
    pub(crate) rests_after: Option<Duration>,
}

/// See [`Policy::force`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    /// The endpoint gives the same token until its end.
    Never,
    /// Only fetches in forced mode make another token.
    OnDemand,
    /// Every fetch makes another token.
    EveryFetch,
}

/// See [`Policy::given_again`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenAgain {
    /// Nothing more can be done.
    GiveUp,
    /// WeChat is asked whether it takes the token.
    Probe,
    /// The server that keeps the token is read again, unless this was such a read.
    ReadAgain,
}

/// See [`Policy::renewal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Before the end of the token.
    BeforeExpiry,
    /// The same, but an endpoint with a small quota gives the same ticket again until its end.
    Sparing,
    /// Every minute, since another server replaces the token at any time.
    Poll,
}

/// See [`Policy::conflict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConflictSign {
    None,
    /// A rejection long before the end of the token.
    EarlyRejection,
    /// The same, or another token from a scheduled fetch long before the end.
    EarlyReplacement,
}

/// Budget that has nothing left for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overspent {
    pub(crate) budget: BudgetKind,
    pub(crate) after: Duration,
}

const STABLE: Policy = Policy {
    budget: Some(BudgetKind::Forced),
    force: Force::OnDemand,
    given_again: GivenAgain::Probe,
    renewal: Renewal::BeforeExpiry,
    conflict: ConflictSign::EarlyReplacement,
    stored: true,
    shares_refusals: true,
    rests_after: None,
};

const CLASSIC: Policy = Policy {
    budget: Some(BudgetKind::Classic),
    force: Force::EveryFetch,
    given_again: GivenAgain::GiveUp,
    conflict: ConflictSign::EarlyRejection,
    ..STABLE
};

// WeCom has no forced mode (page 91039) and counts calls by address.
const WECOM: Policy = Policy {
    budget: None,
    force: Force::Never,
    conflict: ConflictSign::EarlyRejection,
    ..STABLE
};

const EXTERNAL: Policy = Policy {
    budget: None,
    force: Force::Never,
    given_again: GivenAgain::ReadAgain,
    renewal: Renewal::Poll,
    conflict: ConflictSign::None,
    stored: false,
    ..STABLE
};

// Nobody rejects a ticket towards wxgate, so there is nothing to probe and no conflict to see.
const TICKET: Policy = Policy {
    budget: None,
    force: Force::Never,
    given_again: GivenAgain::GiveUp,
    renewal: Renewal::Sparing,
    conflict: ConflictSign::None,
    stored: true,
    shares_refusals: false,
    // Two lifetimes.
    rests_after: Some(Duration::from_secs(4 * 3600)),
};

// Each node reads the token for itself, so no lease stands over the tickets either.
const TICKET_OF_EXTERNAL: Policy = Policy {
    stored: false,
    ..TICKET
};

impl Policy {
    /// Row of a credential of an account of this kind.
    pub(crate) const fn of(credential: CredentialType, kind: ProviderKind) -> &'static Self {
        match (credential, kind) {
            (CredentialType::Token, ProviderKind::Stable) => &STABLE,
            (CredentialType::Token, ProviderKind::Classic) => &CLASSIC,
            (CredentialType::Token, ProviderKind::Wecom) => &WECOM,
            (CredentialType::Token, ProviderKind::External) => &EXTERNAL,
            (CredentialType::Ticket(_), ProviderKind::External) => &TICKET_OF_EXTERNAL,
            // Phantom keys have no refresher, so their row is never asked for.
            (CredentialType::Ticket(_) | CredentialType::PhantomKeys, _) => &TICKET,
        }
    }

    /// Takes the cost of a fetch from the budget. True if it costs anything.
    pub(super) fn spend(
        &self,
        budget: &mut DailyBudget,
        wall_ms: u64,
        trigger: Trigger,
    ) -> Result<bool, Overspent> {
        let spent = match (self.budget, trigger.mode()) {
            (Some(BudgetKind::Classic), _) => budget.spend_classic(wall_ms),
            (Some(BudgetKind::Forced), FetchMode::Forced) => {
                budget.spend_forced(wall_ms, trigger.forcer())
            }
            (Some(BudgetKind::Forced), FetchMode::Normal) | (None, _) => return Ok(false),
        };
        let overspent = |Exhausted(after)| Overspent {
            budget: self.budget.unwrap_or(BudgetKind::Forced),
            after,
        };
        spent.map(|()| true).map_err(overspent)
    }

    /// Limiter of the refreshes that follow a rejection.
    pub(super) fn limiter(&self, now: Instant) -> RefreshLimiter {
        match self.renewal {
            Renewal::Poll => RefreshLimiter::external(now),
            Renewal::BeforeExpiry | Renewal::Sparing => RefreshLimiter::new(now),
        }
    }

    /// Time of the next refresh of a token that is new here.
    pub(super) fn due(
        &self,
        now: Instant,
        token: &Token,
        before: Duration,
        jitter: f64,
    ) -> Instant {
        let expires = token.expires();
        match self.renewal {
            Renewal::Poll => schedule::poll_at(now, expires, jitter),
            Renewal::BeforeExpiry | Renewal::Sparing => {
                let lifetime = expires.saturating_duration_since(token.sent());
                schedule::refresh_at(now, expires, lifetime, before, jitter)
            }
        }
    }

    /// Time of the next refresh after the endpoint gave the same token again.
    pub(super) fn due_again(
        &self,
        now: Instant,
        token: &Token,
        before: Duration,
        jitter: f64,
    ) -> Instant {
        let expires = token.expires();
        match self.renewal {
            Renewal::Poll => schedule::poll_at(now, expires, jitter),
            Renewal::BeforeExpiry => schedule::ask_again_at(now, expires, before, jitter),
            Renewal::Sparing => schedule::ask_for_ticket_again_at(now, expires),
        }
    }
}
