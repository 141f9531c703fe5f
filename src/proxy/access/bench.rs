//! Access to this stage for the benches. No part of the interface, since it changes with the stage.

use std::net::IpAddr;

use hyper::HeaderMap;

use super::{Access, Caller, Decision, LastKey, Right};
use crate::{
    base::AccountName,
    net::address::{NetworkSet, Peer},
    proxy::settings::ClientSettings,
};

/// Clients, and a connection of a caller.
pub struct AccessBench(Access, LastKey);

impl AccessBench {
    /// Makes the tables of these clients, in the order of the file.
    pub fn new(clients: Vec<ClientSettings>) -> Self {
        Self(
            Access::new(
                NetworkSet::loopback().into(),
                NetworkSet::default(),
                clients,
                None,
            ),
            LastKey::default(),
        )
    }

    /// Returns true if a request from this address with these headers may call this path of the
    /// account.
    pub fn admit(
        &self,
        ip: IpAddr,
        headers: &HeaderMap,
        account: &AccountName,
        path: &str,
    ) -> bool {
        let address = self.0.caller(Peer::Ip(ip), headers);
        let caller = Caller {
            address,
            cert_names: &[],
            last_key: &self.1,
            headers: Some(headers),
            to_proxy: false,
            key: None,
        };
        let Ok(client) = self.0.identify(&caller, None) else {
            return false;
        };
        matches!(
            client.admit(
                Some(account),
                Right::Path {
                    path,
                    guarded: None
                }
            ),
            Decision::Admitted(_)
        )
    }
}
