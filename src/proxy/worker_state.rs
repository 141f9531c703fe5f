//! State of one worker thread that its requests use.

use std::{cell::Cell, sync::Arc};

use super::{
    Proxy, access_log::AccessLog, request_id::RequestId, spool::Spool, upstream::Upstream,
};
use crate::net::drain::Drain;

/// Data of a worker, which only its thread touches, and the shared proxy.
pub(super) struct Worker {
    pub(super) proxy: Arc<Proxy>,
    pub(super) upstream: Upstream,
    pub(super) access_log: Option<AccessLog>,
    pub(super) spool: Spool,
    pub(super) drain: Drain,
    /// Random, so that two processes hardly ever give the same id.
    id_prefix: u32,
    next_id: Cell<u32>,
}

impl Worker {
    pub(super) fn new(proxy: Arc<Proxy>, drain: Drain) -> Self {
        let mut random = [0; 4];
        // Without randomness the prefix is 0; ids are still unique within the worker.
        let _ = getrandom::fill(&mut random);
        Self {
            upstream: Upstream::new(proxy.dialer.clone(), proxy.pool_idle),
            access_log: proxy.access_log(),
            spool: Spool::new(Arc::clone(&proxy.copies)),
            proxy,
            drain,
            id_prefix: u32::from_ne_bytes(random),
            next_id: Cell::new(0),
        }
    }

    /// Returns an id that no other request of this process has, and hardly any of another.
    pub(super) fn request_id(&self) -> RequestId {
        let next = self.next_id.get();
        self.next_id.set(next.wrapping_add(1));
        RequestId::numbered(u64::from(self.id_prefix) << 32 | u64::from(next))
    }

    /// Hands the access log over, closes what has been idle for too long, and advances the coarse
    /// clock.
    pub(super) fn run_housekeeping(&self) {
        if let Some(log) = &self.access_log {
            log.flush();
        }
        let config = self.proxy.config.load();
        self.upstream.run_housekeeping(config.warm);
        self.spool.reap();
        config.load.tick();
    }
}
