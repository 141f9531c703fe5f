//! Addresses as the configuration writes them: listeners, networks of callers, base URLs.
//!
//! Values only; `listen` binds them, and the clients dial them.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port` into host and port. The host keeps its
/// brackets; the port is digits of any length. `None` for anything else, such as an IPv6 address
/// without brackets.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let host_end = match authority.strip_prefix('[') {
        Some(inner) => inner.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(host_end);
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((host, None)),
        Some(port) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port)))
        }
        _ => None,
    }
}

/// Host of a URL or `Host` header as resolvers and address parsers take it.
pub(crate) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(host)
}

/// Tells if a host, with or without brackets, is this machine: what is sent there crosses no
/// network.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let host = without_brackets(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns the address at which a listener is reached from this machine: loopback for one on all
/// addresses.
pub(crate) fn reachable(address: &str) -> String {
    match split_port(address) {
        Some(("0.0.0.0", Some(port))) => format!("127.0.0.1:{port}"),
        Some(("[::]", Some(port))) => format!("[::1]:{port}"),
        _ => address.to_owned(),
    }
}

/// Address of a listener: `"host:port"` or `"unix:/path"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// Resolved when it is bound; port 0 takes a free one.
    Tcp(String),
    /// A socket file; a stale one is replaced.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Tells if only this machine can reach the listener.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => {
                split_port(address).is_some_and(|(host, _)| is_loopback_host(host))
            }
        }
    }
}

impl FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("the path of the socket is missing: write \"unix:/run/wxgate.sock\"");
            }
            return Ok(Self::Unix(path.into()));
        }
        match split_port(text) {
            Some((host, Some(port))) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            None if text.matches(':').count() > 1 && !text.starts_with('[') => {
                Err("an IPv6 address stands in brackets: write \"[::1]:8080\"")
            }
            _ => Err("expected \"host:port\" or \"unix:/path\", such as \"127.0.0.1:8080\""),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// TCP client.
    Ip(IpAddr),
    /// Process on this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// Returns the address that limits count for: of IPv6 the first 64 bits, since one host may have
    /// any number of addresses behind them.
    #[must_use]
    pub fn counted(self) -> Self {
        match self {
            Self::Ip(ip) => Self::Ip(match ip.to_canonical() {
                IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
                v4 @ IpAddr::V4(_) => v4,
            }),
            Self::Unix => Self::Unix,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Set of networks: CIDRs, single addresses, `"loopback"` (Unix sockets too) and `"private"` (RFC
/// 1918, RFC 6598, RFC 4193 and link-local addresses).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSet {
    nets: Vec<IpNet>,
    unix: bool,
}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

impl NetworkSet {
    /// Adds one entry of the configuration.
    ///
    /// # Errors
    /// The form that an entry must have.
    pub fn add(&mut self, entry: &str) -> Result<(), &'static str> {
        match entry {
            "loopback" => {
                self.unix = true;
                self.nets
                    .extend(LOOPBACK.iter().filter_map(|n| n.parse::<IpNet>().ok()));
            }
            "private" => self
                .nets
                .extend(PRIVATE.iter().filter_map(|n| n.parse::<IpNet>().ok())),
            _ => {
                let net = entry
                    .parse::<IpNet>()
                    .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
                self.nets.push(
                    net.map_err(|_| "expected a CIDR such as \"10.0.0.0/8\", an address, \"loopback\" or \"private\"")?,
                );
            }
        }
        Ok(())
    }

    /// Default of `server.allow`.
    pub fn loopback() -> Self {
        let mut set = Self::default();
        let _ = set.add("loopback");
        set
    }

    /// Tells if the peer is inside. IPv4-mapped IPv6 addresses count as the IPv4 address that they
    /// carry.
    pub fn contains(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Unix => self.unix,
            Peer::Ip(ip) => {
                let ip = ip.to_canonical();
                self.nets.iter().any(|net| net.contains(&ip))
            }
        }
    }

    /// Networks as they were written; Unix sockets are in none of them.
    pub fn networks(&self) -> &[IpNet] {
        &self.nets
    }

    /// Tells if the set holds an address outside this machine.
    pub fn reaches_beyond_loopback(&self) -> bool {
        self.nets.iter().any(|net| {
            !LOOPBACK
                .iter()
                .filter_map(|n| n.parse::<IpNet>().ok())
                .any(|l| l.contains(net))
        })
    }

    /// Returns the set without the networks of a family of which it holds all addresses.
    #[must_use]
    pub fn without_everybody(&self) -> Self {
        let whole: Vec<bool> = IpNet::aggregate(&self.nets)
            .iter()
            .filter(|net| net.prefix_len() == 0)
            .map(|net| net.addr().is_ipv4())
            .collect();
        let nets = self.nets.iter().copied();
        Self {
            nets: nets
                .filter(|net| !whole.contains(&net.addr().is_ipv4()))
                .collect(),
            ..self.clone()
        }
    }

    /// Tells if the set holds all of `other`.
    pub fn includes(&self, other: &Self) -> bool {
        let nets = IpNet::aggregate(&self.nets);
        (self.unix || !other.unix)
            && other
                .nets
                .iter()
                .all(|inner| nets.iter().any(|net| net.contains(inner)))
    }

    /// Tells if the set holds every IPv4 address or every IPv6 address.
    pub fn holds_everybody(&self) -> bool {
        IpNet::aggregate(&self.nets)
            .iter()
            .any(|net| net.prefix_len() == 0)
    }

    /// Tells if the set is empty.
    pub fn is_empty(&self) -> bool {
        self.nets.is_empty() && !self.unix
    }
}

/// Base URL of an API host: scheme, host and port, nothing behind them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BaseUrl {
    /// `https`, or `http` towards this machine only.
    pub tls: bool,
    /// Host name or IP literal without brackets, in lower case.
    pub host: String,
    /// The port, spelt out or the scheme's own.
    pub port: u16,
}

impl BaseUrl {
    /// Value of the `Host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == if self.tls { 443 } else { 80 } {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl FromStr for BaseUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected scheme and host, such as \"https://api.weixin.qq.com\"";
        let uri: hyper::Uri = text.parse().map_err(|_| FORM)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(FORM),
        };
        let authority = uri.authority().ok_or(FORM)?;
        if authority.as_str().contains('@')
            || uri.query().is_some()
            || !matches!(uri.path(), "" | "/")
        {
            return Err("no path, query or user belongs here: write scheme, host and port only");
        }
        let host = without_brackets(authority.host()).to_ascii_lowercase();
        if host.is_empty() {
            return Err(FORM);
        }
        if !tls && !is_loopback_host(&host) {
            return Err(
                "http:// is allowed to this machine only, since the token would travel in the clear: use https://",
            );
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}",
            if self.tls { "https" } else { "http" },
            self.authority()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_carry_scheme_host_and_port_only() {
        let url: BaseUrl = "https://API.weixin.qq.com".parse().unwrap();
        assert_eq!(
            (url.authority().as_str(), url.port),
            ("api.weixin.qq.com", 443)
        );
        assert_eq!(
            "http://127.0.0.1:81/"
                .parse::<BaseUrl>()
                .unwrap()
                .authority(),
            "127.0.0.1:81"
        );
        assert_eq!(
            "https://[::1]:8443".parse::<BaseUrl>().unwrap().to_string(),
            "https://[::1]:8443"
        );
        for bad in [
            "api.weixin.qq.com",
            "ftp://x",
            "https://h/p",
            "https://h?q",
            "https://u@h",
            "http://api.weixin.qq.com",
        ] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn hosts_are_split_from_ports_and_recognised_as_this_machine() {
        for (text, split, is_here) in [
            ("localhost", Some(("localhost", None)), true),
            ("LOCALHOST:80", Some(("LOCALHOST", Some("80"))), true),
            ("127.0.0.9:1", Some(("127.0.0.9", Some("1"))), true),
            ("[::1]", Some(("[::1]", None)), true),
            ("[::1]:8443", Some(("[::1]", Some("8443"))), true),
            ("[2001:db8::7]:1", Some(("[2001:db8::7]", Some("1"))), false),
            ("10.0.0.1", Some(("10.0.0.1", None)), false),
            (
                "localhost.evil:1",
                Some(("localhost.evil", Some("1"))),
                false,
            ),
            ("[::1]evil:1", None, false),
            ("[::1", None, false),
            ("::1", None, true),
            ("::1:80", None, false),
            ("host:", None, false),
            ("host:http", None, false),
        ] {
            assert_eq!(split_port(text), split, "{text}");
            let host = split.map_or(text, |(host, _)| host);
            assert_eq!(is_loopback_host(host), is_here, "{text}");
        }
    }

    #[test]
    fn networks_take_mapped_addresses_for_what_they_carry() {
        let mut set = NetworkSet::loopback();
        set.add("10.1.0.0/16").unwrap();
        for inside in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.9",
            "10.1.2.3",
            "::ffff:10.1.0.1",
        ] {
            assert!(set.contains(&Peer::Ip(inside.parse().unwrap())), "{inside}");
        }
        assert!(!set.contains(&Peer::Ip("10.2.0.1".parse().unwrap())));
        assert!(set.contains(&Peer::Unix));
        assert!(set.reaches_beyond_loopback() && !NetworkSet::loopback().reaches_beyond_loopback());
        assert!(NetworkSet::default().add("ten").is_err());
    }

    #[test]
    fn a_set_knows_what_lies_inside_it() {
        let set = |entries: &[&str]| {
            let mut set = NetworkSet::default();
            for entry in entries {
                set.add(entry).unwrap();
            }
            set
        };
        for (outer, inner, expected) in [
            (&["10.0.0.0/8"][..], &["10.1.0.0/16", "10.2.3.4"][..], true),
            (&["10.0.0.0/8"], &["10.1.0.0/16", "11.0.0.1"], false),
            (&["10.0.0.0/9", "10.128.0.0/9"], &["10.0.0.0/8"], true),
            (&["127.0.0.0/8", "::1"], &["loopback"], false),
            (&["loopback"], &["127.0.0.1"], true),
            (&["10.0.0.0/8"], &["::1"], false),
        ] {
            assert_eq!(
                set(outer).includes(&set(inner)),
                expected,
                "{outer:?} {inner:?}"
            );
        }
        for (entries, expected) in [
            (&["0.0.0.0/0"][..], true),
            (&["::/0", "10.0.0.1"], true),
            (&["0.0.0.0/1", "128.0.0.0/1"], true),
            (&["private", "loopback"], false),
            (&[], false),
        ] {
            assert_eq!(set(entries).holds_everybody(), expected, "{entries:?}");
        }
    }

    #[test]
    fn listen_addresses_are_tcp_or_unix() {
        assert_eq!("unix:/a b".parse(), Ok(ListenAddr::Unix("/a b".into())));
        assert!("[::1]:0".parse::<ListenAddr>().unwrap().is_local());
        assert!(!"0.0.0.0:80".parse::<ListenAddr>().unwrap().is_local());
        for bad in ["", ":80", "host", "host:", "host:99999", "::1:80", "unix:"] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad} was taken");
        }
    }
}
