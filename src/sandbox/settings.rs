//! What a sandbox is started with. Every limit is the one that WeChat documents, unless a test says
//! otherwise.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{base::Secret, net::address::ListenAddr};

/// How the fake WeChat stands and which limits it keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Plain HTTP; `None` for no such listener.
    pub http: Option<ListenAddr>,
    /// TLS; `None` for no such listener.
    pub https: Option<ListenAddr>,
    /// A certificate of the user's own; without it, one is made at the start together with its
    /// root.
    pub certificate: Option<CertificateFiles>,
    /// Who has an account. More can be added later through the control.
    pub accounts: Vec<SandboxAccount>,
    /// How long a token lives. WeChat: 7200 s.
    pub token_life: Duration,
    /// How long the previous token goes on working after a rotation. WeChat: 5 min.
    pub overlap: Duration,
    /// The same after `force_refresh`. WeChat: the previous one is invalid at once.
    pub forced_overlap: Duration,
    /// Calls of `cgi-bin/token` per account and day. WeChat: 2000.
    pub classic_per_day: u32,
    /// Forced calls of `cgi-bin/stable_token` per account and day. WeChat: 20.
    pub forced_per_day: u32,
    /// A forced call sooner than this after the last one changes nothing. WeChat: 30 s.
    pub forced_spacing: Duration,
    /// Calls of `cgi-bin/stable_token` per account and minute. WeChat: 10 000.
    pub stable_per_minute: u32,
    /// How long a jsapi or card ticket lives. WeChat: 7200 s.
    pub ticket_life: Duration,
    /// Idle connections are closed after this time. Reported of WeChat: about 20 s.
    pub idle_close: Option<Duration>,
    /// Whether requests and deliveries are kept; totals are counted in any case.
    pub record: bool,
    /// How many requests and how many deliveries are kept.
    pub record_capacity: usize,
    /// Uploads up to this many bytes can be downloaded again; of larger ones only length and
    /// SHA-256 are kept.
    pub media_keep: usize,
    /// Makes tokens and identifiers repeatable; random when absent.
    pub seed: Option<u64>,
}

/// A certificate and its key in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Leaf first.
    pub cert: PathBuf,
    /// PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// An account that the fake WeChat knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxAccount {
    /// `wx…`, or the corpid of WeCom.
    pub appid: String,
    /// The AppSecret, or the secret of a WeCom agent.
    pub secret: Secret,
    /// Which of the two protocols it speaks.
    pub platform: Platform,
}

/// The two protocols that the sandbox speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// 公众号, 小程序 and everything else at api.weixin.qq.com.
    Wechat,
    /// 企业微信 at qyapi.weixin.qq.com.
    Wecom,
}

/// The appid of the account that a default sandbox has.
pub const DEFAULT_APPID: &str = "wx0123456789abcdef";

/// Its AppSecret, which opens nothing anywhere else.
pub const DEFAULT_SECRET: &str = "sandbox0sandbox0sandbox0sandbox0";

impl SandboxAccount {
    /// An account at api.weixin.qq.com.
    pub fn new(appid: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            appid: appid.into(),
            secret: Secret::new(secret),
            platform: Platform::Wechat,
        }
    }

    /// A WeCom agent. Several may share one corpid; the secret tells them apart.
    pub fn wecom(corpid: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            appid: corpid.into(),
            secret: Secret::new(secret),
            platform: Platform::Wecom,
        }
    }
}

impl Default for Settings {
    /// HTTP and TLS on free loopback ports, one account ([`DEFAULT_APPID`]), WeChat's own limits.
    fn default() -> Self {
        let loopback = || Some(ListenAddr::Tcp("127.0.0.1:0".to_owned()));
        Self {
            http: loopback(),
            https: loopback(),
            certificate: None,
            accounts: vec![SandboxAccount::new(DEFAULT_APPID, DEFAULT_SECRET)],
            token_life: Duration::from_secs(7200),
            overlap: Duration::from_secs(300),
            forced_overlap: Duration::ZERO,
            classic_per_day: 2000,
            forced_per_day: 20,
            forced_spacing: Duration::from_secs(30),
            stable_per_minute: 10_000,
            ticket_life: Duration::from_secs(7200),
            idle_close: Some(Duration::from_secs(20)),
            record: true,
            record_capacity: 10_000,
            media_keep: 10 << 20,
            seed: None,
        }
    }
}
