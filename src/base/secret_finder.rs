//! Search for secrets in texts of others, and their masking by as many `*`.
//!
//! Servers echo what they were asked, in the encoding of the place: percent-encoded in a URL,
//! escaped in JSON, and both on top of each other. A secret is found in all of them.

use std::ops::Range;

use aws_lc_rs::constant_time;
use memchr::{memchr2_iter, memmem};

use super::{Secret, byte_set::ByteSet};

/// Prepared search for one secret. Holds a copy of the secret, which is not wiped when dropped.
#[derive(Clone)]
pub(crate) struct SecretFinder {
    plain: memmem::Finder<'static>,
    bytes: ByteSet,
}

/// Text with one layer of encoding after another taken off.
struct Decoded {
    text: Vec<u8>,
    /// `places[i]` is the offset in the original at which the encoded form of `text[i]` begins; the
    /// last one is the length of the original.
    places: Vec<usize>,
}

/// Escape sequence of a text, and the bytes that it stands for.
struct Escape {
    length: usize,
    meaning: [u8; 4],
    meaning_length: usize,
}

/// Shortest secret that is looked for, in bytes: a shorter one is found in texts that do not repeat
/// it. WeChat's own have 32 and more.
const MIN_LENGTH: usize = 6;
/// Layers of encoding that are taken off: an echo may have been encoded up to twice more than the
/// secret was when sent, and stand in JSON.
const MAX_LAYERS: usize = 4;

impl SecretFinder {
    /// Prepares the search; `None` for a secret that is too short to be told from other text.
    pub(crate) fn new(secret: &Secret) -> Option<Self> {
        let secret = secret.expose().as_bytes();
        (secret.len() >= MIN_LENGTH).then(|| Self {
            plain: memmem::Finder::new(secret).into_owned(),
            bytes: ByteSet::of(secret),
        })
    }

    /// Returns true if a text is the secret, in time that does not depend on the first difference.
    pub(crate) fn is(&self, text: &str) -> bool {
        // The length of tokens is no secret.
        text.len() == self.length()
            && constant_time::verify_slices_are_equal(self.plain.needle(), text.as_bytes()).is_ok()
    }

    /// Length of the secret; no shorter text holds it.
    pub(crate) fn length(&self) -> usize {
        self.plain.needle().len()
    }
}

/// Replaces each byte of each occurrence of a secret by `*`, however it is encoded; `None` if there
/// is none. Costs one search per secret, and one for escapes, in nearly every text.
pub(crate) fn masked<'f>(
    text: &[u8],
    secrets: &(impl Iterator<Item = &'f SecretFinder> + Clone),
) -> Option<Vec<u8>> {
    let mut result = None;
    for secret in secrets.clone() {
        mask_all(text, secret, &mut result, text, |found| found);
    }
    if !may_encode(text, secrets) {
        return result;
    }
    let mut decoded = Decoded::of(text);
    for _ in 0..MAX_LAYERS {
        let before = decoded.text.len();
        decoded = decoded.once_more();
        // Every escape is longer than the character that it stands for.
        if decoded.text.len() == before {
            break;
        }
        for secret in secrets.clone() {
            mask_all(&decoded.text, secret, &mut result, text, |found| {
                decoded.places[found.start]..decoded.places[found.end]
            });
        }
    }
    result
}

/// Masks each occurrence in `searched` at its place in `text`, of which `result` is the masked copy.
fn mask_all(
    searched: &[u8],
    secret: &SecretFinder,
    result: &mut Option<Vec<u8>>,
    text: &[u8],
    place: impl Fn(Range<usize>) -> Range<usize>,
) {
    let mut from = 0;
    while let Some(found) = secret.plain.find(&searched[from..]) {
        let start = from + found;
        let at = place(start..start + secret.length());
        result.get_or_insert_with(|| text.to_vec())[at].fill(b'*');
        // Two occurrences may overlap.
        from = start + 1;
    }
}

/// Returns true if an escape in the text stands for a byte of a secret, or for the begin of another
/// escape. Most escapes do not: URLs keep letters, digits, `-` and `_` as they are, and so does JSON.
fn may_encode<'f>(text: &[u8], secrets: &(impl Iterator<Item = &'f SecretFinder> + Clone)) -> bool {
    let shortest = secrets.clone().map(SecretFinder::length).min();
    if shortest.is_none_or(|shortest| text.len() < shortest) {
        return false;
    }
    memchr2_iter(b'%', b'\\', text).any(|at| {
        Escape::at(text, at).is_some_and(|escape| {
            let byte = escape.meaning[0];
            matches!(byte, b'%' | b'\\')
                || secrets.clone().any(|secret| secret.bytes.contains(byte))
        })
    })
}

impl Decoded {
    fn of(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            places: (0..=text.len()).collect(),
        }
    }

    /// Takes off one layer, of whichever encoding.
    fn once_more(&self) -> Self {
        let mut next = Self {
            text: Vec::with_capacity(self.text.len()),
            places: Vec::with_capacity(self.places.len()),
        };
        let mut at = 0;
        while let Some(byte) = self.text.get(at) {
            if let Some(escape) = Escape::at(&self.text, at) {
                for byte in escape.meaning() {
                    next.push(*byte, self.places[at]);
                }
                at += escape.length;
            } else {
                next.push(*byte, self.places[at]);
                at += 1;
            }
        }
        next.places.push(self.places[self.text.len()]);
        next
    }

    fn push(&mut self, byte: u8, place: usize) {
        self.text.push(byte);
        self.places.push(place);
    }
}

impl Escape {
    /// Reads the escape that begins at this offset: `%41`, `\u0041`, `\/`.
    fn at(text: &[u8], at: usize) -> Option<Self> {
        let hex = |from: usize, digits: usize| {
            text.get(from..from + digits)?
                .iter()
                .try_fold(0, |value, digit| {
                    Some(value * 16 + char::from(*digit).to_digit(16)?)
                })
        };
        match text.get(at)? {
            b'%' => Some(Self::of_byte(3, u8::try_from(hex(at + 1, 2)?).ok()?)),
            b'\\' if text.get(at + 1) == Some(&b'u') => {
                let code = char::from_u32(hex(at + 2, 4)?);
                let mut meaning = [0; 4];
                // Half of a pair is no character, and in no secret.
                let text = code
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
                    .encode_utf8(&mut meaning);
                let meaning_length = text.len();
                Some(Self {
                    length: 6,
                    meaning,
                    meaning_length,
                })
            }
            b'\\' => {
                let byte = match *text.get(at + 1)? {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    byte => byte,
                };
                Some(Self::of_byte(2, byte))
            }
            _ => None,
        }
    }

    fn of_byte(length: usize, byte: u8) -> Self {
        Self {
            length,
            meaning: [byte, 0, 0, 0],
            meaning_length: 1,
        }
    }

    fn meaning(&self) -> &[u8] {
        &self.meaning[..self.meaning_length]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finder(secret: &str) -> SecretFinder {
        SecretFinder {
            plain: memmem::Finder::new(secret.as_bytes()).into_owned(),
            bytes: ByteSet::of(secret.as_bytes()),
        }
    }

    fn shown(text: &str, secrets: &[&str]) -> String {
        let finders: Vec<SecretFinder> = secrets.iter().map(|secret| finder(secret)).collect();
        let masked = masked(text.as_bytes(), &finders.iter());
        masked.map_or_else(
            || text.to_owned(),
            |masked| String::from_utf8(masked).unwrap(),
        )
    }

    #[test]
    fn a_secret_is_masked_however_it_is_encoded() {
        for (text, expected) in [
            ("8_a/b-c", "*******"),
            ("x8_a/b-cy 8_a/b-c", "x*******y *******"),
            (
                "?ACCESS%5FTOKEN=8_a%2Fb-c&a=%31",
                "?ACCESS%5FTOKEN=*********&a=%31",
            ),
            (
                "to=%3Faccess_token%3D8_a%252Fb-c%26",
                "to=%3Faccess_token%3D***********%26",
            ),
            ("/%38_a%2fb%2Dc", "/*************"),
            ("%2525388_a/b-c%", "%252538*******%"),
            (r#"{"u":"?a=8_a\/b-c"}"#, r#"{"u":"?a=********"}"#),
            (
                r#"{"u":"\u0038_a\u002Fb\u002dc"}"#,
                r#"{"u":"**********************"}"#,
            ),
            (
                r#"{"u":"{\"v\":\"8_a\\/b-c\"}"}"#,
                r#"{"u":"{\"v\":\"*********\"}"}"#,
            ),
            (r"\\u0038_a\/b-c", "**************"),
            (
                r"\u00258_a%2Fb-c \u002538_a/b-c",
                r"\u0025********* **************",
            ),
            ("8_a%2Fb-d", "8_a%2Fb-d"),
            (r"8_a/b-\", r"8_a/b-\"),
            (r"\u00", r"\u00"),
            ("%", "%"),
            ("", ""),
        ] {
            assert_eq!(shown(text, &["8_a/b-c"]), expected, "{text}");
        }
        assert_eq!(shown("%C3%A9\\u00e9é-", &["ééé"]), "**************-");
    }

    #[test]
    fn several_secrets_and_those_that_overlap_are_all_masked() {
        assert_eq!(shown("abcdefghij", &["abcdef", "efghij"]), "**********");
        assert_eq!(shown("aaaaaaa a", &["aaaaaa"]), "******* a");
        assert_eq!(shown("abcdef", &[]), "abcdef");
    }

    #[test]
    fn only_escapes_that_could_hide_a_secret_cost_more_than_a_search() {
        let secret = finder("85_Token-x");
        let may = |text: &str| may_encode(text.as_bytes(), &[&secret].into_iter());
        for plain in [
            r#"{"name":"\u4e2d\u6587","url":"http:\/\/h\/132"}"#,
            "https%3A%2F%2Fh%2F%3Fa%3D1%26b",
            r#"{\"errcode\":0}---"#,
            r#"{"text":"a line\nand a\ttab and so on"}"#,
            "%5F",
        ] {
            assert!(!may(plain), "{plain}");
        }
        for encoded in [
            "85_%54oken-x",
            r"85\u005fToken-x",
            "a%255Fbcdefg",
            r"abcdef\\u005f",
        ] {
            assert!(may(encoded), "{encoded}");
        }
    }

    #[test]
    fn a_short_secret_is_not_looked_for() {
        assert!(SecretFinder::new(&Secret::new("abcde")).is_none());
        assert!(SecretFinder::new(&Secret::new("")).is_none());
        let secret = SecretFinder::new(&Secret::new("abcdef")).unwrap();
        assert_eq!(secret.length(), 6);
    }

    proptest! {
        #[test]
        fn no_encoding_of_a_secret_is_left(
            secret in "[A-Za-z0-9_/+=-]{1,20}",
            before in "[ -$&-\\[\\]-~]{0,8}",
            behind in "[ -~]{0,8}",
            coded in prop::collection::vec(0..6_u8, 20),
        ) {
            let echo: String = secret
                .bytes()
                .zip(coded)
                .map(|(byte, times)| match times {
                    0 => char::from(byte).to_string(),
                    4 => format!("\\u{byte:04x}"),
                    5 => format!("\\\\u{byte:04X}"),
                    times => format!("%{}{byte:02X}", "25".repeat(usize::from(times) - 1)),
                })
                .collect();
            let text = format!("{before}{echo}{behind}");
            let masked = masked(text.as_bytes(), &[&finder(&secret)].into_iter()).unwrap();
            prop_assert_eq!(masked.len(), text.len());
            let stars = &masked[before.len()..before.len() + echo.len()];
            prop_assert!(stars.iter().all(|byte| *byte == b'*'), "{} {:?}", text, masked);
        }

        #[test]
        fn nothing_else_is_changed(text in "[ -~é]{0,200}") {
            prop_assert!(masked(text.as_bytes(), &[&finder("85_Token-x")].into_iter()).is_none());
        }
    }
}
