//! `GET /api/overview` and `GET /api/clients`: the state of the node, its store and its callers for
//! the console.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::history::{self, MetricLine};
use crate::{
    base::AccountName,
    service::readiness::{LogTrouble, Readiness},
    token::{Condition, Status},
};

/// Facts about the node that stay the same until the next start.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NodeFacts {
    /// Kind of the store, as in the configuration.
    pub(crate) store: &'static str,
    /// True if other nodes may use the store too.
    pub(crate) shared: bool,
    /// Bound addresses of the data listeners.
    pub(crate) listen: Vec<String>,
}

/// Answer to `GET /api/overview`.
#[derive(Debug, Serialize)]
pub(super) struct Overview<'f> {
    pub(super) version: &'static str,
    /// Unix time of the start in milliseconds.
    pub(super) started: u64,
    pub(super) ready: bool,
    /// Slug of what keeps the node from being ready.
    pub(super) error: Option<&'static str>,
    pub(super) message: Option<&'static str>,
    /// Trouble with the log, if there is any.
    pub(super) log: Option<&'f LogTrouble>,
    /// Threads that do not answer.
    pub(super) stuck: usize,
    /// Number of accounts by state; `total` and `usable` besides.
    pub(super) accounts: BTreeMap<&'static str, usize>,
    pub(super) in_flight: u64,
    pub(super) store: StoreView<'f>,
    pub(super) listen: &'f [String],
    /// Callers of this API need the admin key or a session.
    pub(super) key_required: bool,
}

/// Store of the tokens as the console shows it.
#[derive(Debug, Serialize)]
pub(super) struct StoreView<'f> {
    kind: &'f str,
    shared: bool,
    /// Failures since the start by operation.
    errors: BTreeMap<String, u64>,
}

/// Client in `GET /api/clients`.
#[derive(Debug, Default, Serialize)]
pub(super) struct ClientRow {
    name: String,
    calls: u64,
    failed: u64,
    /// Calls by account.
    accounts: BTreeMap<String, u64>,
    /// Denied calls by reason.
    denied: BTreeMap<String, u64>,
    /// Calls that would have been denied without `mode = "report"`, by reason.
    overlooked: BTreeMap<String, u64>,
}

/// Clients in an answer, those with the most calls.
const MAX_CLIENTS: usize = 200;

impl<'f> Overview<'f> {
    /// Overview of a node, from its readiness, its accounts and its metrics.
    pub(super) fn new(
        facts: &'f NodeFacts,
        readiness: &'f Readiness,
        accounts: &[(AccountName, Status)],
        metrics: &str,
    ) -> Self {
        let wanted = ["wxgate_store_errors_total", "wxgate_inflight_requests"];
        let (mut errors, mut in_flight) = (BTreeMap::new(), 0);
        for line in history::lines(metrics, &wanted) {
            match line.label("operation") {
                Some(operation) => {
                    errors.insert(operation.to_owned(), line.count());
                }
                None => in_flight = line.count(),
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started: 0,
            ready: readiness.ready,
            error: readiness.error,
            message: readiness.message,
            log: readiness.log.as_ref(),
            stuck: readiness.stuck.len(),
            accounts: counted(accounts),
            in_flight,
            store: StoreView {
                kind: facts.store,
                shared: facts.shared,
                errors,
            },
            listen: &facts.listen,
            key_required: false,
        }
    }
}

fn counted(accounts: &[(AccountName, Status)]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::from([("total", accounts.len()), ("usable", 0)]);
    for condition in Condition::ALL {
        counts.insert(condition.as_str(), 0);
    }
    for (_, status) in accounts {
        *counts.entry(status.condition.as_str()).or_default() += 1;
        *counts.entry("usable").or_default() += usize::from(status.usable);
    }
    counts
}

/// Callers since the start, those with the most calls first.
pub(super) fn clients(metrics: &str) -> Vec<ClientRow> {
    let wanted = ["wxgate_requests_total", "wxgate_denied_total"];
    let mut clients: HashMap<String, ClientRow> = HashMap::new();
    for line in history::lines(metrics, &wanted) {
        let name = line.label("client").unwrap_or_default();
        let client = clients.entry(name.to_owned()).or_default();
        client.add(&line);
    }
    let mut rows: Vec<_> = clients
        .into_iter()
        .map(|(name, row)| ClientRow { name, ..row })
        .collect();
    rows.sort_by(|a, b| b.calls.cmp(&a.calls).then_with(|| a.name.cmp(&b.name)));
    rows.truncate(MAX_CLIENTS);
    rows
}

impl ClientRow {
    fn add(&mut self, line: &MetricLine<'_>) {
        let count = line.count();
        let label = |name| line.label(name).unwrap_or_default().to_owned();
        if line.name == "wxgate_requests_total" {
            self.calls += count;
            if line.label("outcome") != Some("ok") {
                self.failed += count;
            }
            *self.accounts.entry(label("account")).or_default() += count;
        } else if line.label("mode") == Some("report") {
            *self.overlooked.entry(label("reason")).or_default() += count;
        } else {
            *self.denied.entry(label("reason")).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_with_their_denials() {
        let text = "wxgate_requests_total{account=\"shop\",client=\"crm\",outcome=\"ok\"} 5\n\
            wxgate_requests_total{account=\"shop\",client=\"crm\",outcome=\"path_denied\"} 2\n\
            wxgate_requests_total{account=\"-\",client=\"-\",outcome=\"client_unknown\"} 1\n\
            wxgate_denied_total{client=\"crm\",reason=\"path_denied\",mode=\"enforce\"} 2\n\
            wxgate_denied_total{client=\"crm\",reason=\"account_denied\",mode=\"report\"} 3\n";
        let rows = serde_json::to_value(clients(text)).unwrap();
        assert_eq!(rows[0]["name"], "crm");
        assert_eq!(
            (&rows[0]["calls"], &rows[0]["failed"]),
            (&7.into(), &2.into())
        );
        assert_eq!(rows[0]["denied"]["path_denied"], 2);
        assert_eq!(rows[0]["overlooked"]["account_denied"], 3);
        assert_eq!(rows[1]["name"], "-");
    }
}
