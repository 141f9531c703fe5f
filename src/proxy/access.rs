//! Who is calling, and may they.
//!
//! So far a caller is known by its network alone. Only this file can make an [`Admitted`], and a token is injected for
//! nothing else: a request that nobody checked cannot get one.

use std::net::IpAddr;

use hyper::HeaderMap;

use super::error::ProxyError;
use crate::net::address::{NetworkSet, Peer};

/// More hops than any real chain of proxies has; a longer list is taken for junk.
const MAX_HOPS: usize = 20;

/// Who may call.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) allow: NetworkSet,
    pub(crate) trusted_proxies: NetworkSet,
}

/// Proof that the caller was let in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted(());

impl Access {
    /// The caller's own address: the peer's, or, behind a trusted proxy, the rightmost untrusted one of
    /// `X-Forwarded-For`. Junk in that header makes it the peer's again.
    pub(crate) fn caller(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        if self.trusted_proxies.is_empty() || !self.trusted_proxies.contains(&peer) {
            return peer;
        }
        let lines: Option<Vec<&str>> = headers.get_all("x-forwarded-for").iter().map(|v| v.to_str().ok()).collect();
        let hops: Vec<&str> = lines.unwrap_or_default().into_iter().flat_map(|line| line.split(',')).collect();
        if hops.len() > MAX_HOPS {
            return peer;
        }
        for hop in hops.iter().rev() {
            let Some(ip) = parse_hop(hop.trim()) else { return peer };
            let hop = Peer::Ip(ip);
            if !self.trusted_proxies.contains(&hop) {
                return hop;
            }
        }
        peer
    }

    /// Lets the caller in or not.
    pub(crate) fn admit(&self, caller: Peer) -> Result<Admitted, ProxyError> {
        if self.allow.contains(&caller) { Ok(Admitted(())) } else { Err(ProxyError::ClientUnknown) }
    }
}

/// `10.0.0.1`, `10.0.0.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn parse_hop(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn caller(peer: &str, lines: &[&str]) -> String {
        let mut trusted_proxies = NetworkSet::default();
        trusted_proxies.add("10.0.0.0/8").unwrap();
        let access = Access { allow: NetworkSet::loopback(), trusted_proxies };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_str(line).unwrap());
        }
        access.caller(Peer::Ip(peer.parse().unwrap()), &headers).to_string()
    }

    #[test]
    fn forwarding_headers_count_only_from_trusted_proxies() {
        assert_eq!(caller("192.0.2.1", &["127.0.0.1"]), "192.0.2.1");
        assert_eq!(caller("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(caller("10.0.0.1", &["127.0.0.1, 203.0.113.9, 10.9.9.9"]), "203.0.113.9", "a spoofed leftmost hop");
        assert_eq!(caller("10.0.0.1", &["127.0.0.1", "203.0.113.9:4711"]), "203.0.113.9", "two lines are one list");
        assert_eq!(caller("10.0.0.1", &["[2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(caller("::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9", "mapped addresses are the same proxy");
        for junk in ["unknown", "", "203.0.113.9, nonsense", "203.0.113.9,,", &"203.0.113.9,".repeat(25)] {
            assert_eq!(caller("10.0.0.1", &[junk]), "10.0.0.1", "{junk:?}");
        }
        assert_eq!(caller("10.0.0.1", &[]), "10.0.0.1");
    }
}
