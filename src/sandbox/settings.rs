//! Settings of a sandbox. Every default is the limit that WeChat documents.

use std::{fmt, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{base::Secret, net::address::ListenAddr};

/// Listeners, accounts and limits of the fake WeChat.
#[derive(Debug, Clone)]
pub struct SandboxSettings {
    /// Address of the plain HTTP listener; `None` for no listener.
    pub http: Option<ListenAddr>,
    /// Address of the TLS listener; `None` for no listener.
    pub https: Option<ListenAddr>,
    /// Certificate from files; `None` to generate a root and a certificate at start.
    pub certificate: Option<CertificateFiles>,
    /// Accounts at start. The control can add more.
    pub accounts: Vec<SandboxAccount>,
    /// Lifetime of a token. WeChat: 7200 s.
    pub token_life: Duration,
    /// Time for which the previous token still works after a rotation. WeChat: 5 min.
    pub overlap: Duration,
    /// Time for which the previous token still works after `force_refresh`. WeChat: none.
    pub forced_overlap: Duration,
    /// Daily limit of `cgi-bin/token` calls per account. WeChat: 2000.
    pub classic_per_day: u32,
    /// Daily limit of forced `cgi-bin/stable_token` calls per account. WeChat: 20.
    pub forced_per_day: u32,
    /// Interval after a forced call in which another forced call has no effect. WeChat: 30 s.
    pub forced_spacing: Duration,
    /// Limit of `cgi-bin/stable_token` calls per account and minute. WeChat: 10 000.
    pub stable_per_minute: u32,
    /// Lifetime of a jsapi or card ticket. WeChat: 7200 s.
    pub ticket_life: Duration,
    /// Idle time-out of connections. Reported of WeChat: about 20 s.
    pub idle_close: Option<Duration>,
    /// True to record requests and deliveries; totals are counted in any case.
    pub record: bool,
    /// Maximum number of recorded requests, and of recorded deliveries.
    pub record_capacity: usize,
    /// Largest upload that can be downloaded again, in bytes; of larger ones only length and
    /// SHA-256 are recorded.
    pub media_keep: usize,
    /// Seed of tokens and identifiers, for repeatable runs; random if absent.
    pub seed: Option<u64>,
}

/// Certificate and key in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// Account at the fake WeChat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxAccount {
    /// Appid (`wx…`), or corpid of WeCom.
    pub appid: String,
    /// AppSecret, or secret of a WeCom agent.
    pub secret: Secret,
    /// Protocol of the account.
    pub platform: SandboxPlatform,
}

/// Protocol of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxPlatform {
    /// 公众号, 小程序 and everything else at api.weixin.qq.com.
    Wechat,
    /// 企业微信 at qyapi.weixin.qq.com.
    Wecom,
}

/// Keys of an account at WeChat under API 安全.
#[derive(Clone)]
pub struct ApiSigning {
    /// Paths that must be signed; `*` and `**` as in [`super::Rule::path`].
    pub paths: Vec<String>,
    /// Public key of the account, SPKI in DER.
    pub public_key: Vec<u8>,
    /// Symmetric key, AES-256.
    pub aes_key: [u8; 32],
    /// Serial number of the symmetric key.
    pub aes_serial: String,
    /// Private key of WeChat, PKCS#8 in DER.
    pub platform_key: Vec<u8>,
    /// Serial number of the certificate of WeChat's key.
    pub platform_serial: String,
}

/// IP whitelist of an account, as its console keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpWhitelist {
    /// Networks whose calls are answered.
    pub addresses: Vec<IpNet>,
    /// Calls whose address is looked at; `None` for what the account's platform does.
    #[serde(default)]
    pub checked: Option<CheckedCalls>,
    /// Error code of a refusal; `None` for 40164, at WeCom 60020.
    #[serde(default)]
    pub code: Option<i64>,
}

/// Calls whose address is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckedCalls {
    /// All calls: 公众号 and 服务号, the default on wechat.
    All,
    /// Calls that bring the AppSecret: 小程序 and 小游戏.
    WithSecret,
    /// All but the token endpoints: WeCom.
    ExceptTokens,
}

/// Appid of the account of a default sandbox.
pub const DEFAULT_APPID: &str = "wx0123456789abcdef";

/// AppSecret of the account of a default sandbox; worthless elsewhere.
pub const DEFAULT_SECRET: &str = "sandbox0sandbox0sandbox0sandbox0";

impl fmt::Debug for ApiSigning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiSigning")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl SandboxAccount {
    /// Creates an account at api.weixin.qq.com.
    pub fn new(appid: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            appid: appid.into(),
            secret: Secret::new(secret),
            platform: SandboxPlatform::Wechat,
        }
    }

    /// Creates a WeCom agent. Several agents may share a corpid; their secrets differ.
    pub fn wecom(corpid: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            appid: corpid.into(),
            secret: Secret::new(secret),
            platform: SandboxPlatform::Wecom,
        }
    }
}

impl Default for SandboxSettings {
    /// Returns settings with HTTP and TLS on free loopback ports, one account ([`DEFAULT_APPID`])
    /// and WeChat's own limits.
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
