//! Parts of the admin listener that a reload replaces: the guard and the accounts.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;

use super::{guard::Guard, reload::Reloaded, settings::AdminSettings};
use crate::{
    base::AccountName,
    telemetry::events::{Event, EventLog, Level},
    token::TokenRegistry,
};

/// Guard and accounts of one configuration.
#[derive(Debug)]
pub(super) struct AdminState {
    pub(super) guard: Guard,
    pub(super) accounts: Arc<TokenRegistry>,
    /// Warnings about accounts that calls without a selector go to because of a reload.
    pub(super) warnings: HashMap<AccountName, String>,
    /// Number of the key in force. Another key has another number, which ends all sessions.
    pub(super) key_epoch: u64,
}

/// Handle that replaces guard and accounts of a running admin listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct AdminControl {
    /// State in force. A request loads this once, so that guard and accounts are of one
    /// configuration.
    pub(super) state: Arc<ArcSwap<AdminState>>,
    /// Set if other machines can reach the bound address.
    exposed: bool,
    events: EventLog,
}

impl AdminControl {
    pub(super) fn new(settings: &AdminSettings, accounts: Arc<TokenRegistry>) -> Self {
        let state = AdminState {
            guard: Guard::new(settings),
            accounts,
            warnings: HashMap::new(),
            key_epoch: 0,
        };
        Self {
            state: Arc::new(ArcSwap::from_pointee(state)),
            exposed: !settings.listen.is_local(),
            events: EventLog::default(),
        }
    }

    /// Records reloads in this log.
    pub(super) fn with_events(self, events: EventLog) -> Self {
        Self { events, ..self }
    }

    /// Records the outcome of a reload, for the console.
    pub(crate) fn record_reload(&self, outcome: &Reloaded) {
        let event = match outcome {
            Reloaded::Done {
                accounts,
                restart_needed,
                ..
            } => Event::new("reload", Level::Info)
                .number(
                    "accounts",
                    i64::try_from(accounts.len()).unwrap_or(i64::MAX),
                )
                .text("restart_needed", &restart_needed.join(", ")),
            Reloaded::Refused { problems } => Event::new("reload_refused", Level::Error)
                .number(
                    "problems",
                    i64::try_from(problems.len()).unwrap_or(i64::MAX),
                )
                .text("first", problems.first().map_or("", String::as_str)),
        };
        self.events.record(event);
    }

    /// Replaces key, hosts, accounts and the warnings about them. Takes effect with the next request.
    pub(crate) fn switch(
        &self,
        settings: &AdminSettings,
        accounts: Arc<TokenRegistry>,
        warnings: HashMap<AccountName, String>,
    ) {
        // Settings without a key are for a local address, which only a restart can bind. Until then
        // the listener that other machines can reach keeps its key.
        let before = self.state.load();
        let guard = if self.exposed && settings.key.is_none() {
            before.guard.with_hosts(settings)
        } else {
            Guard::new(settings)
        };
        let is_same_key = guard.key() == before.guard.key();
        let key_epoch = before.key_epoch + u64::from(!is_same_key);
        self.state.store(Arc::new(AdminState {
            guard,
            accounts,
            warnings,
            key_epoch,
        }));
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Method, Uri, header};

    use super::*;
    use crate::base::Secret;

    fn lets_in(control: &AdminControl, host: &str, key: &str) -> bool {
        let lines = [(header::HOST, host), (header::AUTHORIZATION, key)];
        let headers: HeaderMap = lines
            .into_iter()
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        control
            .state
            .load()
            .guard
            .admit(&Method::GET, &Uri::from_static("/"), &headers)
            .is_ok()
    }

    fn settings(listen: &str, key: Option<&str>, host: &str) -> AdminSettings {
        AdminSettings {
            listen: listen.parse().unwrap(),
            key: key.map(Secret::new),
            hosts: vec![host.to_owned()],
        }
    }

    #[test]
    fn another_key_and_other_hosts_count_at_once() {
        let control =
            AdminControl::new(&settings("127.0.0.1:1", Some("old"), "one"), Arc::default());
        assert!(lets_in(&control, "one", "Bearer old") && !lets_in(&control, "two", "Bearer old"));
        control.switch(
            &settings("127.0.0.1:1", Some("new"), "two"),
            Arc::default(),
            HashMap::new(),
        );
        assert!(lets_in(&control, "two", "Bearer new"));
        assert!(!lets_in(&control, "two", "Bearer old") && !lets_in(&control, "one", "Bearer new"));
        control.switch(
            &settings("127.0.0.1:1", None, "two"),
            Arc::default(),
            HashMap::new(),
        );
        assert!(lets_in(&control, "two", "none"));
    }

    #[test]
    fn a_listener_that_others_can_reach_never_loses_its_key() {
        let control = AdminControl::new(&settings("0.0.0.0:1", Some("old"), "one"), Arc::default());
        control.switch(
            &settings("127.0.0.1:1", None, "two"),
            Arc::default(),
            HashMap::new(),
        );
        assert!(lets_in(&control, "two", "Bearer old") && !lets_in(&control, "two", "none"));
    }
}
