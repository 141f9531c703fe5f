//! `[store]`.

use std::path::PathBuf;

use super::or;
#[cfg(feature = "sql")]
use crate::token::store::SqlSettings;
use crate::{
    base::Secret,
    config::{
        problem::KeyPlace,
        raw::{self, StoreKind},
        read::At,
        secret::ConfigResolver,
    },
    token::store::{Keyring, RedisSettings, StoreLocation, StoreSettings},
};

/// Default of `store.prefix`.
const PREFIX: &str = "wxgate:";

impl ConfigResolver<'_> {
    /// Resolves the table `[store]`. A location that was refused becomes memory, which the problem
    /// in the report keeps from being used.
    pub(super) fn store(&mut self, raw: raw::Store, whole: &KeyPlace) -> StoreSettings {
        let kind = raw.kind.as_ref().map_or(StoreKind::File, |at| at.value);
        let place = raw.kind.as_ref().map_or(whole, |at| &at.place).clone();
        self.reject_unused_keys(kind, &raw);
        let keys = raw
            .encryption_key
            .as_ref()
            .filter(|_| kind != StoreKind::Memory)
            .and_then(|at| self.keyring(at));
        let location = match kind {
            StoreKind::Memory => None,
            StoreKind::File => {
                let path = or(raw.path, self.base_dir.join("wxgate-state"), PathBuf::from);
                Some(StoreLocation::File(path))
            }
            StoreKind::Redis => self.redis_store(raw, place),
            StoreKind::Sql => self.sql_store(raw, place),
        };
        StoreSettings {
            location: location.unwrap_or(StoreLocation::Memory),
            keys,
        }
    }

    /// Reports keys without a meaning for this kind of store. A URL is a problem, since it shows
    /// that another kind was meant; the others are warnings.
    fn reject_unused_keys(&mut self, kind: StoreKind, raw: &raw::Store) {
        let is_server = matches!(kind, StoreKind::Redis | StoreKind::Sql);
        let name = match kind {
            StoreKind::Memory => "memory",
            StoreKind::File => "file",
            StoreKind::Redis => "redis",
            StoreKind::Sql => "sql",
        };
        let no_effect = format!("has no effect with kind = \"{name}\"");
        if let (StoreKind::Memory, Some(at)) = (kind, &raw.encryption_key) {
            self.report.warning(&at.place, &*no_effect);
        }
        if let Some(at) = raw.path.as_ref().filter(|_| kind != StoreKind::File) {
            self.report.warning(&at.place, &*no_effect);
        }
        if is_server {
            return;
        }
        if let Some(at) = &raw.url {
            self.report.problem(
                &at.place,
                "is for kind = \"redis\" and \"sql\" only: set store.kind, or remove the key",
            );
        }
        if let Some(at) = raw.prefix.as_ref().filter(|at| at.value != PREFIX) {
            self.report.warning(
                &at.place,
                "has no effect: only kind = \"redis\" and \"sql\" use it",
            );
        }
    }

    fn redis_store(&mut self, raw: raw::Store, place: KeyPlace) -> Option<StoreLocation> {
        let prefix = self.store_prefix(
            raw.prefix,
            RedisSettings::is_prefix,
            "must be at most 64 visible ASCII characters without { and }",
        );
        let (place, url) = self.store_url(
            raw.url,
            place,
            "must be set for kind = \"redis\": url = { env = \"REDIS_URL\" }",
        )?;
        let settings = self.usable(&place, RedisSettings::new(url, prefix))?;
        if settings.is_in_the_clear() {
            self.report.warning(
                &place,
                "tokens cross the network in the clear; rediss:// has them encrypted",
            );
        }
        Some(StoreLocation::Redis(settings))
    }

    #[cfg(feature = "sql")]
    fn sql_store(&mut self, raw: raw::Store, place: KeyPlace) -> Option<StoreLocation> {
        let prefix = self.store_prefix(
            raw.prefix,
            SqlSettings::is_prefix,
            "must begin with a letter and have at most 40 bytes: tables are named by it",
        );
        let (place, url) = self.store_url(
            raw.url,
            place,
            "must be set for kind = \"sql\": url = { env = \"DATABASE_URL\" }",
        )?;
        let settings = self.usable(&place, SqlSettings::new(url, &prefix, self.base_dir))?;
        if settings.is_in_the_clear() {
            self.report.warning(
                &place,
                "tokens cross the network in the clear; ?sslmode=verify-full has them encrypted",
            );
        }
        Some(StoreLocation::Sql(settings))
    }

    #[cfg(not(feature = "sql"))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "same signature as with the feature"
    )]
    fn sql_store(&mut self, _: raw::Store, place: KeyPlace) -> Option<StoreLocation> {
        let message = "this wxgate was built without databases: build it with cargo build --release --features sql, \
                       or use \"file\", \"redis\" or \"memory\"";
        self.report.problem(&place, message);
        None
    }

    /// Returns `store.prefix` or its default, and reports `rule` for a prefix that does not fit.
    fn store_prefix(
        &mut self,
        prefix: Option<At<String>>,
        fits: fn(&str) -> bool,
        rule: &str,
    ) -> String {
        if let Some(at) = prefix.as_ref().filter(|at| !fits(&at.value)) {
            self.report.problem(&at.place, rule);
        }
        or(prefix, PREFIX.to_owned(), |prefix| prefix)
    }

    /// Returns `store.url` and its place, and reports `missing` if there is none.
    fn store_url(
        &mut self,
        url: Option<At<raw::SecretForm>>,
        mut place: KeyPlace,
        missing: &str,
    ) -> Option<(KeyPlace, Secret)> {
        let Some(form) = url else {
            "store.url".clone_into(&mut place.path);
            self.missing(&place, missing);
            return None;
        };
        let url = self.secret(&form)?;
        Some((form.place, url))
    }

    fn keyring(&mut self, form: &At<raw::SecretForm>) -> Option<Keyring> {
        let keys = Keyring::parse(&self.secret(form)?);
        keys.map_err(|error| self.report.problem(&form.place, error.to_string()))
            .ok()
    }
}
