//! `[store]`.

use std::path::PathBuf;

use super::or;
#[cfg(feature = "sql")]
use crate::token::store::SqlSettings;
use crate::{
    config::{
        problem::Place,
        raw::{self, StoreKind},
        read::At,
        secret::Context,
    },
    token::store::{Keyring, RedisSettings, Settings},
};

/// What keys in a shared store begin with by default.
const PREFIX: &str = "wxgate:";

impl Context<'_> {
    /// Where tokens survive; something else than was meant when something about it is wrong.
    pub(super) fn store(&mut self, raw: raw::Store, whole: &Place) -> Settings {
        let kind = raw.kind.as_ref().map_or(StoreKind::File, |at| at.value);
        if let (StoreKind::Memory, Some(at)) = (kind, &raw.encryption_key) {
            self.report
                .warning(&at.place, "has no effect with kind = \"memory\"");
        }
        let without_path = match kind {
            StoreKind::Memory => Some("memory"),
            StoreKind::Redis => Some("redis"),
            StoreKind::Sql => Some("sql"),
            StoreKind::File => None,
        };
        if let (Some(kind), Some(at)) = (without_path, &raw.path) {
            self.report
                .warning(&at.place, format!("has no effect with kind = \"{kind}\""));
        }
        if let (StoreKind::Memory | StoreKind::File, Some(at)) = (kind, &raw.url) {
            self.report.problem(
                &at.place,
                "is for kind = \"redis\" and \"sql\" only: set store.kind, or remove the key",
            );
        }
        if let (StoreKind::Memory | StoreKind::File, Some(at)) = (kind, &raw.prefix)
            && at.value != PREFIX
        {
            self.report.warning(
                &at.place,
                "has no effect: only kind = \"redis\" and \"sql\" use it",
            );
        }
        match kind {
            StoreKind::Memory => Settings::Memory,
            StoreKind::Redis => {
                let place = raw.kind.as_ref().map_or(whole, |at| &at.place).clone();
                let keys = raw.encryption_key.and_then(|at| self.keyring(&at));
                let server = self.redis_store(raw.url, raw.prefix, place);
                server.map_or(Settings::Memory, |server| Settings::Redis { server, keys })
            }
            StoreKind::Sql => {
                let place = raw.kind.as_ref().map_or(whole, |at| &at.place).clone();
                let keys = raw.encryption_key.and_then(|at| self.keyring(&at));
                self.sql_store(raw.url, raw.prefix, keys, place)
                    .unwrap_or(Settings::Memory)
            }
            StoreKind::File => {
                let path = or(raw.path, self.base_dir.join("wxgate-state"), PathBuf::from);
                Settings::File {
                    path,
                    keys: raw.encryption_key.and_then(|at| self.keyring(&at)),
                }
            }
        }
    }

    #[cfg(not(feature = "sql"))]
    #[expect(clippy::needless_pass_by_value, reason = "as its twin")]
    fn sql_store(
        &mut self,
        _: Option<At<raw::SecretForm>>,
        _: Option<At<String>>,
        _: Option<Keyring>,
        place: Place,
    ) -> Option<Settings> {
        let message = "this wxgate was built without databases: build it with cargo build --release --features sql, \
                       or use \"file\", \"redis\" or \"memory\"";
        self.report.problem(&place, message);
        None
    }

    #[cfg(feature = "sql")]
    fn sql_store(
        &mut self,
        url: Option<At<raw::SecretForm>>,
        prefix: Option<At<String>>,
        keys: Option<Keyring>,
        mut place: Place,
    ) -> Option<Settings> {
        if let Some(at) = prefix
            .as_ref()
            .filter(|at| !SqlSettings::is_prefix(&at.value))
        {
            self.report.problem(
                &at.place,
                "must begin with a letter and have at most 40 bytes: tables are named by it",
            );
        }
        let prefix = or(prefix, PREFIX.to_owned(), |prefix| prefix);
        let Some(form) = url else {
            "store.url".clone_into(&mut place.path);
            self.missing(
                &place,
                "must be set for kind = \"sql\": url = { env = \"DATABASE_URL\" }",
            );
            return None;
        };
        let url = self.secret(&form)?;
        match SqlSettings::new(url, &prefix, self.base_dir) {
            Ok(server) => {
                if server.is_in_the_clear() {
                    self.report.warning(
                        &form.place,
                        "tokens cross the network in the clear; ?sslmode=verify-full has them encrypted",
                    );
                }
                Some(Settings::Sql { server, keys })
            }
            Err(message) => {
                self.report.problem(&form.place, message);
                None
            }
        }
    }

    fn keyring(&mut self, form: &At<raw::SecretForm>) -> Option<Keyring> {
        let keys = Keyring::parse(&self.secret(form)?);
        keys.map_err(|error| self.report.problem(&form.place, error.to_string()))
            .ok()
    }

    fn redis_store(
        &mut self,
        url: Option<At<raw::SecretForm>>,
        prefix: Option<At<String>>,
        mut place: Place,
    ) -> Option<RedisSettings> {
        if let Some(at) = prefix
            .as_ref()
            .filter(|at| !RedisSettings::is_prefix(&at.value))
        {
            self.report.problem(
                &at.place,
                "must be at most 64 visible ASCII characters without { and }",
            );
        }
        let prefix = or(prefix, PREFIX.to_owned(), |prefix| prefix);
        let Some(form) = url else {
            "store.url".clone_into(&mut place.path);
            self.missing(
                &place,
                "must be set for kind = \"redis\": url = { env = \"REDIS_URL\" }",
            );
            return None;
        };
        let url = self.secret(&form)?;
        match RedisSettings::new(url, prefix) {
            Ok(settings) => {
                if settings.is_in_the_clear() {
                    self.report.warning(
                        &form.place,
                        "tokens cross the network in the clear; rediss:// has them encrypted",
                    );
                }
                Some(settings)
            }
            Err(message) => {
                self.report.problem(&form.place, message);
                None
            }
        }
    }
}
