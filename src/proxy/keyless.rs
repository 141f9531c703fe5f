//! Limit on the rate of calls without a key: calls that use nothing of wxgate's, from networks that
//! are let in.

use std::{hash::RandomState, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};

use crate::net::address::Peer;

/// Rate of each address, shared by all workers.
pub(super) struct KeylessRate(
    RateLimiter<Peer, HashMapStateStore<Peer, RandomState>, DefaultClock>,
);

/// Most calls of an address in a second, and at once.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// Number of addresses at which those that have not called lately are forgotten.
const MANY_ADDRESSES: usize = 4096;

impl KeylessRate {
    pub(super) fn new() -> Self {
        Self(RateLimiter::hashmap_with_hasher(
            Quota::per_second(PER_SECOND),
            RandomState::new(),
        ))
    }

    /// Counts a call.
    ///
    /// # Errors
    /// When the address calls too fast: the time until it may call again.
    pub(super) fn admit(&self, address: Peer) -> Result<(), Duration> {
        if self.0.len() >= MANY_ADDRESSES {
            self.0.retain_recent();
        }
        self.0
            .check_key(&address.counted())
            .map_err(|until| until.wait_time_from(self.0.clock().now()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn each_address_has_a_rate_of_its_own() {
        let rate = KeylessRate::new();
        let call = |last| rate.admit(Peer::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))));
        let let_in = (0..100).filter(|_| call(1).is_ok()).count();
        // The burst, and what the time of the loop adds.
        assert!((20..40).contains(&let_in), "{let_in}");
        assert!(call(2).is_ok());
        let wait = std::iter::repeat_with(|| call(1)).find_map(Result::err);
        assert!(wait.is_some_and(|wait| wait <= Duration::from_millis(50)));
    }
}
