//! Published token: the current token of an account, and the tokens that it replaced lately.
//!
//! Requests load both without a lock. The former ones are only looked for in answers, to be masked
//! there (see `proxy::mask`).

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::time::Instant;

use super::value::Token;
use crate::base::secret_finder::{self, SecretFinder};

/// Current token of one account with the methods of an [`ArcSwapOption`], and the former tokens.
#[derive(Default)]
pub(super) struct Published {
    current: ArcSwapOption<Token>,
    /// Tokens to mask, the newest first.
    known: ArcSwap<Vec<Arc<KnownToken>>>,
}

/// Token that no caller may see in an answer.
struct KnownToken {
    fingerprint: String,
    finder: SecretFinder,
    /// `None` for the current token.
    replaced: Option<Instant>,
}

/// Time for which WeChat may still accept a token that was replaced.
const REMEMBERED: Duration = Duration::from_secs(7200);
/// Limit for the former tokens that are remembered; the daily budgets allow fewer in two hours.
const MAX_FORMER: usize = 64;

impl Published {
    pub(super) fn load(&self) -> Guard<Option<Arc<Token>>> {
        self.current.load()
    }

    pub(super) fn load_full(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// Publishes a token. The one before it counts as former, unless it is the same text. Only the
    /// actor publishes, so two calls never overlap.
    pub(super) fn store(&self, token: Option<Arc<Token>>) {
        // Known before it is current: a reader that has the token also masks it.
        self.know(token.as_deref());
        self.current.store(token);
    }

    /// Masks the current token, those replaced less than 7200 s ago and `also`; `None` if the text
    /// holds none of them.
    pub(super) fn masked(&self, text: &[u8], also: Option<&SecretFinder>) -> Option<Vec<u8>> {
        let known = self.known.load();
        let all = known.iter().map(|known| &known.finder).chain(also);
        let masked = secret_finder::masked(text, &all)?;
        // Time is asked for only once something was found, which is rare.
        let now = Instant::now();
        if known.iter().all(|known| known.is_recent(now)) {
            return Some(masked);
        }
        let recent = known.iter().filter(|known| known.is_recent(now));
        let recent = recent.map(|known| &known.finder).chain(also);
        secret_finder::masked(text, &recent)
    }

    /// Returns true if a text is the current token or one that was replaced less than 7200 s ago.
    pub(super) fn is_known(&self, text: &str) -> bool {
        let (known, now) = (self.known.load(), Instant::now());
        known
            .iter()
            .any(|known| known.is_recent(now) && known.finder.is(text))
    }

    /// Length of the shortest text that [`Published::masked`] may mask; `None` for none.
    pub(super) fn shortest(&self, also: Option<&SecretFinder>) -> Option<usize> {
        let known = self.known.load();
        let all = known.iter().map(|known| &known.finder).chain(also);
        all.map(SecretFinder::length).min()
    }

    fn know(&self, token: Option<&Token>) {
        let (known, now) = (self.known.load(), Instant::now());
        let current = known.iter().find(|known| known.replaced.is_none());
        let is_known = match (current, token) {
            (Some(known), Some(token)) => known.fingerprint == token.fingerprint(),
            (None, None) => true,
            _ => false,
        };
        if is_known {
            return;
        }
        // A token without a finder is too short to be masked.
        let next = token.and_then(KnownToken::current);
        let former = known.iter().filter_map(|known| match known.replaced {
            None => Some(Arc::new(known.replaced_at(now))),
            Some(_) => known.is_recent(now).then(|| Arc::clone(known)),
        });
        let next = next.into_iter().chain(former.take(MAX_FORMER)).collect();
        self.known.store(Arc::new(next));
    }
}

impl KnownToken {
    fn current(token: &Token) -> Option<Arc<Self>> {
        let finder = SecretFinder::new(token.secret())?;
        Some(Arc::new(Self {
            fingerprint: token.fingerprint().to_owned(),
            finder,
            replaced: None,
        }))
    }

    fn replaced_at(&self, now: Instant) -> Self {
        Self {
            fingerprint: self.fingerprint.clone(),
            finder: self.finder.clone(),
            replaced: Some(now),
        }
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.replaced
            .is_none_or(|replaced| now.duration_since(replaced) < REMEMBERED)
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

    fn masks(published: &Published, text: &str) -> bool {
        published.masked(text.as_bytes(), None).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_token_is_masked_for_two_hours() {
        let published = Published::default();
        assert!(!masks(&published, "first-token"));
        published.store(Some(token("first-token")));
        published.store(Some(token("first-token")));
        assert_eq!(published.known.load().len(), 1, "the same text once");
        published.store(Some(token("second-token")));
        for text in ["<second-token>", "<first-token>"] {
            assert!(masks(&published, text), "{text}");
        }
        tokio::time::advance(REMEMBERED.saturating_sub(Duration::from_secs(1))).await;
        assert!(masks(&published, "first-token"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!masks(&published, "first-token"), "its time is over");
        assert_eq!(
            published.masked(b"second-token first-token", None),
            Some(b"************ first-token".to_vec())
        );
        published.store(Some(token("third-token")));
        assert_eq!(published.known.load().len(), 2, "the oldest is forgotten");
        assert!(masks(&published, "third-token") && masks(&published, "second-token"));
    }

    #[tokio::test(start_paused = true)]
    async fn another_secret_is_masked_beside_the_tokens() {
        let published = Published::default();
        let secret = SecretFinder::new(&Secret::new("app-secret"));
        let masked = |text: &str| published.masked(text.as_bytes(), secret.as_ref());
        assert_eq!(masked("app-secret"), Some(b"**********".to_vec()));
        published.store(Some(token("tokentoken")));
        assert_eq!(
            masked("tokentoken app-secret."),
            Some(b"********** **********.".to_vec())
        );
        assert_eq!(masked("app-secre"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_are_remembered() {
        let published = Published::default();
        for n in 0..200 {
            published.store(Some(token(&format!("token-{n}"))));
        }
        assert_eq!(published.known.load().len(), 1 + MAX_FORMER);
        assert!(masks(&published, "token-199") && !masks(&published, "token-1;"));
    }
}
