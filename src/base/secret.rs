//! Secret values, which cannot be printed by accident.
//!
//! `Secret` has no `Display`, no `Serialize` and an opaque `Debug`. Only [`Secret::expose`] returns
//! the value, so that a search finds every use. The value is wiped when dropped; copies in parsers,
//! URL strings and socket buffers are not.

use std::fmt;

use zeroize::Zeroizing;

/// AppSecret, access token, ticket or key.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a value. Other copies of the value are not wiped.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// Returns the value in the clear. The callers are listed in ARCHITECTURE.md.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the first eight hex digits of the SHA-256: enough to tell two values apart in a log,
    /// not enough to guess a value from.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.0.as_bytes());
        digest
            .as_ref()
            .iter()
            .take(4)
            .fold(String::with_capacity(8), |mut hex, byte| {
                use fmt::Write as _;
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }

    /// Compares in time that does not depend on the position of the first difference.
    pub fn matches(&self, candidate: &str) -> bool {
        // Digests have one length, so that the time does not reveal the length of the secret
        // either.
        let digest =
            |text: &str| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(
            digest(&self.0).as_ref(),
            digest(candidate).as_ref(),
        )
        .is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose())
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_value() {
        let shown = format!(
            "{:?} {:#?}",
            Secret::new("hunter2"),
            Some(Secret::new("hunter2"))
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn fingerprint_is_the_head_of_the_sha256() {
        assert_eq!(Secret::new("abc").fingerprint(), "ba7816bf");
    }

    #[test]
    fn only_the_same_value_matches() {
        assert!(Secret::new("k").matches("k"));
        assert!(!Secret::new("k").matches("K"));
        assert!(!Secret::new("k").matches(""));
    }
}
