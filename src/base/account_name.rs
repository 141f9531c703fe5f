//! Name of an account in the configuration, the log and the metrics.

use std::{fmt, sync::Arc};

/// Name of the form `[A-Za-z0-9_-]{1,64}`, which is safe in a path, a header, a metric label and a
/// file name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountName(Arc<str>);

impl AccountName {
    /// Checks a name; `None` if the text does not have the form.
    pub fn new(text: &str) -> Option<Self> {
        let fits = !text.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        fits.then(|| Self(text.into()))
    }

    /// The name as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["shop", "a", "A-b_9", &"x".repeat(64)] {
            assert_eq!(
                AccountName::new(good).map(|n| n.to_string()).as_deref(),
                Some(good)
            );
        }
        for bad in ["", "a b", "a/b", "店", "a.b", &"x".repeat(65)] {
            assert!(AccountName::new(bad).is_none(), "{bad:?} was taken");
        }
    }
}
