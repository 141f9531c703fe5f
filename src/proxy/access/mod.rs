//! Authentication and authorization of callers.
//!
//! A caller is identified by a key, a phantom token, its certificate or its network. Only this
//! folder can make an [`Admitted`], without which no token is injected: a request that was not
//! checked cannot get one.

pub(super) mod bench;
mod client;
mod key_headers;
mod last_key;
mod networks;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use hyper::HeaderMap;
use rustc_hash::FxHashMap;

pub(crate) use self::client::{Client, Decision, Denial, Right};
pub(crate) use self::last_key::LastKey;
use self::networks::ClientNetworks;
use super::settings::{self, KeyDigest, Scopes};
use crate::{
    base::AccountName,
    net::address::{NetworkSet, Peer},
    service::{Scope, phantom::Tag},
};

/// All clients, and the tables that find them.
#[derive(Debug)]
pub(crate) struct Access {
    allow: NetworkSet,
    trusted_proxies: NetworkSet,
    /// Clients in the order of the file; without any, the one that stands for `allow`.
    clients: Vec<Arc<Client>>,
    /// True if no client is configured.
    open: bool,
    /// Networks of `server.allow` whose callers need no key for calls that use nothing of wxgate's,
    /// although there are clients.
    keyless: NetworkSet,
    // A fast hash without a secret is safe: callers cannot choose a digest.
    by_key: FxHashMap<KeyDigest, Arc<Client>>,
    by_tag: HashMap<Tag, Arc<Client>>,
    /// Indices in `clients` of those without a key, by the name in their certificate.
    by_certificate: HashMap<String, Vec<usize>>,
    /// Indices in `clients` of those with neither key nor certificate.
    by_network: ClientNetworks,
}

/// Proof that a call was let in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted(());

/// Evidence that a request gives of its caller, besides a phantom token.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'r> {
    /// See [`Access::caller`].
    pub(crate) address: Peer,
    /// Names in the certificate of the connection, in lower case.
    pub(crate) cert_names: &'r [String],
    /// Last key that was shown on the connection.
    pub(crate) last_key: &'r LastKey,
    /// Headers of the request, if there are any that could hold a key.
    pub(crate) headers: Option<&'r HeaderMap>,
    /// True for a request in absolute form, whose sender takes wxgate for its HTTP proxy.
    pub(crate) to_proxy: bool,
    /// Value of a parameter that may hold a key. A value that is the key of no client is ignored.
    pub(crate) key: Option<&'r str>,
}

/// `server.allow`.
#[derive(Debug, Clone)]
pub(crate) struct AllowedNetworks {
    /// Networks, by default those of this machine.
    pub(crate) networks: NetworkSet,
    /// True if the configuration sets the key.
    pub(crate) is_set: bool,
}

impl From<NetworkSet> for AllowedNetworks {
    /// As by default.
    fn from(networks: NetworkSet) -> Self {
        Self {
            networks,
            is_set: false,
        }
    }
}

/// Reasons why a call may not be made without a key.
pub(crate) enum KeylessDenial<'a> {
    /// No network of a client or of `server.allow` holds the address.
    Unknown,
    /// This client's network does, and neither it nor another such client may call the path.
    Path(&'a Arc<Client>),
}

/// Reasons why a caller is no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// `server.allow` does not hold the address.
    Network,
    /// No client has the key.
    UnknownKey,
    /// The keys of several clients were shown.
    SeveralKeys,
    /// Without a key, no client fits.
    NoKey,
    /// The key is right, but not from this address or without the certificate.
    WrongOrigin,
}

/// Headers by which a proxy says for whom it calls.
const RELAY_HEADERS: [&str; 3] = ["x-forwarded-for", "forwarded", "x-real-ip"];
/// More trusted hops than any real chain of proxies has.
const MAX_HOPS: usize = 20;
/// Name of the client that stands for `server.allow` while no client is configured.
const NETWORK: &str = "network";

impl Access {
    /// Makes the tables, with `clients` in the order of the file. A client that is unchanged since
    /// `before` keeps the state of its rate limit.
    pub(crate) fn new(
        allow: AllowedNetworks,
        trusted_proxies: NetworkSet,
        clients: Vec<settings::ClientSettings>,
        before: Option<&Self>,
    ) -> Self {
        let open = clients.is_empty();
        let AllowedNetworks {
            networks: allow,
            is_set,
        } = allow;
        let keyless = if is_set && !open {
            allow.without_everybody()
        } else {
            NetworkSet::default()
        };
        let clients = if open {
            AccountName::new(NETWORK)
                .map(network_client)
                .into_iter()
                .collect()
        } else {
            clients
        };
        let clients = following(clients, before);
        let by_key = clients
            .iter()
            .flat_map(|client| client.keys().iter().map(move |key| (key, client)))
            .map(|(key, client)| (key.digest, Arc::clone(client)))
            .collect();
        let by_tag = clients
            .iter()
            .map(|client| (Tag::of(client.name().as_str()), Arc::clone(client)))
            .collect();
        let (mut by_certificate, mut by_network) =
            (HashMap::<_, Vec<_>>::new(), ClientNetworks::default());
        for (index, client) in clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.keys().is_empty())
        {
            match &client.settings().cert {
                Some(name) => by_certificate.entry(name.clone()).or_default().push(index),
                None => by_network.add(index, client.settings().from.as_ref()),
            }
        }
        Self {
            allow,
            trusted_proxies,
            clients,
            open,
            keyless,
            by_key,
            by_tag,
            by_certificate,
            by_network,
        }
    }

    /// Returns the address of the caller: that of the peer, or, behind a trusted proxy, the
    /// rightmost untrusted address in `X-Forwarded-For`. Text among the trusted addresses that is no
    /// address makes it that of the peer again. Text further left was written by an untrusted hop
    /// and is not read.
    pub(crate) fn caller(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        if self.trusted_proxies.is_empty() || !self.trusted_proxies.contains(&peer) {
            return peer;
        }
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops.take(MAX_HOPS) {
            let Some(ip) = parse_hop(hop) else {
                return peer;
            };
            let hop = Peer::Ip(ip);
            if !self.trusted_proxies.contains(&hop) {
                return hop;
            }
        }
        peer
    }

    /// Finds the client. All that the caller shows must belong to the same one, including the
    /// client whose `phantom` is in the query; its networks and certificate must fit too.
    ///
    /// # Errors
    /// When it is no client.
    pub(crate) fn identify<'a>(
        &'a self,
        caller: &Caller<'_>,
        phantom: Option<&'a Arc<Client>>,
    ) -> Result<&'a Arc<Client>, AuthError> {
        if self.open {
            let inside = self.allow.contains(&caller.address);
            return self
                .clients
                .first()
                .filter(|_| inside)
                .ok_or(AuthError::Network);
        }
        let by_headers = caller
            .headers
            .into_iter()
            .flat_map(|headers| self.keys(headers, caller))
            .map(|known| known.map(|(client, _)| client));
        let mut known = phantom.map(Ok).into_iter().chain(by_headers);
        let by_key = caller.key.and_then(|key| self.with_key(key));
        let Some(first) = known.next().or(by_key.map(Ok)) else {
            return self
                .keyless(caller)
                .ok_or_else(|| self.without_client(caller));
        };
        let client = first?;
        for other in known.chain(by_key.map(Ok)) {
            if !Arc::ptr_eq(other?, client) {
                return Err(AuthError::SeveralKeys);
            }
        }
        let network = |from: &NetworkSet| from.contains(&caller.address);
        if client.fits(network, caller.cert_names) {
            Ok(client)
        } else {
            Err(AuthError::WrongOrigin)
        }
    }

    /// Returns the place of the key that the caller shows among those of its client; the first place
    /// for a caller that shows none.
    pub(crate) fn shown_key(&self, client: &Client, caller: &Caller<'_>) -> usize {
        let by_headers = caller
            .headers
            .into_iter()
            .flat_map(|headers| self.keys(headers, caller))
            .filter_map(|known| Some(known.ok()?.1));
        caller
            .key
            .map(KeyDigest::of)
            .into_iter()
            .chain(by_headers)
            .find_map(|digest| client.place_of(&digest))
            .unwrap_or(0)
    }

    /// Returns true if the caller may have the current token replaced without naming it, which only
    /// a `[[client]]` can allow: any caller inside `server.allow` could end the token again and
    /// again.
    pub(crate) fn may_refresh_current(&self, client: &Client) -> bool {
        !self.open && client.may(Scope::Refresh)
    }

    /// Checks that a call which uses nothing of wxgate's may be made without a key: its address is in
    /// a client's `from`, one of which must allow the path, or in `server.allow`. A request that
    /// passed a proxy that is not trusted is never such a call: its address says nothing of its
    /// sender.
    ///
    /// # Errors
    /// When it may not.
    pub(crate) fn admit_keyless(
        &self,
        peer: &Peer,
        address: &Peer,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<(), KeylessDenial<'_>> {
        let is_relayed = RELAY_HEADERS.iter().any(|name| headers.contains_key(*name));
        if is_relayed && !self.trusted_proxies.contains(peer) {
            return Err(KeylessDenial::Unknown);
        }
        let mut near = self.clients.iter().filter(|client| {
            let from = client.settings().from.as_ref();
            from.is_some_and(|from| !from.holds_everybody() && from.contains(address))
        });
        match near.next() {
            Some(first) if first.lets_through(path) => Ok(()),
            Some(first) if !near.any(|client| client.lets_through(path)) => {
                Err(KeylessDenial::Path(first))
            }
            Some(_) => Ok(()),
            None if self.keyless.contains(address) => Ok(()),
            None => Err(KeylessDenial::Unknown),
        }
    }

    /// Returns true if some client has a key.
    pub(crate) fn has_keys(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// Returns true if no client is configured, so that all callers are the same client.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Finds the client with this key, without regard to network and certificate.
    pub(crate) fn with_key(&self, key: &str) -> Option<&Arc<Client>> {
        self.with_digest(KeyDigest::of(key))
    }

    fn with_digest(&self, digest: KeyDigest) -> Option<&Arc<Client>> {
        // The time of the look-up tells a caller nothing about the key, only about a digest that it
        // cannot choose. Compared in constant time all the same.
        let client = self.by_key.get(&digest)?;
        client.place_of(&digest).map(|_| client)
    }

    /// Finds the client of a phantom token.
    pub(crate) fn named(&self, tag: Tag) -> Option<&Arc<Client>> {
        self.by_tag.get(&tag)
    }

    /// Returns the client of each key in the headers, and the key's digest. A text in `Authorization`
    /// that is no key is passed over, since many programs send one that is meant for others.
    fn keys<'a, 'r>(
        &'a self,
        headers: &'r HeaderMap,
        caller: &Caller<'r>,
    ) -> impl Iterator<Item = Result<(&'a Arc<Client>, KeyDigest), AuthError>> + use<'a, 'r> {
        let last = caller.last_key;
        let client_of = move |key: &str| {
            let digest = last.digest(key);
            Some((self.with_digest(digest)?, digest))
        };
        let named = key_headers::own(headers)
            .map(move |key| key.and_then(client_of).ok_or(AuthError::UnknownKey));
        let any = !self.by_key.is_empty();
        let others = any.then(|| key_headers::authorization(headers, caller.to_proxy));
        let others = others.into_iter().flatten();
        named.chain(others.filter_map(move |key| client_of(&key).map(Ok)))
    }

    /// Returns the error for a caller whom nothing identifies.
    fn without_client(&self, caller: &Caller<'_>) -> AuthError {
        let shows_key = caller.headers.is_some_and(|headers| {
            key_headers::authorization(headers, caller.to_proxy)
                .next()
                .is_some()
        });
        if shows_key && !self.by_key.is_empty() {
            AuthError::UnknownKey
        } else {
            AuthError::NoKey
        }
    }

    /// Finds the first client without a key that fits. A certificate goes before a network.
    fn keyless(&self, caller: &Caller<'_>) -> Option<&Arc<Client>> {
        let certified = caller
            .cert_names
            .iter()
            .filter_map(|name| self.by_certificate.get(name))
            .flatten()
            .copied();
        let fits = |index: &usize| {
            let client = self.clients.get(*index);
            client.is_some_and(|client| {
                client.fits(|from| from.contains(&caller.address), caller.cert_names)
            })
        };
        let index = certified
            .filter(fits)
            .min()
            .or_else(|| self.by_network.first(&caller.address));
        self.clients.get(index?)
    }
}

/// Makes the clients. One that is unchanged since `before` is that of before.
fn following(clients: Vec<settings::ClientSettings>, before: Option<&Access>) -> Vec<Arc<Client>> {
    let former = before.into_iter().flat_map(|before| &before.clients);
    let former: HashMap<_, _> = former.map(|client| (client.name(), client)).collect();
    let make = |settings: settings::ClientSettings| match former.get(&settings.name) {
        Some(same) if *same.settings() == settings => Arc::clone(same),
        _ => {
            let tag = Tag::of(settings.name.as_str());
            let changed = before.and_then(|before| before.named(tag));
            Arc::new(Client::new(settings).continuing(changed.map(Arc::as_ref)))
        }
    };
    clients.into_iter().map(make).collect()
}

/// Makes the client that stands for `server.allow`: it may use all accounts, request refreshes and
/// read tickets.
fn network_client(name: AccountName) -> settings::ClientSettings {
    let may = Scopes::default().with(Scope::Refresh).with(Scope::Ticket);
    settings::ClientSettings {
        may,
        ..settings::ClientSettings::named(name)
    }
}

impl AuthError {
    /// Returns advice for the operator.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Network => {
                "callers from this address are not let in; add its network to server.allow"
            }
            Self::UnknownKey => {
                "no client has this key; compare X-Wxgate-Key, the bearer token or the password of the base URL with the \
                 [[client]] sections"
            }
            Self::SeveralKeys => "the request shows the keys of several clients; send one",
            Self::NoKey => {
                "no client is known that calls from this address without a key; send X-Wxgate-Key, or add the network \
                 to a [[client]]"
            }
            Self::WrongOrigin => {
                "this client may not call from this address or without its certificate; compare from and cert in its \
                 [[client]] section"
            }
        }
    }
}

/// Parses `10.0.0.1`, `10.0.0.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    text.parse()
        .ok()
        .or_else(|| {
            text.parse::<std::net::SocketAddr>()
                .ok()
                .map(|address| address.ip())
        })
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}
