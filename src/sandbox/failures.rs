//! Failed calls by the request id in their answer, for `cgi-bin/openapi/rid/get`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Failed call as `cgi-bin/openapi/rid/get` returns it.
#[derive(Debug, Clone)]
pub(super) struct FailedCall {
    pub(super) rid: String,
    pub(super) account: String,
    /// Unix time of the call.
    pub(super) at: u64,
    /// Query string including the token, as WeChat repeats it.
    pub(super) query: String,
    pub(super) request: String,
    pub(super) response: String,
}

/// Latest failed calls, newest last.
#[derive(Debug, Default)]
pub(super) struct FailedCalls(Mutex<VecDeque<Arc<FailedCall>>>);

/// Number of failed calls that are kept.
const MAX_FAILED_CALLS: usize = 1000;

impl FailedCalls {
    pub(super) fn note(&self, failure: FailedCall) {
        let mut list = self.list();
        if list.len() >= MAX_FAILED_CALLS {
            list.pop_front();
        }
        // Shared, because a look-up must not copy bodies under the lock.
        list.push_back(Arc::new(failure));
    }

    pub(super) fn find(&self, rid: &str) -> Option<Arc<FailedCall>> {
        self.list()
            .iter()
            .find(|failure| failure.rid == rid)
            .map(Arc::clone)
    }

    fn list(&self) -> MutexGuard<'_, VecDeque<Arc<FailedCall>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Extracts the request id from the text of an error.
pub(super) fn rid_in(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once("rid: ")?;
    let end = rest
        .find(|c: char| !c.is_ascii_hexdigit() && c != '-')
        .unwrap_or(rest.len());
    rest.get(..end).filter(|rid| !rid.is_empty())
}
