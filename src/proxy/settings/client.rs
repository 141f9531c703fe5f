//! Settings of a `[[client]]`: identity, rights and rate limit.
//!
//! Values only, and the matching of paths; `access` decides about calls.

use std::num::NonZeroU32;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
};

use crate::{base::AccountName, net::address::NetworkSet, service::Scope};

/// Settings of a `[[client]]`, validated. All that is set of `keys`, `from` and `cert` must fit the
/// caller; at least one is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// Unique name, also a label of metrics.
    pub name: AccountName,
    /// Keys of which the caller shows one; no two clients have the same.
    pub keys: Vec<ClientKey>,
    /// Networks of the caller.
    pub from: Option<NetworkSet>,
    /// DNS or URI name in the caller's certificate, in lower case.
    pub cert: Option<String>,
    /// Accounts that the client may use; `None` for all. All of them exist.
    pub accounts: Option<Vec<AccountName>>,
    /// Paths that the client may call; `None` for all.
    pub allow: Option<Vec<PathPattern>>,
    /// Paths that the client may not call, even if `allow` has them.
    pub deny: Vec<PathPattern>,
    /// Permissions beyond proxying.
    pub may: Scopes,
    /// Treatment of calls without a right.
    pub mode: Mode,
    /// Rate limit.
    pub rate: Option<Rate>,
}

/// One key of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// Digest of the key.
    pub digest: KeyDigest,
    /// Length of the key; `None` where the configuration has only its digest.
    pub length: Option<usize>,
}

/// SHA-256 of a client's key. The key itself is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; SHA256_OUTPUT_LEN]);

/// Set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

/// Treatment of calls without a right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Deny the call.
    #[default]
    Enforce,
    /// Log and count the call, and let it pass.
    Report,
}

/// Rate limit by a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls per second in the long run.
    pub per_second: NonZeroU32,
    /// Calls at once.
    pub burst: NonZeroU32,
}

/// Pattern of paths: `/cgi-bin/menu/get` is one path, `/cgi-bin/*/get` any with one segment at the
/// asterisk, `/cgi-bin/message/**` all paths below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    shape: Shape,
}

/// Ways to compare a pattern with a path; the common ones without looking at segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The path is the pattern.
    Exact,
    /// The path begins with so many bytes of the pattern, and goes on.
    Below(usize),
    /// The path fits segment by segment.
    Segments,
}

impl ClientSettings {
    /// Makes a client of this name that nothing identifies yet. It may call every path of every
    /// account, without further scopes.
    pub fn named(name: AccountName) -> Self {
        Self {
            name,
            keys: Vec::new(),
            from: None,
            cert: None,
            accounts: None,
            allow: None,
            deny: Vec::new(),
            may: Scopes::default(),
            mode: Mode::Enforce,
            rate: None,
        }
    }
}

impl ClientKey {
    /// Makes a key whose length is known.
    pub fn of(key: &str) -> Self {
        Self {
            digest: KeyDigest::of(key),
            length: Some(key.len()),
        }
    }
}

impl KeyDigest {
    /// Takes the digest of a key.
    pub fn of(key: &str) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
        Self(bytes)
    }

    /// Reads a digest of 64 hex digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        let digits: Vec<u8> = hex
            .chars()
            .map(|c| c.to_digit(16)?.try_into().ok())
            .collect::<Option<_>>()?;
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Self(bytes))
    }

    /// Compares two digests in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// Returns the bytes, from which other keys are derived.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

impl Scopes {
    /// Returns true if the scope is in the set.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & Self::bit(scope) != 0
    }

    /// Adds a scope.
    #[must_use]
    pub fn with(self, scope: Scope) -> Self {
        Self(self.0 | Self::bit(scope))
    }

    fn bit(scope: Scope) -> u8 {
        match scope {
            Scope::Token => 1,
            Scope::Refresh => 2,
            Scope::Ticket => 4,
        }
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        scopes.into_iter().fold(Self::default(), Self::with)
    }
}

impl PathPattern {
    /// Reads a pattern: `/`, then segments of `[A-Za-z0-9_.~-]` or `*`, at the end possibly `**`.
    ///
    /// # Errors
    /// A sentence that tells the operator the right form.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("a path begins with a slash: write \"/cgi-bin/message/**\"");
        };
        let mut segments = rest.split('/').peekable();
        let mut shape = Shape::Exact;
        while let Some(segment) = segments.next() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'~' | b'-');
            match segment {
                "**" if segments.peek().is_none() => {
                    shape = if shape == Shape::Exact {
                        Shape::Below(text.len() - 2)
                    } else {
                        shape
                    };
                }
                "**" => {
                    return Err(
                        "** stands for everything below, so it can only be the last segment",
                    );
                }
                "*" => shape = Shape::Segments,
                "" | "." | ".." => {
                    return Err(
                        "no path that wxgate forwards has an empty, . or .. segment, or ends in a slash",
                    );
                }
                _ if segment.bytes().all(plain) => {}
                _ if segment.contains('*') => {
                    return Err(
                        "* stands for a whole segment: write \"/cgi-bin/*/get\" or \"/cgi-bin/message/**\"",
                    );
                }
                _ => return Err("paths are made of A-Z, a-z, 0-9, _ . ~ - and slashes"),
            }
        }
        Ok(Self {
            text: text.to_owned(),
            shape,
        })
    }

    /// Returns the pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns true if the pattern, as one of `allow`, covers the path. Compares with case.
    pub fn allows(&self, path: &str) -> bool {
        self.covers(path, |a, b| a == b)
    }

    /// Returns true if the pattern, as one of `deny`, covers the path. Compares without case, since
    /// WeChat may ignore case.
    pub fn denies(&self, path: &str) -> bool {
        self.covers(path, str::eq_ignore_ascii_case)
    }

    /// Returns true if the pattern is exactly this path, without wildcards.
    pub fn names(&self, path: &str) -> bool {
        self.shape == Shape::Exact && self.text == path
    }

    /// Returns true if this pattern, as one of `deny`, covers all paths of `other`.
    pub fn denies_all_of(&self, other: &Self) -> bool {
        // Read as a path, a `*` in `other` is covered by wildcards only, its `**` only by a `**`.
        let endless = |pattern: &Self| pattern.text.ends_with("/**");
        self.denies(&other.text) && (endless(self) || !endless(other))
    }

    fn covers(&self, path: &str, same: impl Fn(&str, &str) -> bool) -> bool {
        match self.shape {
            Shape::Exact => return same(&self.text, path),
            Shape::Below(len) => {
                return path.len() > len
                    && path
                        .get(..len)
                        .is_some_and(|head| same(&self.text[..len], head));
            }
            Shape::Segments => {}
        }
        let (mut pattern, mut path) = (self.text.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (None, None) | (Some("**"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(segment)) if same(wanted, segment) => {}
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_one_path_one_segment_or_everything_below() {
        let covers = |pattern: &str, path: &str| PathPattern::parse(pattern).unwrap().allows(path);
        for (pattern, path, expected) in [
            ("/cgi-bin/menu/get", "/cgi-bin/menu/get", true),
            ("/cgi-bin/menu/get", "/cgi-bin/menu/Get", false),
            ("/cgi-bin/menu/get", "/cgi-bin/menu/get/x", false),
            ("/cgi-bin/message/**", "/cgi-bin/message/custom/send", true),
            ("/cgi-bin/message/**", "/cgi-bin/message", false),
            ("/cgi-bin/message/**", "/cgi-bin/messages/send", false),
            ("/cgi-bin/*/get", "/cgi-bin/menu/get", true),
            ("/cgi-bin/*/get", "/cgi-bin/menu/x/get", false),
            ("/**", "/cgi-bin/menu/get", true),
        ] {
            assert_eq!(covers(pattern, path), expected, "{pattern} {path}");
        }
        assert!(
            PathPattern::parse("/cgi-bin/menu/**")
                .unwrap()
                .denies("/CGI-bin/Menu/delete")
        );
        assert!(
            PathPattern::parse("/a/b").unwrap().names("/a/b")
                && !PathPattern::parse("/a/*").unwrap().names("/a/b")
        );
    }

    #[test]
    fn a_pattern_can_take_away_another_as_a_whole() {
        for (deny, allow, expected) in [
            ("/cgi-bin/menu/get", "/cgi-bin/menu/get", true),
            ("/cgi-bin/MENU/**", "/cgi-bin/menu/get", true),
            ("/cgi-bin/menu/*", "/cgi-bin/menu/get", true),
            ("/cgi-bin/menu/get", "/cgi-bin/menu/*", false),
            ("/cgi-bin/*/get", "/cgi-bin/*/get", true),
            ("/cgi-bin/**", "/cgi-bin/*/get", true),
            ("/cgi-bin/*", "/cgi-bin/**", false),
            ("/cgi-bin/*/**", "/cgi-bin/**", false),
            ("/*/**", "/cgi-bin/**", true),
            ("/cgi-bin/message/**", "/cgi-bin/**", false),
        ] {
            let pattern = |text| PathPattern::parse(text).unwrap();
            assert_eq!(
                pattern(deny).denies_all_of(&pattern(allow)),
                expected,
                "{deny} {allow}"
            );
        }
    }

    #[test]
    fn what_no_path_can_be_is_no_pattern() {
        for bad in [
            "", "cgi-bin", "/", "/a/", "/a//b", "/a/../b", "/**/b", "/a*/b", "/a%2fb", "/a b",
            "/a;b", "***",
        ] {
            assert!(PathPattern::parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn digests_are_read_from_hex() {
        let hex = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        assert_eq!(KeyDigest::from_hex(hex), Some(KeyDigest::of("foo")));
        assert!(
            KeyDigest::from_hex(hex)
                .unwrap()
                .matches(&KeyDigest::of("foo"))
        );
        assert!(!KeyDigest::of("fop").matches(&KeyDigest::of("foo")));
        for bad in ["", "2c26", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(KeyDigest::from_hex(bad), None);
        }
    }
}
