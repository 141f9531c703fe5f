//! Reading of queries and forms: pairs, names, percent-decoding.
//!
//! Works on the caller's bytes and changes none of them.

use std::borrow::Cow;

use memchr::memchr;
use percent_encoding::{percent_decode, percent_decode_str};

/// Returns the pairs of a query as they are encoded, the empty ones too.
pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = &str> {
    let mut rest = query.filter(|query| !query.is_empty());
    std::iter::from_fn(move || {
        let query = rest?;
        let (pair, behind) = match memchr(b'&', query.as_bytes()) {
            Some(end) => (&query[..end], Some(&query[end + 1..])),
            None => (query, None),
        };
        rest = behind;
        Some(pair)
    })
}

/// Splits a pair at its first `=`; `None` if there is none.
pub(super) fn split(pair: &str) -> Option<(&str, &str)> {
    // Names are short, so a plain loop costs a fifth of `split_once`.
    let end = pair.bytes().position(|byte| byte == b'=')?;
    Some((&pair[..end], &pair[end + 1..]))
}

/// Returns the name of a pair as it is encoded.
pub(super) fn encoded_name(pair: &str) -> &str {
    split(pair).map_or(pair, |(name, _)| name)
}

/// Returns name and value of a pair, percent-decoded.
pub(super) fn decoded(pair: &str) -> (Cow<'_, str>, Cow<'_, str>) {
    let (name, value) = split(pair).unwrap_or((pair, ""));
    (decode(name), decode(value))
}

/// Percent-decodes a text. A plus sign stays, as WeChat reads queries.
pub(super) fn decode(text: &str) -> Cow<'_, str> {
    // Hardly any text is encoded, and a plain loop costs less than the decoder.
    if text.bytes().any(|byte| byte == b'%') {
        percent_decode_str(text).decode_utf8_lossy()
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns the first value of this name in a form, `name=value&…`, where a plus sign is a space.
pub(super) fn form_value(form: &[u8], name: &str) -> Option<String> {
    form.split(|b| *b == b'&').find_map(|pair| {
        let mut parts = pair.splitn(2, |b| *b == b'=');
        let found = decode_form(parts.next()?)?;
        (found == name).then(|| decode_form(parts.next().unwrap_or_default()))?
    })
}

fn decode_form(text: &[u8]) -> Option<String> {
    let text: Vec<u8> = text
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    String::from_utf8(percent_decode(&text).collect()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_as_they_were_written() {
        let all = |query| pairs(query).collect::<Vec<_>>();
        assert!(all(None).is_empty() && all(Some("")).is_empty());
        assert_eq!(all(Some("a=1&&b%3D&=c&")), ["a=1", "", "b%3D", "=c", ""]);
        assert_eq!(encoded_name("b%3D=1=2"), "b%3D");
        let (name, value) = decoded("b%3D=1+2=%33");
        assert_eq!((&*name, &*value), ("b=", "1+2=3"));
        assert_eq!(decoded("b"), ("b".into(), "".into()));
    }

    #[test]
    fn a_form_has_spaces_and_may_hold_bytes_that_are_no_text() {
        let form = b"x=\xff&a+b=%41+%2B&a+b=2&c";
        assert_eq!(form_value(form, "a b").as_deref(), Some("A +"));
        assert_eq!(form_value(form, "c").as_deref(), Some(""));
        assert_eq!(form_value(form, "x"), None);
        assert_eq!(form_value(form, "d"), None);
    }
}
