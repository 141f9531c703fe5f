//! Pool of the few connections to a database that calls take turns with.
//!
//! A pool lasts as long as the session beside it; after that a new one begins empty.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{address::SqlTarget, connection::SqlConnection};
use crate::token::store::ServerFault;

/// Connections of one session. Clones share them.
#[derive(Clone)]
pub struct SqlPool {
    turns: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<SqlConnection>>>,
}

/// Connection for one call. Only a call that went well gives it back; otherwise it is closed.
pub struct PooledConnection {
    pub(super) connection: SqlConnection,
    pool: SqlPool,
    _turn: OwnedSemaphorePermit,
}

/// Connections for calls, per node.
const MAX_CONNECTIONS: usize = 3;

impl SqlPool {
    /// Pool with its first connection.
    pub(super) fn new(first: SqlConnection) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            idle: Arc::new(Mutex::new(vec![first])),
        }
    }

    /// Waits for a turn and takes an idle connection, or opens one.
    pub(super) async fn checkout(
        &self,
        target: impl FnOnce() -> Result<SqlTarget, ServerFault>,
    ) -> Result<PooledConnection, ServerFault> {
        let turn = Arc::clone(&self.turns)
            .acquire_owned()
            .await
            .map_err(|_| ServerFault::Broken)?;
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let connection = match idle {
            Some(connection) => connection,
            None => SqlConnection::open(&target()?).await?,
        };
        Ok(PooledConnection {
            connection,
            pool: self.clone(),
            _turn: turn,
        })
    }
}

impl PooledConnection {
    /// Makes the connection available to the next call.
    pub(super) fn give_back(self) {
        let mut idle = self
            .pool
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.push(self.connection);
    }
}
