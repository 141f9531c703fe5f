//! Headers that hold the key of a client: `X-Wxgate-Key`, `Authorization`, and
//! `Proxy-Authorization` of requests to a proxy.

use std::borrow::Cow;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName, HeaderValue, PROXY_AUTHORIZATION},
};

const X_WXGATE_KEY: HeaderName = HeaderName::from_static("x-wxgate-key");
/// Reads base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns each key in `X-Wxgate-Key`; `None` for one that is no text.
pub(super) fn own(headers: &HeaderMap) -> impl Iterator<Item = Option<&str>> {
    let lines = headers.get_all(X_WXGATE_KEY).iter();
    lines.map(|value| value.to_str().ok())
}

/// Returns each text in `Authorization` that may be a key; with `to_proxy`, in
/// `Proxy-Authorization` too.
pub(super) fn authorization(
    headers: &HeaderMap,
    to_proxy: bool,
) -> impl Iterator<Item = Cow<'_, str>> {
    let for_proxy = to_proxy.then(|| headers.get_all(PROXY_AUTHORIZATION));
    let lines = headers.get_all(AUTHORIZATION).iter();
    lines
        .chain(for_proxy.into_iter().flatten())
        .filter_map(credential)
}

/// Returns the token behind `Bearer`, or the password behind `Basic`; schemes in any case.
fn credential(value: &HeaderValue) -> Option<Cow<'_, str>> {
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    let text = text.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(text.into());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    // A user name holds no colon, a password may.
    let pair = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
    let (_, password) = pair.split_once(':')?;
    Some(password.to_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_passwords_are_read() {
        for (value, expected) in [
            ("Bearer key", Some("key")),
            ("bearer  key ", Some("key")),
            ("Basic Y3JtOmtleQ==", Some("key")),
            ("BASIC Y3JtOmtleQ", Some("key")),
            ("Basic Y3JtOmE6Yg==", Some("a:b")),
            ("Basic OmtleQ==", Some("key")),
            ("Basic Y3Jt", None),
            ("Basic !", None),
            ("Basic /w==", None),
            ("Digest key", None),
            ("key", None),
            ("", None),
        ] {
            let value = HeaderValue::from_str(value).unwrap();
            assert_eq!(credential(&value).as_deref(), expected, "{value:?}");
        }
    }

    #[test]
    fn the_proxys_header_counts_only_for_a_proxy() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer one"));
        headers.insert(PROXY_AUTHORIZATION, HeaderValue::from_static("Bearer two"));
        assert_eq!(authorization(&headers, false).collect::<Vec<_>>(), ["one"]);
        assert_eq!(
            authorization(&headers, true).collect::<Vec<_>>(),
            ["one", "two"]
        );
    }
}
