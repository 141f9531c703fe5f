//! Look-up of the first client whose networks hold an address.
//!
//! One hash look-up for each length of prefix in use, of which a file has a few, instead of a
//! comparison with each client.

use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::net::address::{NetworkSet, Peer};

/// Indices of clients by network.
#[derive(Debug, Default)]
pub(super) struct ClientNetworks {
    /// First client of each network. Networks have no bits behind the prefix.
    first: FxHashMap<IpNet, usize>,
    /// Lengths of prefixes in use, each once.
    v4: Vec<u8>,
    v6: Vec<u8>,
    /// First client that takes Unix sockets.
    unix: Option<usize>,
    /// First client without `from`.
    anywhere: Option<usize>,
}

impl ClientNetworks {
    /// Adds a client; without `from`, its network does not matter. Indices must grow from call to
    /// call.
    pub(super) fn add(&mut self, index: usize, from: Option<&NetworkSet>) {
        let Some(from) = from else {
            self.anywhere.get_or_insert(index);
            return;
        };
        if from.contains(&Peer::Unix) {
            self.unix.get_or_insert(index);
        }
        for net in from.networks() {
            let lengths = if net.addr().is_ipv4() {
                &mut self.v4
            } else {
                &mut self.v6
            };
            if !lengths.contains(&net.prefix_len()) {
                lengths.push(net.prefix_len());
            }
            self.first.entry(net.trunc()).or_insert(index);
        }
    }

    /// Returns the index of the first client that takes callers from this address.
    pub(super) fn first(&self, peer: &Peer) -> Option<usize> {
        let here = match peer {
            Peer::Unix => self.unix,
            Peer::Ip(ip) => self.holding(ip.to_canonical()),
        };
        here.into_iter().chain(self.anywhere).min()
    }

    fn holding(&self, ip: IpAddr) -> Option<usize> {
        let lengths = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let nets = lengths
            .iter()
            .filter_map(|length| IpNet::new(ip, *length).ok());
        nets.filter_map(|net| self.first.get(&net.trunc()).copied())
            .min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{any, proptest},
        sample::select,
        strategy::Strategy,
    };

    use super::*;

    /// Makes networks that often overlap, with bits behind the prefix.
    fn entry() -> impl Strategy<Value = String> {
        let v4 = (0_u8..4, 0_u8..4, 0_u8..=32)
            .prop_map(|(a, b, length)| format!("10.{a}.{b}.1/{length}"));
        let v6 = (0_u8..4, 0_u8..=128).prop_map(|(a, length)| format!("2001:db8:{a}::1/{length}"));
        let mapped = (0_u8..4).prop_map(|a| format!("::ffff:10.{a}.0.0/112"));
        let name = select(vec!["loopback", "private"]).prop_map(str::to_owned);
        proptest::prop_oneof![4 => v4, 2 => v6, 1 => mapped, 1 => name]
    }

    fn peer() -> impl Strategy<Value = Peer> {
        let v4 = (0_u8..5, 0_u8..5).prop_map(|(a, b)| format!("10.{a}.{b}.1"));
        let mapped = (0_u8..5).prop_map(|a| format!("::ffff:10.{a}.0.1"));
        let v6 = (0_u8..5).prop_map(|a| format!("2001:db8:{a}::1"));
        let others =
            select(vec!["127.0.0.1", "::1", "192.0.2.1", "fe80::1"]).prop_map(str::to_owned);
        let ip = proptest::prop_oneof![v4, mapped, v6, others]
            .prop_map(|text| Peer::Ip(text.parse().unwrap()));
        proptest::prop_oneof![8 => ip, 1 => proptest::strategy::Just(Peer::Unix)]
    }

    proptest! {
        #[test]
        fn the_client_that_is_found_is_the_first_one_that_a_look_at_each_would_find(
            clients in vec((any::<bool>(), vec(entry(), 0..4)), 0..12),
            peers in vec(peer(), 1..20),
        ) {
            let sets: Vec<Option<NetworkSet>> = clients
                .iter()
                .map(|(everywhere, entries)| {
                    let mut set = NetworkSet::default();
                    for entry in entries {
                        set.add(entry).unwrap();
                    }
                    // Seldom, or most networks would not be looked at.
                    (!everywhere || entries.len() != 3).then_some(set)
                })
                .collect();
            let mut networks = ClientNetworks::default();
            sets.iter().enumerate().for_each(|(place, from)| networks.add(place, from.as_ref()));
            for peer in peers {
                let each = sets.iter().position(|from| from.as_ref().is_none_or(|from| from.contains(&peer)));
                assert_eq!(networks.first(&peer), each, "{peer}");
            }
        }
    }
}
