//! Stored state of an account, in wall time, and the checks before it is believed again.
//!
//! Pure: the clock is an argument. Faults that hold for one node only (a refused address) are no
//! part of a record.

use std::time::Duration;

use crate::{
    base::Secret,
    token::{
        AccountSettings, Generation, ProviderKind,
        budget::DailyBudget,
        clock::{ClockReading, millis},
        value::Token,
    },
};
use serde::{Deserialize, Serialize};

/// Credentials that a token belongs to. A record of other credentials gives no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountIdentity {
    /// Owner of the budgets.
    pub appid: String,
    /// Tokens of the two kinds are never mixed.
    pub kind: ProviderKind,
    /// Fingerprint of the AppSecret: with another secret the token is not used any more. Tells the
    /// agents of one WeCom corp apart, too.
    pub secret_fingerprint: String,
}

/// The stored state of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Owner of the token.
    pub identity: AccountIdentity,
    /// Generation of the last token, also when that token is not in the record any more.
    pub generation: Generation,
    /// Last token.
    pub token: Option<StoredToken>,
    /// Calls spent today.
    pub budget: DailyBudget,
    /// Refusal that holds for every node.
    pub refusal: Option<StoredRefusal>,
    /// Wall time in milliseconds of the last call that brought a token, be it the same one again; 0
    /// before.
    pub asked_ms: u64,
}

/// WeChat's last word on an account whose secret is wrong, which is frozen, or whose quota is used
/// up. Until it is over no node needs to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRefusal {
    /// WeChat's `errcode`.
    pub code: i64,
    /// Number of refusals of this class in a row.
    pub failures: u32,
    /// Wall time in milliseconds at which a node may ask again.
    pub until_ms: u64,
}

/// Token in wall time, milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// Value of the token.
    pub value: Secret,
    /// Time at which the call that brought the token was sent.
    pub fetched_ms: u64,
    /// End of the token's life.
    pub expires_ms: u64,
}

/// Difference of clocks that is still believed.
const MAX_SKEW: Duration = Duration::from_secs(300);
/// Longest life of a token.
const MAX_LIFETIME: Duration = Duration::from_secs(7200);
/// Longest memory of a refusal, against another node's wrong clock.
const MAX_REFUSAL: Duration = Duration::from_secs(660);

impl AccountIdentity {
    /// Credentials of an account as it is configured now.
    pub fn of(account: &AccountSettings) -> Self {
        let secret_fingerprint = account
            .secret
            .as_ref()
            .map(Secret::fingerprint)
            .unwrap_or_default();
        Self {
            appid: account.appid.clone(),
            kind: account.kind(),
            secret_fingerprint,
        }
    }
}

impl StoredToken {
    /// The token in wall time.
    pub fn of(token: &Token, at: ClockReading) -> Self {
        Self {
            value: token.secret().clone(),
            fetched_ms: at.to_unix_ms(token.sent()),
            expires_ms: at.to_unix_ms(token.expires()),
        }
    }
}

impl TokenRecord {
    /// The token on today's monotonic clock, if it is still good and its times are possible:
    /// fetched at most five minutes in the future, living at most two hours, not expired.
    pub fn revive(&self, at: ClockReading) -> Option<Token> {
        let stored = self.token.as_ref()?;
        let (now, wall) = (at.now, at.wall_ms);
        let lifetime = stored.expires_ms.checked_sub(stored.fetched_ms)?;
        if stored.fetched_ms > wall.saturating_add(millis(MAX_SKEW))
            || lifetime > millis(MAX_LIFETIME)
        {
            return None;
        }
        let left = Duration::from_millis(
            stored
                .expires_ms
                .checked_sub(wall)
                .filter(|left| *left > 0)?,
        )
        .min(MAX_LIFETIME);
        let age = Duration::from_millis(wall.saturating_sub(stored.fetched_ms));
        let sent = now.checked_sub(age).unwrap_or(now);
        Some(Token::new(
            self.generation,
            stored.value.clone(),
            sent,
            now + left,
        ))
    }

    /// The token of a record that was written while this node was there to hear of it. Times that
    /// leave less than half of its life can then only come of clocks that differ, and it counts as
    /// fetched just now. At most two hours.
    pub fn revive_as_news(&self, at: ClockReading) -> Option<Token> {
        if let Some(token) = self.revive(at) {
            let lifetime = token.expires().duration_since(token.sent());
            if token.left_at(at.now) >= lifetime / 2 {
                return Some(token);
            }
        }
        let stored = self.token.as_ref()?;
        let lifetime = Duration::from_millis(stored.expires_ms.checked_sub(stored.fetched_ms)?);
        let now = at.now;
        let possible = !lifetime.is_zero() && lifetime <= MAX_LIFETIME;
        possible.then(|| Token::new(self.generation, stored.value.clone(), now, now + lifetime))
    }

    /// The refusal that still holds, and for how long. At most eleven minutes.
    pub fn refused(&self, at: ClockReading) -> Option<(StoredRefusal, Duration)> {
        let refusal = self.refusal?;
        let left = refusal
            .until_ms
            .checked_sub(at.wall_ms)
            .filter(|left| *left > 0)?;
        Some((refusal, Duration::from_millis(left).min(MAX_REFUSAL)))
    }

    /// Record that a store writes in place of `held`: the same, with the calls that other nodes
    /// have spent.
    pub(super) fn over(mut self, held: Option<&Self>) -> Self {
        if let Some(held) = held.filter(|held| held.identity.appid == self.identity.appid) {
            self.budget = self.budget.or_more_spent(held.budget);
        }
        self
    }

    /// Tells if a store that holds `self` may replace it by `next`.
    pub(super) fn gives_way_to(&self, next: &Self) -> bool {
        let same_token = || {
            self.token.as_ref().map(|token| &token.value)
                == next.token.as_ref().map(|token| &token.value)
                || self.identity != next.identity
                || next.token.is_none()
                || self.token.is_none()
        };
        self.generation < next.generation || self.generation == next.generation && same_token()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::token::clock::WallClock;

    pub(crate) fn sample(generation: u64, token: Option<&str>) -> TokenRecord {
        TokenRecord {
            identity: AccountIdentity {
                appid: "wx0123456789abcdef".into(),
                kind: ProviderKind::Stable,
                secret_fingerprint: "ba7816bf".into(),
            },
            generation: Generation(generation),
            token: token.map(|value| StoredToken {
                value: Secret::new(value),
                fetched_ms: 10_000_000,
                expires_ms: 17_200_000,
            }),
            budget: DailyBudget::default(),
            refusal: None,
            asked_ms: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_revived_with_what_remains_of_it() {
        let record = sample(4, Some("t"));
        let token = record
            .revive(WallClock::starting_at(11_000_000).time())
            .unwrap();
        assert_eq!(
            (token.generation(), token.expires_in().as_millis()),
            (Generation(4), 6_200_000)
        );
        assert_eq!(
            StoredToken::of(&token, WallClock::starting_at(11_000_000).time()),
            record.token.unwrap()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn impossible_times_give_no_token() {
        let with = |fetched_ms, expires_ms, wall| {
            let token = Some(StoredToken {
                value: Secret::new("t"),
                fetched_ms,
                expires_ms,
            });
            TokenRecord {
                token,
                ..sample(1, None)
            }
            .revive(WallClock::starting_at(wall).time())
            .map(|token| token.expires_in().as_millis())
        };
        assert_eq!(with(10_000_000, 17_200_000, 17_200_000), None, "expired");
        assert_eq!(
            with(10_000_000, 17_200_000, 9_700_000),
            Some(7_200_000),
            "a clock a little behind"
        );
        assert_eq!(
            with(10_000_000, 17_200_000, 9_699_999),
            None,
            "a clock far behind"
        );
        assert_eq!(
            with(10_000_000, 17_200_001, 11_000_000),
            None,
            "lives too long"
        );
        assert_eq!(
            with(10_000_000, 9_000_000, 5_000_000),
            None,
            "ends before it begins"
        );
        assert_eq!(with(u64::MAX, u64::MAX, 0), None);
        assert_eq!(with(0, u64::MAX, u64::MAX), None);
    }

    #[test]
    fn an_older_or_a_rival_record_does_not_replace_a_newer_one() {
        let held = sample(5, Some("a"));
        assert!(
            held.gives_way_to(&sample(6, Some("b"))) && held.gives_way_to(&sample(5, Some("a")))
        );
        assert!(
            !held.gives_way_to(&sample(4, Some("z"))) && !held.gives_way_to(&sample(5, Some("b")))
        );
    }
}
