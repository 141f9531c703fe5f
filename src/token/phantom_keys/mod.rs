//! Roots of the keys that verify an account's phantom tokens: that of its AppSecret, and for two
//! hours after a change those of former AppSecrets.
//!
//! A root derives one way from the AppSecret, so that the store can keep it: a restarted process,
//! and every node that shares the store, learns from its record which AppSecret was in force before.
//! Requests only read; a task reads and writes the record. Phantoms themselves are the business of
//! `service`.

mod record;
mod sync;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::{mpsc, oneshot, watch};

use self::{record::OtherRoot, sync::RootSync};
use super::{
    AccountSettings,
    clock::{WallClock, millis},
    store::TokenStore,
};
use crate::base::Secret;

/// Roots of one account, and the handle of the task that shares them with the store.
pub(crate) struct PhantomKeys {
    roots: Arc<Roots>,
    appid: String,
    orders: mpsc::UnboundedSender<Order>,
}

/// Roots that requests and the task share.
struct Roots {
    /// `None` for an account without an AppSecret, whose phantoms only name account and client.
    current: Option<Secret>,
    /// Roots besides the current one. Read only for a phantom that the current one does not verify.
    others: ArcSwap<Vec<OtherRoot>>,
    /// True once the store was asked for the first time.
    loaded: watch::Sender<bool>,
}

/// Message of a handle to the task.
enum Order {
    /// Ends the grace of all other roots. Answered when the store was tried.
    Revoke(oneshot::Sender<()>),
    /// Empties the record: the account is gone.
    Forget,
}

/// Time for which phantoms of a former AppSecret stay good: as long as the answer that held them
/// said.
pub(crate) const GRACE: Duration = Duration::from_secs(7200);
/// Longest wait of a caller until the store was tried.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// Derives the root of an account's phantom keys from its AppSecret.
fn root_of(account: &AccountSettings) -> Option<Secret> {
    let secret = account.secret.as_ref()?;
    let key = hmac::Key::new(HMAC_SHA256, secret.expose().as_bytes());
    let label = ["wxgate phantom root 1 ", account.name.as_str()].concat();
    let root = hmac::sign(&key, label.as_bytes());
    Some(Secret::new(URL_SAFE_NO_PAD.encode(root)))
}

impl PhantomKeys {
    /// Starts with the root of the account's AppSecret, on the current runtime. The roots of
    /// `before`, the same account until a reload, stay good for [`GRACE`].
    pub(crate) fn start(
        account: &AccountSettings,
        store: Arc<dyn TokenStore>,
        before: Option<&Self>,
    ) -> Arc<Self> {
        Self::start_at(account, store, before, WallClock::system())
    }

    fn start_at(
        account: &AccountSettings,
        store: Arc<dyn TokenStore>,
        before: Option<&Self>,
        clock: WallClock,
    ) -> Arc<Self> {
        let current = root_of(account);
        let before = before.filter(|before| before.appid == account.appid);
        let others = match (&current, before) {
            (Some(current), Some(before)) => before.roots.left_to(current, clock.now_ms()),
            _ => Vec::new(),
        };
        let roots = Arc::new(Roots {
            current,
            others: ArcSwap::from_pointee(others),
            loaded: watch::Sender::new(false),
        });
        let (orders, inbox) = mpsc::unbounded_channel();
        match RootSync::new(account, Arc::clone(&roots), store, clock) {
            Some(sync) => drop(tokio::spawn(sync.run(inbox))),
            None => drop(roots.loaded.send_replace(true)),
        }
        Arc::new(Self {
            roots,
            appid: account.appid.clone(),
            orders,
        })
    }

    /// Returns keys of an account without an AppSecret and without a store.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self {
            roots: Arc::new(Roots {
                current: None,
                others: ArcSwap::default(),
                loaded: watch::Sender::new(true),
            }),
            appid: String::new(),
            orders: mpsc::unbounded_channel().0,
        })
    }

    /// Returns true if these are the keys of this appid and AppSecret, so that they need no
    /// successor.
    pub(crate) fn are_of(&self, account: &AccountSettings) -> bool {
        self.appid == account.appid && self.roots.current == root_of(account)
    }

    /// Returns the root of the AppSecret in force.
    pub(crate) fn root(&self) -> Option<&Secret> {
        self.roots.current.as_ref()
    }

    /// Returns true if `accepts` holds for another root that is still good at `now`, the time since
    /// 1970.
    pub(crate) fn any_other(&self, now: Duration, accepts: impl Fn(&Secret) -> bool) -> bool {
        let now_ms = millis(now);
        self.roots
            .others
            .load()
            .iter()
            .any(|other| other.until_ms > now_ms && accepts(&other.root))
    }

    /// Waits until the store was asked for the roots of former AppSecrets.
    pub(crate) async fn loaded(&self) {
        // Cannot fail: the sender is a field of `self`.
        let _ = self
            .roots
            .loaded
            .subscribe()
            .wait_for(|loaded| *loaded)
            .await;
    }

    /// Ends the grace of phantoms of former AppSecrets, here at once and on other nodes as soon as
    /// they hear of it. Returns when the store was tried.
    pub(crate) async fn revoke(&self) {
        self.roots.others.store(Arc::default());
        let (reply, tried) = oneshot::channel();
        if self.orders.send(Order::Revoke(reply)).is_ok() {
            let _ = tokio::time::timeout(STORE_WAIT, tried).await;
        }
    }

    /// Empties the record of an account that is gone.
    pub(crate) fn forget(&self) {
        self.roots.others.store(Arc::default());
        let _ = self.orders.send(Order::Forget);
    }
}

impl Roots {
    /// Returns the roots that stay good beside `next`, the root of the AppSecret that follows.
    fn left_to(&self, next: &Secret, now_ms: u64) -> Vec<OtherRoot> {
        let own = self.current.iter().map(|current| OtherRoot {
            root: current.clone(),
            until_ms: now_ms.saturating_add(millis(GRACE)),
        });
        let others = self.others.load();
        record::joined(next, own.chain(others.iter().cloned()), now_ms)
    }
}

impl fmt::Debug for PhantomKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhantomKeys").finish_non_exhaustive()
    }
}
