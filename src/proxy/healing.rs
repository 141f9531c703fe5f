//! Limit on answers that make an SDK ask for another token.
//!
//! An SDK whose cache still holds a real token from before wxgate calls with that token alone, which
//! says nothing of its client. Told that the token is stale, it asks for another one at wxgate and is
//! known from then on. Some SDKs ask again without end (wechatpy 1.8.18), so an address is told so
//! only a few times, unless its token calls arrive here.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::net::address::Peer;

/// Addresses that were told lately. Locked only for calls of unknown callers and for token calls.
#[derive(Debug, Default)]
pub(super) struct Healing {
    told: Mutex<HashMap<Peer, Told>>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    since: Instant,
    times: u8,
}

/// Most answers for one address within [`WINDOW`].
const MAX_TIMES: u8 = 3;
/// Life of a token: after that, no cache holds one from before.
const WINDOW: Duration = Duration::from_secs(7200);
/// Most addresses that are remembered at a time.
const MAX_ADDRESSES: usize = 4096;

impl Healing {
    /// Counts an answer for this address, and returns true if it may be given.
    pub(super) fn may_tell(&self, address: Peer) -> bool {
        let (now, address) = (Instant::now(), address.counted());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MAX_ADDRESSES && !told.contains_key(&address) {
            told.retain(|_, told| now - told.since < WINDOW);
            if told.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let fresh = Told {
            since: now,
            times: 0,
        };
        let entry = told.entry(address).or_insert(fresh);
        if now - entry.since >= WINDOW {
            *entry = fresh;
        }
        let may = entry.times < MAX_TIMES;
        entry.times = entry.times.saturating_add(1);
        may
    }

    /// Notes that a token call of this address was answered.
    pub(super) fn token_given(&self, address: Peer) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(&address.counted());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn address(number: u32) -> Peer {
        Peer::Ip(IpAddr::V4(Ipv4Addr::from(number)))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_told_three_times_in_two_hours() {
        let healing = Healing::default();
        let tell = |number| healing.may_tell(address(number));
        assert_eq!([1; 5].map(tell), [true, true, true, false, false]);
        assert!(tell(2), "each address has a count of its own");
        tokio::time::advance(WINDOW).await;
        assert!(tell(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_call_that_is_answered_starts_the_count_again() {
        let healing = Healing::default();
        let tell = |number| healing.may_tell(address(number));
        assert_eq!([1; 4].map(tell), [true, true, true, false]);
        healing.token_given(address(1));
        assert!(tell(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_an_ipv6_host_count_as_one() {
        let healing = Healing::default();
        let tell = |last: u16| {
            let ip = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last);
            healing.may_tell(Peer::Ip(IpAddr::V6(ip)))
        };
        assert_eq!([1, 2, 3, 4].map(tell), [true, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_addresses_are_remembered() {
        let healing = Healing::default();
        let most = u32::try_from(MAX_ADDRESSES).unwrap();
        assert!((0..most).all(|number| healing.may_tell(address(number))));
        assert!(!healing.may_tell(address(most)));
        assert!(healing.may_tell(address(0)), "one that is known");
        tokio::time::advance(WINDOW).await;
        assert!(healing.may_tell(address(most)), "old ones make room");
    }
}
