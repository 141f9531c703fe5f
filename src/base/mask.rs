//! Masking of query strings: names are shown, values never.
//!
//! Tokens, secrets and login codes travel in the query of WeChat's API, so masking cannot be
//! switched off.

use std::fmt;

use memchr::memchr;

use super::byte_set::ByteSet;

/// Raw query, formatted with every value replaced: `openid=…&access_token=…`. Bytes outside
/// printable ASCII, quotes and backslashes in a name are shown as `?`, so that the result can stand
/// in one line of text or in a JSON string as it is. A name that may be a value is hidden too: a
/// long name, and the part of a name behind an encoded character.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskedQuery<'q>(pub &'q str);

/// Longest name that is shown. WeChat's own names have at most 22 characters.
const MAX_NAME: usize = 32;
/// Longest name that is shown without a value beside it.
const MAX_FLAG: usize = 16;
/// Bytes that can stand in a line of text and in a JSON string as they are.
pub(crate) static PLAIN: ByteSet = ByteSet::graphic_without(b"\"\\");
/// Bytes of a name that is shown as it is.
static PLAIN_NAME: ByteSet = ByteSet::graphic_without(b"\"\\%");

impl MaskedQuery<'_> {
    /// Appends the text, as UTF-8.
    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        // Every request that is logged pays for this, hence bytes instead of `fmt`.
        let mut rest = self.0.as_bytes();
        while let Some(end) = memchr(b'&', rest) {
            append_pair(out, &rest[..end]);
            out.push(b'&');
            rest = &rest[end + 1..];
        }
        append_pair(out, rest);
    }
}

fn append_pair(out: &mut Vec<u8>, pair: &[u8]) {
    // Names are short, so plain loops are over before a vectorized search has begun.
    let end = pair.iter().position(|byte| *byte == b'=');
    let name = &pair[..end.unwrap_or(pair.len())];
    // Without `=` the whole pair could be a value without its name; an AppSecret has 32 characters.
    let longest = if end.is_some() { MAX_NAME } else { MAX_FLAG };
    let shown = if name.len() > longest { &[] } else { name };
    let before = out.len();
    if PLAIN_NAME.contains_all(shown) {
        out.extend_from_slice(shown);
    } else {
        let until = shown.iter().take_while(|byte| **byte != b'%');
        out.extend(until.map(|byte| if PLAIN.contains(*byte) { *byte } else { b'?' }));
    }
    if out.len() - before < name.len() {
        out.extend_from_slice("…".as_bytes());
    }
    if end.is_some() {
        out.extend_from_slice("=…".as_bytes());
    }
}

impl fmt::Display for MaskedQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(self.0.len());
        self.append_to(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_and_values_go() {
        assert_eq!(
            MaskedQuery("openid=o6_b&access_token=SECRET&flag").to_string(),
            "openid=…&access_token=…&flag"
        );
        assert_eq!(MaskedQuery("").to_string(), "");
        assert_eq!(MaskedQuery("a\"b\u{1b}=1").to_string(), "a?b?=…");
    }

    #[test]
    fn a_value_in_the_place_of_a_name_goes_too() {
        assert_eq!(
            MaskedQuery("0123456789abcdef0123456789abcdef").to_string(),
            "…"
        );
        assert_eq!(
            MaskedQuery("flag%3DSECRET&secret%3dSECRET=1").to_string(),
            "flag…&secret…=…"
        );
        assert_eq!(
            MaskedQuery(&format!("{}=1&debug", "S".repeat(136))).to_string(),
            "…=…&debug"
        );
    }

    proptest! {
        #[test]
        fn a_value_is_never_shown(name in "[a-z]{1,8}", value in "[A-Z0-9]{4,40}") {
            let shown = MaskedQuery(&format!("{name}={value}")).to_string();
            prop_assert!(!shown.contains(&value));
        }
    }
}
