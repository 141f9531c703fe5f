//! The choice of the account that a request is for.
//!
//! All selectors of a request (phantom, path prefix, header, host) must agree; without any, fallbacks
//! decide. The tables are made once per configuration, so that the cost of a request does not grow
//! with the number of accounts.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;

use super::{
    bulkhead::Holder,
    error::ProxyError,
    log_limit::LogLimit,
    mask::CredentialMask,
    metrics::{AccountMetrics, ProxyMetrics},
    settings::SigningSettings,
    upstream::UpstreamOrigin,
};
use crate::{
    base::{AccountName, Secret, secret_finder::SecretFinder},
    net::address::{BaseUrl, split_port},
    service::phantom::Tag,
    token::{AccountSettings, AccountTokens, ForeignToken, PhantomKeys, Tickets, TokenRefresher},
    wechat::api::Platform,
};

/// Header by which a caller selects an account, and by which answers name it.
pub(super) const X_WXGATE_ACCOUNT: HeaderName = HeaderName::from_static("x-wxgate-account");

/// An account, with everything that its requests need.
pub(crate) struct Account {
    pub(crate) name: AccountName,
    /// `name` as the value of `X-Wxgate-Account`.
    pub(crate) label: HeaderValue,
    pub(crate) platform: Platform,
    pub(crate) appid: String,
    pub(crate) secret: Option<Secret>,
    /// Search for `secret` in answers.
    secret_finder: Option<SecretFinder>,
    pub(crate) refresher: TokenRefresher,
    pub(crate) tickets: Option<Arc<Tickets>>,
    pub(crate) phantoms: Arc<PhantomKeys>,
    pub(crate) metrics: AccountMetrics,
    /// Treatment of foreign tokens; `None` leaves it to the way of the call.
    pub(crate) foreign_token: Option<ForeignToken>,
    /// Limit for log lines about foreign tokens.
    pub(crate) foreign_token_log: LogLimit,
    /// API signing; in a box, since few accounts have it.
    pub(crate) signing: Option<Box<AccountSigning>>,
    /// Limit for log lines about refusals of WeChat's signature layer.
    pub(crate) signature_log: LogLimit,
    /// Count of the account's requests in flight.
    pub(crate) holder: Arc<Holder>,
    api: Vec<BaseUrl>,
    /// API hosts, the preferred one first.
    origins: Vec<Arc<UpstreamOrigin>>,
}

/// API signing of an account.
pub(crate) struct AccountSigning {
    pub(crate) settings: SigningSettings,
    /// Limit for log lines about calls that go unsigned.
    pub(crate) unsigned_log: LogLimit,
    /// Limit for log lines about a certificate that WeChat is about to retire.
    pub(crate) deprecated_log: LogLimit,
}

/// All accounts.
pub(crate) struct Accounts {
    // A fast hash without a secret is safe: all keys come from the configuration, and callers can
    // only look them up.
    by_name: FxHashMap<String, Arc<Account>>,
    by_appid: FxHashMap<String, Vec<Arc<Account>>>,
    by_tag: FxHashMap<Tag, Arc<Account>>,
    by_host: FxHashMap<String, Arc<Account>>,
    /// Names of WeChat's own hosts.
    own_hosts: OwnHosts,
    fallback: Option<Fallback>,
    wechat: PlatformAccounts,
    wecom: PlatformAccounts,
}

/// Accounts of one platform that a request may be for without naming one.
#[derive(Default)]
struct PlatformAccounts {
    /// First account of the file.
    first: Option<Arc<Account>>,
    fallback: Option<Fallback>,
}

/// Account of requests that select none.
struct Fallback {
    account: Arc<Account>,
    source: FallbackSource,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FallbackSource {
    /// `default_account`.
    Configured,
    /// There is no other account.
    Only,
    /// There was no other account until a reload added one.
    FormerOnly,
}

/// Account that requests without a selector go to because it was the only one before a reload. A restart
/// ends that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FormerOnlyAccount {
    pub(crate) name: AccountName,
    /// Set if only requests to a host of this platform go there.
    pub(crate) platform: Option<Platform>,
}

/// Account that a request selects, and the platform that it must be of.
#[derive(Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// Account of a phantom, prefix, header or host.
    pub(crate) account: Option<&'a Arc<Account>>,
    /// Platform of WeChat's own host that the request names.
    pub(crate) platform: Option<Platform>,
}

impl Account {
    pub(crate) fn new(
        settings: &AccountSettings,
        tokens: AccountTokens,
        metrics: AccountMetrics,
        origins: Vec<Arc<UpstreamOrigin>>,
    ) -> Self {
        Self {
            name: settings.name.clone(),
            // The grammar of names is narrower than that of header values.
            label: HeaderValue::from_str(settings.name.as_str())
                .unwrap_or_else(|_| HeaderValue::from_static("?")),
            platform: settings.platform,
            appid: settings.appid.clone(),
            secret: settings.secret.clone(),
            secret_finder: settings.secret.as_ref().and_then(SecretFinder::new),
            refresher: tokens.token,
            tickets: tokens.tickets,
            phantoms: tokens.phantoms,
            metrics,
            foreign_token: settings.foreign_token,
            foreign_token_log: LogLimit::default(),
            signing: None,
            signature_log: LogLimit::default(),
            holder: Holder::named(settings.name.as_str()),
            api: settings.api.clone(),
            origins,
        }
    }

    /// Returns the credentials that reach no caller in an answer.
    pub(crate) fn mask(&self) -> CredentialMask<'_> {
        CredentialMask {
            tokens: &self.refresher,
            secret: self.secret_finder.as_ref(),
        }
    }

    /// Returns the API hosts as configured, the preferred one first.
    pub(crate) fn origins(&self) -> &[Arc<UpstreamOrigin>] {
        &self.origins
    }

    /// Adds API signing.
    pub(crate) fn with_signing(self, settings: Option<&SigningSettings>) -> Self {
        let signing = settings.map(|settings| {
            Box::new(AccountSigning {
                settings: settings.clone(),
                unsigned_log: LogLimit::default(),
                deprecated_log: LogLimit::default(),
            })
        });
        Self { signing, ..self }
    }

    /// Keeps the count of the account of this name before a reload.
    pub(crate) fn continuing(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) => Self {
                holder: Arc::clone(&before.holder),
                ..self
            },
            None => self,
        }
    }

    /// Returns true if a text is the current token, or was until less than 7200 s ago.
    pub(crate) fn has_token(&self, text: &str) -> bool {
        self.refresher.is_known(text)
    }

    /// Returns true if an absolute-form request for this authority is meant for the account's API.
    pub(crate) fn serves(&self, host: &str, port: Option<u16>) -> bool {
        self.api.iter().any(|api| {
            let port_fits = port.is_none_or(|port| port == api.port || port == 80 || port == 443);
            api.host
                .eq_ignore_ascii_case(host.trim_start_matches('[').trim_end_matches(']'))
                && port_fits
        })
    }
}

impl Accounts {
    /// Makes the tables. `default` is `default_account`; `before` are the accounts until this reload.
    pub(crate) fn new(
        accounts: Vec<(AccountSettings, Arc<Account>)>,
        default: Option<&AccountName>,
        before: Option<&Self>,
    ) -> Self {
        let mut by_name = FxHashMap::default();
        let mut by_host = FxHashMap::default();
        let all = || accounts.iter().map(|(_, account)| account);
        let default = default.and_then(|name| all().find(|account| account.name == *name));
        let former = before.and_then(|before| before.fallback.as_ref());
        let fallback = Fallback::choose(default, all(), former);
        let of_platform = |platform| {
            let own = all().filter(move |account| account.platform == platform);
            let default = default.filter(|account| account.platform == platform);
            let former = before.and_then(|before| before.on(platform).fallback.as_ref());
            PlatformAccounts {
                first: own.clone().next().cloned(),
                fallback: Fallback::choose(default, own, former),
            }
        };
        let (wechat, wecom) = (of_platform(Platform::Wechat), of_platform(Platform::Wecom));
        let own_hosts = OwnHosts::new(accounts.iter().map(|(_, account)| &**account));
        let mut by_appid: FxHashMap<String, Vec<Arc<Account>>> = FxHashMap::default();
        let mut by_tag = FxHashMap::default();
        for (settings, account) in accounts {
            by_host.extend(
                settings
                    .hosts
                    .iter()
                    .map(|host| (host.clone(), Arc::clone(&account))),
            );
            by_tag.insert(Tag::of(settings.name.as_str()), Arc::clone(&account));
            by_appid
                .entry(settings.appid)
                .or_default()
                .push(Arc::clone(&account));
            by_name.insert(settings.name.to_string(), account);
        }
        Self {
            by_name,
            by_appid,
            by_tag,
            by_host,
            own_hosts,
            fallback,
            wechat,
            wecom,
        }
    }

    /// Returns the platform of a host that is WeChat's own: one of its API hosts, or the host of an
    /// account's `api`.
    pub(crate) fn platform_of_host(&self, host: &str) -> Option<Platform> {
        self.own_hosts.platform(without_port(host))
    }

    /// Returns all accounts, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.by_name.values()
    }

    /// Finds the account that has this host among its `hosts`.
    pub(crate) fn by_host(&self, host: &str) -> Option<&Arc<Account>> {
        // Most configurations have no hosts, and need not pay for the look-up.
        if self.by_host.is_empty() {
            return None;
        }
        self.by_host.get(&without_port(host).to_ascii_lowercase())
    }

    /// Finds the account that the request selects: `found` already (by its host, a phantom, or the
    /// path of the service API), by prefix and by header. All that select one must agree.
    ///
    /// # Errors
    /// When they disagree with each other or with `platform`, or a name is unknown.
    pub(crate) fn selected<'a>(
        &'a self,
        found: [Option<&'a Arc<Account>>; 2],
        prefix: Option<&str>,
        platform: Option<Platform>,
        headers: Option<&HeaderMap>,
    ) -> Result<Selection<'a>, ProxyError> {
        let by_prefix = prefix.map(|name| self.named(name)).transpose()?;
        let by_header = headers
            .into_iter()
            .flat_map(|headers| headers.get_all(X_WXGATE_ACCOUNT))
            .map(|name| self.named(&String::from_utf8_lossy(name.as_bytes())));
        let mut selected: Option<&Arc<Account>> = None;
        let found = found.into_iter().flatten().chain(by_prefix).map(Ok);
        for candidate in found.chain(by_header) {
            let candidate = candidate?;
            if selected.is_some_and(|account| !Arc::ptr_eq(account, candidate)) {
                return Err(ProxyError::AccountConflict);
            }
            selected = Some(candidate);
        }
        match (platform, selected) {
            (Some(host), Some(account)) if account.platform != host => {
                Err(ProxyError::PlatformConflict {
                    host,
                    account: account.name.clone(),
                    of: account.platform,
                })
            }
            _ => Ok(Selection {
                account: selected,
                platform,
            }),
        }
    }

    /// Finds the account of a request that selects none: the account with the appid in the call, the
    /// only one among those that the client may use (`None`: it may use all), the default account,
    /// the only account; of the platform only, if the request names one.
    ///
    /// # Errors
    /// When there is none of these.
    pub(crate) fn fallback(
        &self,
        appid: Option<&str>,
        usable: Option<&[AccountName]>,
        platform: Option<Platform>,
    ) -> Result<&Arc<Account>, ProxyError> {
        let fits = |account: &&Arc<Account>| platform.is_none_or(|of| account.platform == of);
        let by_appid = appid.and_then(|appid| self.sole(appid)).filter(fits);
        let only = || {
            let mut usable = usable?
                .iter()
                .filter_map(|name| self.by_name.get(name.as_str()))
                .filter(fits);
            usable.next().filter(|_| usable.next().is_none())
        };
        let found = by_appid.or_else(only).or_else(|| {
            let fallback = match platform {
                Some(platform) => &self.on(platform).fallback,
                None => &self.fallback,
            };
            fallback.as_ref().map(|fallback| &fallback.account)
        });
        found.ok_or_else(|| match platform {
            Some(platform) if self.on(platform).first.is_none() => {
                ProxyError::PlatformUnknown(platform)
            }
            _ => ProxyError::AccountMissing,
        })
    }

    /// Finds the account that lends its way to WeChat to a call that uses no account: the one that
    /// the call selects or falls back to, if its platform fits, else the first one of the platform.
    ///
    /// # Errors
    /// When no platform can be told, or no account is of it.
    pub(crate) fn lender<'a>(
        &'a self,
        selection: Selection<'a>,
        of_path: Option<Platform>,
        usable: Option<&[AccountName]>,
    ) -> Result<&'a Arc<Account>, ProxyError> {
        let platform = of_path
            .or(selection.platform)
            .or(selection.account.map(|account| account.platform))
            .or(self.sole_platform())
            .ok_or(ProxyError::AccountMissing)?;
        let fits = |account: &&Arc<Account>| account.platform == platform;
        selection
            .account
            .filter(fits)
            .or_else(|| self.fallback(None, usable, Some(platform)).ok())
            .or(self.on(platform).first.as_ref())
            .ok_or(ProxyError::PlatformUnknown(platform))
    }

    /// Returns true if a text is the current token of another account than `own`, or was until less
    /// than 7200 s ago. Compares with each account: only tokens that wxgate did not hand out are
    /// looked for.
    pub(crate) fn is_token_of_other(&self, text: &str, own: Option<&Account>) -> bool {
        self.by_name
            .values()
            .filter(|account| own.is_none_or(|own| own.name != account.name))
            .any(|account| account.has_token(text))
    }

    fn on(&self, platform: Platform) -> &PlatformAccounts {
        match platform {
            Platform::Wechat => &self.wechat,
            Platform::Wecom => &self.wecom,
        }
    }

    /// Returns the only platform that is configured.
    fn sole_platform(&self) -> Option<Platform> {
        match (&self.wechat.first, &self.wecom.first) {
            (Some(_), None) => Some(Platform::Wechat),
            (None, Some(_)) => Some(Platform::Wecom),
            _ => None,
        }
    }

    /// Returns the accounts with this appid or corpid, in the order of the configuration.
    pub(crate) fn with_appid(&self, appid: &str) -> &[Arc<Account>] {
        self.by_appid.get(appid).map_or(&[], Vec::as_slice)
    }

    /// Returns the accounts that take calls without a selector only because each was the only one, of
    /// all or of its platform, before a reload added others.
    pub(crate) fn former_only(&self) -> Vec<FormerOnlyAccount> {
        let kept = |fallback: &Option<Fallback>, platform| {
            let fallback = fallback.as_ref()?;
            (fallback.source == FallbackSource::FormerOnly).then(|| FormerOnlyAccount {
                name: fallback.account.name.clone(),
                platform,
            })
        };
        let of_all = kept(&self.fallback, None);
        let of_platform = |platform| {
            kept(&self.on(platform).fallback, Some(platform))
                // Said once: setting `default_account` settles both.
                .filter(|kept| of_all.as_ref().is_none_or(|all| all.name != kept.name))
        };
        let of_platforms = [Platform::Wechat, Platform::Wecom].map(of_platform);
        of_all
            .into_iter()
            .chain(of_platforms.into_iter().flatten())
            .collect()
    }

    /// Guesses the platform of an unknown caller: that of the default account, or the only one
    /// configured.
    pub(crate) fn likely_platform(&self) -> Option<Platform> {
        match &self.fallback {
            Some(fallback) => Some(fallback.account.platform),
            None => self.sole_platform(),
        }
    }

    /// Finds the account of a phantom token.
    pub(crate) fn tagged(&self, tag: Tag) -> Option<&Arc<Account>> {
        self.by_tag.get(&tag)
    }

    /// Finds the account of these settings if it has this very refresher, and nothing else of it has
    /// changed.
    pub(crate) fn kept(
        &self,
        settings: &AccountSettings,
        tokens: &AccountTokens,
    ) -> Option<&Arc<Account>> {
        self.by_name(&settings.name)
            .filter(|account| account.refresher.is_same_as(&tokens.token))
            .filter(|account| account.foreign_token == settings.foreign_token)
    }

    /// Finds the account of this name.
    pub(crate) fn by_name(&self, name: &AccountName) -> Option<&Arc<Account>> {
        self.by_name.get(name.as_str())
    }

    /// Finds an account by name or appid; a name wins over an appid that is spelt the same.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<Account>, ProxyError> {
        let account = self.by_name.get(name).or_else(|| self.sole(name));
        account.ok_or_else(|| ProxyError::AccountUnknown(name.chars().take(64).collect()))
    }

    /// Returns the account with this appid, unless several share it.
    fn sole(&self, appid: &str) -> Option<&Arc<Account>> {
        match self.with_appid(appid) {
            [account] => Some(account),
            _ => None,
        }
    }
}

impl Fallback {
    /// Chooses the configured account, the only one, or the one that was the only one `before` a
    /// reload. One that was configured before is not kept: whoever removes `default_account` wants
    /// it gone.
    fn choose<'a>(
        configured: Option<&Arc<Account>>,
        mut accounts: impl Iterator<Item = &'a Arc<Account>> + Clone,
        before: Option<&Self>,
    ) -> Option<Self> {
        let only = || {
            let mut accounts = accounts.clone();
            accounts.next().filter(|_| accounts.next().is_none())
        };
        let (account, source) = if let Some(account) = configured {
            (account, FallbackSource::Configured)
        } else if let Some(account) = only() {
            (account, FallbackSource::Only)
        } else {
            let before = before.filter(|before| before.source != FallbackSource::Configured)?;
            let same = accounts.find(|account| account.name == before.account.name)?;
            (same, FallbackSource::FormerOnly)
        };
        Some(Self {
            account: Arc::clone(account),
            source,
        })
    }
}

impl Display for FormerOnlyAccount {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.platform.map(Platform::as_str) {
            None => write!(
                f,
                "default_account is missing: calls that name no account still go to {name}, which was the only \
                 account before a reload, and are refused after the next restart; set default_account = \
                 \"{name}\", or let each call name its account"
            ),
            Some(platform) => write!(
                f,
                "calls to {platform}'s own host that name no account still go to {name}, which was the only \
                 account of {platform} before a reload, and are refused after the next restart; let each of \
                 these calls name its account, or set default_account = \"{name}\""
            ),
        }
    }
}

/// Names of hosts that say which platform a request is for: WeChat's API hosts, and the hosts of the
/// accounts' `api`. Callers name them when DNS or a proxy setting leads WeChat's name to wxgate.
#[derive(Debug, Default)]
struct OwnHosts {
    /// In lower case. `None` for a host of both platforms, which says nothing.
    platforms: FxHashMap<String, Option<Platform>>,
    /// Bit for each length of a name, modulo 64: nearly all requests name another host, and none of
    /// these needs the look-up.
    lengths: u64,
}

/// WeChat's API hosts.
const WECHAT_HOSTS: [(&str, Platform); 3] = [
    ("api.weixin.qq.com", Platform::Wechat),
    ("api2.weixin.qq.com", Platform::Wechat),
    ("qyapi.weixin.qq.com", Platform::Wecom),
];

/// Ending of the names of WeChat's regional API hosts.
const REGIONAL_HOSTS: &str = ".api.weixin.qq.com";

impl OwnHosts {
    fn new<'a>(accounts: impl Iterator<Item = &'a Account>) -> Self {
        let mut hosts = Self::default();
        for (name, platform) in WECHAT_HOSTS {
            hosts.add(name, platform);
        }
        for account in accounts {
            for api in &account.api {
                // An address, or this machine's own name, is no host of WeChat's.
                if api.host.parse::<IpAddr>().is_err() && api.host != "localhost" {
                    hosts.add(&api.host.to_ascii_lowercase(), account.platform);
                }
            }
        }
        hosts
    }

    fn add(&mut self, name: &str, platform: Platform) {
        self.lengths |= 1 << (name.len() % 64);
        let known = self
            .platforms
            .entry(name.to_owned())
            .or_insert(Some(platform));
        if *known != Some(platform) {
            *known = None;
        }
    }

    fn platform(&self, host: &str) -> Option<Platform> {
        if self.lengths & 1 << (host.len() % 64) != 0
            && let Some(known) = self.platforms.get(&host.to_ascii_lowercase())
        {
            return *known;
        }
        let start = host.len().checked_sub(REGIONAL_HOSTS.len())?;
        host.get(start..)?
            .eq_ignore_ascii_case(REGIONAL_HOSTS)
            .then_some(Platform::Wechat)
    }
}

/// The tables by themselves, for benchmarks of the cost of selecting one of many accounts.
pub struct SelectionBench(Accounts);

impl SelectionBench {
    /// Makes tables of accounts that are not called. `default` is `default_account`.
    pub fn new(
        accounts: Vec<(AccountSettings, TokenRefresher)>,
        default: Option<&AccountName>,
    ) -> Self {
        let metrics = ProxyMetrics::register(&mut Registry::default());
        let account = |(settings, refresher): (AccountSettings, TokenRefresher)| {
            let account = Account::new(
                &settings,
                refresher.into(),
                metrics.for_account(&settings.name),
                Vec::new(),
            );
            (settings, Arc::new(account))
        };
        Self(Accounts::new(
            accounts.into_iter().map(account).collect(),
            default,
            None,
        ))
    }

    /// Returns the name of the account that a request is for.
    pub fn find(
        &self,
        prefix: Option<&str>,
        headers: &HeaderMap,
        host: Option<&str>,
    ) -> Option<&AccountName> {
        let by_host = host.and_then(|host| self.0.by_host(host));
        let selected = self
            .0
            .selected([by_host, None], prefix, None, Some(headers))
            .ok()?;
        let fallback = || self.0.fallback.as_ref().map(|fallback| &fallback.account);
        selected
            .account
            .or_else(fallback)
            .map(|account| &account.name)
    }
}

/// Returns `host` or `[v6]` without the port.
fn without_port(host: &str) -> &str {
    // RFC 9110 lets the port be empty behind its colon.
    let host = host.strip_suffix(':').unwrap_or(host);
    split_port(host).map_or(host, |(name, _)| name)
}
