//! Sealing of tokens at rest against readers of a store: AES-256-GCM, with a random nonce for each
//! text.
//!
//! Knows keys and texts; `codec` chooses the context that a text is bound to. Sealing does not hide
//! the length of a token, and cannot tell an older record of the same place from the newest.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest::{SHA256, digest},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::base::Secret;

/// The keys of `store.encryption_key`: the first one seals, all of them open. Cheap to clone; shows
/// nothing but the ids when it is formatted.
#[derive(Clone)]
pub struct Keyring(Arc<[SealKey]>);

/// Names a key in the clear: the first four bytes of its SHA-256, written as eight hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 4]);

/// Reason why `store.encryption_key` cannot be used. Repeats nothing of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Neither 64 hex digits nor 32 bytes in base64.
    #[error(
        "key {number} of the list is not 32 bytes in base64 or hex: `openssl rand -base64 32` makes one; several are \
         separated by commas"
    )]
    Form {
        /// Counted from one.
        number: usize,
    },
    /// The list has the key twice.
    #[error(
        "key {number} of the list stands there already: the first one seals, the others only open what they sealed"
    )]
    Twice {
        /// Counted from one.
        number: usize,
    },
}

/// Reason why a sealed token is not used. Repeats nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    /// No key is configured.
    #[error(
        "the token is sealed with the key {0} and store.encryption_key is not set: set it, or the token is fetched anew \
         and stored in plain text"
    )]
    NoKey(KeyId),
    /// Another key sealed it.
    #[error(
        "the token is sealed with the key {0}, which is not in store.encryption_key: add that key behind the first one, \
         after a comma, or the token is fetched anew"
    )]
    OtherKey(KeyId),
    /// The key is there and does not open it.
    #[error(
        "the sealed token does not fit its record: somebody changed the record, or put that of another account, ticket \
         or generation in its place. It is not used and will be overwritten; find out who can write to the store"
    )]
    Forged,
}

struct SealKey {
    id: KeyId,
    /// Digest of the key, to compare keys with.
    digest: [u8; 32],
    aead: RandomizedNonceKey,
}

/// Character between the id of the key and the sealed text.
const SEPARATOR: char = ':';

impl Keyring {
    /// Takes one key, or several with commas between them: each 32 bytes in base64 (of either
    /// alphabet) or hex.
    ///
    /// # Errors
    /// The first one that is no key, or is there twice.
    pub fn parse(keys: &Secret) -> Result<Self, KeyringError> {
        let mut ring: Vec<SealKey> = Vec::new();
        for (number, text) in (1..).zip(keys.expose().split(',')) {
            let bytes = key_bytes(text.trim()).ok_or(KeyringError::Form { number })?;
            let key = SealKey::new(&bytes).ok_or(KeyringError::Form { number })?;
            if ring.iter().any(|other| other.digest == key.digest) {
                return Err(KeyringError::Twice { number });
            }
            ring.push(key);
        }
        Ok(Self(ring.into()))
    }

    /// Seals with the first key and binds the result to `bound`, without which it cannot be opened.
    /// `None` when the cipher fails, for which it has no reason.
    pub(super) fn seal(&self, text: &str, bound: &[u8]) -> Option<String> {
        let key = self.0.first()?;
        let mut sealed = text.as_bytes().to_vec();
        let nonce = key
            .aead
            .seal_in_place_append_tag(Aad::from(bound), &mut sealed)
            .ok()?;
        let whole = [nonce.as_ref().as_slice(), &sealed].concat();
        Some(format!(
            "{}{SEPARATOR}{}",
            key.id,
            BASE64_URL_SAFE_NO_PAD.encode(whole)
        ))
    }

    /// Opens a sealed text; also tells if the first key sealed it.
    pub(super) fn open(&self, sealed: &str, bound: &[u8]) -> Result<(Secret, bool), Locked> {
        let (id, text) = split(sealed).ok_or(Locked::Forged)?;
        let whole = BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| Locked::Forged)?;
        let (nonce, rest) = whole.split_at_checked(NONCE_LEN).ok_or(Locked::Forged)?;
        let mut refusal = Locked::OtherKey(id);
        for (number, key) in self.0.iter().enumerate().filter(|(_, key)| key.id == id) {
            refusal = Locked::Forged;
            let mut buffer = Zeroizing::new(rest.to_vec());
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Locked::Forged)?;
            if let Ok(opened) = key.aead.open_in_place(nonce, Aad::from(bound), &mut buffer) {
                let value = std::str::from_utf8(opened).map_err(|_| Locked::Forged)?;
                return Ok((Secret::new(value), number == 0));
            }
        }
        Err(refusal)
    }
}

/// Refusal of a sealed text where no key is configured.
pub(super) fn refused(sealed: &str) -> Locked {
    split(sealed).map_or(Locked::Forged, |(id, _)| Locked::NoKey(id))
}

fn split(sealed: &str) -> Option<(KeyId, &str)> {
    let (id, text) = sealed.split_once(SEPARATOR)?;
    let lower = id
        .bytes()
        .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    let id = (id.len() == 8 && lower)
        .then(|| u32::from_str_radix(id, 16).ok())
        .flatten()?;
    Some((KeyId(id.to_be_bytes()), text))
}

fn key_bytes(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if text.len() == 64 && text.is_ascii() {
        let digits = text
            .as_bytes()
            .chunks(2)
            .map(|two| std::str::from_utf8(two).ok());
        return digits
            .map(|two| u8::from_str_radix(two.filter(|two| !two.starts_with('+'))?, 16).ok())
            .collect::<Option<_>>()
            .map(Zeroizing::new);
    }
    let plain = Zeroizing::new(
        text.trim_end_matches('=')
            .replace('+', "-")
            .replace('/', "_"),
    );
    BASE64_URL_SAFE_NO_PAD
        .decode(&*plain)
        .ok()
        .map(Zeroizing::new)
}

impl SealKey {
    /// `None` unless it is 32 bytes.
    fn new(bytes: &[u8]) -> Option<Self> {
        let aead = (bytes.len() == 32)
            .then(|| RandomizedNonceKey::new(&AES_256_GCM, bytes).ok())
            .flatten()?;
        let digest: [u8; 32] = digest(&SHA256, bytes).as_ref().try_into().ok()?;
        let id = digest.first_chunk().copied().map(KeyId)?;
        Some(Self { id, digest, aead })
    }
}

impl PartialEq for Keyring {
    fn eq(&self, other: &Self) -> bool {
        self.0
            .iter()
            .map(|key| key.digest)
            .eq(other.0.iter().map(|key| key.digest))
    }
}

impl Eq for Keyring {}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| key.id))
            .finish()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use super::*;

    pub(crate) const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    pub(crate) const OTHER: &str =
        "a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1";

    pub(crate) fn ring(keys: &str) -> Keyring {
        Keyring::parse(&Secret::new(keys)).unwrap()
    }

    #[test]
    fn a_key_is_32_bytes_in_base64_or_hex() {
        let hex = "3031323334353637383961626364656630313233343536373839616263646566";
        let same = ring(KEY);
        for spelt in [hex, &hex.to_uppercase(), KEY.trim_end_matches('=')] {
            assert_eq!(ring(spelt), same, "{spelt}");
        }
        let odd = "+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/8=";
        assert_eq!(
            ring(odd),
            ring(&odd.replace('+', "-").replace('/', "_")),
            "either alphabet"
        );
        for bad in [
            "",
            "short",
            &KEY[..40],
            &hex[..32],
            &format!("{hex}00"),
            &hex.replace('0', "g"),
            &"+1".repeat(32),
        ] {
            assert_eq!(
                Keyring::parse(&Secret::new(bad)),
                Err(KeyringError::Form { number: 1 }),
                "{bad}"
            );
        }
    }

    #[test]
    fn several_keys_stand_between_commas_and_none_twice() {
        assert_eq!(
            ring(&format!("{KEY},{OTHER}")),
            ring(&format!(" {KEY} , {OTHER} "))
        );
        assert_ne!(
            ring(&format!("{KEY},{OTHER}")),
            ring(&format!("{OTHER},{KEY}")),
            "the first one writes"
        );
        let parsed = |text: &str| Keyring::parse(&Secret::new(text));
        assert_eq!(
            parsed(&format!("{KEY},")),
            Err(KeyringError::Form { number: 2 })
        );
        assert_eq!(
            parsed(&format!("{KEY},{OTHER},{KEY}")),
            Err(KeyringError::Twice { number: 3 })
        );
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let sealed = ring(KEY).seal("token", b"place").unwrap();
        let opened = |keys: &str| ring(keys).open(&sealed, b"place");
        assert_eq!(opened(KEY), Ok((Secret::new("token"), true)));
        assert_eq!(
            opened(&format!("{KEY},{OTHER}")),
            Ok((Secret::new("token"), true))
        );
        assert_eq!(
            opened(&format!("{OTHER},{KEY}")),
            Ok((Secret::new("token"), false))
        );
        let id = KeyId(ring(KEY).0[0].id.0);
        assert_eq!(opened(OTHER), Err(Locked::OtherKey(id)));
        assert_eq!(refused(&sealed), Locked::NoKey(id));
        assert_eq!(ring(KEY).open(&sealed, b"other"), Err(Locked::Forged));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let ring = ring(KEY);
        let sealed = ring.seal("token", b"place").unwrap();
        for at in 0..sealed.len() {
            assert!(ring.open(&sealed[..at], b"place").is_err(), "cut at {at}");
            for other in "AZaz09-_:\""
                .chars()
                .filter(|c| !sealed[at..].starts_with(*c))
            {
                let changed = format!("{}{other}{}", &sealed[..at], &sealed[at + 1..]);
                assert!(ring.open(&changed, b"place").is_err(), "{other} at {at}");
            }
        }
        for foreign in ["", ":", "00000000:", "+0000000:AAAA", "é", "00000000:é"] {
            assert!(ring.open(foreign, b"place").is_err(), "{foreign}");
            let _ = refused(foreign);
        }
    }

    /// A nonce that is used twice under the same key would reveal both texts.
    #[test]
    fn no_nonce_comes_twice() {
        let ring = ring(KEY);
        let nonces: HashSet<String> = (0..100_000)
            .map(|_| ring.seal("t", b"").unwrap().split_off(9)[..16].to_owned())
            .collect();
        assert_eq!(nonces.len(), 100_000);
    }

    #[test]
    fn nothing_of_a_key_is_ever_shown() {
        let ring = ring(&format!("{KEY},{OTHER}"));
        let shown = format!(
            "{ring:?} {ring:#?} {} {}",
            KeyringError::Form { number: 1 },
            KeyringError::Twice { number: 2 }
        );
        assert!(
            !shown.contains("0123456789abcdef")
                && !shown.contains("a2a2")
                && !shown.contains(&KEY[..8]),
            "{shown}"
        );
    }
}
