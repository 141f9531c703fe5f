//! Store that forgets everything at the end of the process: for operators who want no file and,
//! shared by several refreshers of one account, for tests.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    BoxFuture, Lease, RecordKey, Saved, StoreError, TokenRecord, TokenStore,
    codec::{Codec, Decoded},
    notifier::ChangeNotifier,
};

/// Records in a map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<MemoryRecords>,
    /// Notifier of a store that several refreshers share.
    notifier: Option<ChangeNotifier>,
}

/// Record on its way to another process, with the token.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct ExportedRecord {
    key: String,
    /// As the codec writes it.
    record: String,
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

    /// Copies all records, for the process that replaces this one.
    pub(crate) fn export(&self) -> Vec<ExportedRecord> {
        let codec = Codec::default();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_default();
        self.lock()
            .records
            .iter()
            .map(|(key, record)| ExportedRecord {
                key: key.to_string(),
                record: text(codec.encode(key, record)),
            })
            .collect()
    }

    /// Takes over the records of the process that this one replaces. A record in a form of another
    /// version, and one that gives way to a record that is here, is passed over.
    pub(crate) fn import(&self, records: &[ExportedRecord]) {
        let codec = Codec::default();
        let mut inner = self.lock();
        for exported in records {
            let Some(key) = RecordKey::parse(&exported.key) else {
                continue;
            };
            let Ok(Decoded { record, .. }) = codec.decode(&key, exported.record.as_bytes()) else {
                continue;
            };
            if inner
                .records
                .get(&key)
                .is_none_or(|held| held.gives_way_to(&record))
            {
                inner.records.insert(key, record);
            }
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

#[cfg(test)]
mod tests {
    use super::{super::record::tests::sample, *};
    use crate::base::AccountName;

    #[tokio::test]
    async fn records_pass_to_another_store_and_newer_ones_stay() {
        let account = |name| RecordKey::token(&AccountName::new(name).unwrap());
        let (old, new) = (MemoryStore::default(), MemoryStore::default());
        for (name, generation) in [("a", 1), ("b", 2)] {
            let record = sample(generation, Some(name));
            old.save(&account(name), record).await.unwrap();
        }
        let newer = sample(3, Some("newer"));
        new.save(&account("b"), newer.clone()).await.unwrap();
        let wire = serde_json::to_vec(&old.export()).unwrap();
        let mut records: Vec<ExportedRecord> = serde_json::from_slice(&wire).unwrap();
        records.push(ExportedRecord {
            key: "c".to_owned(),
            record: "of another version".to_owned(),
        });
        new.import(&records);
        let held = new.load(&account("a")).await.unwrap();
        assert_eq!(held, Some(sample(1, Some("a"))));
        assert_eq!(new.load(&account("b")).await.unwrap(), Some(newer));
        assert_eq!(new.load(&account("c")).await.unwrap(), None);
    }
}
