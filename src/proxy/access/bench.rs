//! The door through which the benches reach this stage. No part of the interface: it changes with
//! the stage.

use std::net::IpAddr;

use hyper::HeaderMap;

use super::{Access, Caller, Decision, LastKey, Right};
use crate::{
    base::AccountName,
    net::address::{NetworkSet, Peer},
    proxy::settings::Client,
};

/// Who may call.
pub struct Callers(Access, LastKey);

impl Callers {
    /// These, in the order of the file.
    pub fn new(clients: Vec<Client>) -> Self {
        Self(
            Access::new(NetworkSet::loopback(), NetworkSet::default(), clients, None),
            LastKey::default(),
        )
    }

    /// Whether a request from this address with these headers is let in to this path of the
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
            key: None,
        };
        let Ok(client) = self.0.identify(&caller, None) else {
            return false;
        };
        matches!(
            client.admit(
                account,
                Right::Path {
                    path,
                    guarded: false
                }
            ),
            Decision::Admitted(_)
        )
    }
}
