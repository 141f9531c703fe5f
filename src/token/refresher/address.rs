//! Refusal of this node's address by WeChat in answers to requests.
//!
//! Such a refusal concerns no token, so the actor is not asked: requests note it, and the next
//! accepted request ends it. The token endpoint's own refusals are failures of a fetch, with the
//! same [`Cause`].

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::status::LastError;
use crate::{base::AccountName, token::error::Cause};

/// Address refusal that is in force, if there is one.
#[derive(Default)]
pub(super) struct AddressWatch {
    /// True while `refusal` holds one. An accepted request reads this alone.
    is_refused: AtomicBool,
    /// Locked by refused requests and by those who ask for the status.
    refusal: Mutex<Option<AddressRefusal>>,
}

struct AddressRefusal {
    cause: Cause,
    /// Answers that refused the address.
    answers: u32,
    logged: Instant,
}

/// Time between two log lines about a refused address.
const LOG_EVERY: Duration = Duration::from_secs(60);

impl AddressWatch {
    /// Notes an answer that refused the address, and logs it at most once a minute. Returns true
    /// if it was logged.
    pub(super) fn refused(&self, account: &AccountName, cause: &Cause) -> bool {
        let now = Instant::now();
        let mut refusal = self.refusal();
        // Set under the lock, so that the flag and the refusal cannot part.
        self.is_refused.store(true, Relaxed);
        let before = refusal.as_ref();
        let answers = before.map_or(1, |before| before.answers.saturating_add(1));
        let logged = before
            .map(|before| before.logged)
            .filter(|logged| now.duration_since(*logged) < LOG_EVERY);
        *refusal = Some(AddressRefusal {
            cause: cause.clone(),
            answers,
            logged: logged.unwrap_or(now),
        });
        drop(refusal);
        if logged.is_none() {
            tracing::warn!(%account, refused = answers, "calls fail: {cause}");
        }
        logged.is_none()
    }

    /// Ends a refusal: WeChat has accepted a request of this node. Returns true if there was one.
    pub(super) fn accepted(&self, account: &AccountName) -> bool {
        if !self.is_refused.load(Relaxed) {
            return false;
        }
        let mut refusal = self.refusal();
        self.is_refused.store(false, Relaxed);
        let was_refused = refusal.take().is_some();
        drop(refusal);
        if was_refused {
            tracing::info!(%account, "WeChat accepts the address of this node again");
        }
        was_refused
    }

    /// Returns the refusal in words.
    pub(super) fn error(&self) -> Option<LastError> {
        let refusal = self.refusal();
        let refusal = refusal.as_ref()?;
        Some(LastError::new(&refusal.cause, refusal.answers))
    }

    fn refusal(&self) -> MutexGuard<'_, Option<AddressRefusal>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{token::source::FetchError, wechat::api::Platform};

    #[tokio::test(start_paused = true)]
    async fn a_refusal_names_the_address_and_lasts_until_an_acceptance() {
        let (watch, shop) = (AddressWatch::default(), AccountName::new("shop").unwrap());
        assert!(watch.error().is_none());
        let cause = |ip: [u8; 4]| {
            Cause::Fetch(FetchError::Refused {
                platform: Platform::Wechat,
                code: 40164,
                ip: Some(ip.into()),
            })
        };
        watch.refused(&shop, &cause([203, 0, 113, 8]));
        watch.refused(&shop, &cause([203, 0, 113, 9]));
        let error = watch.error().unwrap();
        assert_eq!((error.errcode, error.failures), (Some(40164), 2));
        assert_eq!(error.ip, Some([203, 0, 113, 9].into()), "the latest");
        assert!(error.sentence.contains("203.0.113.9") && error.sentence.contains("whitelist"));
        watch.accepted(&shop);
        assert!(watch.error().is_none());
        watch.accepted(&shop);
    }
}
