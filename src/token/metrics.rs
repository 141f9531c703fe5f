//! Metrics of tokens and tickets. Labels come from closed sets.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::budget::BudgetKind;
use crate::{
    base::AccountName,
    telemetry::events::{Event, EventLog, Level},
    wechat::ticket::TicketType,
};

/// Metrics of all accounts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TokenMetrics {
    fetch: Family<FetchLabels, Counter>,
    expiry: Family<AccountLabels, Gauge>,
    generation: Family<AccountLabels, Gauge>,
    budget: Family<BudgetLabels, Gauge>,
    conflicts: Family<AccountLabels, Counter>,
    store_errors: Family<StoreLabels, Counter>,
    store_up: Gauge,
    ticket_fetch: Family<TicketFetchLabels, Counter>,
    ticket_expiry: Family<TicketLabels, Gauge>,
    events: EventLog,
}

/// Metrics of one credential: an account's token, or one of the tickets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CredentialMetrics {
    account: String,
    ticket: Option<TicketType>,
    all: TokenMetrics,
    expiry: Gauge,
    generation: Gauge,
    conflicts: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    account: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FetchLabels {
    account: String,
    trigger: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabels {
    account: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TicketLabels {
    account: String,
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TicketFetchLabels {
    account: String,
    r#type: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    operation: &'static str,
}

impl TokenMetrics {
    /// Makes the metrics and adds them to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        // Until an operation fails.
        all.store_up.set(1);
        registry.register(
            "wxgate_token_fetch",
            "Calls of the token endpoint by cause and result: new, same, or what went wrong",
            all.fetch.clone(),
        );
        registry.register(
            "wxgate_token_expiry_timestamp_seconds",
            "Unix time at which the current token ends",
            all.expiry.clone(),
        );
        registry.register(
            "wxgate_token_generation",
            "Number of the current token",
            all.generation.clone(),
        );
        registry.register(
            "wxgate_token_budget_remaining",
            "Calls left today: classic fetches, and forced refreshes that wxgate does on its own",
            all.budget.clone(),
        );
        registry.register(
            "wxgate_token_conflicts",
            "Tokens that died long before their time, again and again: somebody else fetches for this account",
            all.conflicts.clone(),
        );
        registry.register(
            "wxgate_store_errors",
            "Operations of the token store that failed or took too long",
            all.store_errors.clone(),
        );
        registry.register(
            "wxgate_store_up",
            "1 while the latest operation of the token store succeeded, else 0",
            all.store_up.clone(),
        );
        registry.register(
            "wxgate_ticket_fetch",
            "Fetches of tickets by type and result: new, same, or what went wrong",
            all.ticket_fetch.clone(),
        );
        registry.register(
            "wxgate_ticket_expiry_timestamp_seconds",
            "Unix time at which the current ticket ends",
            all.ticket_expiry.clone(),
        );
        all
    }

    /// Records what happens to tokens in this log, too.
    #[must_use]
    pub(crate) fn with_events(self, events: EventLog) -> Self {
        Self { events, ..self }
    }

    /// Metrics of an account's access token.
    pub fn for_account(&self, name: &AccountName) -> CredentialMetrics {
        let labels = AccountLabels {
            account: name.as_str().to_owned(),
        };
        CredentialMetrics {
            account: name.as_str().to_owned(),
            ticket: None,
            expiry: self.expiry.get_or_create_owned(&labels),
            generation: self.generation.get_or_create_owned(&labels),
            conflicts: self.conflicts.get_or_create_owned(&labels),
            all: self.clone(),
        }
    }

    /// Metrics of one of an account's tickets.
    pub fn for_ticket(&self, name: &AccountName, kind: TicketType) -> CredentialMetrics {
        let labels = TicketLabels {
            account: name.as_str().to_owned(),
            r#type: kind.as_str(),
        };
        CredentialMetrics {
            account: name.as_str().to_owned(),
            ticket: Some(kind),
            expiry: self.ticket_expiry.get_or_create_owned(&labels),
            // Not registered: generation and conflicts are exported for the access token only.
            generation: Gauge::default(),
            conflicts: Counter::default(),
            all: self.clone(),
        }
    }

    /// Removes the gauges of an account that is gone, which would look like those of an expiring
    /// token. Counters stay, since a counter must not go back.
    pub fn forget(&self, name: &AccountName) {
        let labels = AccountLabels {
            account: name.as_str().to_owned(),
        };
        self.expiry.remove(&labels);
        self.generation.remove(&labels);
        for kind in BudgetKind::ALL {
            self.budget.remove(&BudgetLabels {
                account: name.as_str().to_owned(),
                kind: kind.as_str(),
            });
        }
        for kind in TicketType::ALL {
            self.ticket_expiry.remove(&TicketLabels {
                account: name.as_str().to_owned(),
                r#type: kind.as_str(),
            });
        }
    }
}

impl CredentialMetrics {
    pub(crate) fn fetched(&self, trigger: &'static str, result: &'static str) {
        let account = self.account.clone();
        match self.ticket {
            None => self
                .all
                .fetch
                .get_or_create(&FetchLabels {
                    account,
                    trigger,
                    result,
                })
                .inc(),
            Some(kind) => self
                .all
                .ticket_fetch
                .get_or_create(&TicketFetchLabels {
                    account,
                    r#type: kind.as_str(),
                    result,
                })
                .inc(),
        };
    }

    pub(crate) fn installed(&self, generation: u64, expires_unix_ms: u64) {
        self.generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.expiry
            .set(i64::try_from(expires_unix_ms / 1000).unwrap_or(i64::MAX));
    }

    pub(crate) fn budget(&self, kind: BudgetKind, left: u32) {
        self.all
            .budget
            .get_or_create(&BudgetLabels {
                account: self.account.clone(),
                kind: kind.as_str(),
            })
            .set(i64::from(left));
    }

    /// Records an event of this credential.
    pub(crate) fn event(
        &self,
        kind: &'static str,
        level: Level,
        fill: impl FnOnce(Event) -> Event,
    ) {
        let credential = self.ticket.map_or("access_token", TicketType::as_str);
        let event = Event::new(kind, level).account(&self.account);
        self.all
            .events
            .record(fill(event.text("credential", credential)));
    }

    pub(crate) fn conflict(&self) {
        self.conflicts.inc();
    }

    /// Notes an operation of the store that succeeded.
    pub(crate) fn store_works(&self) {
        self.all.store_up.set(1);
    }

    pub(crate) fn store_error(&self, operation: &'static str) {
        self.all.store_up.set(0);
        self.all
            .store_errors
            .get_or_create(&StoreLabels { operation })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_those_of_the_contract() {
        let mut registry = Registry::default();
        let (all, shop) = (
            TokenMetrics::register(&mut registry),
            AccountName::new("shop").unwrap(),
        );
        let metrics = all.for_account(&shop);
        metrics.fetched("start", "new");
        metrics.installed(7, 1_700_000_000_999);
        metrics.budget(BudgetKind::Forced, 6);
        metrics.conflict();
        metrics.store_error("save");
        let ticket = all.for_ticket(&shop, TicketType::WxCard);
        ticket.fetched("start", "new");
        ticket.installed(3, 1_800_000_000_000);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"wxgate_token_fetch_total{account="shop",trigger="start",result="new"} 1"#,
            r#"wxgate_token_expiry_timestamp_seconds{account="shop"} 1700000000"#,
            r#"wxgate_token_generation{account="shop"} 7"#,
            r#"wxgate_token_budget_remaining{account="shop",kind="forced"} 6"#,
            r#"wxgate_token_conflicts_total{account="shop"} 1"#,
            r#"wxgate_store_errors_total{operation="save"} 1"#,
            r#"wxgate_ticket_fetch_total{account="shop",type="wx_card",result="new"} 1"#,
            r#"wxgate_ticket_expiry_timestamp_seconds{account="shop",type="wx_card"} 1800000000"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
