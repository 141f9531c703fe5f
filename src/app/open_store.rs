//! The store of a configuration, and the parts of it that pass to the next process.

use std::{os::fd::OwnedFd, sync::Arc};

use super::handover::Inheritance;
use crate::{
    config::Config,
    token::{
        source::TokenClient,
        store::{
            ExportedRecord, FileStore, MemoryStore, OpenError, RedisStore, StoreLocation,
            StoreLock, TokenStore,
        },
    },
};

/// Parts of the store that a process hands over to the one that replaces it.
#[derive(Clone, Default)]
pub(super) struct StoreParts {
    lock: Option<StoreLock>,
    memory: Option<Arc<MemoryStore>>,
}

impl StoreParts {
    /// Lock of a file store.
    pub(super) fn lock(&self) -> Option<&StoreLock> {
        self.lock.as_ref()
    }

    /// Records of a store in memory; no other store needs its records handed over.
    pub(super) fn export(&self) -> Vec<ExportedRecord> {
        self.memory
            .as_ref()
            .map(|memory| memory.export())
            .unwrap_or_default()
    }

    /// Takes over the records of the process that this one replaces.
    pub(super) fn import(&self, records: &[ExportedRecord]) {
        if let Some(memory) = &self.memory {
            memory.import(records);
        }
    }

    /// Writes the number of this process into the lock file.
    pub(super) fn sign(&self) {
        if let Some(lock) = &self.lock {
            lock.sign();
        }
    }
}

/// Opens the store of a configuration for a look at it.
///
/// # Errors
/// See [`open_store`].
pub(crate) fn open_alone(
    config: &Config,
    client: &TokenClient,
) -> Result<Arc<dyn TokenStore>, OpenError> {
    open_store(config, client, &mut Inheritance::default()).map(|(store, _)| store)
}

/// Opens the store of a configuration. Only a file store can fail here: servers are connected to in
/// the background, so that wxgate starts without them.
pub(super) fn open_store(
    config: &Config,
    client: &TokenClient,
    inheritance: &mut Inheritance,
) -> Result<(Arc<dyn TokenStore>, StoreParts), OpenError> {
    let keys = config.store.keys.clone();
    let mut parts = StoreParts::default();
    let store: Arc<dyn TokenStore> = match &config.store.location {
        StoreLocation::Memory => {
            let memory = Arc::new(MemoryStore::default());
            parts.memory = Some(Arc::clone(&memory));
            parts.import(&inheritance.records);
            memory
        }
        StoreLocation::File(path) => {
            let passed: Option<OwnedFd> = inheritance.lock.take();
            let store = FileStore::open_with(path, keys, passed)?;
            parts.lock = Some(store.lock());
            Arc::new(store)
        }
        StoreLocation::Redis(server) => Arc::new(RedisStore::open(server, keys, client.tls())),
        #[cfg(feature = "sql")]
        StoreLocation::Sql(server) => {
            let ca_file = config.proxy.upstream.egress.ca_file.as_deref();
            Arc::new(crate::token::store::SqlStore::open(server, keys, ca_file))
        }
    };
    Ok((store, parts))
}
