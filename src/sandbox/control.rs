//! Remote control of a running sandbox, for tests in the same process. [`super::remote`] offers the
//! same operations over HTTP below `/sandbox/`.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    SandboxShared,
    clock::millis,
    endpoints::media::Upload,
    faults::Rule,
    record::{Counters, DeliveredMessage, PathCount, RecordedRequest},
    script::{RuleView, path_matches},
    settings::{ApiSigning, IpWhitelist, SandboxAccount, SandboxPlatform},
    state::{Revoked, TokenKind, TokenState, overwritten_code},
};

/// Handle to a running sandbox. Cheap to clone; clones may outlive the sandbox.
#[derive(Debug, Clone)]
pub struct SandboxControl(pub(super) Arc<SandboxShared>);

/// Selection of tokens: of one account or all, of one kind or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFilter {
    /// Appid or corpid; `None` for all accounts.
    #[serde(default)]
    pub account: Option<String>,
    /// Kind of token; `None` for all kinds.
    #[serde(default)]
    pub kind: Option<TokenKind>,
}

/// Way of revoking a token. The default: at once, with the code of an overwritten token; the token
/// endpoint then issues a new token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revocation {
    /// Code that business calls get; default 40001, at WeCom 40014. Ignored with `overlap`.
    pub code: Option<i64>,
    /// True if the token endpoint keeps returning the dead token, until a forced refresh or the
    /// token's expiry.
    pub sticky: bool,
    /// Time for which the token still works.
    pub overlap: Option<Duration>,
}

/// Snapshot of an account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountView {
    /// The appid or corpid.
    pub appid: String,
    /// Protocol of the account.
    pub platform: SandboxPlatform,
    /// Current tokens of the account.
    pub tokens: Vec<TokenView>,
    /// Calls of `cgi-bin/token` today.
    pub classic_today: u32,
    /// Forced calls of `cgi-bin/stable_token` today.
    pub forced_today: u32,
}

/// Snapshot of a current token. The token is worthless outside the sandbox, so its value is
/// included.
#[derive(Debug, Clone, Serialize)]
pub struct TokenView {
    /// Kind of the token.
    pub kind: TokenKind,
    /// Value of the token.
    pub access_token: String,
    /// Remaining lifetime in seconds; 0 after expiry.
    pub expires_in: u64,
    /// Judgement of a business call with this token.
    #[serde(flatten)]
    pub state: TokenState,
}

const KINDS: [TokenKind; 3] = [TokenKind::Classic, TokenKind::Stable, TokenKind::Wecom];

impl SandboxControl {
    /// Adds an account; an account with the same appid gets the new secret (WeCom: another agent is
    /// added).
    pub fn add_account(&self, account: &SandboxAccount) {
        self.0.state.ledger().put_account(account);
    }

    /// Requires signed and encrypted calls from the account to the paths in `signing`.
    pub fn sign_api(&self, appid: &str, signing: ApiSigning) {
        let signing = Arc::new(signing);
        let mut ledger = self.0.state.ledger();
        ledger.signing.insert(appid.to_owned(), signing);
        // Set under the lock after the insert, so that a call which sees the flag finds the keys.
        self.0.state.signs.store(true, Ordering::Relaxed);
    }

    /// Gives the account an IP whitelist; `None` takes it away.
    pub fn set_whitelist(&self, appid: &str, list: Option<IpWhitelist>) {
        let mut ledger = self.0.state.ledger();
        match list {
            Some(list) => ledger.whitelists.insert(appid.to_owned(), list),
            None => ledger.whitelists.remove(appid),
        };
        let any = !ledger.whitelists.is_empty();
        // Under the lock, for the reason above.
        self.0.state.lists_addresses.store(any, Ordering::Relaxed);
    }

    /// Revokes the current tokens at once. Returns their number.
    pub fn revoke(&self, which: impl Into<TokenFilter>) -> usize {
        self.revoke_with(which, Revocation::default())
    }

    /// Revokes the current tokens as described by `how`. Returns their number.
    pub fn revoke_with(&self, which: impl Into<TokenFilter>, how: Revocation) -> usize {
        let now = self.0.state.clock.now();
        self.each(&which.into(), |account, kind, platform| {
            if let Some(overlap) = how.overlap {
                let mut ledger = self.0.state.ledger();
                let Some(token) = ledger.current(account, kind).map(Arc::clone) else {
                    return false;
                };
                let Some(issued) = ledger.issued_mut(&token) else {
                    return false;
                };
                issued.dies = Some(now + millis(overlap));
                return true;
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

    /// Expires the current tokens: 42001. Returns their number.
    pub fn expire(&self, which: impl Into<TokenFilter>) -> usize {
        self.set_remaining(which, Duration::ZERO)
    }

    /// Sets the remaining lifetime of the current tokens. Returns their number.
    pub fn set_remaining(&self, which: impl Into<TokenFilter>, left: Duration) -> usize {
        self.each(&which.into(), |account, kind, _| {
            self.0.state.set_remaining(account, kind, millis(left))
        })
    }

    /// Replaces tokens as a fetch from outside wxgate would, without notice. The old tokens still
    /// work for `overlap` (default: WeChat's five minutes). Returns the number of replaced tokens.
    pub fn rotate(&self, which: impl Into<TokenFilter>, overlap: Option<Duration>) -> usize {
        let overlap = overlap.map_or(self.0.state.limits.overlap, millis);
        self.each(&which.into(), |account, kind, _| {
            let known = self.0.state.ledger().current(account, kind).is_some();
            if known {
                self.0.state.rotate(account, kind, overlap);
            }
            known
        })
    }

    /// Advances the sandbox clock: tokens, overlaps, quotas and tickets age.
    pub fn advance(&self, by: Duration) {
        self.0.state.clock.advance(by);
    }

    /// Returns the current token, dead or alive; `None` if none was issued.
    pub fn current_token(&self, appid: &str, kind: TokenKind) -> Option<String> {
        let ledger = self.0.state.ledger();
        let account = ledger.accounts.iter().position(|a| *a.appid == *appid)?;
        ledger
            .current(account, kind)
            .map(|token| (**token).to_owned())
    }

    /// Judges a token as a business call would.
    pub fn judge(&self, token: &str) -> TokenState {
        self.0.state.judge(Some(token)).state
    }

    /// Returns the accounts and their tokens.
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
        let view = |(index, account): (usize, &super::state::AccountState)| AccountView {
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

    /// Adds a rule; the returned number is for [`SandboxControl::release`], [`SandboxControl::remove_fault`] and
    /// [`SandboxControl::hits`].
    pub fn fault(&self, rule: Rule) -> u64 {
        self.0.script.add(rule)
    }

    /// Releases the answers that the rule holds; the rule holds no more from then on. Returns false
    /// if there is no such rule.
    pub fn release(&self, id: u64) -> bool {
        self.0.script.release(Some(id))
    }

    /// Releases and removes the rule. Returns false if there is no such rule.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.0.script.remove(Some(id))
    }

    /// Releases and removes all rules.
    pub fn clear_faults(&self) {
        self.0.script.remove(None);
    }

    /// Returns the number of calls that the rule has hit.
    pub fn hits(&self, id: u64) -> u64 {
        self.0.script.hits(id)
    }

    /// Returns all rules, used up or not.
    pub fn faults(&self) -> Vec<RuleView> {
        self.0.script.list()
    }

    /// Sets the idle time-out of connections; `None` for none. Connections that are idle already
    /// keep their old time-out.
    pub fn set_idle_close(&self, after: Option<Duration>) {
        self.0.idle_close.store(
            // Zero stands for no time-out, so a time-out below a millisecond is rounded up.
            after.map_or(0, |after| millis(after).max(1)),
            Ordering::Relaxed,
        );
    }

    /// Closes every connection after one answer, although the answer promises keep-alive.
    pub fn set_close_each(&self, on: bool) {
        self.0.close_each.store(on, Ordering::Relaxed);
    }

    /// Returns the totals since the start or the last clearing.
    pub fn counters(&self) -> Counters {
        self.0.recorder.counters()
    }

    /// Returns the number of token calls of every kind, refused ones included.
    pub fn fetches(&self) -> u64 {
        let counters = self.counters();
        counters.classic_fetches + counters.stable_fetches + counters.wecom_fetches
    }

    /// Returns the number of `cgi-bin/token` calls.
    pub fn classic_fetches(&self) -> u64 {
        self.counters().classic_fetches
    }

    /// Returns the number of `cgi-bin/stable_token` calls, forced ones included.
    pub fn stable_fetches(&self) -> u64 {
        self.counters().stable_fetches
    }

    /// Returns the number of `cgi-bin/stable_token` calls with `force_refresh`.
    pub fn forced(&self) -> u64 {
        self.counters().forced_fetches
    }

    /// Returns the number of connections accepted since the start.
    pub fn connections(&self) -> u64 {
        self.counters().connections
    }

    /// Returns the number of requests to a path, and of executed ones.
    pub fn path(&self, path: &str) -> PathCount {
        self.0.recorder.path(path)
    }

    /// Returns the numbers of [`SandboxControl::path`] for every path.
    pub fn paths(&self) -> HashMap<String, PathCount> {
        self.0.recorder.paths()
    }

    /// Returns the recorded requests to paths of this pattern (see [`Rule::path`]), oldest first.
    pub fn requests(&self, pattern: &str) -> Vec<RecordedRequest> {
        self.0.recorder.records(|path| path_matches(pattern, path))
    }

    /// Returns the recorded deliveries, oldest first.
    pub fn deliveries(&self) -> Vec<DeliveredMessage> {
        self.0.recorder.deliveries()
    }

    /// Returns the number of recorded deliveries to this user.
    pub fn delivered_to(&self, openid: &str) -> usize {
        self.deliveries()
            .iter()
            .filter(|delivery| delivery.openid == openid)
            .count()
    }

    /// Returns the uploaded files.
    pub fn uploads(&self) -> Vec<Upload> {
        self.0.uploads.list()
    }

    /// Clears the recorded requests and deliveries and the totals, except those of connections.
    pub fn clear_record(&self) {
        self.0.recorder.clear();
    }

    /// Waits until `reached` returns true. Checks whenever a request is recorded or a connection
    /// opens or closes. Callers need a time-out of their own.
    pub async fn until(&self, mut reached: impl FnMut(&Self) -> bool) {
        loop {
            let mut change = std::pin::pin!(self.0.recorder.changes().notified());
            // Registered before the check, so that a change between check and wait is not missed.
            change.as_mut().enable();
            if reached(self) {
                return;
            }
            change.await;
        }
    }

    /// Returns the root certificate to trust, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    fn each(
        &self,
        which: &TokenFilter,
        mut act: impl FnMut(usize, TokenKind, SandboxPlatform) -> bool,
    ) -> usize {
        // Copied out of the lock, because `act` takes the lock again for each token.
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

impl From<&str> for TokenFilter {
    fn from(appid: &str) -> Self {
        Self {
            account: Some(appid.to_owned()),
            kind: None,
        }
    }
}

impl From<TokenKind> for TokenFilter {
    fn from(kind: TokenKind) -> Self {
        Self {
            account: None,
            kind: Some(kind),
        }
    }
}

impl From<(&str, TokenKind)> for TokenFilter {
    fn from((appid, kind): (&str, TokenKind)) -> Self {
        Self {
            account: Some(appid.to_owned()),
            kind: Some(kind),
        }
    }
}
