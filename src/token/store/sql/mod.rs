//! Records in a database that any number of nodes share, each as one row: SQLite, PostgreSQL, MySQL
//! or MariaDB.
//!
//! A row is replaced by a statement that names the revision it replaces, so that no node can
//! overwrite what it has not read. Operators can read all columns; wxgate believes `content` alone.

mod address;
mod connection;
mod dialect;
mod fault;
mod pool;
mod schema;
mod session;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Notify;

pub use address::SqlSettings;

use self::{
    address::SqlTarget,
    connection::{SqlConnection, SqlValue},
    dialect::{Dialect, Statements},
    pool::{PooledConnection, SqlPool},
    session::SqlSession,
};
use super::{
    CredentialType, Keyring, Lease, RecordKey, ServerFault,
    notifier::ChangeNotifier,
    server::{Backend, NewRecord, ServerStore, StoredBytes},
};
use crate::token::clock::millis;

/// Store in a database.
pub type SqlStore = ServerStore<SqlBackend>;

/// Protocol of a database.
pub struct SqlBackend {
    settings: SqlSettings,
    ca_file: Option<PathBuf>,
    dialect: Dialect,
    statements: Statements,
    notifier: Arc<ChangeNotifier>,
}

/// Attempts to take a lease that other nodes take and give back in between.
const MAX_LEASE_TRIES: u32 = 32;

impl SqlStore {
    /// Begins to connect, on the current runtime. The server need not be there yet; tables are made
    /// when it is. With TLS, certificates of `ca_file` are trusted beside those of the platform.
    pub fn open(settings: &SqlSettings, keys: Option<Keyring>, ca_file: Option<&Path>) -> Self {
        // Settings are only made of URLs that say which database it is.
        let dialect = settings.dialect().unwrap_or(Dialect::Sqlite);
        let notifier = Arc::new(ChangeNotifier::default());
        let backend = SqlBackend {
            settings: settings.clone(),
            ca_file: ca_file.map(Path::to_owned),
            dialect,
            statements: dialect.statements(settings.prefix()),
            notifier: Arc::clone(&notifier),
        };
        Self::start(backend, notifier, keys)
    }
}

impl SqlBackend {
    fn target(&self) -> Result<SqlTarget, ServerFault> {
        self.settings
            .target(self.ca_file.as_deref())
            .map_err(|_| ServerFault::Unreachable)
    }

    /// Channel on which PostgreSQL tells the names of changed records.
    fn channel(&self) -> String {
        format!("{}changes", self.settings.prefix())
    }
}

impl Backend for SqlBackend {
    type Pool = SqlPool;
    type Connection = PooledConnection;
    type Session = SqlSession;

    /// Enough for two connections and for making the tables.
    const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
    /// Long enough for a turn in a burst of calls, and for opening a connection.
    const CHECKOUT_TIMEOUT: Duration = Duration::from_millis(1500);

    async fn open(&self) -> Result<(SqlPool, SqlSession), ServerFault> {
        SqlSession::open(self).await
    }

    async fn watch(&self, session: SqlSession, doubt: &Notify) -> ServerFault {
        session.watch(self, doubt).await
    }

    async fn checkout(&self, pool: &SqlPool) -> Result<PooledConnection, ServerFault> {
        pool.checkout(|| self.target()).await
    }

    fn give_back(connection: PooledConnection) {
        connection.give_back();
    }

    fn doubts(fault: ServerFault) -> bool {
        !fault.is_of_one_record()
    }

    async fn read(
        &self,
        pooled: &mut PooledConnection,
        key: &RecordKey,
    ) -> Result<Option<StoredBytes>, ServerFault> {
        let row = pooled
            .connection
            .first(&self.statements.load, &name(key))
            .await?;
        Ok(row.map(|row| StoredBytes {
            content: row.bytes,
            revision: row.number,
        }))
    }

    async fn replace(
        &self,
        pooled: &mut PooledConnection,
        key: &RecordKey,
        old: Option<&StoredBytes>,
        new: NewRecord<'_>,
    ) -> Result<bool, ServerFault> {
        let mut values = columns(new);
        values.extend(name(key));
        let statement = match old {
            Some(old) => {
                values.push(old.revision.into());
                &self.statements.update
            }
            None => &self.statements.insert,
        };
        if self.dialect.notifies() {
            values.extend([self.channel().into(), key.to_string().into()]);
        }
        let written = wrote(&mut pooled.connection, statement, &values).await?;
        if written && !self.dialect.notifies() {
            // Other nodes see the change at their next check, this one at once.
            self.notifier.notify(&key.to_string());
        }
        Ok(written)
    }

    async fn lease(
        &self,
        pooled: &mut PooledConnection,
        key: &RecordKey,
        owner: &str,
        life: Duration,
    ) -> Result<Lease, ServerFault> {
        let connection = &mut pooled.connection;
        let [account, kept] = name(key);
        let take = [owner.into(), number(millis(life)), account, kept];
        let renew = [&take[..], &[owner.into()]].concat();
        for _ in 0..MAX_LEASE_TRIES {
            if wrote(connection, &self.statements.take, &take).await?
                || wrote(connection, &self.statements.renew, &renew).await?
            {
                return Ok(Lease::Granted);
            }
            // Given back meanwhile, there is no row; over by now, nothing is left of it.
            let row = connection.first(&self.statements.left, &name(key)).await?;
            if let Some(row) = row.filter(|row| row.number > 0) {
                return Ok(Lease::Held {
                    left: Duration::from_millis(row.number.unsigned_abs()),
                });
            }
        }
        Err(ServerFault::Contended)
    }

    async fn release(
        &self,
        pooled: &mut PooledConnection,
        key: &RecordKey,
        owner: &str,
    ) -> Result<(), ServerFault> {
        let [account, kept] = name(key);
        let values = [account, kept, owner.into()];
        pooled
            .connection
            .run(&self.statements.release, &values)
            .await?;
        Ok(())
    }
}

/// Runs a statement that writes one row, and tells if it wrote. A database that locks rows may make
/// one of several writers of the same row fail: that one has not written.
async fn wrote(
    connection: &mut SqlConnection,
    statement: &str,
    values: &[SqlValue],
) -> Result<bool, ServerFault> {
    match connection.run(statement, values).await {
        Ok(rows) => Ok(rows > 0),
        Err(ServerFault::Busy) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Key in its two columns: `shop`, and `token` or the type of a ticket.
fn name(key: &RecordKey) -> [SqlValue; 2] {
    let credential = match key.credential {
        CredentialType::Token => "token",
        CredentialType::Ticket(kind) => kind.as_str(),
        CredentialType::PhantomKeys => "phantoms",
    };
    [key.account.as_str().into(), credential.into()]
}

/// Record in the order of the columns.
fn columns(NewRecord { record, content }: NewRecord<'_>) -> Vec<SqlValue> {
    // Any number serves, as long as each write has another one.
    let revision = getrandom::u64().unwrap_or(record.generation.0) >> 1;
    let token = record.token.as_ref();
    let time = |ms: Option<u64>| SqlValue::Text(ms.and_then(date));
    vec![
        number(revision),
        String::from_utf8_lossy(content).into_owned().into(),
        record.identity.appid.as_str().into(),
        record.identity.kind.as_str().into(),
        number(record.generation.0),
        SqlValue::Text(token.map(|token| token.value.fingerprint())),
        time(token.map(|token| token.fetched_ms)),
        time(token.map(|token| token.expires_ms)),
        humantime::format_rfc3339_millis(SystemTime::now())
            .to_string()
            .into(),
    ]
}

/// Date in UTC; `None` for times after the year 9999, which have none.
fn date(ms: u64) -> Option<String> {
    const YEAR_9999: u64 = 253_402_300_799;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
    (ms / 1000 <= YEAR_9999).then(|| humantime::format_rfc3339_millis(time).to_string())
}

fn number(number: u64) -> SqlValue {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
