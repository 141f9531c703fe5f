//! Token stores: the interface between the token refresher and a place that outlives it, and the
//! settings of the stores.
//!
//! A store keeps one record per key and compares generations before it writes. A store is a cache
//! with counters: losing it costs one fetch per account, so a store that fails stops no traffic.

mod codec;
mod fault;
mod file;
mod memory;
mod notifier;
mod record;
mod redis;
mod seal;
mod server;
#[cfg(feature = "sql")]
mod sql;

use std::{fmt, path::PathBuf, time::Duration};

use tokio::sync::watch;

pub(crate) use fault::StoreUrlError;
pub use fault::{ServerFault, StoreError};
pub(crate) use file::StoreLock;
pub use file::{FileStore, OpenError};
pub(crate) use memory::ExportedRecord;
pub use memory::MemoryStore;
pub use record::{AccountIdentity, StoredRefusal, StoredToken, TokenRecord};
pub use redis::{RedisSettings, RedisStore};
pub use seal::Keyring;
pub(crate) use seal::Locked;
#[cfg(feature = "sql")]
pub use sql::{SqlSettings, SqlStore};

pub use super::credential::{CredentialType, RecordKey};
pub(crate) use super::source::BoxFuture;

/// Records as bytes, for tests that send them through a network of their own.
#[cfg(test)]
pub(in crate::token) mod bytes {
    use super::{RecordKey, TokenRecord, codec::Codec};

    pub(in crate::token) fn encode(key: &RecordKey, record: &TokenRecord) -> Vec<u8> {
        Codec::new(None).encode(key, record)
    }

    pub(in crate::token) fn decode(key: &RecordKey, bytes: &[u8]) -> Option<TokenRecord> {
        Codec::new(None)
            .decode(key, bytes)
            .ok()
            .map(|decoded| decoded.record)
    }
}

/// The table `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Place of the records.
    pub location: StoreLocation,
    /// Keys that seal the tokens of any location. Without them, tokens are stored in plain text.
    pub keys: Option<Keyring>,
}

/// Place of the records, by `store.kind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// Memory of this process; nothing survives a restart.
    Memory,
    /// Folder with one small file per account and ticket, made with mode 0700 when missing.
    File(PathBuf),
    /// Redis or Valkey, which several nodes may share.
    Redis(RedisSettings),
    /// Database, which several nodes may share.
    #[cfg(feature = "sql")]
    Sql(SqlSettings),
}

impl fmt::Display for StoreLocation {
    /// Writes the kind, and the folder of files; nothing of a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::File(folder) => write!(f, "file:{}", folder.display()),
            Self::Redis(_) => f.write_str("redis"),
            #[cfg(feature = "sql")]
            Self::Sql(_) => f.write_str("sql"),
        }
    }
}

impl StoreSettings {
    /// Store without persistence.
    pub const MEMORY: Self = Self {
        location: StoreLocation::Memory,
        keys: None,
    };

    /// Tells if tokens in plain text outlive the process.
    pub fn persists_plain_tokens(&self) -> bool {
        self.keys.is_none() && self.location != StoreLocation::Memory
    }
}

/// One record per account's token and per ticket. The refresher bounds every call in time and goes
/// on without the store when a call fails.
///
/// A store that several nodes share has [`TokenStore::changes`], and leases the right to fetch to
/// one node at a time. The lease only saves fetches. Correctness comes from compare-and-set in
/// [`TokenStore::save`].
pub trait TokenStore: Send + Sync + 'static {
    /// Reads the last record; `None` when there is nothing usable. [`StoreError::Sealed`] for a
    /// record that the keys do not open: the next write replaces it.
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>>;

    /// Writes the record, unless the store holds a newer generation, or another token of the same
    /// generation: then nothing changes, and the stored record comes back. Of two budgets of one
    /// appid the more spent one stays.
    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>>;

    /// Counter that changes whenever a node, this one included, may have written the record, and
    /// whenever changes may have been missed. Messages can get lost, so the counter only makes the
    /// next look come sooner. `None` for a store that is private to the node.
    fn changes(&self, key: &RecordKey) -> Option<watch::Receiver<u64>> {
        let _ = key;
        None
    }

    /// Asks for the right to fetch, for `life` at most. Its owner may renew it.
    fn lease<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        let _ = (key, owner, life);
        Box::pin(std::future::ready(Ok(Lease::Granted)))
    }

    /// Gives the right back before its time; changes nothing when another owner has it by now.
    fn release<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let _ = (key, owner);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Answer to a request for the right to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// This node alone may fetch, until the lease is given back or over.
    Granted,
    /// Another node may fetch.
    Held {
        /// Rest of its lease.
        left: Duration,
    },
}

/// Outcome of a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// The record is stored.
    Written,
    /// Another node was faster; this is its record.
    Newer(Box<TokenRecord>),
}
