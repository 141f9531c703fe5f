//! Session with a database: the connection on which it is watched.
//!
//! PostgreSQL tells of changes by itself; the others are asked at each check.

use std::time::Duration;

use sqlx::{
    Row as _,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    SqlBackend,
    address::SqlTarget,
    connection::{SqlConnection, SqlRow},
    fault,
    pool::SqlPool,
    schema,
};
use crate::token::store::{ServerFault, server::CALL_TIMEOUT};

/// Connection on which the database is watched.
pub enum SqlSession {
    /// Connection on which PostgreSQL notifies.
    Listening(Box<PgListener>),
    /// Connection on which changes are looked up, and those of the last look.
    Polling(Box<SqlConnection>, Vec<SqlRow>),
}

/// Time between two checks whether the database still answers and has its tables.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl SqlSession {
    /// Connects, makes sure of the tables, and begins to watch.
    pub(super) async fn open(backend: &SqlBackend) -> Result<(SqlPool, Self), ServerFault> {
        let target = backend.target()?;
        let mut first = SqlConnection::open(&target).await?;
        timeout(
            CALL_TIMEOUT * 3,
            schema::ready(&mut first, &backend.statements),
        )
        .await
        .unwrap_or(Err(ServerFault::Timeout))?;
        let session = match &target {
            SqlTarget::Postgres(options) => {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .test_before_acquire(false)
                    .acquire_timeout(CALL_TIMEOUT)
                    .connect_lazy_with((**options).clone());
                let listening = listen(&pool, backend.channel());
                let listener = timeout(CALL_TIMEOUT * 2, listening)
                    .await
                    .unwrap_or(Err(sqlx::Error::PoolTimedOut))
                    .map_err(|error| fault::of_connecting(&error))?;
                Self::Listening(Box::new(listener))
            }
            SqlTarget::Sqlite(_) | SqlTarget::Mysql(_) => {
                Self::Polling(Box::new(SqlConnection::open(&target).await?), Vec::new())
            }
        };
        Ok((SqlPool::new(first), session))
    }

    /// Passes changes on until something is wrong with the session.
    pub(super) async fn watch(mut self, backend: &SqlBackend, doubt: &Notify) -> ServerFault {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = self.next_change() => match told {
                    Ok(name) => {
                        backend.notifier.notify(&name);
                        continue;
                    }
                    Err(fault) => return fault,
                },
                () = doubt.notified() => {}
                _ = ticks.tick() => {}
            }
            let checked = timeout(CALL_TIMEOUT, self.check(backend))
                .await
                .unwrap_or(Err(ServerFault::Timeout));
            if let Err(fault) = checked {
                return fault;
            }
        }
    }

    /// Name of the next record that the database says has changed; never returns where it says
    /// nothing by itself.
    async fn next_change(&mut self) -> Result<String, ServerFault> {
        match self {
            Self::Listening(listener) => match listener.try_recv().await {
                Ok(Some(message)) => Ok(message.payload().to_owned()),
                Ok(None) => Err(ServerFault::Broken),
                Err(error) => Err(fault::of(&error)),
            },
            Self::Polling(..) => std::future::pending().await,
        }
    }

    /// Checks that the database answers and has its tables, and looks up changes where it does not
    /// tell of them.
    async fn check(&mut self, backend: &SqlBackend) -> Result<(), ServerFault> {
        let statements = &backend.statements;
        match self {
            Self::Listening(listener) => {
                let asked =
                    sqlx::query(sqlx::AssertSqlSafe(statements.version.clone())).persistent(false);
                let row = asked
                    .fetch_optional(&mut **listener)
                    .await
                    .map_err(|error| fault::of(&error))?;
                schema::is_known(row.and_then(|row| row.try_get(0).ok()))
            }
            Self::Polling(connection, last) => {
                schema::check(connection, statements).await?;
                let changed = connection.all(&statements.changed, &[]).await?;
                for row in changed.iter().filter(|row| !last.contains(row)) {
                    let name = String::from_utf8_lossy(&row.bytes);
                    backend
                        .notifier
                        .notify(name.strip_suffix(".token").unwrap_or(&name));
                }
                *last = changed;
                Ok(())
            }
        }
    }
}

async fn listen(pool: &sqlx::PgPool, channel: String) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    // A connection that breaks ends the session; the supervisor opens the next one.
    listener.eager_reconnect(false);
    listener.listen(&channel).await?;
    Ok(listener)
}
