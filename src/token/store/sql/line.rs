//! One connection to a database, whichever it is.
//!
//! Two things are asked of it: to carry out a statement, and to give rows of a number and some
//! bytes.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Error, MySqlConnection, PgConnection, Row as _,
    SqliteConnection, query, sqlite::SqliteConnectOptions,
};
use tokio::time::{sleep, timeout};

use super::{address::Target, fault};
use crate::token::store::ServerFault;

/// A connection that is logged in.
pub(super) enum Line {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    Mysql(MySqlConnection),
}

/// What is bound to a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(Option<String>),
    Number(i64),
}

/// A row. Bytes, because what they are is for others to find out.
#[derive(PartialEq, Eq)]
pub(super) struct Found {
    pub(super) number: i64,
    pub(super) bytes: Vec<u8>,
}

/// For all statements of one call, or for connecting.
pub(super) const CALL: Duration = Duration::from_millis(500);
/// Between two attempts to open a file.
const AGAIN: Duration = Duration::from_millis(10);

// Not left on the server by name: a pooler in between may give the next statement to another
// connection.
macro_rules! bound {
    ($sql:expr, $values:expr) => {
        $values.iter().fold(
            query(AssertSqlSafe($sql.to_owned())).persistent(false),
            |query, value| match value {
                Value::Text(text) => query.bind(text.clone()),
                Value::Number(number) => query.bind(*number),
            },
        )
    };
}

macro_rules! found {
    ($rows:expr) => {
        $rows
            .iter()
            .map(|row| {
                Ok(Found {
                    number: row.try_get(0)?,
                    bytes: row.try_get_unchecked(1)?,
                })
            })
            .collect()
    };
}

impl Line {
    /// Connects and logs in.
    pub(super) async fn open(target: &Target) -> Result<Self, ServerFault> {
        let opening = async {
            match target {
                Target::Sqlite(options) => return file(options).await,
                Target::Postgres(options) => options.connect().await.map(Self::Postgres),
                Target::Mysql(options) => options.connect().await.map(Self::Mysql),
            }
            .map_err(|error| fault::of_connecting(&error))
        };
        timeout(CALL, opening)
            .await
            .unwrap_or(Err(ServerFault::Timeout))
    }

    /// Carries it out; how many rows it wrote.
    pub(super) async fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, ServerFault> {
        let done = match self {
            Self::Sqlite(line) => bound!(sql, values)
                .execute(line)
                .await
                .map(|done| done.rows_affected()),
            Self::Postgres(line) => bound!(sql, values)
                .execute(line)
                .await
                .map(|done| done.rows_affected()),
            Self::Mysql(line) => bound!(sql, values)
                .execute(line)
                .await
                .map(|done| done.rows_affected()),
        };
        done.map_err(|error| fault::of(&error))
    }

    /// The first row.
    pub(super) async fn find(
        &mut self,
        sql: &str,
        values: &[Value],
    ) -> Result<Option<Found>, ServerFault> {
        Ok(self.all(sql, values).await?.into_iter().next())
    }

    /// All rows.
    pub(super) async fn all(
        &mut self,
        sql: &str,
        values: &[Value],
    ) -> Result<Vec<Found>, ServerFault> {
        self.rows(sql, values)
            .await
            .map_err(|error| fault::of(&error))
    }

    async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Found>, Error> {
        match self {
            Self::Sqlite(line) => found!(bound!(sql, values).fetch_all(line).await?),
            Self::Postgres(line) => found!(bound!(sql, values).fetch_all(line).await?),
            Self::Mysql(line) => found!(bound!(sql, values).fetch_all(line).await?),
        }
    }
}

async fn file(options: &SqliteConnectOptions) -> Result<Line, ServerFault> {
    make(options.get_filename()).map_err(|_| ServerFault::File)?;
    loop {
        match options
            .connect()
            .await
            .map_err(|error| fault::of_connecting(&error))
        {
            // Who opens it first changes its mode, and for that moment SQLite lets nobody wait.
            Err(ServerFault::Busy) => sleep(AGAIN).await,
            opened => return opened.map(Line::Sqlite),
        }
    }
}

/// An empty file is an empty database. SQLite would let everybody read it, and gives the files
/// beside it the same mode.
fn make(path: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
