//! What a reload replaces on the admin side: who is let in, and which accounts there are.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{guard::Guard, settings::Settings};
use crate::token::Accounts;

/// One configuration, as far as it can change while the listener stands.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) guard: Guard,
    pub(super) accounts: Arc<Accounts>,
}

/// The hand that changes the admin listener while it runs.
#[derive(Debug, Clone)]
pub struct Control {
    pub(super) live: Arc<ArcSwap<Live>>,
    exposed: bool,
}

impl Control {
    pub(super) fn new(settings: &Settings, accounts: Arc<Accounts>) -> Self {
        let live = Live {
            guard: Guard::new(settings),
            accounts,
        };
        Self {
            live: Arc::new(ArcSwap::from_pointee(live)),
            exposed: !settings.listen.is_local(),
        }
    }

    /// Puts another key, other hosts and other accounts into force. A listener that other machines
    /// can reach keeps its key when the new settings have none: those are for another address,
    /// which only a restart can take.
    pub fn switch(&self, settings: &Settings, accounts: Arc<Accounts>) {
        let guard = if self.exposed && settings.key.is_none() {
            self.live.load().guard.with_hosts(settings)
        } else {
            Guard::new(settings)
        };
        self.live.store(Arc::new(Live { guard, accounts }));
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Method, Uri, header};

    use super::*;
    use crate::base::Secret;

    fn lets_in(control: &Control, host: &str, key: &str) -> bool {
        let lines = [(header::HOST, host), (header::AUTHORIZATION, key)];
        let headers: HeaderMap = lines
            .into_iter()
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        control
            .live
            .load()
            .guard
            .admit(&Method::GET, &Uri::from_static("/"), &headers)
            .is_ok()
    }

    fn settings(listen: &str, key: Option<&str>, host: &str) -> Settings {
        Settings {
            listen: listen.parse().unwrap(),
            key: key.map(Secret::new),
            hosts: vec![host.to_owned()],
        }
    }

    #[test]
    fn another_key_and_other_hosts_count_at_once() {
        let control = Control::new(&settings("127.0.0.1:1", Some("old"), "one"), Arc::default());
        assert!(lets_in(&control, "one", "Bearer old") && !lets_in(&control, "two", "Bearer old"));
        control.switch(&settings("127.0.0.1:1", Some("new"), "two"), Arc::default());
        assert!(lets_in(&control, "two", "Bearer new"));
        assert!(!lets_in(&control, "two", "Bearer old") && !lets_in(&control, "one", "Bearer new"));
        control.switch(&settings("127.0.0.1:1", None, "two"), Arc::default());
        assert!(lets_in(&control, "two", "none"));
    }

    #[test]
    fn a_listener_that_others_can_reach_never_loses_its_key() {
        let control = Control::new(&settings("0.0.0.0:1", Some("old"), "one"), Arc::default());
        control.switch(&settings("127.0.0.1:1", None, "two"), Arc::default());
        assert!(lets_in(&control, "two", "Bearer old") && !lets_in(&control, "two", "none"));
    }
}
