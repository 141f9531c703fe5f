//! Tells those who wait for a record that it may have changed.
//!
//! Carries no content: who is woken looks for himself. Names are those of [`Key`](super::Key).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

/// One number per record that somebody listens for.
#[derive(Debug, Default)]
pub(super) struct Bell(Mutex<HashMap<String, watch::Sender<u64>>>);

impl Bell {
    /// Hears every ring for this name from now on.
    pub(super) fn hear(&self, name: String) -> watch::Receiver<u64> {
        let mut ropes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Accounts come and go with the configuration; what nobody hears need not be kept.
        ropes.retain(|_, rope| rope.receiver_count() > 0);
        ropes.entry(name).or_default().subscribe()
    }

    /// One record may have changed.
    pub(super) fn ring(&self, name: &str) {
        if let Some(rope) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
        {
            rope.send_modify(|number| *number += 1);
        }
    }

    /// Any of them may have.
    pub(super) fn ring_all(&self) {
        for rope in self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            rope.send_modify(|number| *number += 1);
        }
    }
}
