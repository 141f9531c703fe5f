//! Form of appids and AppSecrets: slips that a look at the text shows. All are warnings, since WeChat
//! alone decides what is right.
//!
//! No message repeats the text: it may be the secret, written at the wrong key.

use crate::{
    base::Secret,
    config::{problem::KeyPlace, secret::ConfigResolver},
    wechat::api::Platform,
};

/// Length of an appid: `wx` and 16 hex digits.
const APPID_LEN: usize = 18;
/// Length of an AppSecret in hex digits.
const SECRET_LEN: usize = 32;
/// Beginnings of a corpid; the first is that of today's.
const CORPID_PREFIXES: [&str; 4] = ["ww", "wx", "wp", "dk"];

impl ConfigResolver<'_> {
    /// Warns of an appid of an odd form.
    pub(super) fn judge_appid(&mut self, place: &KeyPlace, appid: &str, platform: Platform) {
        let fault = match platform {
            Platform::Wechat => appid_fault(appid),
            Platform::Wecom => corpid_fault(appid),
        };
        if let Some(fault) = fault {
            self.report.warning(place, fault);
        }
    }

    /// Warns of an AppSecret of an odd form.
    pub(super) fn judge_secret(&mut self, place: &KeyPlace, secret: &Secret, platform: Platform) {
        if let Some(fault) = secret_fault(secret.expose(), platform) {
            self.report.warning(place, fault);
        }
    }

    /// Warns of several accounts without a default.
    pub(super) fn judge_default(&mut self, is_set: bool, accounts: usize) {
        if accounts > 1 && !is_set {
            let place = self.report.whole().child("default_account");
            let message = "is not set, with several accounts: after a start, a call that names none of them (by prefix, header, \
                           Host or client) is refused; set it to the account of such calls";
            self.report.warning(&place, message);
        }
    }
}

fn appid_fault(appid: &str) -> Option<String> {
    if is_appid(appid) {
        return None;
    }
    Some(if appid.starts_with("gh_") {
        "begins with gh_: that is the original ID (原始ID) of the account; the appid begins with wx and stands in the same \
         page of the console (开发 > 基本配置)"
            .to_owned()
    } else if appid.len() == SECRET_LEN && is_hex(appid) {
        "has the form of an AppSecret: are appid and secret exchanged?".to_owned()
    } else if is_appid(&appid.to_ascii_lowercase()) {
        "has capital letters: an appid is in lower case, and WeChat tells the two apart".to_owned()
    } else if appid.starts_with("ww") {
        "begins with ww, as the corpid of 企业微信 does: set platform = \"wecom\", or write the appid".to_owned()
    } else if appid.len() != APPID_LEN {
        format!(
            "has {} characters: an appid is wx and 16 hex digits, {APPID_LEN} characters",
            appid.chars().count()
        )
    } else {
        "is no appid by its form: wx and 16 hex digits, in lower case".to_owned()
    })
}

fn corpid_fault(corpid: &str) -> Option<String> {
    if CORPID_PREFIXES
        .iter()
        .any(|prefix| corpid.starts_with(prefix))
    {
        return None;
    }
    Some(
        "is no corpid by its form: it begins with ww (older ones with wx), and stands in 我的企业 > 企业信息 of the console"
            .to_owned(),
    )
}

fn secret_fault(secret: &str, platform: Platform) -> Option<String> {
    let line = secret.split_once('=');
    // A `=` at the end is that of base64.
    if line.is_some_and(|(name, value)| is_variable_name(name) && !value.is_empty()) {
        return Some("reads NAME=…: write what stands behind the = alone".to_owned());
    }
    // The form of a secret of WeCom is documented nowhere.
    if platform == Platform::Wecom || (secret.len() == SECRET_LEN && is_hex(secret)) {
        return None;
    }
    Some(if is_appid(secret) {
        "has the form of an appid: are appid and secret exchanged?".to_owned()
    } else if !secret.is_ascii() {
        "holds characters that no AppSecret has (32 hex digits): copy it again".to_owned()
    } else if secret.len() != SECRET_LEN {
        format!(
            "has {} characters: an AppSecret has {SECRET_LEN} hex digits",
            secret.len()
        )
    } else {
        "is no AppSecret by its form: 32 hex digits".to_owned()
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_appid(text: &str) -> bool {
    let is_lower_hex =
        |digits: &str| is_hex(digits) && !digits.bytes().any(|b| b.is_ascii_uppercase());
    text.len() == APPID_LEN && text.strip_prefix("wx").is_some_and(is_lower_hex)
}

fn is_variable_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(fault: Option<String>) -> String {
        fault.unwrap_or_else(|| "fine".to_owned())
    }

    #[test]
    fn slips_of_an_appid_are_told_apart() {
        for (appid, said) in [
            ("wx0123456789abcdef", "fine"),
            ("gh_0123456789ab", "original ID"),
            ("WX0123456789ABCDEF", "capital letters"),
            ("wx0123456789ABCDEF", "capital letters"),
            ("wx0123456789abcde", "has 17 characters"),
            ("wx0123456789abcdefa", "has 19 characters"),
            ("wx0123456789abcdeg", "no appid by its form"),
            ("ww0123456789abcdef", "platform = \"wecom\""),
            ("0123456789abcdef0123456789abcdef", "exchanged"),
        ] {
            let fault = part(appid_fault(appid));
            assert!(fault.contains(said), "{appid}: {fault}");
            assert!(fault == "fine" || !fault.contains(appid), "{fault}");
        }
        for corpid in ["ww0123456789abcdef", "wx01", "wpAbC", "dk1"] {
            assert_eq!(corpid_fault(corpid), None);
        }
        assert!(part(corpid_fault("1000002")).contains("corpid"));
    }

    #[test]
    fn slips_of_a_secret_are_told_apart() {
        let secret = "0123456789abcdef0123456789abcdef";
        for (text, said) in [
            (secret, "fine"),
            (&secret.to_uppercase(), "fine"),
            (&secret[1..], "has 31 characters"),
            (&format!("SHOP_SECRET={secret}"), "NAME=…"),
            ("wx0123456789abcdef", "exchanged"),
            ("0123456789abcdef0123456789abcdeg", "no AppSecret"),
            (
                "0123456789abcdef\u{200b}0123456789abcde",
                "no AppSecret has",
            ),
        ] {
            let fault = part(secret_fault(text, Platform::Wechat));
            assert!(fault.contains(said), "{text}: {fault}");
            assert!(!fault.contains(secret), "{fault}");
        }
        assert_eq!(secret_fault("short", Platform::Wecom), None);
        assert!(secret_fault("A=short", Platform::Wecom).is_some());
    }
}
