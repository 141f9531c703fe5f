//! Records in a database that any number of nodes share, each as one row: SQLite, PostgreSQL, MySQL
//! or MariaDB.
//!
//! A row is replaced by a statement that names the revision it replaces, so that no node can
//! overwrite what it has not read; all else about records is decided here. Operators can read all
//! columns; wxgate believes `content` alone. Staying connected is the business of `link`.

mod address;
mod dialect;
mod fault;
mod line;
mod link;
mod schema;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

pub use address::Settings;

use self::{
    dialect::{Dialect, Statements},
    line::{CALL, Line, Value},
    link::{Lent, Link},
};
use super::{
    BoxFuture, Kept, Key, Keyring, Lease, Locked, Record, Saved, ServerFault, StoreError,
    TokenStore,
    bell::Bell,
    codec::{Codec, Damage, Decoded},
    health::Health,
};
use crate::token::clock::millis;

/// A client of the database. Reconnects by itself until it is dropped.
pub struct SqlStore {
    dialect: Dialect,
    prefix: String,
    statements: Arc<Statements>,
    link: Link,
    bell: Arc<Bell>,
    health: Health,
    codec: Codec,
}

/// A row as it was read.
struct Held {
    revision: i64,
    /// Nothing, where something else than a record may be replaced.
    record: Option<Record>,
}

/// So many nodes may write in between.
const TRIES: u32 = 32;

impl SqlStore {
    /// Begins to connect, on the current runtime. The server need not be there yet; tables are made
    /// when it is. With TLS, certificates of `ca_file` are trusted beside those of the platform.
    pub fn open(settings: &Settings, keys: Option<Keyring>, ca_file: Option<&Path>) -> Self {
        // Settings are only made of URLs that say which database it is.
        let dialect = settings.dialect().unwrap_or(Dialect::Sqlite);
        let statements = Arc::new(dialect.statements(settings.prefix()));
        let bell = Arc::new(Bell::default());
        let link = Link::start(
            settings,
            ca_file.map(Path::to_owned),
            Arc::clone(&statements),
            Arc::clone(&bell),
        );
        let prefix = settings.prefix().to_owned();
        Self {
            dialect,
            prefix,
            statements,
            link,
            bell,
            health: Health::default(),
            codec: Codec::new(keys),
        }
    }

    async fn lend(&self, operation: &'static str, key: &Key) -> Result<Lent, ServerFault> {
        let lent = self.link.lend().await;
        if let Err(fault) = &lent {
            self.note(operation, key, *fault);
        }
        lent
    }

    /// After a call that was `asked` over `lent`.
    fn settle<T>(
        &self,
        operation: &'static str,
        key: &Key,
        lent: Lent,
        asked: Result<T, ServerFault>,
    ) -> Result<T, ServerFault> {
        match &asked {
            Ok(_) => {
                self.health.works(operation, key);
                lent.give_back();
            }
            Err(fault) if fault.is_of_one_record() => {
                self.health.failed(operation, key, *fault);
                lent.give_back();
            }
            Err(fault) => {
                drop(lent);
                self.link.doubt();
                self.note(operation, key, *fault);
            }
        }
        asked
    }

    fn note(&self, operation: &'static str, key: &Key, fault: ServerFault) {
        // What is down altogether has been said by the link.
        if self.link.is_up() {
            self.health.failed(operation, key, fault);
        }
    }

    async fn read(&self, line: &mut Line, key: &Key) -> Result<Option<Held>, ServerFault> {
        let Some(found) = line.find(&self.statements.load, &name(key)).await? else {
            return Ok(None);
        };
        let record = match self.codec.decode(key, &found.bytes) {
            Ok(Decoded { record, .. }) => {
                self.health.works("read", key);
                Some(record)
            }
            // Replaced with the next write, so that nobody has to clean up.
            Err(Damage::Content | Damage::Sealed(Locked::Forged)) => {
                self.health.failed("read", key, ServerFault::Damaged);
                None
            }
            // Nodes with other keys would replace each other's records without end.
            Err(Damage::Version | Damage::Sealed(_)) => {
                self.health.failed("read", key, ServerFault::Unreadable);
                return Err(ServerFault::Unreadable);
            }
        };
        Ok(Some(Held {
            revision: found.number,
            record,
        }))
    }

    async fn write(
        &self,
        line: &mut Line,
        key: &Key,
        record: &Record,
    ) -> Result<Saved, ServerFault> {
        for _ in 0..TRIES {
            let held = self.read(line, key).await?;
            let there = held.as_ref().and_then(|held| held.record.as_ref());
            if let Some(there) = there.filter(|there| !there.gives_way_to(record)) {
                return Ok(Saved::Newer(Box::new(there.clone())));
            }
            let record = record.clone().over(there);
            let mut values = columns(&record, &self.codec.encode(key, &record));
            values.extend(name(key));
            let statement = match &held {
                Some(held) => {
                    values.push(held.revision.into());
                    &self.statements.update
                }
                None => &self.statements.insert,
            };
            if self.dialect.notifies() {
                values.extend([link::channel(&self.prefix).into(), key.to_string().into()]);
            }
            if wrote(line, statement, &values).await? {
                return Ok(Saved::Written);
            }
        }
        Err(ServerFault::Contended)
    }

    async fn ask(
        &self,
        line: &mut Line,
        key: &Key,
        owner: &str,
        life: Duration,
    ) -> Result<Lease, ServerFault> {
        let [account, kept] = name(key);
        let mut values = vec![owner.into(), number(millis(life)), account, kept];
        for _ in 0..TRIES {
            let taken = wrote(line, &self.statements.take, &values).await?;
            values.push(owner.into());
            if taken || wrote(line, &self.statements.renew, &values).await? {
                return Ok(Lease::Granted);
            }
            values.pop();
            // Given back meanwhile, there is no row; over by now, nothing is left of it.
            if let Some(found) = line
                .find(&self.statements.left, &name(key))
                .await?
                .filter(|found| found.number > 0)
            {
                return Ok(Lease::Held {
                    left: Duration::from_millis(found.number.unsigned_abs()),
                });
            }
        }
        Err(ServerFault::Contended)
    }
}

/// Whether the statement wrote its row. Databases that lock rows may choose a victim among those
/// who write the same one.
async fn wrote(line: &mut Line, statement: &str, values: &[Value]) -> Result<bool, ServerFault> {
    match line.run(statement, values).await {
        Ok(rows) => Ok(rows > 0),
        Err(ServerFault::Busy) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// The key in its two columns: `shop`, and `token` or the type of a ticket.
fn name(key: &Key) -> [Value; 2] {
    let kept = match key.kept {
        Kept::Token => "token",
        Kept::Ticket(kind) => kind.as_str(),
    };
    [key.account.as_str().into(), kept.into()]
}

/// The record in the order of the columns. The revision only has to be another one each time.
fn columns(record: &Record, content: &[u8]) -> Vec<Value> {
    let revision = getrandom::u64().unwrap_or(record.generation.0) >> 1;
    let token = record.token.as_ref();
    let time = |ms: Option<u64>| Value::Text(ms.and_then(date));
    vec![
        number(revision),
        String::from_utf8_lossy(content).into_owned().into(),
        record.identity.appid.as_str().into(),
        record.identity.kind.as_str().into(),
        number(record.generation.0),
        Value::Text(token.map(|token| token.value.fingerprint())),
        time(token.map(|token| token.fetched_ms)),
        time(token.map(|token| token.expires_ms)),
        humantime::format_rfc3339_millis(SystemTime::now())
            .to_string()
            .into(),
    ]
}

/// In UTC; nothing for times that have no date.
fn date(ms: u64) -> Option<String> {
    const YEAR_9999: u64 = 253_402_300_799;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
    (ms / 1000 <= YEAR_9999).then(|| humantime::format_rfc3339_millis(time).to_string())
}

fn number(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

async fn in_time<T>(asked: impl Future<Output = Result<T, ServerFault>>) -> Result<T, ServerFault> {
    timeout(CALL, asked)
        .await
        .unwrap_or(Err(ServerFault::Timeout))
}

impl TokenStore for SqlStore {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            let mut lent = self.lend("load", key).await?;
            let held = in_time(self.read(&mut lent.line, key)).await;
            Ok(self
                .settle("load", key, lent, held)?
                .and_then(|held| held.record))
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a Key,
        record: Record,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        Box::pin(async move {
            let mut lent = self.lend("save", key).await?;
            let saved = in_time(self.write(&mut lent.line, key, &record)).await;
            let saved = self.settle("save", key, lent, saved)?;
            if saved == Saved::Written && !self.dialect.notifies() {
                self.bell.ring(&key.to_string());
            }
            Ok(saved)
        })
    }

    fn changes(&self, key: &Key) -> Option<watch::Receiver<u64>> {
        Some(self.bell.hear(key.to_string()))
    }

    fn lease<'a>(
        &'a self,
        key: &'a Key,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        Box::pin(async move {
            let mut lent = self.lend("lease", key).await?;
            let lease = in_time(self.ask(&mut lent.line, key, owner, life)).await;
            Ok(self.settle("lease", key, lent, lease)?)
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a Key,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut lent = self.lend("release", key).await?;
            let [account, kept] = name(key);
            let released = in_time(
                lent.line
                    .run(&self.statements.release, &[account, kept, owner.into()]),
            )
            .await;
            self.settle("release", key, lent, released)?;
            Ok(())
        })
    }
}

impl fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
