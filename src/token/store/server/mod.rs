//! Stores on a server that several nodes share: everything about records that is the same for Redis
//! and for a database.
//!
//! A [`Backend`] reads and replaces bytes and lends leases; decoding, compare-and-set, time limits
//! and the log of failures are here. `supervisor` keeps the connections.

mod failure_log;
mod supervisor;

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use self::{failure_log::FailureLog, supervisor::Supervisor};
use super::{
    BoxFuture, Keyring, Lease, Locked, RecordKey, Saved, ServerFault, StoreError, TokenRecord,
    TokenStore,
    codec::{Codec, Damage, Decoded},
    notifier::ChangeNotifier,
};

/// Client of a server that keeps the records. Reconnects by itself until it is dropped.
pub struct ServerStore<B: Backend> {
    backend: Arc<B>,
    supervisor: Supervisor<B>,
    notifier: Arc<ChangeNotifier>,
    failures: FailureLog,
    codec: Codec,
}

/// Protocol of one kind of server.
pub trait Backend: Send + Sync + 'static {
    /// Source of connections for calls, good until [`Backend::watch`] returns.
    type Pool: Clone + Send + Sync + 'static;
    /// Connection for one call.
    type Connection: Send;
    /// Connection on which the server is watched.
    type Session: Send;

    /// Limit for [`Backend::open`].
    const OPEN_TIMEOUT: Duration;
    /// Limit for a call to get its connection, the wait for the first attempt included.
    const CHECKOUT_TIMEOUT: Duration;

    /// Connects, logs in and makes sure that the server can be used.
    fn open(&self)
    -> impl Future<Output = Result<(Self::Pool, Self::Session), ServerFault>> + Send;

    /// Passes changes on to the notifier until something is wrong with the session. `doubt` is
    /// notified after calls that failed as [`Backend::doubts`] says.
    fn watch(
        &self,
        session: Self::Session,
        doubt: &Notify,
    ) -> impl Future<Output = ServerFault> + Send;

    /// Takes a connection for one call.
    fn checkout(
        &self,
        pool: &Self::Pool,
    ) -> impl Future<Output = Result<Self::Connection, ServerFault>> + Send;

    /// Makes a connection that works available to the next call.
    fn give_back(_connection: Self::Connection) {}

    /// Tells if a call that failed like this casts doubt on the session.
    fn doubts(fault: ServerFault) -> bool;

    /// Reads the bytes of a record.
    fn read(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
    ) -> impl Future<Output = Result<Option<StoredBytes>, ServerFault>> + Send;

    /// Writes a record if the server still holds exactly `old`; gives false otherwise.
    fn replace(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        old: Option<&StoredBytes>,
        new: NewRecord<'_>,
    ) -> impl Future<Output = Result<bool, ServerFault>> + Send;

    /// Takes or renews the lease of a record, see [`TokenStore::lease`].
    fn lease(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        owner: &str,
        life: Duration,
    ) -> impl Future<Output = Result<Lease, ServerFault>> + Send;

    /// Ends the lease if `owner` still has it.
    fn release(
        &self,
        connection: &mut Self::Connection,
        key: &RecordKey,
        owner: &str,
    ) -> impl Future<Output = Result<(), ServerFault>> + Send;
}

/// Record as the server holds it.
pub struct StoredBytes {
    /// Content, not yet decoded.
    pub(super) content: Vec<u8>,
    /// Number that each write replaces; 0 where the server compares the content instead.
    #[cfg_attr(not(feature = "sql"), expect(dead_code, reason = "for databases"))]
    pub(super) revision: i64,
}

/// Record to be written.
#[derive(Clone, Copy)]
pub struct NewRecord<'r> {
    /// Record, for columns that operators read.
    #[cfg_attr(not(feature = "sql"), expect(dead_code, reason = "for databases"))]
    pub(super) record: &'r TokenRecord,
    /// Encoded record, the only part that wxgate reads back.
    pub(super) content: &'r [u8],
}

/// Time limit for one exchange with the server, and for connecting.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// A session that lasted this long was good: the next failure is the first of its kind.
pub(super) const PROVEN: Duration = Duration::from_secs(3);
/// Attempts to write one record while other nodes keep replacing it.
const MAX_TRIES: u32 = 32;

impl<B: Backend> ServerStore<B> {
    /// Begins to connect, on the current runtime. The server need not be there yet.
    pub(super) fn start(backend: B, notifier: Arc<ChangeNotifier>, keys: Option<Keyring>) -> Self {
        let backend = Arc::new(backend);
        Self {
            supervisor: Supervisor::start(Arc::clone(&backend), Arc::clone(&notifier)),
            backend,
            notifier,
            failures: FailureLog::default(),
            codec: Codec::new(keys),
        }
    }

    async fn checkout(
        &self,
        operation: &'static str,
        key: &RecordKey,
    ) -> Result<B::Connection, ServerFault> {
        timeout(B::CHECKOUT_TIMEOUT, self.supervisor.checkout(&self.backend))
            .await
            .unwrap_or(Err(ServerFault::Timeout))
            .inspect_err(|fault| self.note(operation, key, *fault))
    }

    /// Ends a call: notes its result and takes the connection back if it still works.
    fn settle<T>(
        &self,
        operation: &'static str,
        key: &RecordKey,
        connection: B::Connection,
        result: Result<T, ServerFault>,
    ) -> Result<T, ServerFault> {
        match &result {
            Ok(_) => {
                self.failures.works(operation, key);
                B::give_back(connection);
            }
            Err(fault) => {
                if fault.is_of_one_record() {
                    B::give_back(connection);
                }
                if B::doubts(*fault) {
                    self.supervisor.doubt();
                }
                // The unreadable record has been noted by `decode`.
                if *fault != ServerFault::Unreadable {
                    self.note(operation, key, *fault);
                }
            }
        }
        result
    }

    fn note(&self, operation: &'static str, key: &RecordKey, fault: ServerFault) {
        // The supervisor logs a server that is down altogether.
        if self.supervisor.is_up() {
            self.failures.failed(operation, key, fault);
        }
    }

    /// Decoded record; `None` where there is none, or something that the next write may replace.
    fn decode(
        &self,
        key: &RecordKey,
        stored: Option<&StoredBytes>,
    ) -> Result<Option<TokenRecord>, ServerFault> {
        let Some(stored) = stored else {
            return Ok(None);
        };
        match self.codec.decode(key, &stored.content) {
            Ok(Decoded { record, .. }) => {
                self.failures.works("read", key);
                Ok(Some(record))
            }
            // The next write replaces the damaged record, so no operator has to clean up.
            Err(Damage::Content | Damage::Sealed(Locked::Forged)) => {
                self.failures.failed("read", key, ServerFault::Damaged);
                Ok(None)
            }
            // Nodes with other keys would replace each other's records without end.
            Err(Damage::Version | Damage::Sealed(_)) => {
                self.failures.failed("read", key, ServerFault::Unreadable);
                Err(ServerFault::Unreadable)
            }
        }
    }

    async fn read(
        &self,
        connection: &mut B::Connection,
        key: &RecordKey,
    ) -> Result<Option<TokenRecord>, ServerFault> {
        let stored = in_time(self.backend.read(connection, key)).await?;
        self.decode(key, stored.as_ref())
    }

    /// Compare-and-set: reads, decides which record is newer, and writes only over the bytes that
    /// were read.
    async fn compare_and_set(
        &self,
        connection: &mut B::Connection,
        key: &RecordKey,
        record: &TokenRecord,
    ) -> Result<Saved, ServerFault> {
        // No transaction: a record that changed in between fails the replacement and is read again.
        for _ in 0..MAX_TRIES {
            let stored = in_time(self.backend.read(connection, key)).await?;
            let held = self.decode(key, stored.as_ref())?;
            if let Some(held) = held.as_ref().filter(|held| !held.gives_way_to(record)) {
                return Ok(Saved::Newer(Box::new(held.clone())));
            }
            let record = record.clone().over(held.as_ref());
            let new = NewRecord {
                record: &record,
                content: &self.codec.encode(key, &record),
            };
            let old = stored.as_ref();
            if in_time(self.backend.replace(connection, key, old, new)).await? {
                return Ok(Saved::Written);
            }
        }
        Err(ServerFault::Contended)
    }
}

/// Bounds one exchange with the server. A write takes two, so that a far server has its time for
/// each of them.
async fn in_time<T>(work: impl Future<Output = Result<T, ServerFault>>) -> Result<T, ServerFault> {
    timeout(CALL_TIMEOUT, work)
        .await
        .unwrap_or(Err(ServerFault::Timeout))
}

impl<B: Backend> TokenStore for ServerStore<B> {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        Box::pin(async move {
            let mut connection = self.checkout("load", key).await?;
            let record = self.read(&mut connection, key).await;
            Ok(self.settle("load", key, connection, record)?)
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        Box::pin(async move {
            let mut connection = self.checkout("save", key).await?;
            let saved = self.compare_and_set(&mut connection, key, &record).await;
            Ok(self.settle("save", key, connection, saved)?)
        })
    }

    fn changes(&self, key: &RecordKey) -> Option<watch::Receiver<u64>> {
        Some(self.notifier.subscribe(key.to_string()))
    }

    fn lease<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        Box::pin(async move {
            let mut connection = self.checkout("lease", key).await?;
            let lease = in_time(self.backend.lease(&mut connection, key, owner, life)).await;
            Ok(self.settle("lease", key, connection, lease)?)
        })
    }

    fn release<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut connection = self.checkout("release", key).await?;
            let released = in_time(self.backend.release(&mut connection, key, owner)).await;
            Ok(self.settle("release", key, connection, released)?)
        })
    }
}

impl<B: Backend> fmt::Debug for ServerStore<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStore").finish_non_exhaustive()
    }
}
