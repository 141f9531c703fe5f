//! Accounts and tokens of the fake WeChat: issued tokens and their validity.
//!
//! Independent of HTTP. [`super::issue`] has the rules of issuing; this module has the values and
//! their lifetimes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    clock::{Millis, RandomSource, SandboxClock, millis},
    settings::{ApiSigning, IpWhitelist, SandboxAccount, SandboxPlatform, SandboxSettings},
};
use crate::base::Secret;

/// Kind of a token by its endpoint. The kinds do not influence each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// `cgi-bin/token`.
    Classic,
    /// `cgi-bin/stable_token`.
    Stable,
    /// WeCom's `cgi-bin/gettoken`.
    Wecom,
}

/// Mutable state of the sandbox, except recorder and faults.
#[derive(Debug)]
pub(super) struct SandboxState {
    pub(super) limits: IssueLimits,
    pub(super) clock: SandboxClock,
    pub(super) noise: RandomSource,
    /// True if any account signs. Read without the lock, so that other calls take no lock.
    pub(super) signs: AtomicBool,
    /// True if any account has an IP whitelist; as `signs`.
    pub(super) lists_addresses: AtomicBool,
    inner: Mutex<TokenLedger>,
}

/// Limits from [`SandboxSettings`], times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct IssueLimits {
    pub(super) token_life: Millis,
    pub(super) overlap: Millis,
    pub(super) forced_overlap: Millis,
    pub(super) classic_per_day: u32,
    pub(super) forced_per_day: u32,
    pub(super) forced_spacing: Millis,
    pub(super) stable_per_minute: u32,
    pub(super) ticket_life: Millis,
}

/// Accounts, tokens and login codes.
#[derive(Debug, Default)]
pub(super) struct TokenLedger {
    pub(super) accounts: Vec<AccountState>,
    tokens: HashMap<Arc<str>, IssuedToken>,
    order: VecDeque<Arc<str>>,
    /// Login codes already exchanged.
    pub(super) used_codes: HashSet<String>,
    /// Tokens of users (`sns/*`), unrelated to those of accounts.
    pub(super) user_tokens: HashSet<String>,
    /// Refresh tokens of users, each with the appid and the openid that it is for.
    pub(super) user_refresh_tokens: HashMap<String, (String, String)>,
    /// Tokens of components, suites, providers and devices.
    pub(super) others: HashMap<String, TokenOwner>,
    /// Keys of API signing by appid.
    pub(super) signing: HashMap<String, Arc<ApiSigning>>,
    /// IP whitelists by appid.
    pub(super) whitelists: HashMap<String, IpWhitelist>,
}

#[derive(Debug)]
pub(super) struct AccountState {
    pub(super) appid: Arc<str>,
    pub(super) secret: Secret,
    pub(super) platform: SandboxPlatform,
    current: HashMap<TokenKind, Arc<str>>,
    pub(super) usage: QuotaUsage,
    pub(super) tickets: HashMap<String, (String, Millis)>,
}

/// Counters that the daily and minute quotas are checked against.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuotaUsage {
    pub(super) day: u64,
    pub(super) classic_today: u32,
    pub(super) forced_today: u32,
    pub(super) last_forced: Option<Millis>,
    pub(super) minute: u64,
    pub(super) stable_this_minute: u32,
    pub(super) clears_left: u32,
}

#[derive(Debug, Clone)]
pub(super) struct IssuedToken {
    pub(super) account: usize,
    pub(super) kind: TokenKind,
    pub(super) expires: Millis,
    /// End of the overlap after the token was replaced.
    pub(super) dies: Option<Millis>,
    pub(super) revoked: Option<Revoked>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Revoked {
    /// Code that business calls get.
    pub(super) code: i64,
    /// True if the token endpoint still returns the token.
    pub(super) sticky: bool,
}

/// Judgement of a business call on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "code")]
pub enum TokenState {
    /// No token in the call.
    None,
    /// Current token of its kind.
    Current,
    /// Replaced token within the overlap.
    Overlapping,
    /// Refused with this code.
    Stale(i64),
    /// Never issued by this sandbox.
    Unknown,
}

/// Judgement on a token, with its account.
#[derive(Debug, Clone)]
pub(super) struct JudgedToken {
    pub(super) state: TokenState,
    pub(super) account: Option<Arc<str>>,
    pub(super) platform: SandboxPlatform,
}

/// Result of checking a pair of appid and secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CredentialCheck {
    Good(usize),
    UnknownAppid,
    WrongSecret,
    /// Secret of another account.
    ForeignSecret,
}

/// Owner of a token that is not of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenOwner {
    Component,
    Suite,
    Provider,
    Device,
    Model,
}

/// Number of tokens that are kept; older ones become unknown, which WeChat answers like overwritten
/// ones.
const MAX_TOKENS: usize = 20_000;

impl SandboxState {
    pub(super) fn new(settings: &SandboxSettings) -> Self {
        let state = Self {
            limits: IssueLimits::from(settings),
            clock: SandboxClock::start(),
            noise: RandomSource::new(settings.seed),
            signs: AtomicBool::new(false),
            lists_addresses: AtomicBool::new(false),
            inner: Mutex::default(),
        };
        for account in &settings.accounts {
            state.ledger().put_account(account);
        }
        state
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, TokenLedger> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rid(&self) -> String {
        self.noise.rid(self.clock.unix())
    }

    /// Judges `token` as a business call does.
    pub(super) fn judge(&self, token: Option<&str>) -> JudgedToken {
        let now = self.clock.now();
        self.ledger().judge(token, now)
    }
}

impl TokenLedger {
    /// Returns the platform of an appid or corpid.
    pub(super) fn platform_of(&self, appid: &str) -> Option<SandboxPlatform> {
        let mut accounts = self.accounts.iter();
        accounts
            .find(|account| *account.appid == *appid)
            .map(|account| account.platform)
    }

    /// Adds the account. An account with the same appid gets the new secret instead, except at
    /// WeCom, where agents share a corpid.
    pub(super) fn put_account(&mut self, account: &SandboxAccount) {
        let same = |a: &&mut AccountState| {
            a.platform == SandboxPlatform::Wechat && *a.appid == *account.appid
        };
        if account.platform == SandboxPlatform::Wechat
            && let Some(known) = self.accounts.iter_mut().find(same)
        {
            known.secret = account.secret.clone();
            return;
        }
        self.accounts.push(AccountState {
            appid: Arc::from(account.appid.as_str()),
            secret: account.secret.clone(),
            platform: account.platform,
            current: HashMap::new(),
            usage: QuotaUsage {
                clears_left: 10,
                ..QuotaUsage::default()
            },
            tickets: HashMap::new(),
        });
    }

    pub(super) fn credential(
        &self,
        platform: SandboxPlatform,
        appid: &str,
        secret: &str,
    ) -> CredentialCheck {
        let mut known = false;
        for (index, account) in self.accounts.iter().enumerate() {
            if account.platform == platform && *account.appid == *appid {
                known = true;
                if account.secret.matches(secret) {
                    return CredentialCheck::Good(index);
                }
            }
        }
        if !known {
            CredentialCheck::UnknownAppid
        } else if self
            .accounts
            .iter()
            .any(|a| a.platform == platform && a.secret.matches(secret))
        {
            CredentialCheck::ForeignSecret
        } else {
            CredentialCheck::WrongSecret
        }
    }

    pub(super) fn knows(&self, platform: SandboxPlatform, appid: &str) -> bool {
        self.accounts
            .iter()
            .any(|a| a.platform == platform && *a.appid == *appid)
    }

    /// Returns true if all accounts are WeCom's, so that an unknown token must be WeCom's too.
    pub(super) fn only_wecom(&self) -> bool {
        !self.accounts.is_empty()
            && self
                .accounts
                .iter()
                .all(|a| a.platform == SandboxPlatform::Wecom)
    }

    pub(super) fn current(&self, account: usize, kind: TokenKind) -> Option<&Arc<str>> {
        self.accounts.get(account)?.current.get(&kind)
    }

    pub(super) fn issued(&self, token: &str) -> Option<&IssuedToken> {
        self.tokens.get(token)
    }

    pub(super) fn issued_mut(&mut self, token: &str) -> Option<&mut IssuedToken> {
        self.tokens.get_mut(token)
    }

    /// Makes `token` the current one; its predecessor works until the end of `overlap` or of its
    /// own lifetime.
    pub(super) fn install(
        &mut self,
        token: &Arc<str>,
        issued: IssuedToken,
        now: Millis,
        overlap: Millis,
    ) {
        let Some(account) = self.accounts.get_mut(issued.account) else {
            return;
        };
        if let Some(previous) = account.current.insert(issued.kind, Arc::clone(token))
            && let Some(previous) = self.tokens.get_mut(&previous)
        {
            let end = now.saturating_add(overlap);
            // The earlier end counts: a second rotation must not revive a token.
            previous.dies = Some(previous.dies.map_or(end, |dies| dies.min(end)));
        }
        self.tokens.insert(Arc::clone(token), issued);
        self.order.push_back(Arc::clone(token));
        // Bounds the memory of long runs; the oldest tokens go first.
        while self.order.len() > MAX_TOKENS {
            if let Some(oldest) = self.order.pop_front() {
                self.tokens.remove(&oldest);
            }
        }
    }

    pub(super) fn judge(&self, token: Option<&str>, now: Millis) -> JudgedToken {
        let default = if self.only_wecom() {
            SandboxPlatform::Wecom
        } else {
            SandboxPlatform::Wechat
        };
        let nobody = |state| JudgedToken {
            state,
            account: None,
            platform: default,
        };
        let Some(token) = token else {
            return nobody(TokenState::None);
        };
        let Some((value, issued)) = self.tokens.get_key_value(token) else {
            return nobody(TokenState::Unknown);
        };
        let Some(account) = self.accounts.get(issued.account) else {
            return nobody(TokenState::Unknown);
        };
        let state = match issued.refused(now, account.platform) {
            Some(code) => TokenState::Stale(code),
            None if account.current.get(&issued.kind) == Some(value) => TokenState::Current,
            None => TokenState::Overlapping,
        };
        JudgedToken {
            state,
            account: Some(Arc::clone(&account.appid)),
            platform: account.platform,
        }
    }
}

impl IssuedToken {
    /// Returns the code with which a business call refuses the token: 42001 for an expired token,
    /// 40001 for an overwritten one (WeCom: 40014).
    pub(super) fn refused(&self, now: Millis, platform: SandboxPlatform) -> Option<i64> {
        if let Some(revoked) = self.revoked {
            return Some(revoked.code);
        }
        let overwritten = self
            .dies
            // An overlap that outlasts the lifetime ends as an expiry (42001), not as an
            // overwriting.
            .is_some_and(|dies| now >= dies && dies < self.expires);
        if overwritten {
            return Some(overwritten_code(platform));
        }
        (now >= self.expires).then_some(42001)
    }

    /// Returns the remaining lifetime if the token endpoint may return the token again.
    pub(super) fn reusable(&self, now: Millis) -> Option<Millis> {
        let dead = self.dies.is_some() || self.revoked.is_some_and(|revoked| !revoked.sticky);
        self.expires
            .checked_sub(now)
            .filter(|left| *left > 0 && !dead)
    }
}

/// Returns the error code of an overwritten token.
pub(super) fn overwritten_code(platform: SandboxPlatform) -> i64 {
    match platform {
        SandboxPlatform::Wechat => 40001,
        SandboxPlatform::Wecom => 40014,
    }
}

impl TokenState {
    /// Returns true if calls with this token are executed.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Current | Self::Overlapping)
    }
}

impl From<&SandboxSettings> for IssueLimits {
    fn from(settings: &SandboxSettings) -> Self {
        // `expires_in` is in whole seconds, and a lifetime of 0 would never be reusable.
        let at_least_a_second = |d: Duration| millis(d).max(1000);
        Self {
            token_life: at_least_a_second(settings.token_life),
            overlap: millis(settings.overlap),
            forced_overlap: millis(settings.forced_overlap),
            classic_per_day: settings.classic_per_day,
            forced_per_day: settings.forced_per_day,
            forced_spacing: millis(settings.forced_spacing),
            stable_per_minute: settings.stable_per_minute,
            ticket_life: at_least_a_second(settings.ticket_life),
        }
    }
}
