//! What the data path can be told: the tables `[server]`, `[upstream]` and `[replay]`, proven
//! right.
//!
//! Values only. How the file spells them is `config`'s business; acting on them is that of the
//! stages.

mod client;

use std::time::Duration;

pub use client::{Client, KeyDigest, Mode, PathPattern, Rate, Scopes};

use crate::{
    base::AccountName,
    net::{
        address::{ListenAddr, NetworkSet},
        egress::Egress,
        tls::ServerTls,
    },
};

/// Everything the proxy needs besides accounts and tokens. The default is that of an empty file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one, no two alike.
    pub listen: Vec<ListenAddr>,
    /// Threads that serve requests; 0 = one per core.
    pub workers: usize,
    /// Whose calls are served while there is no client.
    pub allow: NetworkSet,
    /// Callers and their rights, in the order of the file. Without any, `allow` decides.
    pub clients: Vec<Client>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: NetworkSet,
    /// With it, TCP listeners speak TLS only.
    pub tls: Option<ServerTls>,
    /// Bytes of a request body; above it 413.
    pub max_body: u64,
    /// Open connections over all listeners, at least one.
    pub max_connections: usize,
    /// Open connections of one client and of one peer address, at least one.
    pub max_connections_per_client: usize,
    /// Bytes per second of a body in either direction, over 10 s; 0 = none.
    pub min_rate: u64,
    /// The status of answers that wxgate makes itself.
    pub error_style: ErrorStyle,
    /// Used when nothing else selects an account. It exists.
    pub default_account: Option<AccountName>,
    /// Towards WeChat.
    pub upstream: Upstream,
    /// Copies of request bodies.
    pub replay: Replay,
}

/// How an answer that wxgate makes itself tells that it is an error. The body has `errcode` in
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorStyle {
    /// A real status.
    #[default]
    Http,
    /// Status 200, as WeChat does it.
    Wechat,
}

/// The table `[upstream]`.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// How to leave: roots, source address, proxy, fixed addresses.
    pub egress: Egress,
    /// From the last byte of the request to the response head.
    pub response_timeout: Duration,
    /// How long an unused connection is kept; zero keeps none.
    pub pool_idle: Duration,
    /// Requests under way to WeChat over all accounts, at least one.
    pub max_in_flight: usize,
    /// Those of one account and of one client while others ask too, at least one.
    pub max_share: usize,
}

/// The table `[replay]`, in bytes. `memory_total` is at least `memory`; `disk` is zero or at least
/// `memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// A copy up to here stays in memory.
    pub memory: u64,
    /// A copy up to here is spooled to an unlinked file; 0 = never.
    pub disk: u64,
    /// All copies in memory together.
    pub memory_total: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::Tcp("127.0.0.1:8080".to_owned())],
            workers: 0,
            allow: NetworkSet::loopback(),
            clients: Vec::new(),
            trusted_proxies: NetworkSet::default(),
            tls: None,
            max_body: 32 << 20,
            max_connections: 10_000,
            max_connections_per_client: 5_000,
            min_rate: 1024,
            error_style: ErrorStyle::default(),
            default_account: None,
            upstream: Upstream::default(),
            replay: Replay::default(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            egress: Egress::default(),
            response_timeout: Duration::from_secs(30),
            // WeChat closes idle connections at about 20 s.
            pool_idle: Duration::from_secs(15),
            max_in_flight: 1024,
            max_share: 768,
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            memory: 1 << 20,
            disk: 32 << 20,
            memory_total: 64 << 20,
        }
    }
}
