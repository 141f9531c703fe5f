//! Which account a request is for.
//!
//! Selectors (path prefix, header, Host) must not disagree; behind them stand the fall-backs. The
//! tables are made once per configuration, so that a hundred accounts cost a request no more than
//! one.

use std::sync::Arc;

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;

use super::{
    bulkhead::Holder,
    error::ProxyError,
    metrics::{AccountMetrics, Metrics},
    upstream::UpstreamOrigin,
};
use crate::{
    base::{AccountName, Secret},
    net::address::{BaseUrl, split_port},
    service::phantom::Tag,
    token::{AccountSettings, AccountTokens, Tickets, TokenRefresher},
    wechat::api::Platform,
};

/// Header by which a caller selects an account, and by which answers name it.
pub(super) const X_WXGATE_ACCOUNT: HeaderName = HeaderName::from_static("x-wxgate-account");

/// An account as the path of a request needs it.
pub(crate) struct Account {
    pub(crate) name: AccountName,
    pub(crate) label: HeaderValue,
    pub(crate) platform: Platform,
    pub(crate) appid: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) refresher: TokenRefresher,
    pub(crate) tickets: Option<Arc<Tickets>>,
    pub(crate) metrics: AccountMetrics,
    /// Its part of what is in flight.
    pub(crate) holder: Arc<Holder>,
    api: Vec<BaseUrl>,
    /// The preferred host first.
    origins: Vec<Arc<UpstreamOrigin>>,
}

/// All accounts. The quick hash is no danger: callers only look, what is in here comes from the
/// configuration.
pub(crate) struct Accounts {
    by_name: FxHashMap<String, Arc<Account>>,
    by_appid: FxHashMap<String, Vec<Arc<Account>>>,
    by_tag: FxHashMap<Tag, Arc<Account>>,
    by_host: FxHashMap<String, Arc<Account>>,
    fallback: Option<Arc<Account>>,
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
            refresher: tokens.token,
            tickets: tokens.tickets,
            metrics,
            holder: Holder::named(settings.name.as_str()),
            api: settings.api.clone(),
            origins,
        }
    }

    /// The API hosts as configured, the preferred one first.
    pub(crate) fn origins(&self) -> &[Arc<UpstreamOrigin>] {
        &self.origins
    }

    /// Goes on counting where the account of this name was before a reload.
    pub(crate) fn continuing(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) => Self {
                holder: Arc::clone(&before.holder),
                ..self
            },
            None => self,
        }
    }

    /// Whether an absolute-form request for this authority is meant for the account's API.
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
    /// `default` is `default_account`.
    pub(crate) fn new(
        accounts: Vec<(AccountSettings, Arc<Account>)>,
        default: Option<&AccountName>,
    ) -> Self {
        let mut by_name = FxHashMap::default();
        let mut by_host = FxHashMap::default();
        let fallback = match default {
            Some(name) => accounts.iter().find(|(settings, _)| settings.name == *name),
            None if accounts.len() == 1 => accounts.first(),
            None => None,
        };
        let fallback = fallback.map(|(_, account)| Arc::clone(account));
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
            fallback,
        }
    }

    /// Finds the account that has this host among its `hosts`.
    pub(crate) fn by_host(&self, host: &str) -> Option<&Arc<Account>> {
        // Most configurations have no hosts, and need not pay for the look-up.
        if self.by_host.is_empty() {
            return None;
        }
        self.by_host.get(&without_port(host).to_ascii_lowercase())
    }

    /// Finds the account that the request selects: `named` by other means (a phantom, the path of
    /// the service API), by prefix, host and header. All that select one must agree.
    ///
    /// # Errors
    /// When they disagree, or a name is unknown.
    pub(crate) fn selected<'a>(
        &'a self,
        named: Option<&'a Arc<Account>>,
        prefix: Option<&str>,
        by_host: Option<&'a Arc<Account>>,
        headers: Option<&HeaderMap>,
    ) -> Result<Option<&'a Arc<Account>>, ProxyError> {
        let by_prefix = prefix.map(|name| self.named(name)).transpose()?;
        let by_header = headers
            .into_iter()
            .flat_map(|headers| headers.get_all(X_WXGATE_ACCOUNT))
            .map(|name| self.named(&String::from_utf8_lossy(name.as_bytes())));
        let mut selected: Option<&Arc<Account>> = None;
        for candidate in named
            .into_iter()
            .chain(by_prefix)
            .chain(by_host)
            .map(Ok)
            .chain(by_header)
        {
            let candidate = candidate?;
            if selected.is_some_and(|account| !Arc::ptr_eq(account, candidate)) {
                return Err(ProxyError::AccountConflict);
            }
            selected = Some(candidate);
        }
        Ok(selected)
    }

    /// The account of a request that selects none: the one whose appid stands in the call, the
    /// client's only one, the default one, the only one.
    pub(crate) fn fallback(
        &self,
        appid: Option<&str>,
        only: Option<&AccountName>,
    ) -> Result<&Arc<Account>, ProxyError> {
        let by_appid = appid.and_then(|appid| self.sole(appid));
        let only = || only.and_then(|name| self.by_name.get(name.as_str()));
        by_appid
            .or_else(only)
            .or(self.fallback.as_ref())
            .ok_or(ProxyError::AccountMissing)
    }

    /// The accounts that share an appid or corpid, in the order of the configuration.
    pub(crate) fn with_appid(&self, appid: &str) -> &[Arc<Account>] {
        self.by_appid.get(appid).map_or(&[], Vec::as_slice)
    }

    /// The platform of a caller of which nothing else is known: that of the default account, or the
    /// only one configured.
    pub(crate) fn likely_platform(&self) -> Platform {
        let mut platforms = self.by_name.values().map(|account| account.platform);
        match (&self.fallback, platforms.next()) {
            (Some(account), _) => account.platform,
            (None, Some(first)) if platforms.all(|platform| platform == first) => first,
            _ => Platform::Wechat,
        }
    }

    /// The account that a phantom names.
    pub(crate) fn tagged(&self, tag: Tag) -> Option<&Arc<Account>> {
        self.by_tag.get(&tag)
    }

    /// The account of this name that has this very refresher.
    pub(crate) fn kept(&self, name: &AccountName, tokens: &AccountTokens) -> Option<&Arc<Account>> {
        self.by_name
            .get(name.as_str())
            .filter(|account| account.refresher.is_same_as(&tokens.token))
    }

    /// The account of this name, whatever its keeper.
    pub(crate) fn by_name(&self, name: &AccountName) -> Option<&Arc<Account>> {
        self.by_name.get(name.as_str())
    }

    /// By name or appid; a name wins over an appid that happens to be spelt the same.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<Account>, ProxyError> {
        let account = self.by_name.get(name).or_else(|| self.sole(name));
        account.ok_or_else(|| ProxyError::AccountUnknown(name.chars().take(64).collect()))
    }

    fn sole(&self, appid: &str) -> Option<&Arc<Account>> {
        match self.with_appid(appid) {
            [account] => Some(account),
            _ => None,
        }
    }
}

/// The tables by themselves, for benchmarks: what selecting one of many accounts costs.
pub struct Selection(Accounts);

impl Selection {
    /// Tables of accounts that are not called. `default` is `default_account`.
    pub fn new(
        accounts: Vec<(AccountSettings, TokenRefresher)>,
        default: Option<&AccountName>,
    ) -> Self {
        let metrics = Metrics::register(&mut Registry::default());
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
        ))
    }

    /// The name of the account that a request is for, if there is one.
    pub fn find(
        &self,
        prefix: Option<&str>,
        headers: &HeaderMap,
        host: Option<&str>,
    ) -> Option<&AccountName> {
        let by_host = host.and_then(|host| self.0.by_host(host));
        let selected = self.0.selected(None, prefix, by_host, Some(headers)).ok()?;
        selected
            .or_else(|| self.0.fallback(None, None).ok())
            .map(|account| &account.name)
    }
}

/// `host` or `[v6]` without its port.
fn without_port(host: &str) -> &str {
    // RFC 9110 lets the port be empty behind its colon.
    let host = host.strip_suffix(':').unwrap_or(host);
    split_port(host).map_or(host, |(name, _)| name)
}
