//! The choice of the account that a request is for.
//!
//! All selectors of a request (phantom, path prefix, header, host) must agree; without any, fallbacks
//! decide. The tables are made once per configuration, so that the cost of a request does not grow
//! with the number of accounts.

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
    mask::CredentialMask,
    metrics::{AccountMetrics, ProxyMetrics},
    upstream::UpstreamOrigin,
};
use crate::{
    base::{AccountName, Secret, secret_finder::SecretFinder},
    net::address::{BaseUrl, split_port},
    service::phantom::Tag,
    token::{AccountSettings, AccountTokens, Tickets, TokenRefresher},
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
    pub(crate) metrics: AccountMetrics,
    /// Count of the account's requests in flight.
    pub(crate) holder: Arc<Holder>,
    api: Vec<BaseUrl>,
    /// API hosts, the preferred one first.
    origins: Vec<Arc<UpstreamOrigin>>,
}

/// All accounts.
pub(crate) struct Accounts {
    // A fast hash without a secret is safe: all keys come from the configuration, and callers can
    // only look them up.
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
            secret_finder: settings.secret.as_ref().and_then(SecretFinder::new),
            refresher: tokens.token,
            tickets: tokens.tickets,
            metrics,
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
    /// Makes the tables. `default` is `default_account`.
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

    /// Finds the account of a request that selects none: the account with the appid in the call, the
    /// only account of the client, the default account, the only account.
    ///
    /// # Errors
    /// When there is none of these.
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

    /// Returns the accounts with this appid or corpid, in the order of the configuration.
    pub(crate) fn with_appid(&self, appid: &str) -> &[Arc<Account>] {
        self.by_appid.get(appid).map_or(&[], Vec::as_slice)
    }

    /// Guesses the platform of an unknown caller: that of the default account, or the only one
    /// configured.
    pub(crate) fn likely_platform(&self) -> Platform {
        let mut platforms = self.by_name.values().map(|account| account.platform);
        match (&self.fallback, platforms.next()) {
            (Some(account), _) => account.platform,
            (None, Some(first)) if platforms.all(|platform| platform == first) => first,
            _ => Platform::Wechat,
        }
    }

    /// Finds the account of a phantom token.
    pub(crate) fn tagged(&self, tag: Tag) -> Option<&Arc<Account>> {
        self.by_tag.get(&tag)
    }

    /// Finds the account of this name if it has this very refresher.
    pub(crate) fn kept(&self, name: &AccountName, tokens: &AccountTokens) -> Option<&Arc<Account>> {
        self.by_name
            .get(name.as_str())
            .filter(|account| account.refresher.is_same_as(&tokens.token))
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
        let selected = self.0.selected(None, prefix, by_host, Some(headers)).ok()?;
        selected
            .or_else(|| self.0.fallback(None, None).ok())
            .map(|account| &account.name)
    }
}

/// Returns `host` or `[v6]` without the port.
fn without_port(host: &str) -> &str {
    // RFC 9110 lets the port be empty behind its colon.
    let host = host.strip_suffix(':').unwrap_or(host);
    split_port(host).map_or(host, |(name, _)| name)
}
