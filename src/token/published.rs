//! The token that requests see, and those it replaced a short while ago.
//!
//! Requests load the current token without a lock. Former tokens are looked at only to keep them
//! out of answers (see `proxy::headers`).

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use tokio::time::Instant;

use super::value::Token;

/// How long WeChat may still know a token that was replaced.
const REMEMBERED: Duration = Duration::from_secs(7200);
/// Most former tokens that are remembered. No day's budget allows that many in two hours.
const MAX_FORMER: usize = 64;

/// The current token of one account, in the shape of an [`ArcSwapOption`], and its predecessors.
#[derive(Debug, Default)]
pub(super) struct Published {
    current: ArcSwapOption<Token>,
    former: Mutex<Vec<Former>>,
    /// Length of the shortest token that is current or former; 0 for none. It only shrinks, so
    /// that a reader needs no lock to rule out that a text holds any of them.
    shortest: AtomicUsize,
}

#[derive(Debug)]
struct Former {
    token: Arc<Token>,
    replaced: Instant,
}

impl Published {
    pub(super) fn load(&self) -> Guard<Option<Arc<Token>>> {
        self.current.load()
    }

    pub(super) fn load_full(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// Publishes a token. The one before it counts as former, unless it is the same text.
    pub(super) fn store(&self, token: Option<Arc<Token>>) {
        if let Some(token) = &token {
            let length = token.length();
            let shortest = self.shortest.load(Relaxed);
            if shortest == 0 || length < shortest {
                // Before the token itself: who sees the token also sees its length.
                self.shortest.store(length, Relaxed);
            }
        }
        let same = |old: &Arc<Token>| {
            let next = token.as_ref();
            next.is_some_and(|next| next.fingerprint() == old.fingerprint())
        };
        let now = Instant::now();
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.retain(|old| now.duration_since(old.replaced) < REMEMBERED);
        if let Some(token) = self.current.load_full().filter(|old| !same(old)) {
            if former.len() == MAX_FORMER {
                former.remove(0);
            }
            former.push(Former {
                token,
                replaced: now,
            });
        }
        self.current.store(token);
    }

    /// Whether a text of this length can hold a token that [`Published::known`] would list.
    pub(super) fn fits_into(&self, length: usize) -> bool {
        let shortest = self.shortest.load(Relaxed);
        shortest > 0 && length >= shortest
    }

    /// The current token and those replaced less than 7200 s ago.
    pub(super) fn known(&self) -> Vec<Arc<Token>> {
        let now = Instant::now();
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = former
            .iter()
            .filter(|old| now.duration_since(old.replaced) < REMEMBERED);
        let recent = recent.map(|old| Arc::clone(&old.token));
        self.current.load_full().into_iter().chain(recent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::Secret, token::value::Generation};

    fn token(text: &str) -> Arc<Token> {
        let now = Instant::now();
        let secret = Secret::new(text);
        Arc::new(Token::new(Generation(1), secret, now, now + REMEMBERED))
    }

    fn known(published: &Published) -> Vec<String> {
        let known = published.known();
        known
            .iter()
            .map(|token| token.query_value().to_owned())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_token_is_known_for_two_hours() {
        let published = Published::default();
        assert!(!published.fits_into(1000) && published.known().is_empty());
        published.store(Some(token("first-token")));
        published.store(Some(token("first-token")));
        assert_eq!(
            known(&published),
            ["first-token"],
            "the same text is not former"
        );
        published.store(Some(token("second")));
        assert_eq!(known(&published), ["second", "first-token"]);
        assert!(published.fits_into(6) && !published.fits_into(5));
        tokio::time::advance(REMEMBERED.saturating_sub(Duration::from_secs(1))).await;
        published.store(Some(token("third-token")));
        assert_eq!(known(&published), ["third-token", "first-token", "second"]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(known(&published), ["third-token", "second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_are_remembered() {
        let published = Published::default();
        for n in 0..200 {
            published.store(Some(token(&format!("token-{n}"))));
        }
        assert_eq!(published.known().len(), 1 + MAX_FORMER);
    }
}
