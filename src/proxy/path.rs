//! The grammar of paths, which is strict and repairs nothing.
//!
//! WeChat's paths are plain ASCII words, so a path that two parsers could read in two ways is
//! refused. Rights are checked on the very bytes that are sent: [`ApiPath`] can only be made here.

use std::{borrow::Cow, fmt};

use crate::base::byte_set::ByteSet;

/// Longest path, in bytes.
const MAX_LEN: usize = 512;
/// Bytes of a segment.
static SEGMENT: ByteSet = ByteSet::alphanumeric_and(b"_.~-");
/// Bytes of a path in which no rule about segments can be broken.
static WITHOUT_DOTS: ByteSet = ByteSet::alphanumeric_and(b"_~-/");

/// A path that fits the grammar: `/`-separated segments of `[A-Za-z0-9_.~-]+`, no `.` or `..`, no
/// trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPath<'r>(Cow<'r, str>);

/// Reasons why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Longer than 512 bytes.
    #[error("the path is longer than {MAX_LEN} bytes")]
    TooLong,
    /// `*`, or nothing.
    #[error("the path must begin with a slash")]
    NotRooted,
    /// `/`, or a slash at the end.
    #[error("the path must not end with a slash")]
    TrailingSlash,
    /// `.` or `..`.
    #[error("the path must not hold . or .. segments")]
    DotSegment,
    /// Percent signs, semicolons and other bytes that WeChat's paths do not hold.
    #[error("the path may hold letters, digits and _ . ~ - between single slashes only")]
    OddByte,
}

/// A path, split into the account prefix `/@NAME` and the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct SplitPath<'r> {
    /// Name behind `/@`.
    pub prefix: Option<Cow<'r, str>>,
    /// The rest, folded but not yet checked.
    rest: Cow<'r, str>,
}

impl<'r> SplitPath<'r> {
    /// Folds repeated slashes and takes the account prefix off.
    pub fn new(raw: &'r str) -> Self {
        let folded = fold(raw);
        let Some(behind) = folded.strip_prefix("/@") else {
            return Self {
                prefix: None,
                rest: folded,
            };
        };
        let end = behind.find('/').unwrap_or(behind.len());
        let cut = |range: std::ops::Range<usize>| match &folded {
            Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
            Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
        };
        Self {
            prefix: Some(cut(2..2 + end)),
            rest: cut(2 + end..folded.len()),
        }
    }

    /// Returns the path behind the prefix, folded and unchecked.
    pub fn unchecked(&self) -> &str {
        &self.rest
    }

    /// Returns true if the call is for wxgate's own service API.
    pub fn is_service(&self) -> bool {
        let path = &*self.rest;
        path == "/-" || path.starts_with("/-/")
    }

    /// Returns the path behind the prefix if it fits the grammar.
    pub fn if_valid(&self) -> Option<&str> {
        self.check().is_ok().then_some(&*self.rest)
    }

    /// Checks the path behind the prefix against the grammar.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<ApiPath<'r>, PathError> {
        let bytes = self.rest.as_bytes();
        if bytes.len() > MAX_LEN {
            return Err(PathError::TooLong);
        }
        let Some((b'/', segments)) = bytes.split_first() else {
            return Err(PathError::NotRooted);
        };
        if segments.is_empty() || segments.ends_with(b"/") {
            return Err(PathError::TrailingSlash);
        }
        // Nearly all paths have no dot. Folding left no empty segment behind.
        if !WITHOUT_DOTS.contains_all(segments) {
            segments
                .split(|byte| *byte == b'/')
                .try_for_each(check_segment)?;
        }
        Ok(ApiPath(self.rest.clone()))
    }
}

impl ApiPath<'_> {
    /// Returns the bytes that were checked and will be sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApiPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_segment(segment: &[u8]) -> Result<(), PathError> {
    if matches!(segment, b"." | b"..") {
        return Err(PathError::DotSegment);
    }
    if !SEGMENT.contains_all(segment) {
        return Err(PathError::OddByte);
    }
    Ok(())
}

/// `//` becomes `/`; some SDKs join a base URL that ends in a slash with a path that begins with
/// one.
fn fold(raw: &str) -> Cow<'_, str> {
    if !raw.as_bytes().windows(2).any(|pair| pair == b"//") {
        return Cow::Borrowed(raw);
    }
    let mut folded = String::with_capacity(raw.len());
    for c in raw.chars() {
        if c != '/' || !folded.ends_with('/') {
            folded.push(c);
        }
    }
    Cow::Owned(folded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(raw: &str) -> Result<String, PathError> {
        SplitPath::new(raw).check().map(|path| path.to_string())
    }

    #[test]
    fn plain_paths_pass_and_slashes_fold() {
        for (raw, path) in [
            ("/cgi-bin/user/info", "/cgi-bin/user/info"),
            ("//cgi-bin//user///info", "/cgi-bin/user/info"),
            ("/wxa/a_b.c~d", "/wxa/a_b.c~d"),
            ("/...", "/..."),
        ] {
            assert_eq!(check(raw).as_deref(), Ok(path));
        }
    }

    #[test]
    fn whatever_two_parsers_could_read_differently_is_refused() {
        for raw in [
            "",
            "*",
            "/",
            "//",
            "cgi-bin/token",
            "/cgi-bin/",
            "/a/./b",
            "/a/../b",
            "/..",
            "/.",
            "/a/..;x=1/b",
            "/a;b",
            "/a%2fb",
            "/%2e%2e/a",
            "/cgi-bin%2Ftoken",
            "/a\\b",
            "/a b",
            "/a%00",
            "/a%",
            "/ａ",
            "/a@b",
            "/a:b",
            "/a+b",
            "/a,b",
            "/a'b",
        ] {
            assert!(check(raw).is_err(), "{raw:?} passed");
        }
        assert_eq!(
            check(&format!("/{}", "a".repeat(511))).map(|p| p.len()),
            Ok(512)
        );
        assert_eq!(
            check(&format!("/{}", "a".repeat(512))),
            Err(PathError::TooLong)
        );
    }

    #[test]
    fn the_prefix_names_an_account_and_is_removed() {
        let split = SplitPath::new("//@shop//cgi-bin/user/info");
        assert_eq!(split.prefix.as_deref(), Some("shop"));
        assert_eq!(split.check().unwrap().as_str(), "/cgi-bin/user/info");
        assert_eq!(SplitPath::new("/@shop").check(), Err(PathError::NotRooted));
        assert_eq!(SplitPath::new("/@/cgi-bin").prefix.as_deref(), Some(""));
        assert!(SplitPath::new("/@shop/@other/a").check().is_err());
        for raw in ["//-//accounts", "/@shop/-/accounts"] {
            let split = SplitPath::new(raw);
            assert!(split.is_service());
            assert_eq!(split.unchecked(), "/-/accounts");
        }
        assert!(SplitPath::new("/-").is_service() && !SplitPath::new("/-x").is_service());
    }

    proptest! {
        #[test]
        fn what_passes_is_made_of_the_allowed_bytes_only(raw in "[/a.%;~@\\\\-]{0,40}|\\PC{0,40}") {
            if let Ok(path) = check(&raw) {
                prop_assert!(path.starts_with('/') && !path.ends_with('/') && !path.contains("//"));
                prop_assert!(path.split('/').skip(1).all(|s| !s.is_empty() && s != "." && s != ".."));
                prop_assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.~-".contains(&b)));
                // Checking again changes nothing: the bytes on the wire are the bytes that were
                // checked.
                prop_assert_eq!(check(&path).unwrap(), path);
            }
        }
    }
}
