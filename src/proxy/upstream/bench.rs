//! The door through which the benches reach the pool. No part of the interface: it changes with the
//! pool.

use std::{rc::Rc, time::Duration};

use hyper::Method;

use super::{Dialer, UpstreamOrigins, answer_head, http1::Buffers, pool::UpstreamPool};
use crate::net::{address::BaseUrl, egress::Egress};

/// Reads the head of an answer to a GET. Returns the number of headers that go on to the caller, if
/// the head is complete.
pub fn read_answer_head(bytes: &[u8]) -> Option<usize> {
    let (_, head) = answer_head::parse(bytes, &Method::GET).ok()?;
    Some(head?.headers.len())
}

/// Connections to one host.
pub struct PoolBench(Rc<UpstreamPool>);

impl PoolBench {
    /// No connection yet; `None` when the host cannot be called.
    pub fn new(host: BaseUrl) -> Option<Self> {
        let origin = UpstreamOrigins::default().of(&[host]).ok()?.pop()?;
        let dialer = Dialer::new(&Egress::default()).ok()?;
        Some(Self(UpstreamPool::new(
            origin,
            dialer,
            Buffers::new(),
            Duration::from_secs(15),
        )))
    }

    /// Takes so many connections and gives them back; whether there were as many.
    pub async fn turn(&self, count: usize) -> bool {
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            taken.extend(self.0.checkout(false).await);
        }
        let all = taken.len() == count;
        for connection in taken {
            self.0.give_back(connection);
        }
        all
    }
}
