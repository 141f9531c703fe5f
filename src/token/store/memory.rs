//! A store that forgets everything at the end of the process. For tests, and for those who want no file.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{BoxFuture, Key, Record, Saved, StoreError, TokenStore};

/// Records in a map.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<HashMap<Key, Record>>);

impl TokenStore for MemoryStore {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn save<'a>(&'a self, key: &'a Key, record: Record) -> BoxFuture<'a, Result<Saved, StoreError>> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = match records.get(key) {
            Some(held) if !held.gives_way_to(&record) => Saved::Newer(Box::new(held.clone())),
            _ => {
                records.insert(key.clone(), record);
                Saved::Written
            }
        };
        Box::pin(std::future::ready(Ok(saved)))
    }
}
