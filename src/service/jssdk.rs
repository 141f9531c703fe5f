//! Signatures for `wx.config` and `wx.agentConfig`: the page URL, and the hash over ticket, nonce,
//! time and page.
//!
//! Source: WeCom's page 96909, which WeChat's appendix on JS-SDK permission signatures agrees with.
//! Values go into the hash raw; the page without its fragment. The caller supplies the ticket.

use aws_lc_rs::digest;

use crate::token::Token;

/// URL of a page as WeChat's script sees it: without fragment, nothing encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageUrl(String);

/// Reason for refusing the URL of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageUrlError {
    /// Neither `http://` nor `https://`.
    Scheme,
    NoHost,
    /// Blanks or control characters, which a browser's `location.href` never holds.
    Blanks,
}

impl PageUrlError {
    /// Returns the fault and the remedy, for the caller.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Scheme => {
                "url must begin with http:// or https://; take location.href of the page"
            }
            Self::NoHost => "url names no host; take location.href of the page",
            Self::Blanks => {
                "url holds blanks or control characters; take location.href of the page"
            }
        }
    }
}

impl PageUrl {
    /// Cuts off the fragment and refuses a URL that cannot be a page.
    pub(super) fn new(url: &str) -> Result<Self, PageUrlError> {
        let page = url.split('#').next().unwrap_or_default();
        let host = page
            .strip_prefix("https://")
            .or_else(|| page.strip_prefix("http://"));
        match host {
            None => Err(PageUrlError::Scheme),
            Some(host) if host.is_empty() || host.starts_with(['/', '?']) => {
                Err(PageUrlError::NoHost)
            }
            Some(_) if page.chars().any(|c| c.is_control() || c.is_whitespace()) => {
                Err(PageUrlError::Blanks)
            }
            Some(_) => Ok(Self(page.to_owned())),
        }
    }
}

/// Signs a page: SHA-1 in lower-case hex. `timestamp` is in seconds since 1970; nonce and timestamp
/// must also reach the page.
pub(super) fn signature(ticket: &Token, nonce: &str, timestamp: u64, page: &PageUrl) -> String {
    hash(ticket.secret().expose(), nonce, timestamp, &page.0)
}

/// Returns 16 unpredictable hex digits; 16 zeros if the system has no randomness.
pub(super) fn nonce() -> String {
    let mut random = [0_u8; 8];
    let _ = getrandom::fill(&mut random);
    hex(&random)
}

fn hash(ticket: &str, nonce: &str, timestamp: u64, page: &str) -> String {
    // Wiped after use, because the text holds the ticket.
    let text = zeroize::Zeroizing::new(format!(
        "jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    ));
    hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: &str =
        "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg";

    #[test]
    fn the_published_examples_come_out() {
        for (url, sha1) in [
            (
                "http://mp.weixin.qq.com?params=value",
                "0f9de62fce790f9a083d5c99e95740ceb90c27ed",
            ),
            (
                "http://mp.weixin.qq.com?params=value#wechat_redirect",
                "0f9de62fce790f9a083d5c99e95740ceb90c27ed",
            ),
            (
                "http://mp.weixin.qq.com",
                "f4d90daf4b3bca3078ab155816175ba34c443a7b",
            ),
        ] {
            let page = PageUrl::new(url).unwrap();
            assert_eq!(
                hash(TICKET, "Wm3WZYTPz0wzccnW", 1_414_587_457, &page.0),
                sha1,
                "{url}"
            );
        }
    }

    #[test]
    fn only_addresses_of_pages_are_signed_and_nothing_in_them_is_changed() {
        for url in [
            "",
            "#a",
            "a.b/c",
            "//a.b/c",
            "ftp://a.b/",
            "javascript:alert(1)",
            "https://",
            "https:///a",
            "http://#a",
        ] {
            assert!(PageUrl::new(url).is_err(), "{url}");
        }
        for url in [
            "https://a.b/\nx",
            "https://a.b/ x",
            "https://a.b/\u{0}",
            "https://a.b/\u{a0}",
        ] {
            assert_eq!(PageUrl::new(url), Err(PageUrlError::Blanks), "{url:?}");
        }
        for url in [
            "https://a.b/%E4%B8%AD?x=%20",
            "http://中.b/中?中=中",
            "https://a.b:8443/?a=1&b=2",
        ] {
            assert_eq!(PageUrl::new(url).unwrap().0, url);
        }
    }

    #[test]
    fn nonces_differ() {
        let (one, other) = (nonce(), nonce());
        assert!(one != other && one.len() == 16 && one.bytes().all(|b| b.is_ascii_alphanumeric()));
    }
}
