//! Stored roots of an account's phantom keys, and the decision which of them stay good.
//!
//! Pure: the time is an argument. The roots are the value of an ordinary record under a key of its
//! own, so that every store keeps them, sealed where tokens are, and an older wxgate, which never
//! reads that key, is not disturbed.

use std::fmt::Write as _;

use super::GRACE;
use crate::{
    base::Secret,
    token::{
        Generation, ProviderKind,
        budget::DailyBudget,
        clock::millis,
        store::{AccountIdentity, StoredToken, TokenRecord},
    },
};

/// Root besides the current one, and the end of its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OtherRoot {
    pub(super) root: Secret,
    /// Wall time in milliseconds.
    pub(super) until_ms: u64,
}

/// Content of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredRoots {
    pub(super) current: Secret,
    pub(super) others: Vec<OtherRoot>,
}

/// Most roots besides the current one. More changes within two hours are a mistake.
const MAX_OTHERS: usize = 4;
/// Form of the value.
const FORM: &str = "1";

/// Returns the roots that stay good beside `own`: each once, for its longest time, the latest first.
pub(super) fn joined(
    own: &Secret,
    roots: impl IntoIterator<Item = OtherRoot>,
    now_ms: u64,
) -> Vec<OtherRoot> {
    let latest_ms = now_ms.saturating_add(millis(GRACE));
    let mut kept: Vec<OtherRoot> = Vec::new();
    for mut other in roots {
        // Another node's clock may be ahead of this one.
        other.until_ms = other.until_ms.min(latest_ms);
        if other.until_ms <= now_ms || other.root == *own {
            continue;
        }
        match kept.iter_mut().find(|known| known.root == other.root) {
            Some(known) => known.until_ms = known.until_ms.max(other.until_ms),
            None => kept.push(other),
        }
    }
    kept.sort_by_key(|other| std::cmp::Reverse(other.until_ms));
    kept.truncate(MAX_OTHERS);
    kept
}

/// Returns the roots that stay good beside `own` where the store holds `stored` and this node knew
/// `known`.
///
/// A record of the same root was written after the change, by this process before a restart or by
/// another node, and holds: a revocation must not be undone by a node that follows later. In any
/// other record the current root is the former one.
pub(super) fn succeeding(
    own: &Secret,
    known: &[OtherRoot],
    stored: Option<&StoredRoots>,
    now_ms: u64,
) -> Vec<OtherRoot> {
    match stored {
        None => joined(own, known.iter().cloned(), now_ms),
        Some(stored) if stored.current == *own => {
            joined(own, stored.others.iter().cloned(), now_ms)
        }
        Some(stored) => {
            let former = OtherRoot {
                root: stored.current.clone(),
                until_ms: now_ms.saturating_add(millis(GRACE)),
            };
            let all = known.iter().chain(&stored.others).cloned();
            joined(own, all.chain([former]), now_ms)
        }
    }
}

impl StoredRoots {
    /// Reads the roots of a record; `None` if it is of another account, or empty.
    pub(super) fn of(record: &TokenRecord, appid: &str) -> Option<Self> {
        let token = record.token.as_ref()?;
        if record.identity.appid != appid {
            return None;
        }
        let mut words = token.value.expose().split(' ');
        if words.next() != Some(FORM) {
            return None;
        }
        let current = words.next().map(Secret::new)?;
        let other = |word: &str| {
            let (root, until_ms) = word.split_once('@')?;
            Some(OtherRoot {
                root: Secret::new(root),
                until_ms: until_ms.parse().ok()?,
            })
        };
        let others = words.map(other).collect::<Option<_>>()?;
        Some(Self { current, others })
    }

    /// Makes the value of the record.
    fn value(&self) -> Secret {
        let mut text = format!("{FORM} {}", self.current.expose());
        for OtherRoot { root, until_ms } in &self.others {
            let _ = write!(text, " {}@{until_ms}", root.expose());
        }
        Secret::new(text)
    }
}

/// Makes the record that follows the one of this generation; without roots, an empty one.
pub(super) fn following(
    generation: Generation,
    appid: &str,
    roots: Option<&StoredRoots>,
    now_ms: u64,
) -> TokenRecord {
    TokenRecord {
        identity: AccountIdentity {
            appid: appid.to_owned(),
            // Alike for all nodes: of two writers of one generation, the store refuses the later
            // one only if both records are of one identity.
            kind: ProviderKind::Stable,
            secret_fingerprint: String::new(),
        },
        generation: Generation(generation.0 + 1),
        token: roots.map(|roots| StoredToken {
            value: roots.value(),
            fetched_ms: now_ms,
            expires_ms: now_ms.saturating_add(millis(GRACE)),
        }),
        budget: DailyBudget::default(),
        refusal: None,
        asked_ms: 0,
    }
}
