//! Log of failing operations: one line when an operation begins to fail, one when it works again.
//!
//! Faults of one record are logged for that record, all others for the store as a whole.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::token::store::{RecordKey, ServerFault};

/// Operations that fail at present, with the record where only that one is concerned.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<HashMap<(&'static str, Option<RecordKey>), ServerFault>>);

impl FailureLog {
    pub(super) fn failed(&self, operation: &'static str, key: &RecordKey, fault: ServerFault) {
        let of = fault.is_of_one_record().then(|| key.clone());
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.insert((operation, of.clone()), fault) == Some(fault) {
            return;
        }
        drop(failing);
        match of {
            Some(key) => tracing::warn!(
                operation, account = %key.account, kept = %key.credential,
                "a record in the shared token store cannot be used, going on without it: {fault}"
            ),
            None => tracing::warn!(
                operation,
                "the shared token store fails, going on from memory: {fault}"
            ),
        }
    }

    pub(super) fn works(&self, operation: &'static str, key: &RecordKey) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_empty() {
            return;
        }
        let whole = failing.remove(&(operation, None)).is_some();
        let one = failing.remove(&(operation, Some(key.clone()))).is_some();
        drop(failing);
        if whole {
            tracing::info!(operation, "the shared token store works again");
        }
        if one {
            tracing::info!(
                operation, account = %key.account, kept = %key.credential,
                "a record in the shared token store can be used again"
            );
        }
    }
}
