//! Phantom tokens, which callers get instead of the account's real token; created and verified
//! without state.
//!
//! A phantom holds its account, its client and a window of 24 hours, and ends in a MAC whose key
//! derives from a root, which derives from the account's AppSecret, and from the digest of the
//! client's key. So every node can verify a phantom, and a change of the client's key revokes it.
//! Roots are `token`'s business; accounts, clients and permissions are `proxy`'s.
//!
//! SDKs limit the form of a token: more than 50 characters, since shorter ones are taken for
//! account names; only `[A-Za-z0-9_-]`; at most 128, since some databases have narrow columns.

use std::time::Duration;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    hmac::{self, HMAC_SHA256},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

pub(crate) use crate::base::PHANTOM_PREFIX as PREFIX;
use crate::base::Secret;

/// Name as encoded in a phantom: the first eight bytes of its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; TAG_LEN]);

/// Key that creates and verifies the phantoms of one client on one account.
#[derive(Debug)]
pub struct PhantomKey {
    account: Tag,
    client: Tag,
    mac: hmac::Key,
}

/// Parsed phantom, not yet verified; see [`PhantomKey::accepts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phantom {
    account: Tag,
    client: Tag,
    window: u32,
    mac: [u8; MAC_LEN],
}

/// Value of `expires_in`, in seconds. Some SDKs subtract up to 1500 s and refuse a remainder that
/// is too small.
pub(crate) const EXPIRES_IN: u64 = 7200;
/// Length of a window in seconds. A client gets the same phantom throughout a window; the phantom
/// is valid until the end of the next window.
const WINDOW: u64 = 24 * 60 * 60;
/// Tolerance for the clock of another node, in seconds.
const SKEW: u64 = 300;
const TAG_LEN: usize = 8;
const MAC_LEN: usize = 28;
const LEN: usize = 2 * TAG_LEN + 4 + MAC_LEN;

impl Tag {
    /// Returns the tag of the name of an account or a client.
    pub fn of(name: &str) -> Self {
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&digest(&SHA256, name.as_bytes()).as_ref()[..TAG_LEN]);
        Self(tag)
    }
}

impl PhantomKey {
    /// Derives the key. `root` comes of the account's AppSecret, `client_key` is the digest of the
    /// client's key. With neither, a phantom still names account and client, but only the caller's
    /// network vouches for it.
    pub fn new(
        account: &str,
        root: Option<&Secret>,
        client: &str,
        client_key: Option<&[u8]>,
    ) -> Self {
        let root_key = hmac::Key::new(
            HMAC_SHA256,
            root.map_or(&[], |root| root.expose().as_bytes()),
        );
        let mut context = hmac::Context::with_key(&root_key);
        context.update(b"wxgate phantom 1");
        // Each part is preceded by its length, so that no two lists of parts collide.
        for part in [
            account.as_bytes(),
            client.as_bytes(),
            client_key.unwrap_or_default(),
        ] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mac = hmac::Key::new(HMAC_SHA256, context.sign().as_ref());
        Self {
            account: Tag::of(account),
            client: Tag::of(client),
            mac,
        }
    }

    /// Creates the phantom for the time `now` after 1970.
    pub fn mint(&self, now: Duration) -> String {
        let window = u32::try_from(now.as_secs() / WINDOW).unwrap_or(u32::MAX);
        let head = Phantom::head(self.account, self.client, window);
        Phantom {
            account: self.account,
            client: self.client,
            window,
            mac: self.sign(&head),
        }
        .text()
    }

    /// Returns true if the phantom was made with this key and is still valid: in its own window or
    /// the next one.
    pub fn accepts(&self, phantom: &Phantom, now: Duration) -> bool {
        let first = u64::from(phantom.window) * WINDOW;
        // Two windows, because callers may hold a phantom for `EXPIRES_IN` past its window's end.
        let timely = (first.saturating_sub(SKEW)..first + 2 * WINDOW).contains(&now.as_secs());
        let head = Phantom::head(phantom.account, phantom.client, phantom.window);
        // Compared in constant time, so that response times reveal no part of the MAC.
        timely && verify_slices_are_equal(&self.sign(&head), &phantom.mac).is_ok()
    }

    fn sign(&self, head: &[u8]) -> [u8; MAC_LEN] {
        let signature = hmac::sign(&self.mac, head);
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&signature.as_ref()[..MAC_LEN]);
        mac
    }
}

impl Phantom {
    /// Parses a text; `None` if the text does not have the form of a phantom.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let bytes: [u8; LEN] = bytes.try_into().ok()?;
        let (account, rest) = bytes.split_first_chunk()?;
        let (client, rest) = rest.split_first_chunk()?;
        let (window, mac) = rest.split_first_chunk()?;
        Some(Self {
            account: Tag(*account),
            client: Tag(*client),
            window: u32::from_be_bytes(*window),
            mac: mac.try_into().ok()?,
        })
    }

    /// Returns the tag of the account.
    pub fn account(&self) -> Tag {
        self.account
    }

    /// Returns the tag of the client.
    pub fn client(&self) -> Tag {
        self.client
    }

    fn head(account: Tag, client: Tag, window: u32) -> [u8; LEN - MAC_LEN] {
        let mut head = [0; LEN - MAC_LEN];
        head[..TAG_LEN].copy_from_slice(&account.0);
        head[TAG_LEN..2 * TAG_LEN].copy_from_slice(&client.0);
        head[2 * TAG_LEN..].copy_from_slice(&window.to_be_bytes());
        head
    }

    fn text(&self) -> String {
        let mut bytes = [0; LEN];
        bytes[..LEN - MAC_LEN].copy_from_slice(&Self::head(self.account, self.client, self.window));
        bytes[LEN - MAC_LEN..].copy_from_slice(&self.mac);
        let mut text = String::from(PREFIX);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = WINDOW;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn key(account: &str, secret: &str, client: &str, client_key: &str) -> PhantomKey {
        PhantomKey::new(
            account,
            Some(&Secret::new(secret)),
            client,
            Some(client_key.as_bytes()),
        )
    }

    #[test]
    fn a_phantom_has_the_form_that_every_sdk_takes() {
        let text = key("shop", "s", "crm", "k").mint(at(20_000 * DAY));
        assert!(
            text.starts_with("wxg1_") && (64..=128).contains(&text.len()),
            "{text}"
        );
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')),
            "{text}"
        );
        assert_eq!(text.len(), 69);
    }

    #[test]
    fn it_stays_the_same_through_a_window_and_is_good_through_the_next() {
        let key = key("shop", "s", "crm", "k");
        let first = key.mint(at(100 * DAY));
        assert_eq!(first, key.mint(at(101 * DAY - 1)));
        assert_ne!(first, key.mint(at(101 * DAY)));
        let phantom = Phantom::parse(&first).unwrap();
        for good in [100 * DAY, 101 * DAY - 1, 102 * DAY - 1, 100 * DAY - SKEW] {
            assert!(key.accepts(&phantom, at(good)), "{good}");
        }
        for bad in [102 * DAY, 100 * DAY - SKEW - 1, 0, u64::MAX] {
            assert!(!key.accepts(&phantom, at(bad)), "{bad}");
        }
        let late = Phantom::parse(&key.mint(at(101 * DAY - 1))).unwrap();
        assert!(
            key.accepts(&late, at(101 * DAY - 1 + EXPIRES_IN)),
            "good for as long as the answer said"
        );
    }

    #[test]
    fn another_secret_key_name_or_account_revokes_it() {
        let phantom = Phantom::parse(&key("shop", "s", "crm", "k").mint(at(DAY))).unwrap();
        for other in [
            key("shop", "t", "crm", "k"),
            key("shop", "s", "crm", "l"),
            key("mall", "s", "crm", "k"),
            key("shop", "s", "erp", "k"),
            key("shopc", "s", "rm", "k"),
            PhantomKey::new("shop", None, "crm", Some(b"k")),
            PhantomKey::new("shop", Some(&Secret::new("s")), "crm", None),
        ] {
            assert!(!other.accepts(&phantom, at(DAY)));
        }
        assert!(key("shop", "s", "crm", "k").accepts(&phantom, at(DAY)));
    }

    proptest! {
        #[test]
        fn whatever_is_changed_in_it_is_noticed(place in 0_usize..69, new in "[A-Za-z0-9_-]") {
            let key = key("shop", "s", "crm", "k");
            let text = key.mint(at(DAY));
            let mut forged = text.clone();
            forged.replace_range(place..=place, &new);
            let accepted = Phantom::parse(&forged).is_some_and(|phantom| key.accepts(&phantom, at(DAY)));
            prop_assert_eq!(accepted, forged == text);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,200}", tail in "[A-Za-z0-9_=+/-]{0,140}") {
            let _ = Phantom::parse(&text);
            let parsed = Phantom::parse(&format!("{PREFIX}{tail}"));
            prop_assert!(parsed.is_none_or(|_| tail.len() == 64));
        }
    }
}
