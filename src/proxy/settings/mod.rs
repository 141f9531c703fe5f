//! Settings of the data path: the tables `[server]`, `[upstream]` and `[replay]`, validated.
//!
//! Values only. `config` reads them from the file.

mod client;
mod signing;

use std::{collections::HashMap, time::Duration};

pub(crate) use client::Rate;
pub use client::{ClientKey, ClientSettings, KeyDigest, Mode, PathPattern, Scopes};
pub(crate) use signing::SigningSettings;

use hyper::header::HeaderName;

use crate::{
    base::AccountName,
    net::{
        address::{ListenAddr, NetworkSet},
        egress::Egress,
        tls::ServerTls,
    },
};

/// Settings of the data path, without those of accounts. The default is that of an empty file.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Addresses of the listeners: at least one, no two alike.
    pub listen: Vec<ListenAddr>,
    /// Number of threads that serve requests; 0 = one per core.
    pub workers: usize,
    /// Networks whose calls are served while there is no client.
    pub allow: NetworkSet,
    /// True if the configuration sets `allow`: with clients, its networks may then make calls that
    /// use nothing of wxgate's without a key.
    pub allow_is_set: bool,
    /// Clients and their rights, in the order of the file. Without any, `allow` decides.
    pub clients: Vec<ClientSettings>,
    /// Networks of proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: NetworkSet,
    /// TLS of the TCP listeners, which then speak nothing else.
    pub tls: Option<ServerTls>,
    /// Longest request body, in bytes; a longer one is answered 413.
    pub max_body: u64,
    /// Most open connections over all listeners, at least one.
    pub max_connections: usize,
    /// Most open connections of one client and of one peer address, at least one.
    pub max_connections_per_client: usize,
    /// Lowest rate of a body in either direction, in bytes per second over 10 s; 0 = none.
    pub min_rate: u64,
    /// Status of error answers of wxgate itself.
    pub error_style: ErrorStyle,
    /// Account of requests that select none. One of the configured accounts.
    pub default_account: Option<AccountName>,
    /// API signing, by the account. Only of configured accounts.
    pub signing: HashMap<AccountName, SigningSettings>,
    /// Connections to WeChat.
    pub upstream: UpstreamSettings,
    /// Copies of request bodies, for a replay.
    pub replay: ReplaySettings,
}

/// Status of error answers of wxgate itself. The body has `errcode` in all styles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorStyle {
    /// Status 200 for calls that bring a token or a secret, which come from SDKs: these show
    /// `errcode` and `errmsg` only, and some print the URL of a call whose status is another. The
    /// HTTP status of the error for all others.
    #[default]
    Auto,
    /// HTTP status of the error.
    Http,
    /// Status 200, as WeChat answers errors.
    Wechat,
}

/// The table `[upstream]`.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// Roots, source address, proxy and fixed addresses.
    pub egress: Egress,
    /// Time limit from the last byte of the request to the response head.
    pub response_timeout: Duration,
    /// Time for which an unused connection is kept; zero keeps none.
    pub pool_idle: Duration,
    /// Most requests in flight over all accounts, at least one.
    pub max_in_flight: usize,
    /// Most requests in flight of one account and of one client while others send some too, at least
    /// one.
    pub max_share: usize,
    /// Headers of callers that go on to WeChat besides those that always do.
    pub headers: Vec<HeaderName>,
    /// Keep one connection per API host ready while it is in use.
    pub warm: bool,
}

/// The table `[replay]`, in bytes. `memory_total` is at least `memory`; `disk` is zero or at least
/// `memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplaySettings {
    /// Longest copy that stays in memory.
    pub memory: u64,
    /// Longest copy that is spooled to an unlinked file; 0 = never.
    pub disk: u64,
    /// Most memory for all copies together.
    pub memory_total: u64,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            listen: vec![ListenAddr::Tcp("127.0.0.1:8080".to_owned())],
            workers: 0,
            allow: NetworkSet::loopback(),
            allow_is_set: false,
            clients: Vec::new(),
            trusted_proxies: NetworkSet::default(),
            tls: None,
            max_body: 32 << 20,
            max_connections: 10_000,
            max_connections_per_client: 5_000,
            min_rate: 1024,
            error_style: ErrorStyle::default(),
            default_account: None,
            signing: HashMap::new(),
            upstream: UpstreamSettings::default(),
            replay: ReplaySettings::default(),
        }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            egress: Egress::default(),
            response_timeout: Duration::from_secs(30),
            // WeChat closes idle connections at about 20 s.
            pool_idle: Duration::from_secs(15),
            max_in_flight: 1024,
            max_share: 768,
            headers: Vec::new(),
            warm: true,
        }
    }
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self {
            memory: 1 << 20,
            disk: 32 << 20,
            memory_total: 64 << 20,
        }
    }
}
