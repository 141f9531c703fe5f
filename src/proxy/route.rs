//! Which account a request is for.
//!
//! Selectors (path prefix, header, Host) must not disagree; behind them stand the fall-backs. The tables are made once
//! per configuration, so that a hundred accounts cost a request no more than one.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use hyper::{HeaderMap, header::HeaderValue};

use super::{error::ProxyError, metrics::AccountMetrics, upstream::Origin};
use crate::{
    base::AccountName,
    net::address::BaseUrl,
    token::{AccountSettings, Keeper},
    wechat::api::Platform,
};

/// How long a fall-back host is used before the first one is tried again, in seconds.
const RETURN_AFTER: u64 = 60;

/// An account as the path of a request needs it.
pub(crate) struct Account {
    pub(crate) name: AccountName,
    pub(crate) label: HeaderValue,
    pub(crate) platform: Platform,
    pub(crate) keeper: Keeper,
    pub(crate) metrics: AccountMetrics,
    api: Vec<BaseUrl>,
    /// The preferred host first.
    origins: Vec<Arc<Origin>>,
    current: AtomicUsize,
    moved_at: AtomicU64,
}

/// All accounts.
pub(crate) struct Accounts {
    by_name: HashMap<String, Arc<Account>>,
    by_host: HashMap<String, Arc<Account>>,
    fallback: Option<Arc<Account>>,
}

impl Account {
    pub(crate) fn new(
        settings: &AccountSettings,
        keeper: Keeper,
        metrics: AccountMetrics,
        origins: Vec<Arc<Origin>>,
    ) -> Self {
        Self {
            name: settings.name.clone(),
            // The grammar of names is narrower than that of header values.
            label: HeaderValue::from_str(settings.name.as_str()).unwrap_or_else(|_| HeaderValue::from_static("?")),
            platform: settings.platform,
            keeper,
            metrics,
            api: settings.api.clone(),
            origins,
            current: AtomicUsize::new(0),
            moved_at: AtomicU64::new(0),
        }
    }

    /// The API hosts in the order to try them, at `now` seconds of any steady clock.
    pub(crate) fn origins(&self, now: u64) -> impl Iterator<Item = (usize, &Arc<Origin>)> {
        if self.current.load(Relaxed) != 0 && now.saturating_sub(self.moved_at.load(Relaxed)) >= RETURN_AFTER {
            self.current.store(0, Relaxed);
        }
        let first = self.current.load(Relaxed);
        (0..self.origins.len()).map(move |step| {
            let place = (first + step) % self.origins.len();
            (place, &self.origins[place])
        })
    }

    /// The host at this place answered after another could not be reached.
    pub(crate) fn prefer(&self, place: usize, now: u64) {
        if self.current.swap(place, Relaxed) != place {
            self.moved_at.store(now, Relaxed);
        }
    }

    /// Whether an absolute-form request for this authority is meant for the account's API.
    pub(crate) fn serves(&self, host: &str, port: Option<u16>) -> bool {
        self.api.iter().any(|api| {
            let port_fits = port.is_none_or(|port| port == api.port || port == 80 || port == 443);
            api.host.eq_ignore_ascii_case(host.trim_start_matches('[').trim_end_matches(']')) && port_fits
        })
    }
}

impl Accounts {
    /// `default` is `default_account`.
    pub(crate) fn new(accounts: Vec<(AccountSettings, Arc<Account>)>, default: Option<&AccountName>) -> Self {
        let mut by_name = HashMap::new();
        let mut by_host = HashMap::new();
        let fallback = match default {
            Some(name) => accounts.iter().find(|(settings, _)| settings.name == *name),
            None if accounts.len() == 1 => accounts.first(),
            None => None,
        };
        let fallback = fallback.map(|(_, account)| Arc::clone(account));
        let mut shared = HashSet::new();
        for (settings, account) in &accounts {
            by_host.extend(settings.hosts.iter().map(|host| (host.clone(), Arc::clone(account))));
            if by_name.insert(settings.appid.clone(), Arc::clone(account)).is_some() {
                shared.insert(settings.appid.clone());
            }
        }
        // Agents of one WeCom corp: which one is meant, only their names can say.
        by_name.retain(|appid, _| !shared.contains(appid));
        // A name wins over an appid that happens to be spelt the same.
        for (settings, account) in accounts {
            by_name.insert(settings.name.to_string(), account);
        }
        Self { by_name, by_host, fallback }
    }

    /// Selects the account of a request.
    pub(crate) fn select(
        &self,
        prefix: Option<&str>,
        headers: &HeaderMap,
        host: Option<&str>,
    ) -> Result<&Arc<Account>, ProxyError> {
        let by_prefix = prefix.map(|name| self.named(name)).transpose()?;
        let by_host = match host {
            Some(host) if !self.by_host.is_empty() => self.by_host.get(&without_port(host).to_ascii_lowercase()),
            _ => None,
        };
        let by_header =
            headers.get_all("x-wxgate-account").iter().map(|v| self.named(&String::from_utf8_lossy(v.as_bytes())));
        let mut selected: Option<&Arc<Account>> = None;
        for candidate in by_prefix.into_iter().chain(by_host).map(Ok).chain(by_header) {
            let candidate = candidate?;
            if selected.is_some_and(|account| !Arc::ptr_eq(account, candidate)) {
                return Err(ProxyError::AccountConflict);
            }
            selected = Some(candidate);
        }
        selected.or(self.fallback.as_ref()).ok_or(ProxyError::AccountMissing)
    }

    /// The account of this name that has this very keeper.
    pub(crate) fn kept(&self, name: &AccountName, keeper: &Keeper) -> Option<&Arc<Account>> {
        self.by_name.get(name.as_str()).filter(|account| account.keeper.is_same_as(keeper))
    }

    fn named(&self, name: &str) -> Result<&Arc<Account>, ProxyError> {
        self.by_name.get(name).ok_or_else(|| ProxyError::AccountUnknown(name.chars().take(64).collect()))
    }
}

/// `host` or `[v6]` without its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}
