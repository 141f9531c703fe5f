//! Address of the database: `store.url` and `store.prefix`.
//!
//! The URL may hold a password, so it stays a secret and is parsed anew for each connection. The
//! client library does not get to see it: the library logs parameters that it does not know, and
//! may do without TLS by default.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use percent_encoding::percent_decode_str;
use reqwest::Url;
use sqlx::{
    ConnectOptions as _,
    mysql::{MySqlConnectOptions, MySqlSslMode},
    postgres::{PgConnectOptions, PgSslMode},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::dialect::Dialect;
use crate::{
    base::Secret,
    net::address::{is_loopback_host, without_brackets},
    token::store::{StoreUrlError, server::CALL_TIMEOUT},
};

/// Settings of `kind = "sql"`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlSettings {
    url: Secret,
    prefix: String,
    base: PathBuf,
}

/// Parsed URL, as options of the client library.
#[derive(Clone)]
pub(super) enum SqlTarget {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
    Mysql(Box<MySqlConnectOptions>),
}

/// Parts of the URL of a server.
struct UrlParts {
    host: Option<String>,
    port: Option<u16>,
    user: String,
    password: Option<String>,
    database: String,
    tls: bool,
    /// Unix socket, or for PostgreSQL its folder.
    socket: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl SqlSettings {
    /// Longest prefix, in bytes; databases cut or refuse longer names of tables.
    pub const MAX_PREFIX: usize = 40;

    /// Database at `url`, where names of tables begin with the letters and digits of `prefix`, all
    /// else as `_`. A relative path of a file begins at `base`.
    ///
    /// # Errors
    /// The URL has no usable form.
    pub fn new(url: Secret, prefix: &str, base: &Path) -> Result<Self, StoreUrlError> {
        let named = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        };
        let settings = Self {
            url,
            prefix: prefix.chars().map(named).collect(),
            base: base.to_owned(),
        };
        settings.target(None)?;
        Ok(settings)
    }

    /// Tells if names of tables can begin with this: short, and with a letter first.
    pub fn is_prefix(text: &str) -> bool {
        text.len() <= Self::MAX_PREFIX
            && text
                .bytes()
                .next()
                .is_none_or(|first| first.is_ascii_alphabetic())
    }

    /// Prefix of all tables.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Tells if both name the same database in the same words.
    pub fn has_same_url(&self, other: &Self) -> bool {
        (&self.url, &self.base) == (&other.url, &other.base)
    }

    /// Tells if password and tokens cross a network that others may read.
    pub fn is_in_the_clear(&self) -> bool {
        self.parts().is_ok_and(|parts| {
            let is_remote = parts
                .host
                .as_ref()
                .is_some_and(|host| !is_loopback_host(host));
            is_remote && !parts.tls && parts.socket.is_none()
        })
    }

    /// Options to connect with; certificates of `ca_file` are trusted beside the platform's.
    pub(super) fn target(&self, ca_file: Option<&Path>) -> Result<SqlTarget, StoreUrlError> {
        match self.dialect()? {
            Dialect::Sqlite => Ok(SqlTarget::Sqlite(Box::new(file(&self.path()?)))),
            Dialect::Postgres => postgres(&self.parts()?, ca_file)
                .map(|options| SqlTarget::Postgres(Box::new(options))),
            Dialect::Mysql => {
                mysql(&self.parts()?, ca_file).map(|options| SqlTarget::Mysql(Box::new(options)))
            }
        }
    }

    pub(super) fn dialect(&self) -> Result<Dialect, StoreUrlError> {
        match self
            .url
            .expose()
            .split_once("://")
            .map(|(scheme, _)| scheme)
        {
            Some("sqlite") => Ok(Dialect::Sqlite),
            Some("postgres" | "postgresql") => Ok(Dialect::Postgres),
            Some("mysql" | "mariadb") => Ok(Dialect::Mysql),
            _ => Err(StoreUrlError::SqlForm),
        }
    }

    /// File of SQLite.
    pub(super) fn path(&self) -> Result<PathBuf, StoreUrlError> {
        let path = self
            .url
            .expose()
            .strip_prefix("sqlite://")
            .ok_or(StoreUrlError::SqliteFile)?;
        let is_file = !path.is_empty()
            && !path.ends_with('/')
            && !path.contains(['?', '#'])
            && !path.starts_with(':');
        if is_file {
            Ok(self.base.join(path))
        } else {
            Err(StoreUrlError::SqliteFile)
        }
    }

    fn parts(&self) -> Result<UrlParts, StoreUrlError> {
        let url = Url::parse(self.url.expose()).map_err(|_| StoreUrlError::SqlForm)?;
        let mut parts = UrlParts {
            host: url
                .host_str()
                .map(|host| decoded(without_brackets(host)).into_owned()),
            port: url.port(),
            user: decoded(url.username()).into_owned(),
            password: url
                .password()
                .map(|password| decoded(password).into_owned()),
            database: decoded(url.path().trim_start_matches('/')).into_owned(),
            tls: false,
            socket: None,
            certificate: None,
            key: None,
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" | "ssl-mode" => parts.tls = verified(&value)?,
                "sslcert" | "ssl-cert" => parts.certificate = Some(self.base.join(&*value)),
                "sslkey" | "ssl-key" => parts.key = Some(self.base.join(&*value)),
                "host" | "socket" if value.starts_with('/') => {
                    parts.socket = Some(PathBuf::from(&*value));
                }
                _ => return Err(StoreUrlError::UnknownParameter),
            }
        }
        if let Some(folder) = parts.host.take_if(|host| host.starts_with('/')) {
            parts.socket = Some(folder.into());
        }
        let is_somewhere =
            parts.socket.is_some() || parts.host.as_ref().is_some_and(|host| !host.is_empty());
        let is_whole = is_somewhere && !parts.database.is_empty() && !parts.user.is_empty();
        if is_whole && parts.certificate.is_some() == parts.key.is_some() {
            Ok(parts)
        } else {
            Err(StoreUrlError::SqlForm)
        }
    }
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

/// Tells if a mode asks for TLS, which is always verified in full.
fn verified(mode: &str) -> Result<bool, StoreUrlError> {
    match mode.to_ascii_lowercase().replace('_', "-").as_str() {
        "disable" | "disabled" => Ok(false),
        "require" | "required" | "verify-ca" | "verify-full" | "verify-identity" => Ok(true),
        _ => Err(StoreUrlError::OptionalTls),
    }
}

fn file(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(CALL_TIMEOUT * 4 / 5)
        .disable_statement_logging()
}

fn postgres(parts: &UrlParts, ca_file: Option<&Path>) -> Result<PgConnectOptions, StoreUrlError> {
    let mode = if parts.tls {
        PgSslMode::VerifyFull
    } else {
        PgSslMode::Disable
    };
    let mut options = PgConnectOptions::new_without_pgpass()
        .username(&parts.user)
        .database(&parts.database)
        .port(parts.port.unwrap_or(5432))
        .ssl_mode(mode)
        .application_name("wxgate")
        // A pooler in between may not know it, and no number here has a fraction.
        .extra_float_digits(None)
        .disable_statement_logging();
    options = match (&parts.socket, &parts.host) {
        (Some(folder), _) => options.socket(folder),
        (None, host) => options.host(host.as_deref().ok_or(StoreUrlError::SqlForm)?),
    };
    if let Some(password) = &parts.password {
        options = options.password(password);
    }
    if let Some(path) = ca_file {
        options = options.ssl_root_cert(path);
    }
    if let (Some(certificate), Some(key)) = (&parts.certificate, &parts.key) {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(options)
}

fn mysql(parts: &UrlParts, ca_file: Option<&Path>) -> Result<MySqlConnectOptions, StoreUrlError> {
    let mode = if parts.tls {
        MySqlSslMode::VerifyIdentity
    } else {
        MySqlSslMode::Disabled
    };
    let mut options = MySqlConnectOptions::new()
        .username(&parts.user)
        .database(&parts.database)
        .port(parts.port.unwrap_or(3306))
        .ssl_mode(mode)
        .disable_statement_logging();
    options = match (&parts.socket, &parts.host) {
        (Some(socket), _) => options.socket(socket),
        (None, host) => options.host(host.as_deref().ok_or(StoreUrlError::SqlForm)?),
    };
    if let Some(password) = &parts.password {
        options = options.password(password);
    }
    if let Some(path) = ca_file {
        options = options.ssl_ca(path);
    }
    if let (Some(certificate), Some(key)) = (&parts.certificate, &parts.key) {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(url: &str) -> Result<SqlSettings, StoreUrlError> {
        SqlSettings::new(Secret::new(url), "wxgate:", Path::new("/etc/wxgate"))
    }

    #[test]
    fn a_url_says_which_database_it_is_and_whether_others_can_listen() {
        for (url, dialect, in_the_clear) in [
            ("sqlite://tokens.db", Dialect::Sqlite, false),
            ("postgres://u:p@db.internal/wx", Dialect::Postgres, true),
            (
                "postgresql://u:p@db.internal:6432/wx?sslmode=verify-full",
                Dialect::Postgres,
                false,
            ),
            (
                "postgres://u@db.internal/wx?sslmode=disable",
                Dialect::Postgres,
                true,
            ),
            (
                "postgres://u@%2Frun%2Fpostgresql/wx",
                Dialect::Postgres,
                false,
            ),
            ("postgres://u@[::1]/wx", Dialect::Postgres, false),
            ("postgres://u@127.0.0.1/wx", Dialect::Postgres, false),
            (
                "mysql://u:p@localhost/wx?socket=/run/mysqld.sock",
                Dialect::Mysql,
                false,
            ),
            ("mariadb://u:p@10.0.0.7/wx", Dialect::Mysql, true),
            (
                "mysql://u:p@10.0.0.7/wx?ssl-mode=VERIFY_IDENTITY&sslcert=a.pem&sslkey=a.key",
                Dialect::Mysql,
                false,
            ),
        ] {
            let settings = new(url).unwrap_or_else(|problem| panic!("{url}: {problem}"));
            assert_eq!(
                (settings.dialect(), settings.is_in_the_clear()),
                (Ok(dialect), in_the_clear),
                "{url}"
            );
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_form_that_does() {
        for (url, problem) in [
            ("redis://host", StoreUrlError::SqlForm),
            ("tokens.db", StoreUrlError::SqlForm),
            ("postgres://u@host", StoreUrlError::SqlForm),
            ("postgres://host/wx", StoreUrlError::SqlForm),
            ("mysql://u@/wx", StoreUrlError::SqlForm),
            (
                "mysql://u@host/wx?sslcert=only-half.pem",
                StoreUrlError::SqlForm,
            ),
            ("sqlite://", StoreUrlError::SqliteFile),
            ("sqlite://:memory:", StoreUrlError::SqliteFile),
            ("sqlite://tokens.db?mode=ro", StoreUrlError::SqliteFile),
            (
                "postgres://u@host/wx?sslmode=prefer",
                StoreUrlError::OptionalTls,
            ),
            (
                "mysql://u@host/wx?ssl-mode=PREFERRED",
                StoreUrlError::OptionalTls,
            ),
            (
                "postgres://u@host/wx?passwrd=secret",
                StoreUrlError::UnknownParameter,
            ),
        ] {
            assert_eq!(new(url), Err(problem), "{url}");
        }
    }

    #[test]
    fn a_prefix_becomes_a_name_that_every_database_takes() {
        let of = |prefix: &str| {
            SqlSettings::new(Secret::new("sqlite://a"), prefix, Path::new("/"))
                .unwrap()
                .prefix()
                .to_owned()
        };
        assert_eq!(
            (of("wxgate:"), of("Team-1."), of("")),
            ("wxgate_".into(), "team_1_".into(), String::new())
        );
        assert!(SqlSettings::is_prefix("wxgate:") && SqlSettings::is_prefix(""));
        assert!(
            !SqlSettings::is_prefix("1st")
                && !SqlSettings::is_prefix(":")
                && !SqlSettings::is_prefix(&"a".repeat(41))
        );
    }

    #[test]
    fn a_relative_file_lies_beside_the_configuration() {
        assert_eq!(
            new("sqlite://tokens.db").unwrap().path(),
            Ok("/etc/wxgate/tokens.db".into())
        );
        assert_eq!(
            new("sqlite:///var/lib/t.db").unwrap().path(),
            Ok("/var/lib/t.db".into())
        );
    }
}
