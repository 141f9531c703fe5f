//! Change notifications: wakes the subscribers of a record that may have changed.
//!
//! A notification carries no content, since messages can be late or lost: a subscriber reads the
//! record again. Records are named as [`RecordKey`](super::Key) formats itself.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// One counter per subscribed record.
#[derive(Debug, Default)]
pub(super) struct ChangeNotifier(Mutex<HashMap<String, watch::Sender<u64>>>);

impl ChangeNotifier {
    /// Receiver that sees every later notification for the record.
    pub(super) fn subscribe(&self, name: String) -> watch::Receiver<u64> {
        let mut counters = self.lock();
        // Accounts come and go with the configuration; this is where the counters of gone ones end.
        counters.retain(|_, counter| counter.receiver_count() > 0);
        counters.entry(name).or_default().subscribe()
    }

    /// Wakes the subscribers of one record.
    pub(super) fn notify(&self, name: &str) {
        if let Some(counter) = self.lock().get(name) {
            counter.send_modify(|number| *number += 1);
        }
    }

    /// Wakes all subscribers, after a time in which changes may have been missed.
    pub(super) fn notify_all(&self) {
        for counter in self.lock().values() {
            counter.send_modify(|number| *number += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
