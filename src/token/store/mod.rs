//! Where tokens survive: the seam between the keeper and a place that outlives it, and the settings of the stores.
//!
//! A store keeps one record per key and compares generations before it writes. It is a cache with counters: losing
//! it costs one fetch each, so no failure of a store is a failure of the service.

mod codec;
mod file;
mod memory;
mod record;
mod seal;

use std::path::PathBuf;

pub use file::{FileStore, OpenError};
pub use memory::MemoryStore;
pub use record::{Identity, Record, StoredToken};
pub use seal::{KeyError, KeyId, Keyring, Refusal};

pub use super::{
    kept::{Kept, Key},
    source::BoxFuture,
};

/// The table `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settings {
    /// Nothing survives a restart.
    Memory,
    /// One small file per account and ticket below this folder.
    File {
        /// Made with mode 0700 when missing.
        path: PathBuf,
        /// Without any, tokens stand in the files in plain text.
        keys: Option<Keyring>,
    },
}

/// One record per account's token and per ticket. The keeper bounds every call in time and goes on without the store when one fails.
pub trait TokenStore: Send + Sync + 'static {
    /// What was written last; `None` when there is nothing usable. [`StoreError::Sealed`] when there is something that
    /// the keys do not open: the next write replaces it.
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>>;

    /// Writes the record, unless the store holds a newer generation, or another token of the same generation: then
    /// nothing changes, and what is stored comes back.
    fn save<'a>(&'a self, key: &'a Key, record: Record) -> BoxFuture<'a, Result<Saved, StoreError>>;
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// It is there.
    Written,
    /// Somebody was faster; this is theirs.
    Newer(Box<Record>),
}

/// Why a store failed. Holds no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("cannot {operation} {path}: {reason}; check space, permissions and mount options", path = path.display())]
    Io {
        /// A verb.
        operation: &'static str,
        /// Of the file or folder.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// What is stored is sealed, and not with a key for this place.
    #[error("{0}")]
    Sealed(#[from] Refusal),
    /// The store was asked while it was going down.
    #[error("the store is shutting down")]
    Stopped,
}

impl StoreError {
    /// For metrics; bounded.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Sealed(_) => "sealed",
            Self::Stopped => "stopped",
        }
    }
}
