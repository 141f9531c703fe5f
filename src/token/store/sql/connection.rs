//! Connection to a database of any dialect.
//!
//! It runs statements that write, and reads rows of a number and some bytes.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Error, MySqlConnection, PgConnection, Row as _,
    SqliteConnection, query, sqlite::SqliteConnectOptions,
};
use tokio::time::{sleep, timeout};

use super::{address::SqlTarget, fault};
use crate::token::store::{ServerFault, server::CALL_TIMEOUT};

/// Connection that is logged in.
pub enum SqlConnection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    Mysql(MySqlConnection),
}

/// Value bound to a statement.
#[derive(Debug, Clone)]
pub(super) enum SqlValue {
    Text(Option<String>),
    Number(i64),
}

/// Row of a result. The second column is taken as bytes, since damaged content need not be UTF-8.
#[derive(PartialEq, Eq)]
pub struct SqlRow {
    pub(super) number: i64,
    pub(super) bytes: Vec<u8>,
}

/// Pause between two attempts to open a file.
const REOPEN_PAUSE: Duration = Duration::from_millis(10);

// Statements are not prepared by name: a pooler in between may give the next one to another
// connection.
macro_rules! bound {
    ($sql:expr, $values:expr) => {
        $values.iter().fold(
            query(AssertSqlSafe($sql.to_owned())).persistent(false),
            |query, value| match value {
                SqlValue::Text(text) => query.bind(text.clone()),
                SqlValue::Number(number) => query.bind(*number),
            },
        )
    };
}

macro_rules! found {
    ($rows:expr) => {
        $rows
            .iter()
            .map(|row| {
                Ok(SqlRow {
                    number: row.try_get(0)?,
                    bytes: row.try_get_unchecked(1)?,
                })
            })
            .collect()
    };
}

impl SqlConnection {
    /// Connects and logs in.
    pub(super) async fn open(target: &SqlTarget) -> Result<Self, ServerFault> {
        let opening = async {
            match target {
                SqlTarget::Sqlite(options) => return file(options).await,
                SqlTarget::Postgres(options) => options.connect().await.map(Self::Postgres),
                SqlTarget::Mysql(options) => options.connect().await.map(Self::Mysql),
            }
            .map_err(|error| fault::of_connecting(&error))
        };
        timeout(CALL_TIMEOUT, opening)
            .await
            .unwrap_or(Err(ServerFault::Timeout))
    }

    /// Runs a statement; gives the number of rows that it wrote.
    pub(super) async fn run(&mut self, sql: &str, values: &[SqlValue]) -> Result<u64, ServerFault> {
        let done = match self {
            Self::Sqlite(connection) => bound!(sql, values)
                .execute(connection)
                .await
                .map(|done| done.rows_affected()),
            Self::Postgres(connection) => bound!(sql, values)
                .execute(connection)
                .await
                .map(|done| done.rows_affected()),
            Self::Mysql(connection) => bound!(sql, values)
                .execute(connection)
                .await
                .map(|done| done.rows_affected()),
        };
        done.map_err(|error| fault::of(&error))
    }

    /// First row of a result.
    pub(super) async fn first(
        &mut self,
        sql: &str,
        values: &[SqlValue],
    ) -> Result<Option<SqlRow>, ServerFault> {
        Ok(self.all(sql, values).await?.into_iter().next())
    }

    /// All rows of a result.
    pub(super) async fn all(
        &mut self,
        sql: &str,
        values: &[SqlValue],
    ) -> Result<Vec<SqlRow>, ServerFault> {
        self.rows(sql, values)
            .await
            .map_err(|error| fault::of(&error))
    }

    async fn rows(&mut self, sql: &str, values: &[SqlValue]) -> Result<Vec<SqlRow>, Error> {
        match self {
            Self::Sqlite(connection) => found!(bound!(sql, values).fetch_all(connection).await?),
            Self::Postgres(connection) => found!(bound!(sql, values).fetch_all(connection).await?),
            Self::Mysql(connection) => found!(bound!(sql, values).fetch_all(connection).await?),
        }
    }
}

async fn file(options: &SqliteConnectOptions) -> Result<SqlConnection, ServerFault> {
    create_private(options.get_filename()).map_err(|_| ServerFault::File)?;
    loop {
        match options
            .connect()
            .await
            .map_err(|error| fault::of_connecting(&error))
        {
            // The first one to open the file changes its mode, and for that moment SQLite refuses
            // the others instead of having them wait.
            Err(ServerFault::Busy) => sleep(REOPEN_PAUSE).await,
            opened => return opened.map(SqlConnection::Sqlite),
        }
    }
}

/// Creates the file with mode 0600 when it is missing; an empty file is an empty database. SQLite
/// would make it readable for everybody, and it gives the files beside it the same mode.
fn create_private(path: &Path) -> io::Result<()> {
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

impl From<&str> for SqlValue {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for SqlValue {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<i64> for SqlValue {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
