//! Spellings of a query parameter's name that some parser takes for the token's.
//!
//! Nobody knows how WeChat's end reads odd queries, and PHP, for one, reads many names as one. This
//! is the whole rule; it only tells, the proxy refuses.

/// The parameter that carries the account's token.
pub const TOKEN_PARAMETER: &str = "access_token";

/// Whether some parser could read this (percent-decoded) name as the token's, of which the name
/// itself is one.
///
/// The rule is PHP's: leading blanks dropped; blank, `.` and `[` read as `_`; what follows a `[`
/// behind the name dropped. Besides that letters are lowered, full-width letters count as theirs,
/// blanks, control characters and a NUL behind the name are dropped, `+` is a blank, and `;`
/// separates parameters.
pub fn reads_as_token(name: &str) -> bool {
    // Every spelling has at least the letters, so most names are out at once.
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
    // What stands behind the name must be nothing to the parser.
    let mut behind = letters.skip_while(|c| *c != '\0' && is_blank(*c));
    spelt && matches!(behind.next(), None | Some('[' | '\0'))
}

fn is_blank(c: char) -> bool {
    c == '+' || c.is_whitespace() || c.is_control()
}

/// The letter of a full-width form.
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
                // With its bracket closed it is an array, whose key ends here.
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
