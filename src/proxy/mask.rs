//! Masking of an account's credentials in an answer of WeChat: servers echo what they were asked.

use hyper::{HeaderMap, header::HeaderValue};

use crate::{base::secret_finder::SecretFinder, token::TokenRefresher};

/// Credentials of an account that reach no caller in an answer: its tokens and its AppSecret.
#[derive(Clone, Copy)]
pub(crate) struct CredentialMask<'a> {
    pub(crate) tokens: &'a TokenRefresher,
    pub(crate) secret: Option<&'a SecretFinder>,
}

impl CredentialMask<'_> {
    /// Replaces the bytes of each credential by as many `*`; `None` if there is none in the text.
    pub(crate) fn masked(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.tokens.masked(text, self.secret)
    }

    /// Masks the values of headers.
    pub(crate) fn mask_headers(&self, headers: &mut HeaderMap) {
        // Nearly all values are shorter than a credential, and cost one comparison.
        let Some(shortest) = self.tokens.shortest_masked(self.secret) else {
            return;
        };
        for value in headers.values_mut() {
            if value.len() < shortest {
                continue;
            }
            // Asterisks can stand in every header value.
            if let Some(masked) = self.masked(value.as_bytes())
                && let Ok(masked) = HeaderValue::from_bytes(&masked)
            {
                *value = masked;
            }
        }
    }
}
