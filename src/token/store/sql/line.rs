//! One connection to a database, whichever it is.
//!
//! Two things are asked of it: to carry out a statement, and to give one row with a number and some bytes.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Error, MySqlConnection, PgConnection, Row as _, SqliteConnection, query,
    sqlite::SqliteConnectOptions,
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
pub(super) struct Found {
    pub(super) number: i64,
    pub(super) bytes: Vec<u8>,
}

/// For all statements of one call, or for connecting.
pub(super) const CALL: Duration = Duration::from_millis(500);
/// Between two attempts to open a file.
const AGAIN: Duration = Duration::from_millis(10);

// Not left on the server by name: a pooler in between may give the next statement to another connection.
macro_rules! bound {
    ($sql:expr, $values:expr) => {
        $values.iter().fold(query(AssertSqlSafe($sql.to_owned())).persistent(false), |query, value| match value {
            Value::Text(text) => query.bind(text.clone()),
            Value::Number(number) => query.bind(*number),
        })
    };
}

macro_rules! row {
    ($row:expr) => {
        match $row {
            None => Ok(None),
            Some(row) => {
                Ok(Some(Found { number: row.try_get::<i64, _>(0)?, bytes: row.try_get_unchecked::<Vec<u8>, _>(1)? }))
            }
        }
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
        timeout(CALL, opening).await.unwrap_or(Err(ServerFault::Timeout))
    }

    /// Carries it out; how many rows it wrote.
    pub(super) async fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, ServerFault> {
        let done = match self {
            Self::Sqlite(line) => bound!(sql, values).execute(line).await.map(|done| done.rows_affected()),
            Self::Postgres(line) => bound!(sql, values).execute(line).await.map(|done| done.rows_affected()),
            Self::Mysql(line) => bound!(sql, values).execute(line).await.map(|done| done.rows_affected()),
        };
        done.map_err(|error| fault::of(&error))
    }

    /// The first row.
    pub(super) async fn find(&mut self, sql: &str, values: &[Value]) -> Result<Option<Found>, ServerFault> {
        self.first(sql, values).await.map_err(|error| fault::of(&error))
    }

    async fn first(&mut self, sql: &str, values: &[Value]) -> Result<Option<Found>, Error> {
        match self {
            Self::Sqlite(line) => row!(bound!(sql, values).fetch_optional(line).await?),
            Self::Postgres(line) => row!(bound!(sql, values).fetch_optional(line).await?),
            Self::Mysql(line) => row!(bound!(sql, values).fetch_optional(line).await?),
        }
    }
}

async fn file(options: &SqliteConnectOptions) -> Result<Line, ServerFault> {
    make(options.get_filename()).map_err(|_| ServerFault::File)?;
    loop {
        match options.connect().await.map_err(|error| fault::of_connecting(&error)) {
            // Who opens it first changes its mode, and for that moment SQLite lets nobody wait.
            Err(ServerFault::Busy) => sleep(AGAIN).await,
            opened => return opened.map(Line::Sqlite),
        }
    }
}

/// An empty file is an empty database. SQLite would let everybody read it, and gives the files beside it the same mode.
fn make(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
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
