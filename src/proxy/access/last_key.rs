//! The last key of a connection and its digest, since a caller that keeps a connection sends the
//! same key each time.
//!
//! The client of the key is looked up for each request, so that a reload counts at once.

use std::cell::RefCell;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use crate::proxy::settings::KeyDigest;

/// A longer key is not remembered, in bytes; 32 random bytes have 64 as hex.
const MAX_KEY: usize = 128;

/// Last key of a connection with its digest.
#[derive(Default)]
pub(crate) struct LastKey(RefCell<Option<(Zeroizing<Vec<u8>>, KeyDigest)>>);

impl LastKey {
    /// The digest of this key.
    pub(super) fn digest(&self, key: &str) -> KeyDigest {
        let mut last = self.0.borrow_mut();
        match &*last {
            Some((known, digest)) if verify_slices_are_equal(known, key.as_bytes()).is_ok() => {
                *digest
            }
            _ => {
                let digest = KeyDigest::of(key);
                *last = (key.len() <= MAX_KEY)
                    .then(|| (Zeroizing::new(key.as_bytes().to_vec()), digest));
                digest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_gets_its_own_digest_however_they_follow_each_other() {
        let last = LastKey::default();
        let long = "k".repeat(MAX_KEY + 1);
        for key in [
            "one", "one", "two", "one", "on", "onetwo", "", "", &long, &long, "one",
        ] {
            assert!(last.digest(key) == KeyDigest::of(key), "{key}");
        }
    }
}
