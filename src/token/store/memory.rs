//! Store that forgets everything at the end of the process: for operators who want no file and,
//! shared by several refreshers of one account, for tests.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    BoxFuture, Lease, RecordKey, Saved, StoreError, TokenRecord, TokenStore,
    notifier::ChangeNotifier,
};

/// Records in a map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<MemoryRecords>,
    /// Notifier of a store that several refreshers share.
    notifier: Option<ChangeNotifier>,
}

#[derive(Debug, Default)]
struct MemoryRecords {
    records: HashMap<RecordKey, TokenRecord>,
    leases: HashMap<RecordKey, (String, Instant)>,
}

impl MemoryStore {
    /// Store that several nodes in this process share.
    pub fn shared() -> Self {
        Self {
            notifier: Some(ChangeNotifier::default()),
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, MemoryRecords> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all records, as an operator's FLUSHALL does.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        *self.lock() = MemoryRecords::default();
    }

    /// Takes the lease without asking, as a node that dies with it does.
    #[cfg(test)]
    pub(crate) fn seize(&self, key: &RecordKey, life: Duration) {
        self.lock().leases.insert(
            key.clone(),
            ("a dead node".to_owned(), Instant::now() + life),
        );
    }

    /// Ends the lease before its time, as it does for a node that is stopped for longer.
    #[cfg(test)]
    pub(crate) fn outlast(&self, key: &RecordKey) {
        self.lock().leases.remove(key);
    }
}

impl TokenStore for MemoryStore {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        let found = self.lock().records.get(key).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        let mut inner = self.lock();
        let saved = match inner.records.get(key) {
            Some(held) if !held.gives_way_to(&record) => Saved::Newer(Box::new(held.clone())),
            held => {
                let record = record.over(held);
                inner.records.insert(key.clone(), record);
                Saved::Written
            }
        };
        drop(inner);
        if let Some(notifier) = self.notifier.as_ref().filter(|_| saved == Saved::Written) {
            notifier.notify(&key.to_string());
        }
        Box::pin(std::future::ready(Ok(saved)))
    }

    fn changes(&self, key: &RecordKey) -> Option<watch::Receiver<u64>> {
        self.notifier
            .as_ref()
            .map(|notifier| notifier.subscribe(key.to_string()))
    }

    fn lease<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        let now = Instant::now();
        let mut inner = self.lock();
        let lease = match inner.leases.get(key) {
            Some((holder, until)) if holder != owner && *until > now => {
                Lease::Held { left: *until - now }
            }
            _ => {
                inner
                    .leases
                    .insert(key.clone(), (owner.to_owned(), now + life));
                Lease::Granted
            }
        };
        Box::pin(std::future::ready(Ok(lease)))
    }

    fn release<'a>(
        &'a self,
        key: &'a RecordKey,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut inner = self.lock();
        if inner
            .leases
            .get(key)
            .is_some_and(|(holder, _)| holder == owner)
        {
            inner.leases.remove(key);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
