//! Rules for issuing tokens and tickets, one function per rule of the documentation.
//!
//! The caller has checked appid and secret, and forms the answer.

use std::sync::Arc;

use super::{
    clock::Millis,
    state::{IssuedToken, QuotaUsage, Revoked, SandboxState, TokenKind, TokenLedger},
};

/// Decision of a token endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grant {
    /// A token and its lifetime in seconds.
    Token {
        token: Arc<str>,
        expires_in: u64,
        /// True if this call created the token.
        minted: bool,
    },
    /// 45009.
    DailyQuota,
    /// 45011.
    TooFast,
}

const DAY: Millis = 86_400_000;
const MINUTE: Millis = 60_000;

/// Token to be created.
#[derive(Debug, Clone, Copy)]
struct NewToken<'v> {
    account: usize,
    kind: TokenKind,
    /// Value set by a fault; `None` for a random one.
    value: Option<&'v str>,
    /// Time for which the predecessor still works.
    overlap: Millis,
}

impl SandboxState {
    /// Issues for `cgi-bin/token`: each call creates a token, the previous one works on for the
    /// overlap, and calls are limited per day.
    pub(super) fn grant_classic(&self, account: usize, value: Option<&str>) -> Grant {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        let usage = usage(&mut ledger, account, now);
        if usage.classic_today >= self.limits.classic_per_day {
            return Grant::DailyQuota;
        }
        usage.classic_today += 1;
        self.mint(
            &mut ledger,
            now,
            NewToken {
                account,
                kind: TokenKind::Classic,
                value,
                overlap: self.limits.overlap,
            },
        )
    }

    /// Issues for `cgi-bin/stable_token` in normal mode: the same token, until its remaining
    /// lifetime falls below the overlap.
    pub(super) fn grant_stable(&self, account: usize, value: Option<&str>) -> Grant {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        if !self.stable_allowed(&mut ledger, account, now) {
            return Grant::TooFast;
        }
        match reuse(&ledger, account, TokenKind::Stable, now) {
            Some((token, left)) if left >= self.limits.overlap && value.is_none() => {
                same(token, left)
            }
            _ => self.mint(
                &mut ledger,
                now,
                NewToken {
                    account,
                    kind: TokenKind::Stable,
                    value,
                    overlap: self.limits.overlap,
                },
            ),
        }
    }

    /// Issues for `cgi-bin/stable_token` with `force_refresh`: a new token at once, limited by
    /// interval and per day.
    pub(super) fn grant_forced(&self, account: usize, value: Option<&str>) -> Grant {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        if !self.stable_allowed(&mut ledger, account, now) {
            return Grant::TooFast;
        }
        let spacing = self.limits.forced_spacing;
        // Within the interval, a forced call gets the current token, if that is reusable, and costs
        // no daily quota.
        let too_soon = usage(&mut ledger, account, now)
            .last_forced
            .is_some_and(|last| now < last + spacing);
        if too_soon && let Some((token, left)) = reuse(&ledger, account, TokenKind::Stable, now) {
            return same(token, left);
        }
        let usage = usage(&mut ledger, account, now);
        if usage.forced_today >= self.limits.forced_per_day {
            return Grant::DailyQuota;
        }
        usage.forced_today += 1;
        usage.last_forced = Some(now);
        self.mint(
            &mut ledger,
            now,
            NewToken {
                account,
                kind: TokenKind::Stable,
                value,
                overlap: self.limits.forced_overlap,
            },
        )
    }

    /// Issues for WeCom's `cgi-bin/gettoken`: the same token until it expires.
    pub(super) fn grant_wecom(&self, account: usize, value: Option<&str>) -> Grant {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        match reuse(&ledger, account, TokenKind::Wecom, now) {
            Some((token, left)) if value.is_none() => same(token, left),
            _ => self.mint(
                &mut ledger,
                now,
                NewToken {
                    account,
                    kind: TokenKind::Wecom,
                    value,
                    overlap: self.limits.overlap,
                },
            ),
        }
    }

    /// Returns a ticket of this type with its remaining lifetime in seconds.
    pub(super) fn ticket(&self, appid: &str, kind: &str) -> Option<(String, u64)> {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        let account = ledger.accounts.iter_mut().find(|a| *a.appid == *appid)?;
        let fresh = || (self.noise.text(86), now + self.limits.ticket_life);
        let slot = account.tickets.entry(kind.to_owned()).or_insert_with(fresh);
        if slot.1 <= now {
            *slot = fresh();
        }
        // Rounded down, so that a caller never believes a ticket to live longer than it does.
        Some((slot.0.clone(), (slot.1 - now) / 1000))
    }

    /// Replaces the current token, as a fetch from outside wxgate does.
    pub(super) fn rotate(&self, account: usize, kind: TokenKind, overlap: Millis) {
        let now = self.clock.now();
        self.mint(
            &mut self.ledger(),
            now,
            NewToken {
                account,
                kind,
                value: None,
                overlap,
            },
        );
    }

    /// Revokes the current token without issuing another. Returns false if there is none.
    pub(super) fn revoke(&self, account: usize, kind: TokenKind, how: Revoked) -> bool {
        let mut ledger = self.ledger();
        let Some(token) = ledger.current(account, kind).map(Arc::clone) else {
            return false;
        };
        let Some(issued) = ledger.issued_mut(&token) else {
            return false;
        };
        issued.revoked = Some(how);
        true
    }

    /// Sets the remaining lifetime of the current token. Returns false if there is none.
    pub(super) fn set_remaining(&self, account: usize, kind: TokenKind, left: Millis) -> bool {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        let Some(token) = ledger.current(account, kind).map(Arc::clone) else {
            return false;
        };
        let Some(issued) = ledger.issued_mut(&token) else {
            return false;
        };
        issued.expires = now + left;
        true
    }

    /// Clears the daily counters (`clear_quota`). Returns false after ten clearings: WeChat allows
    /// ten a month.
    pub(super) fn clear_quota(&self, account: usize) -> bool {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        let usage = usage(&mut ledger, account, now);
        let allowed = usage.clears_left > 0;
        if allowed {
            usage.clears_left -= 1;
            usage.classic_today = 0;
            usage.forced_today = 0;
        }
        allowed
    }

    fn stable_allowed(&self, ledger: &mut TokenLedger, account: usize, now: Millis) -> bool {
        let usage = usage(ledger, account, now);
        let allowed = usage.stable_this_minute < self.limits.stable_per_minute;
        // Refused calls do not count.
        usage.stable_this_minute += u32::from(allowed);
        allowed
    }

    fn mint(&self, ledger: &mut TokenLedger, now: Millis, new: NewToken<'_>) -> Grant {
        let token: Arc<str> = match new.value {
            Some(value) => Arc::from(value),
            None => Arc::from(format!(
                // WeChat's form: two digits, an underscore, 137 characters.
                "{}_{}",
                60 + self.noise.next() % 40,
                self.noise.text(137)
            )),
        };
        let life = self.limits.token_life;
        let issued = IssuedToken {
            account: new.account,
            kind: new.kind,
            expires: now + life,
            dies: None,
            revoked: None,
        };
        ledger.install(&token, issued, now, new.overlap);
        Grant::Token {
            token,
            expires_in: life / 1000,
            minted: true,
        }
    }
}

fn same(token: Arc<str>, left: Millis) -> Grant {
    Grant::Token {
        token,
        expires_in: left.div_ceil(1000),
        minted: false,
    }
}

fn reuse(
    ledger: &TokenLedger,
    account: usize,
    kind: TokenKind,
    now: Millis,
) -> Option<(Arc<str>, Millis)> {
    let token = ledger.current(account, kind)?;
    let left = ledger.issued(token)?.reusable(now)?;
    Some((Arc::clone(token), left))
}

/// Returns the counters of the account, reset if their day or minute is past.
fn usage(ledger: &mut TokenLedger, account: usize, now: Millis) -> &mut QuotaUsage {
    let usage = &mut ledger.accounts[account].usage;
    if usage.day != now / DAY {
        (usage.day, usage.classic_today, usage.forced_today) = (now / DAY, 0, 0);
    }
    if usage.minute != now / MINUTE {
        (usage.minute, usage.stable_this_minute) = (now / MINUTE, 0);
    }
    usage
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::{SandboxSettings, settings::SandboxPlatform, state::TokenState};

    fn state() -> SandboxState {
        SandboxState::new(&SandboxSettings {
            forced_per_day: 2,
            classic_per_day: 3,
            seed: Some(1),
            ..SandboxSettings::default()
        })
    }

    fn token(grant: Grant) -> (Arc<str>, u64, bool) {
        match grant {
            Grant::Token {
                token,
                expires_in,
                minted,
            } => (token, expires_in, minted),
            other => panic!("no token: {other:?}"),
        }
    }

    fn advance(state: &SandboxState, seconds: u64) {
        state.clock.advance(Duration::from_secs(seconds));
    }

    fn judge(state: &SandboxState, token: &str) -> TokenState {
        state.judge(Some(token)).state
    }

    #[tokio::test(start_paused = true)]
    async fn a_classic_call_replaces_the_token_and_the_old_one_works_five_more_minutes() {
        let state = state();
        let (old, life, _) = token(state.grant_classic(0, None));
        let (new, ..) = token(state.grant_classic(0, None));
        assert_eq!(life, 7200);
        assert_eq!(
            (judge(&state, &old), judge(&state, &new)),
            (TokenState::Overlapping, TokenState::Current)
        );
        advance(&state, 300);
        assert_eq!(
            (judge(&state, &old), judge(&state, &new)),
            (TokenState::Stale(40001), TokenState::Current)
        );
        advance(&state, 6900);
        assert_eq!(judge(&state, &new), TokenState::Stale(42001));
    }

    #[tokio::test(start_paused = true)]
    async fn the_classic_quota_ends_with_the_day_or_with_a_clearing() {
        let state = state();
        for _ in 0..3 {
            token(state.grant_classic(0, None));
        }
        assert_eq!(state.grant_classic(0, None), Grant::DailyQuota);
        assert!(state.clear_quota(0));
        token(state.grant_classic(0, None));
        for _ in 0..2 {
            token(state.grant_classic(0, None));
        }
        assert_eq!(state.grant_classic(0, None), Grant::DailyQuota);
        advance(&state, 86_400);
        token(state.grant_classic(0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stable_token_stays_until_less_than_five_minutes_are_left() {
        let state = state();
        let (first, ..) = token(state.grant_stable(0, None));
        advance(&state, 6900);
        assert_eq!(
            token(state.grant_stable(0, None)),
            (Arc::clone(&first), 300, false)
        );
        advance(&state, 1);
        let (second, life, minted) = token(state.grant_stable(0, None));
        assert!(second != first && minted && life == 7200);
        assert_eq!(judge(&state, &first), TokenState::Overlapping);
    }

    #[tokio::test(start_paused = true)]
    async fn forcing_kills_the_previous_token_but_not_within_thirty_seconds_and_not_for_ever() {
        let state = state();
        let (first, ..) = token(state.grant_stable(0, None));
        let (second, ..) = token(state.grant_forced(0, None));
        assert_eq!(
            (judge(&state, &first), judge(&state, &second)),
            (TokenState::Stale(40001), TokenState::Current)
        );
        advance(&state, 29);
        assert_eq!(
            token(state.grant_forced(0, None)),
            (Arc::clone(&second), 7171, false)
        );
        advance(&state, 1);
        assert_ne!(token(state.grant_forced(0, None)).0, second);
        advance(&state, 30);
        assert_eq!(state.grant_forced(0, None), Grant::DailyQuota);
    }

    #[tokio::test(start_paused = true)]
    async fn classic_and_stable_leave_each_other_alone() {
        let state = state();
        let (classic, ..) = token(state.grant_classic(0, None));
        let (stable, ..) = token(state.grant_stable(0, None));
        token(state.grant_forced(0, None));
        assert_eq!(judge(&state, &classic), TokenState::Current);
        assert_eq!(judge(&state, &stable), TokenState::Stale(40001));
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_token_is_not_issued_again_unless_the_platform_insists() {
        let state = state();
        let (first, ..) = token(state.grant_stable(0, None));
        assert!(state.revoke(
            0,
            TokenKind::Stable,
            Revoked {
                code: 40001,
                sticky: true
            }
        ));
        assert_eq!(token(state.grant_stable(0, None)).0, first);
        assert!(state.revoke(
            0,
            TokenKind::Stable,
            Revoked {
                code: 40014,
                sticky: false
            }
        ));
        assert_eq!(judge(&state, &first), TokenState::Stale(40014));
        assert_ne!(token(state.grant_stable(0, None)).0, first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_wrong_or_foreign_or_good() {
        use crate::sandbox::{SandboxAccount, state::CredentialCheck};
        let state = SandboxState::new(&SandboxSettings {
            accounts: vec![
                SandboxAccount::new("wx1", "s1"),
                SandboxAccount::new("wx2", "s2"),
            ],
            ..SandboxSettings::default()
        });
        let ledger = state.ledger();
        let check = |appid, secret| ledger.credential(SandboxPlatform::Wechat, appid, secret);
        assert_eq!(check("wx2", "s2"), CredentialCheck::Good(1));
        assert_eq!(check("wx2", "s1"), CredentialCheck::ForeignSecret);
        assert_eq!(check("wx2", "no"), CredentialCheck::WrongSecret);
        assert_eq!(check("wx3", "s1"), CredentialCheck::UnknownAppid);
    }
}
