//! Databases with room for one test: a prefix that nobody else has.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _, SqliteConnection,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wxgate::internals::{
    base::Secret,
    token::store::{RecordKey, SqlSettings, SqlStore, StoreError, TokenRecord, TokenStore},
};

use super::servers::{PASSWORD, Server};
use crate::{
    store_contract::{self, KEY, ring, token_of},
    support::token_tools::DEADLINE,
};

/// Where records lie.
pub struct Place {
    pub url: String,
    pub prefix: String,
    pub sealed: bool,
    _file: Option<TempDir>,
}

/// A file for one test, with or without a key.
pub struct File<const SEALED: bool>(Place);

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Place {
    fn at(url: String, file: Option<TempDir>) -> Self {
        Self {
            url,
            prefix: format!("t{}:", NUMBER.fetch_add(1, Relaxed)),
            sealed: false,
            _file: file,
        }
    }

    /// A file of its own.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::at(
            format!("sqlite://{}", folder.path().join("tokens.db").display()),
            Some(folder),
        )
    }

    pub fn postgres(server: &Server) -> Self {
        Self::at(postgres_url(server), None)
    }

    pub fn mariadb(server: &Server) -> Self {
        let socket = server.folder.path().join("mariadb.sock");
        Self::at(
            format!(
                "mysql://wxgate:{PASSWORD}@localhost/wxgate?socket={}",
                socket.display()
            ),
            None,
        )
    }

    pub fn settings(&self) -> SqlSettings {
        settings(&self.url, &self.prefix)
    }

    /// The store as one more node sees it.
    pub fn node(&self) -> Arc<dyn TokenStore> {
        Arc::new(SqlStore::open(
            &self.settings(),
            self.sealed.then(|| ring(KEY)),
            None,
        ))
    }

    /// The same with a key.
    pub fn sealed(self) -> Self {
        Self {
            sealed: true,
            ..self
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(self.url.strip_prefix("sqlite://").expect("a file"))
    }

    /// Runs a statement as an operator does; `PREFIX_` stands for its own. Gives the first column
    /// of the first row as text.
    pub async fn run(&self, sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(sql.replace("PREFIX_", &self.prefix.replace(':', "_")));
        macro_rules! answer {
            ($connection:ty, $url:expr) => {{
                let mut line = <$connection>::connect($url).await.expect("it answers");
                let row = sqlx::query(sql)
                    .fetch_optional(&mut line)
                    .await
                    .expect("a statement");
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

impl store_contract::Place for Place {
    const LASTING: bool = true;

    /// Those that cost little come from [`File`], the others are made by their test.
    async fn fresh() -> Option<Self> {
        None
    }

    fn node(&self) -> Arc<dyn TokenStore> {
        self.node()
    }

    /// The database goes on; nodes are made anew each time.
    async fn restart(&mut self) {}

    /// As far as a column of text can hold such bytes.
    async fn poison(&self, key: &RecordKey, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes).replace('\0', "");
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let content = match self.url.split_once(':').expect("a URL").0 {
            "sqlite" => format!("CAST(X'{}' AS TEXT)", hex(bytes)),
            "postgres" => format!(
                "convert_from(decode('{}', 'hex'), 'UTF8')",
                hex(text.as_bytes())
            ),
            _ => format!("CONVERT(X'{}' USING utf8mb4)", hex(text.as_bytes())),
        };
        let name = key.to_string();
        let (account, kept) = name.split_once('.').unwrap_or((&name, "token"));
        let row = format!("account = '{account}' AND kept = '{kept}'");
        self.run(&format!(
            "UPDATE PREFIX_records SET content = {content} WHERE {row}"
        ))
        .await;
        true
    }
}

impl<const SEALED: bool> store_contract::Place for File<SEALED> {
    const LASTING: bool = true;

    async fn fresh() -> Option<Self> {
        Some(Self(Place {
            sealed: SEALED,
            ..Place::sqlite()
        }))
    }

    fn node(&self) -> Arc<dyn TokenStore> {
        self.0.node()
    }

    async fn restart(&mut self) {}

    async fn poison(&self, key: &RecordKey, bytes: &[u8]) -> bool {
        self.0.poison(key, bytes).await
    }
}

pub fn settings(url: &str, prefix: &str) -> SqlSettings {
    SqlSettings::new(Secret::new(url), prefix, Path::new("/")).expect("settings")
}

/// As a configuration has it.
pub fn postgres_url(server: &Server) -> String {
    let folder = server
        .folder
        .path()
        .display()
        .to_string()
        .replace('/', "%2F");
    format!("postgres://wxgate@{folder}/postgres")
}

/// Over TCP, with a password.
pub fn postgres_over_tcp(server: &Server, host: &str, query: &str) -> String {
    let port = server.tcp.expect("it listens");
    format!("postgres://wxgate:{PASSWORD}@{host}:{port}/postgres{query}")
}

/// Asks until the answer is as wished; a store comes back in its own time.
pub async fn until(
    node: &dyn TokenStore,
    wished: impl Fn(&Result<Option<TokenRecord>, StoreError>) -> bool,
) {
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
