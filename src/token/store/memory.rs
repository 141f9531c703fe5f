//! A store that forgets everything at the end of the process. For tests, and for those who want no file.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{BoxFuture, Record, Saved, StoreError, TokenStore};
use crate::base::AccountName;

/// Records in a map.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<HashMap<AccountName, Record>>);

impl TokenStore for MemoryStore {
    fn load<'a>(&'a self, account: &'a AccountName) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn save<'a>(&'a self, account: &'a AccountName, record: Record) -> BoxFuture<'a, Result<Saved, StoreError>> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = match records.get(account) {
            Some(held) if !held.gives_way_to(&record) => Saved::Newer(Box::new(held.clone())),
            _ => {
                records.insert(account.clone(), record);
                Saved::Written
            }
        };
        Box::pin(std::future::ready(Ok(saved)))
    }
}
