//! State of one worker thread that its requests use.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::{Proxy, access_log::AccessLog, request_id::RequestId, upstream::Upstream};
use crate::net::drain::Drain;

/// State of a worker: its upstream connections, its part of the access log, its request numbers.
pub(super) struct Worker {
    pub(super) proxy: Arc<Proxy>,
    pub(super) upstream: Upstream,
    pub(super) access_log: Option<AccessLog>,
    pub(super) drain: Drain,
    /// Random, so that two processes hardly ever give the same id.
    id_prefix: u32,
    next_id: AtomicU32,
}

impl Worker {
    pub(super) fn new(proxy: Arc<Proxy>, drain: Drain) -> Self {
        let mut random = [0; 4];
        // Without randomness the prefix is 0; ids are still unique within the process' worker.
        let _ = getrandom::fill(&mut random);
        Self {
            upstream: Upstream::new(proxy.dialer.clone(), proxy.pool_idle),
            access_log: proxy.access_log(),
            proxy,
            drain,
            id_prefix: u32::from_ne_bytes(random),
            next_id: AtomicU32::new(0),
        }
    }

    /// Returns an id that no other request of this process has, and hardly any of another.
    pub(super) fn request_id(&self) -> RequestId {
        let next = self.next_id.fetch_add(1, Relaxed);
        RequestId::numbered(u64::from(self.id_prefix) << 32 | u64::from(next))
    }

    /// Hands the access log over, closes what has been idle for too long, moves the coarse clock
    /// on.
    pub(super) fn keep_house(&self) {
        if let Some(log) = &self.access_log {
            log.flush();
        }
        self.upstream.reap();
        self.proxy.spool.reap();
        self.proxy.live.load().load.tick();
    }
}
