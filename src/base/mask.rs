//! What may be shown of a query string: its names, never its values.
//!
//! Tokens, secrets and login codes travel in the query of WeChat's API, so masking is not an option that can be off.

use std::fmt::{self, Write as _};

/// Formats a raw query with every value replaced: `openid=…&access_token=…`. Bytes outside printable ASCII, quotes and
/// backslashes in a name are shown as `?`, so that the result can stand in one line of text or in a JSON string as it is.
/// What looks like a value in the place of a name is hidden too: it is long, or goes on behind an encoded character.
#[derive(Debug, Clone, Copy)]
pub struct MaskedQuery<'q>(pub &'q str);

/// WeChat's own names have at most 22 characters.
const LONGEST_NAME: usize = 32;
/// A name that stands alone.
const LONGEST_FLAG: usize = 16;

impl fmt::Display for MaskedQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pair) in self.0.split('&').enumerate() {
            if index > 0 {
                f.write_char('&')?;
            }
            let (name, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
            // Without `=` the whole pair could be a value that somebody forgot to name; an AppSecret has 32 characters.
            let longest = if value.is_some() { LONGEST_NAME } else { LONGEST_FLAG };
            let shown = if name.len() > longest { "" } else { name.split('%').next().unwrap_or_default() };
            for c in shown.chars() {
                f.write_char(if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' })?;
            }
            if shown.len() < name.len() {
                f.write_char('…')?;
            }
            if value.is_some() {
                f.write_str("=…")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_and_values_go() {
        assert_eq!(MaskedQuery("openid=o6_b&access_token=SECRET&flag").to_string(), "openid=…&access_token=…&flag");
        assert_eq!(MaskedQuery("").to_string(), "");
        assert_eq!(MaskedQuery("a\"b\u{1b}=1").to_string(), "a?b?=…");
    }

    #[test]
    fn a_value_in_the_place_of_a_name_goes_too() {
        assert_eq!(MaskedQuery("0123456789abcdef0123456789abcdef").to_string(), "…");
        assert_eq!(MaskedQuery("flag%3DSECRET&secret%3dSECRET=1").to_string(), "flag…&secret…=…");
        assert_eq!(MaskedQuery(&format!("{}=1&debug", "S".repeat(136))).to_string(), "…=…&debug");
    }

    proptest! {
        #[test]
        fn a_value_is_never_shown(name in "[a-z]{1,8}", value in "[A-Z0-9]{4,40}") {
            let shown = MaskedQuery(&format!("{name}={value}")).to_string();
            prop_assert!(!shown.contains(&value));
        }
    }
}
