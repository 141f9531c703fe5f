//! The connection on which a request came: its peer, its certificate, and the counts it stands in.

use std::sync::Arc;

use super::{
    access::LastKey,
    bulkhead::{ClientCount, Holder, PeerCount},
};
use crate::net::{address::Peer, connection::ConnectionState};

/// A connection of a caller, shared by its requests.
pub(super) struct ClientConn {
    pub(super) peer: Peer,
    /// `peer` as text, which every line of the access log needs.
    pub(super) peer_text: String,
    /// Names in the client's certificate, in lower case; none without a certificate.
    pub(super) cert_names: Vec<String>,
    pub(super) last_key: LastKey,
    pub(super) state: ConnectionState,
    pub(super) of_peer: PeerCount,
    pub(super) of_client: ClientCount,
}

impl ClientConn {
    /// Returns the counters of the peer address.
    pub(super) fn peer_holder(&self) -> &Arc<Holder> {
        self.of_peer.holder()
    }
}
