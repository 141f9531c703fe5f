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
    clock::{Clock, Millis, Noise, millis},
    endpoints::others::Owner,
    envelope::ApiSigning,
    settings::{Platform, SandboxAccount, Settings},
};
use crate::base::Secret;

/// Number of tokens that are kept; older ones become unknown, which WeChat answers like overwritten
/// ones.
const TOKENS_KEPT: usize = 20_000;

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
pub(super) struct State {
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) noise: Noise,
    /// True if any account signs. Read without the lock, so that other calls take no lock.
    pub(super) signs: AtomicBool,
    inner: Mutex<Ledger>,
}

/// Limits from [`Settings`], times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
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
pub(super) struct Ledger {
    pub(super) accounts: Vec<Account>,
    tokens: HashMap<Arc<str>, Issued>,
    order: VecDeque<Arc<str>>,
    /// Login codes already exchanged.
    pub(super) used_codes: HashSet<String>,
    /// Tokens of users (`sns/*`), unrelated to those of accounts.
    pub(super) user_tokens: HashSet<String>,
    /// Tokens of components, suites, providers and devices.
    pub(super) others: HashMap<String, Owner>,
    /// Keys of API signing by appid.
    pub(super) signing: HashMap<String, Arc<ApiSigning>>,
}

#[derive(Debug)]
pub(super) struct Account {
    pub(super) appid: Arc<str>,
    pub(super) secret: Secret,
    pub(super) platform: Platform,
    current: HashMap<TokenKind, Arc<str>>,
    pub(super) usage: Usage,
    pub(super) tickets: HashMap<String, (String, Millis)>,
}

/// Counters for quotas.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) day: u64,
    pub(super) classic_today: u32,
    pub(super) forced_today: u32,
    pub(super) last_forced: Option<Millis>,
    pub(super) minute: u64,
    pub(super) stable_this_minute: u32,
    pub(super) clears_left: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Issued {
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
pub(super) struct Judged {
    pub(super) state: TokenState,
    pub(super) account: Option<Arc<str>>,
    pub(super) platform: Platform,
}

/// Result of checking a pair of appid and secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential {
    Good(usize),
    UnknownAppid,
    WrongSecret,
    /// Secret of another account.
    ForeignSecret,
}

impl State {
    pub(super) fn new(settings: &Settings) -> Self {
        let state = Self {
            limits: Limits::from(settings),
            clock: Clock::start(),
            noise: Noise::new(settings.seed),
            signs: AtomicBool::new(false),
            inner: Mutex::default(),
        };
        for account in &settings.accounts {
            state.ledger().put_account(account);
        }
        state
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rid(&self) -> String {
        self.noise.rid(self.clock.unix())
    }

    /// Judges `token` as a business call does.
    pub(super) fn judge(&self, token: Option<&str>) -> Judged {
        let now = self.clock.now();
        self.ledger().judge(token, now)
    }
}

impl Ledger {
    /// Adds the account. An account with the same appid gets the new secret instead, except at
    /// WeCom, where agents share a corpid.
    pub(super) fn put_account(&mut self, account: &SandboxAccount) {
        let same = |a: &&mut Account| a.platform == Platform::Wechat && *a.appid == *account.appid;
        if account.platform == Platform::Wechat
            && let Some(known) = self.accounts.iter_mut().find(same)
        {
            known.secret = account.secret.clone();
            return;
        }
        self.accounts.push(Account {
            appid: Arc::from(account.appid.as_str()),
            secret: account.secret.clone(),
            platform: account.platform,
            current: HashMap::new(),
            usage: Usage {
                clears_left: 10,
                ..Usage::default()
            },
            tickets: HashMap::new(),
        });
    }

    pub(super) fn credential(&self, platform: Platform, appid: &str, secret: &str) -> Credential {
        let mut known = false;
        for (index, account) in self.accounts.iter().enumerate() {
            if account.platform == platform && *account.appid == *appid {
                known = true;
                if account.secret.matches(secret) {
                    return Credential::Good(index);
                }
            }
        }
        if !known {
            Credential::UnknownAppid
        } else if self
            .accounts
            .iter()
            .any(|a| a.platform == platform && a.secret.matches(secret))
        {
            Credential::ForeignSecret
        } else {
            Credential::WrongSecret
        }
    }

    pub(super) fn knows(&self, platform: Platform, appid: &str) -> bool {
        self.accounts
            .iter()
            .any(|a| a.platform == platform && *a.appid == *appid)
    }

    /// Returns true if all accounts are WeCom's, so that an unknown token must be WeCom's too.
    pub(super) fn only_wecom(&self) -> bool {
        !self.accounts.is_empty() && self.accounts.iter().all(|a| a.platform == Platform::Wecom)
    }

    pub(super) fn current(&self, account: usize, kind: TokenKind) -> Option<&Arc<str>> {
        self.accounts.get(account)?.current.get(&kind)
    }

    pub(super) fn issued(&self, token: &str) -> Option<&Issued> {
        self.tokens.get(token)
    }

    pub(super) fn issued_mut(&mut self, token: &str) -> Option<&mut Issued> {
        self.tokens.get_mut(token)
    }

    /// Makes `token` the current one; its predecessor works until the end of `overlap` or of its
    /// own lifetime.
    pub(super) fn install(
        &mut self,
        token: &Arc<str>,
        issued: Issued,
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
            previous.dies = Some(previous.dies.map_or(end, |dies| dies.min(end)));
        }
        self.tokens.insert(Arc::clone(token), issued);
        self.order.push_back(Arc::clone(token));
        while self.order.len() > TOKENS_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.tokens.remove(&oldest);
            }
        }
    }

    pub(super) fn judge(&self, token: Option<&str>, now: Millis) -> Judged {
        let default = if self.only_wecom() {
            Platform::Wecom
        } else {
            Platform::Wechat
        };
        let nobody = |state| Judged {
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
        Judged {
            state,
            account: Some(Arc::clone(&account.appid)),
            platform: account.platform,
        }
    }
}

impl Issued {
    /// Returns the code with which a business call refuses the token: 42001 for an expired token,
    /// 40001 for an overwritten one (WeCom: 40014).
    pub(super) fn refused(&self, now: Millis, platform: Platform) -> Option<i64> {
        if let Some(revoked) = self.revoked {
            return Some(revoked.code);
        }
        let overwritten = self
            .dies
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
pub(super) fn overwritten_code(platform: Platform) -> i64 {
    match platform {
        Platform::Wechat => 40001,
        Platform::Wecom => 40014,
    }
}

impl TokenState {
    /// Returns true if calls with this token are executed.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Current | Self::Overlapping)
    }
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
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
