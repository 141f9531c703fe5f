//! Look-alike spellings of the token's query parameter.
//!
//! The parsers behind WeChat's API are unknown, and some parsers map many names to one; PHP does.
//! This module holds the whole rule and only recognises names; `proxy` refuses the requests.

/// Query parameter that carries the account's token.
pub(crate) const TOKEN_PARAMETER: &str = "access_token";

/// Returns true if some parser could read this percent-decoded name as the token's. The exact name
/// counts too.
///
/// The rule is PHP's: leading blanks dropped; blank, `.` and `[` read as `_`; text behind a `[`
/// after the name dropped. In addition letters are lower-cased, full-width letters count as their
/// ASCII forms, blanks, control characters and a NUL behind the name are dropped, `+` is a blank,
/// and `;` separates parameters.
pub(crate) fn reads_as_token(name: &str) -> bool {
    // Every spelling has at least as many bytes, so the length rejects most names at once.
    name.len() >= TOKEN_PARAMETER.len() && name.split(';').any(is_spelling)
}

fn is_spelling(name: &str) -> bool {
    let mut letters = name.chars().map(narrow).skip_while(|c| is_blank(*c));
    let spelt = TOKEN_PARAMETER.chars().all(|expected| {
        letters.next().is_some_and(|letter| {
            letter.to_ascii_lowercase() == expected
                || expected == '_' && matches!(letter, ' ' | '+' | '.' | '[')
        })
    });
    // Only text that a parser drops may follow the name.
    let mut behind = letters.skip_while(|c| *c != '\0' && is_blank(*c));
    spelt && matches!(behind.next(), None | Some('[' | '\0'))
}

fn is_blank(c: char) -> bool {
    c == '+' || c.is_whitespace() || c.is_control()
}

/// Maps a full-width form to its ASCII letter.
fn narrow(c: char) -> char {
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_is_told_and_nothing_else() {
        for name in [
            "access_token",
            "ACCESS_TOKEN",
            "Access_Token",
            "access[token",
            "ACCESS[TOKEN",
            "access[token[0]",
            "access_token[",
            "access_token[]",
            "access_token[a][b]",
            "access_token[0",
            "access.token",
            "access token",
            "access+token",
            "access.token[]",
            " access_token",
            "  +access.token",
            "\taccess_token",
            "access_token ",
            "access_token+",
            "access_token []",
            "access_token\0",
            "access_token\0y",
            "access_token \0y",
            "\u{ff41}ccess_token",
            "\u{ff21}CCESS\u{ff3f}TOKEN",
            "\u{3000}access_token",
            "x;access_token",
            "access_token;x",
            ";ACCESS[TOKEN",
        ] {
            assert!(reads_as_token(name), "{name:?}");
        }
        for name in [
            "",
            "access",
            "access_toke",
            "accesstoken",
            "access-token",
            "access__token",
            "access_[token",
            "access_tokens",
            "my_access_token",
            "access_token_",
            "access_token.",
            "access_token]",
            "access[token]",
            "[access_token",
            "component_access_token",
            "a[access_token]",
            "a;b;access_tokens",
        ] {
            assert!(!reads_as_token(name), "{name:?}");
        }
    }

    /// PHP's reading of a name (`php_register_variable_ex`), written down independently: the key
    /// under which a script finds the value.
    fn php(name: &str) -> String {
        let name: Vec<u8> = name
            .bytes()
            .map(|b| if b == b'+' { b' ' } else { b })
            .collect();
        let name: &[u8] = name.split(|b| *b == 0).next().unwrap_or_default();
        let name = &name[name.iter().take_while(|b| **b == b' ').count()..];
        let mut key = Vec::new();
        for (at, byte) in name.iter().enumerate() {
            match byte {
                // A closed bracket makes an array, whose key ends here.
                b'[' if at > 0 && name[at..].contains(&b']') => break,
                b' ' | b'.' | b'[' => key.push(b'_'),
                other => key.push(other.to_ascii_lowercase()),
            }
        }
        String::from_utf8_lossy(&key).into_owned()
    }

    proptest! {
        #[test]
        fn what_php_reads_as_the_token_is_told(
            name in prop::collection::vec(
                prop_oneof![
                    4 => Just("access"), 4 => Just("token"), 2 => Just("_"), 1 => Just("["), 1 => Just("]"),
                    1 => Just("."), 1 => Just(" "), 1 => Just("+"), 1 => Just("ACCESS"), 1 => Just("ToKeN"),
                    1 => Just("\0"), 1 => Just("0"), 1 => Just(";"),
                ],
                0..7,
            ).prop_map(|parts| parts.concat())
        ) {
            if php(&name) == TOKEN_PARAMETER {
                prop_assert!(reads_as_token(&name), "{:?}", name);
            }
        }

        #[test]
        fn what_is_told_has_the_letters_of_the_name(name in "\\PC{0,30}") {
            if reads_as_token(&name) {
                let letters: String = name.chars().map(narrow).filter(char::is_ascii_alphabetic).collect();
                prop_assert!(letters.to_ascii_lowercase().contains("accesstoken"), "{:?}", name);
            }
        }

        #[test]
        fn every_variation_of_the_rule_is_told(
            upper in prop::collection::vec(any::<bool>(), 12),
            before in "[ +]{0,3}",
            joint in prop_oneof![Just("_"), Just(" "), Just("."), Just("["), Just("+")],
            behind in prop_oneof![Just(String::new()), "\\[[a-z\\]\\[]{0,4}"],
        ) {
            let cased: String = TOKEN_PARAMETER
                .chars()
                .zip(upper)
                .map(|(c, up)| if up { c.to_ascii_uppercase() } else { c })
                .collect();
            let name = format!("{before}{}{behind}", cased.replace('_', joint));
            prop_assert!(reads_as_token(&name), "{:?}", name);
        }
    }
}
