//! The remote control of a running sandbox, for tests in the same process. The same operations
//! exist over HTTP below `/sandbox/` ([`super::remote`]).

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Shared,
    clock::millis,
    endpoints::media::Upload,
    envelope::ApiSigning,
    faults::Rule,
    recorder::{Counters, Delivery, PathCount, Record},
    script::{RuleView, path_matches},
    settings::{Platform, SandboxAccount},
    state::{Revoked, TokenKind, TokenState, overwritten_code},
};

/// Cheap to clone; all clones steer the same sandbox, and outlive it harmlessly.
#[derive(Debug, Clone)]
pub struct Control(pub(super) Arc<Shared>);

/// Which tokens an operation means: of one account or all, of one kind or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The appid or corpid.
    #[serde(default)]
    pub account: Option<String>,
    /// Where the token comes from.
    #[serde(default)]
    pub kind: Option<TokenKind>,
}

/// How a token is killed. The default: at once, with the code of an overwritten token, and a new
/// one for the asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revocation {
    /// What business calls answer; default 40001, at WeCom 40014. Not used with `overlap`.
    pub code: Option<i64>,
    /// The token endpoint goes on handing out the dead token, until it is forced or the token's
    /// time is over.
    pub sticky: bool,
    /// It works for so long yet.
    pub overlap: Option<Duration>,
}

/// What the sandbox knows of an account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountView {
    /// The appid or corpid.
    pub appid: String,
    /// The protocol.
    pub platform: Platform,
    /// Its current tokens.
    pub tokens: Vec<TokenView>,
    /// Calls of `cgi-bin/token` today.
    pub classic_today: u32,
    /// Forced calls today.
    pub forced_today: u32,
}

/// A current token. It opens nothing outside the sandbox, so it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct TokenView {
    /// Where it comes from.
    pub kind: TokenKind,
    /// The token.
    pub access_token: String,
    /// Seconds that are left of it; 0 when it is over.
    pub expires_in: u64,
    /// What a call with it would be told.
    #[serde(flatten)]
    pub state: TokenState,
}

const KINDS: [TokenKind; 3] = [TokenKind::Classic, TokenKind::Stable, TokenKind::Wecom];

impl Control {
    /// Adds an account; one with the same appid gets the new secret (WeCom: another agent is
    /// added).
    pub fn add_account(&self, account: &SandboxAccount) {
        self.0.state.ledger().put_account(account);
    }

    /// From now on calls of the account to these paths must be signed and encrypted.
    pub fn sign_api(&self, appid: &str, signing: ApiSigning) {
        let signing = Arc::new(signing);
        let mut ledger = self.0.state.ledger();
        ledger.signing.insert(appid.to_owned(), signing);
        self.0.state.signs.store(true, Ordering::Relaxed);
    }

    /// Kills the current tokens at once. Returns how many.
    pub fn revoke(&self, which: impl Into<Which>) -> usize {
        self.revoke_with(which, Revocation::default())
    }

    /// Kills the current tokens in the way described. Returns how many.
    pub fn revoke_with(&self, which: impl Into<Which>, how: Revocation) -> usize {
        let now = self.0.state.clock.now();
        self.each(&which.into(), |account, kind, platform| {
            if let Some(overlap) = how.overlap {
                let mut ledger = self.0.state.ledger();
                let token = ledger.current(account, kind).map(Arc::clone);
                let issued = token.and_then(|token| ledger.issued_mut(&token));
                return issued
                    .map(|issued| issued.dies = Some(now + millis(overlap)))
                    .is_some();
            }
            let code = how.code.unwrap_or_else(|| overwritten_code(platform));
            self.0.state.revoke(
                account,
                kind,
                Revoked {
                    code,
                    sticky: how.sticky,
                },
            )
        })
    }

    /// Lets the current tokens reach the end of their life now: 42001. Returns how many.
    pub fn expire(&self, which: impl Into<Which>) -> usize {
        self.set_remaining(which, Duration::ZERO)
    }

    /// Leaves the current tokens this long to live. Returns how many.
    pub fn set_remaining(&self, which: impl Into<Which>, left: Duration) -> usize {
        self.each(&which.into(), |account, kind, _| {
            self.0.state.set_remaining(account, kind, millis(left))
        })
    }

    /// Replaces tokens as a stranger's fetch would: nobody is told. The old ones work on for
    /// `overlap` (default: WeChat's five minutes). Returns how many.
    pub fn rotate(&self, which: impl Into<Which>, overlap: Option<Duration>) -> usize {
        let overlap = overlap.map_or(self.0.state.limits.overlap, millis);
        self.each(&which.into(), |account, kind, _| {
            let known = self.0.state.ledger().current(account, kind).is_some();
            if known {
                self.0.state.rotate(account, kind, overlap);
            }
            known
        })
    }

    /// Ages everything: tokens, overlaps, quotas, tickets.
    pub fn advance(&self, by: Duration) {
        self.0.state.clock.advance(by);
    }

    /// The current token, if there is one, dead or alive.
    pub fn current_token(&self, appid: &str, kind: TokenKind) -> Option<String> {
        let ledger = self.0.state.ledger();
        let account = ledger.accounts.iter().position(|a| *a.appid == *appid)?;
        ledger
            .current(account, kind)
            .map(|token| (**token).to_owned())
    }

    /// What a call with this token would be told.
    pub fn judge(&self, token: &str) -> TokenState {
        self.0.state.judge(Some(token)).state
    }

    /// Accounts and their tokens.
    pub fn accounts(&self) -> Vec<AccountView> {
        let now = self.0.state.clock.now();
        let ledger = self.0.state.ledger();
        let token = |index: usize, kind: TokenKind| {
            let token = ledger.current(index, kind)?;
            let left = ledger.issued(token)?.expires.saturating_sub(now);
            let state = ledger.judge(Some(token), now).state;
            Some(TokenView {
                kind,
                access_token: (**token).to_owned(),
                expires_in: left / 1000,
                state,
            })
        };
        let view = |(index, account): (usize, &super::state::Account)| AccountView {
            appid: (*account.appid).to_owned(),
            platform: account.platform,
            tokens: KINDS
                .into_iter()
                .filter_map(|kind| token(index, kind))
                .collect(),
            classic_today: account.usage.classic_today,
            forced_today: account.usage.forced_today,
        };
        ledger.accounts.iter().enumerate().map(view).collect()
    }

    /// Adds a fault; the number is for [`Control::release`], [`Control::remove_fault`] and
    /// [`Control::hits`].
    pub fn fault(&self, rule: Rule) -> u64 {
        self.0.script.add(rule)
    }

    /// Lets go the answers that the rule holds, and does not hold any more.
    pub fn release(&self, id: u64) -> bool {
        self.0.script.release(Some(id))
    }

    /// Releases and removes the rule.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.0.script.remove(Some(id))
    }

    /// Releases and removes all rules.
    pub fn clear_faults(&self) {
        self.0.script.remove(None);
    }

    /// How many calls the rule has hit.
    pub fn hits(&self, id: u64) -> u64 {
        self.0.script.hits(id)
    }

    /// All rules, used up or not.
    pub fn faults(&self) -> Vec<RuleView> {
        self.0.script.list()
    }

    /// Idle connections are closed after so long; `None`: never. Connections that wait already keep
    /// their old time.
    pub fn set_idle_close(&self, after: Option<Duration>) {
        self.0.idle_close.store(
            after.map_or(0, |after| millis(after).max(1)),
            Ordering::Relaxed,
        );
    }

    /// Every answer promises keep-alive, and every connection is closed after one.
    pub fn set_close_each(&self, on: bool) {
        self.0.close_each.store(on, Ordering::Relaxed);
    }

    /// Totals.
    pub fn counters(&self) -> Counters {
        self.0.recorder.counters()
    }

    /// Token calls of every kind, whatever became of them.
    pub fn fetches(&self) -> u64 {
        let counters = self.counters();
        counters.classic_fetches + counters.stable_fetches + counters.wecom_fetches
    }

    /// Calls of `cgi-bin/token`.
    pub fn classic_fetches(&self) -> u64 {
        self.counters().classic_fetches
    }

    /// Calls of `cgi-bin/stable_token`, forced ones among them.
    pub fn stable_fetches(&self) -> u64 {
        self.counters().stable_fetches
    }

    /// Calls of `cgi-bin/stable_token` with `force_refresh`.
    pub fn forced(&self) -> u64 {
        self.counters().forced_fetches
    }

    /// Connections that were accepted since the start.
    pub fn connections(&self) -> u64 {
        self.counters().connections
    }

    /// Requests to one path, and how many were executed.
    pub fn path(&self, path: &str) -> PathCount {
        self.0.recorder.path(path)
    }

    /// The same of every path.
    pub fn paths(&self) -> HashMap<String, PathCount> {
        self.0.recorder.paths()
    }

    /// The recorded requests to paths of this pattern (see [`Rule::path`]), oldest first.
    pub fn requests(&self, pattern: &str) -> Vec<Record> {
        self.0.recorder.records(|path| path_matches(pattern, path))
    }

    /// The recorded deliveries, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.0.recorder.deliveries()
    }

    /// How many of them went to this user.
    pub fn delivered_to(&self, openid: &str) -> usize {
        self.deliveries()
            .iter()
            .filter(|delivery| delivery.openid == openid)
            .count()
    }

    /// Files that were uploaded.
    pub fn uploads(&self) -> Vec<Upload> {
        self.0.shelf.list()
    }

    /// Empties the record and sets the totals to zero; connections go on being counted.
    pub fn clear_record(&self) {
        self.0.recorder.clear();
    }

    /// Returns as soon as `reached` holds; asked again whenever a request was recorded or a
    /// connection came or went. Wrap it in a time-out: it may never hold.
    pub async fn until(&self, mut reached: impl FnMut(&Self) -> bool) {
        loop {
            let mut change = std::pin::pin!(self.0.recorder.changes().notified());
            change.as_mut().enable();
            if reached(self) {
                return;
            }
            change.await;
        }
    }

    /// The root certificate to trust, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    fn each(
        &self,
        which: &Which,
        mut act: impl FnMut(usize, TokenKind, Platform) -> bool,
    ) -> usize {
        let accounts: Vec<_> = {
            let ledger = self.0.state.ledger();
            let wanted = |appid: &str| which.account.as_deref().is_none_or(|want| want == appid);
            let all = ledger.accounts.iter().enumerate();
            all.filter(|(_, a)| wanted(&a.appid))
                .map(|(index, a)| (index, a.platform))
                .collect()
        };
        let kinds = || {
            KINDS
                .into_iter()
                .filter(|kind| which.kind.is_none_or(|want| want == *kind))
        };
        let pairs = accounts
            .into_iter()
            .flat_map(|(index, platform)| kinds().map(move |kind| (index, kind, platform)));
        pairs
            .filter(|(index, kind, platform)| act(*index, *kind, *platform))
            .count()
    }
}

impl From<&str> for Which {
    fn from(appid: &str) -> Self {
        Self {
            account: Some(appid.to_owned()),
            kind: None,
        }
    }
}

impl From<TokenKind> for Which {
    fn from(kind: TokenKind) -> Self {
        Self {
            account: None,
            kind: Some(kind),
        }
    }
}

impl From<(&str, TokenKind)> for Which {
    fn from((appid, kind): (&str, TokenKind)) -> Self {
        Self {
            account: Some(appid.to_owned()),
            kind: Some(kind),
        }
    }
}
