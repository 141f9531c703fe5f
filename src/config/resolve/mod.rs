//! From the raw file to settings: defaults, checks over several keys, secrets, and what is not
//! built yet.
//!
//! Goes on after a problem, with the default in its place, so that all are found; the settings
//! count only if there was none.

mod account;
mod client;
mod elsewhere;
mod server;
mod store;

use super::{Config, problem::Place, raw, read::At, secret::Context};
use crate::{admin, net::address::ListenAddr, token};

/// Builds everything but the warnings.
pub(super) fn resolve(raw: raw::File, context: &mut Context<'_>) -> Config {
    let whole = context.report.whole();
    let server = raw.server.map(|at| at.value).unwrap_or_default();
    let upstream = raw.upstream.map(|at| at.value).unwrap_or_default();
    let replay = raw.replay.map(|at| at.value).unwrap_or_default();
    let allow = server.allow.as_ref().map(|at| at.place.clone());
    let certificates = server
        .tls
        .as_ref()
        .is_some_and(|tls| tls.value.client_ca.is_some());
    let clients = raw.client.as_ref().map_or_else(
        || context.report.concerns(&whole.child("client")),
        |clients| !clients.value.is_empty(),
    );
    let mut proxy = context.server(server, clients);
    proxy.upstream = context.upstream(upstream);
    proxy.replay = context.replay(&replay);
    let admin = context.admin(
        raw.admin.map(|at| at.value).unwrap_or_default(),
        &proxy.listen,
        &whole,
    );
    let accounts = context.accounts(raw.account, &whole);
    let names = account::AccountNames::of(&accounts);
    let around = client::Around {
        accounts: &names,
        app_secrets: client::app_secrets(&accounts),
        certificates,
        allow: allow.as_ref(),
    };
    proxy.clients = context.clients(raw.client, &around);
    proxy.default_account = context.default_account(raw.default_account, &names);
    Config {
        proxy,
        admin,
        token: token_settings(raw.token.map(|at| at.value).unwrap_or_default()),
        store: context.store(raw.store.map(|at| at.value).unwrap_or_default(), &whole),
        accounts: accounts.into_iter().flatten().collect(),
        warnings: Vec::new(),
    }
}

/// Value of a key, or the default.
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

impl Context<'_> {
    /// Reports a key that the file format has and this version does not serve. `what` ends in a
    /// verb.
    fn not_built(&mut self, place: &Place, what: &str, instead: &str) {
        self.report.problem(
            place,
            format!("{what} not built yet in this version; {instead}"),
        );
    }

    /// Reports a missing key, unless a problem with the key was reported already.
    fn missing(&mut self, place: &Place, message: &str) {
        if !self.report.concerns(place) {
            self.report.problem(place, message);
        }
    }

    fn admin(
        &mut self,
        raw: raw::Admin,
        taken: &[ListenAddr],
        whole: &Place,
    ) -> admin::settings::Settings {
        let default = admin::settings::Settings::default();
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
        admin::settings::Settings { listen, key, hosts }
    }
}
