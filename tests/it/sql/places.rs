//! Databases with room for one test: a prefix that nobody else has.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wxgate::{
    base::{AccountName, Secret},
    token::{
        Generation, Kind,
        budget::Budget,
        store::{Identity, Key, Record, SqlSettings, SqlStore, StoreError, StoredToken, TokenStore},
    },
};

use super::servers::{PASSWORD, Server};
use crate::token_tools::DEADLINE;

/// Where records lie.
pub struct Place {
    pub url: String,
    pub prefix: String,
    _file: Option<TempDir>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A record of account `wx0123456789abcdef`.
pub fn sample(generation: u64, token: Option<&str>) -> Record {
    let identity =
        Identity { appid: "wx0123456789abcdef".into(), kind: Kind::Stable, secret_fingerprint: "ba7816bf".into() };
    let stored = |value| StoredToken { value: Secret::new(value), fetched_ms: 10_000_000, expires_ms: 17_200_000 };
    Record {
        identity,
        generation: Generation(generation),
        token: token.map(stored),
        budget: Budget::default(),
        refusal: None,
    }
}

/// The key of an account's token.
pub fn token_of(account: &str) -> Key {
    Key::token(&AccountName::new(account).expect("a name"))
}

impl Place {
    fn at(url: String, file: Option<TempDir>) -> Self {
        Self { url, prefix: format!("t{}:", NUMBER.fetch_add(1, Relaxed)), _file: file }
    }

    /// A file of its own.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::at(format!("sqlite://{}", folder.path().join("tokens.db").display()), Some(folder))
    }

    pub fn postgres(server: &Server) -> Self {
        Self::at(postgres_url(server), None)
    }

    pub fn mariadb(server: &Server) -> Self {
        let socket = server.folder.path().join("mariadb.sock");
        Self::at(format!("mysql://wxgate:{PASSWORD}@localhost/wxgate?socket={}", socket.display()), None)
    }

    pub fn settings(&self) -> SqlSettings {
        settings(&self.url, &self.prefix)
    }

    /// The store as one more node sees it.
    pub fn node(&self) -> Arc<dyn TokenStore> {
        Arc::new(SqlStore::open(&self.settings(), None))
    }

    /// The file, where it is one.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(self.url.strip_prefix("sqlite://").expect("a file"))
    }

    /// Runs a statement as an operator does; `PREFIX_` stands for its own. Gives the first column of the first row as text.
    pub async fn run(&self, sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(sql.replace("PREFIX_", &self.prefix.replace(':', "_")));
        macro_rules! answer {
            ($connection:ty, $url:expr) => {{
                let mut line = <$connection>::connect($url).await.expect("it answers");
                let row = sqlx::query(sql).fetch_optional(&mut line).await.expect("a statement");
                row.map(|row| row.try_get_unchecked::<String, _>(0).unwrap_or_default())
            }};
        }
        match self.url.split_once(':').expect("a URL").0 {
            "sqlite" => answer!(SqliteConnection, &self.url),
            "postgres" => answer!(PgConnection, &self.url),
            _ => answer!(MySqlConnection, &self.url),
        }
    }
}

pub fn settings(url: &str, prefix: &str) -> SqlSettings {
    SqlSettings::new(Secret::new(url), prefix, Path::new("/")).expect("settings")
}

/// As a configuration has it.
pub fn postgres_url(server: &Server) -> String {
    let folder = server.folder.path().display().to_string().replace('/', "%2F");
    format!("postgres://wxgate@{folder}/postgres")
}

/// Over TCP, with a password.
pub fn postgres_over_tcp(server: &Server, host: &str, query: &str) -> String {
    let port = server.tcp.expect("it listens");
    format!("postgres://wxgate:{PASSWORD}@{host}:{port}/postgres{query}")
}

/// Asks until the answer is as wished; a store comes back in its own time.
pub async fn until(node: &dyn TokenStore, wished: impl Fn(&Result<Option<Record>, StoreError>) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = node.load(&token_of("shop")).await;
        if wished(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
