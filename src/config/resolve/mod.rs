//! Conversion of the raw file into settings: defaults, checks over several keys, secrets, and keys
//! that are not built yet.
//!
//! After a problem, resolving goes on with the default value, so that all problems are found. The
//! settings are used only if there was no problem.

mod account;
mod client;
mod external;
mod form;
mod server;
mod signing;
mod store;

use std::fmt::Display;

use super::{Config, problem::KeyPlace, raw, read::At, secret::ConfigResolver};
use crate::{admin, net::address::ListenAddr, token, wechat::api::Platform};

/// Builds the settings of all modules; the caller adds the warnings.
pub(super) fn resolve(raw: raw::File, resolver: &mut ConfigResolver<'_>) -> Config {
    let whole = resolver.report.whole();
    let server = raw.server.map(|at| at.value).unwrap_or_default();
    let upstream = raw.upstream.map(|at| at.value).unwrap_or_default();
    let replay = raw.replay.map(|at| at.value).unwrap_or_default();
    let (allow_is_set, everybody) = (
        server.allow.is_some(),
        server::everybody(server.allow.as_ref()),
    );
    let certificates = server
        .tls
        .as_ref()
        .is_some_and(|tls| tls.value.client_ca.is_some());
    // A wrong list of clients counts as one with clients: the operator meant to have some.
    let has_clients = raw.client.as_ref().map_or_else(
        || resolver.report.concerns(&whole.child("client")),
        |clients| !clients.value.is_empty(),
    );
    let mut proxy = resolver.server(server, has_clients);
    proxy.upstream = resolver.upstream(upstream);
    proxy.replay = resolver.replay(&replay);
    let admin = resolver.admin(
        raw.admin.map(|at| at.value).unwrap_or_default(),
        &proxy.listen,
        &whole,
    );
    proxy.signing = resolver.signing(raw.account.as_ref());
    let accounts = resolver.accounts(raw.account, &whole);
    let names = account::AccountNames::new(&accounts);
    let client_context = client::ClientContext {
        accounts: &names,
        app_secrets: client::app_secrets(&accounts),
        certificates,
        allow_is_set,
        everybody,
        has_logins: accounts
            .iter()
            .flatten()
            .any(|account| account.platform == Platform::Wechat),
    };
    proxy.clients = resolver.clients(raw.client, &client_context);
    resolver.judge_default(raw.default_account.is_some(), accounts.len());
    proxy.default_account = resolver.default_account(raw.default_account, &names);
    Config {
        proxy,
        admin,
        token: token_settings(raw.token.map(|at| at.value).unwrap_or_default()),
        store: resolver.store(raw.store.map(|at| at.value).unwrap_or_default(), &whole),
        accounts: accounts.into_iter().flatten().collect(),
        warnings: Vec::new(),
    }
}

/// Returns the value of a key, or the default.
fn or<T, U>(key: Option<At<T>>, default: U, value: impl FnOnce(T) -> U) -> U {
    key.map_or(default, |at| value(at.value))
}

fn token_settings(raw: raw::Token) -> token::TokenSettings {
    let default = token::TokenSettings::default();
    token::TokenSettings {
        refresh_before: or(raw.refresh_before, default.refresh_before, |time| time.0),
        fetch_timeout: or(raw.fetch_timeout, default.fetch_timeout, |time| time.0),
        wait: or(raw.wait, default.wait, |time| time.0),
    }
}

impl ConfigResolver<'_> {
    /// Reports a key that belongs to the file format and is not built yet. `what` ends in a verb.
    fn not_built(&mut self, place: &KeyPlace, what: &str, instead: &str) {
        self.report.problem(
            place,
            format!("{what} not built yet in this version; {instead}"),
        );
    }

    /// Reports a missing key, unless a problem with the key was reported already.
    fn missing(&mut self, place: &KeyPlace, message: &str) {
        if !self.report.concerns(place) {
            self.report.problem(place, message);
        }
    }

    /// Returns settings that were accepted, or reports the error.
    fn usable<T>(&mut self, place: &KeyPlace, settings: Result<T, impl Display>) -> Option<T> {
        settings
            .map_err(|error| self.report.problem(place, error.to_string()))
            .ok()
    }

    fn admin(
        &mut self,
        raw: raw::Admin,
        taken: &[ListenAddr],
        whole: &KeyPlace,
    ) -> admin::settings::AdminSettings {
        let default = admin::settings::AdminSettings::default();
        let key_place = raw.listen.as_ref().map_or(whole, |at| &at.place);
        let mut key_place = key_place.clone();
        "admin.key".clone_into(&mut key_place.path);
        if let Some(at) = &raw.listen
            && server::clash(&at.value, taken)
        {
            self.report.problem(
                &at.place,
                "is used by server.listen already: the two need different addresses",
            );
        }
        let key = raw.key.and_then(|form| self.secret(&form));
        let listen = or(raw.listen, default.listen, |listen| listen);
        if !listen.is_local() && key.is_none() {
            self.missing(
                &key_place,
                "must be set, since other machines can reach admin.listen: key = { env = \"WXGATE_ADMIN_KEY\" }",
            );
        }
        let hosts = or(raw.hosts, default.hosts, |hosts| {
            hosts.into_iter().map(|host| host.value.0).collect()
        });
        admin::settings::AdminSettings { listen, key, hosts }
    }
}
