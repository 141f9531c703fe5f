//! Parser for the answers of token endpoints, ticket endpoints and probes. Pure.
//!
//! Lenient about the form of an answer, strict about the token, which becomes part of requests.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{FetchError, Fetched, Probe, Trial};
use crate::{
    base::{PHANTOM_PREFIX, Secret},
    wechat::{
        address,
        api::Platform,
        codes::{self, RefusalClass},
    },
};

/// Member of an answer that holds the credential, and the texts of its faults.
struct Field {
    name: &'static str,
    missing: &'static str,
    impossible: &'static str,
}

/// Limit for the length of a token, four times the documented 512 bytes.
const MAX_TOKEN_BYTES: usize = 2048;
/// Longest lifetime in seconds that WeChat documents. Longer lifetimes are cut to this.
const MAX_EXPIRES_IN: u64 = 7200;

const TOKEN: Field = Field {
    name: "access_token",
    missing: "no access_token",
    impossible: "an impossible access_token",
};
const TICKET: Field = Field {
    name: "ticket",
    missing: "no ticket",
    impossible: "an empty or impossible ticket",
};

/// Reads the answer of a token endpoint.
pub(super) fn token(platform: Platform, status: u16, body: &[u8]) -> Result<Fetched, FetchError> {
    credential(&TOKEN, platform, status, body)
}

/// Reads the answer of a ticket endpoint.
pub(super) fn ticket(platform: Platform, status: u16, body: &[u8]) -> Result<Fetched, FetchError> {
    credential(&TICKET, platform, status, body)
}

fn credential(
    field: &Field,
    platform: Platform,
    status: u16,
    body: &[u8],
) -> Result<Fetched, FetchError> {
    if (300..400).contains(&status) {
        return Err(FetchError::Redirect);
    }
    let answer = serde_json::from_slice::<Value>(body).ok();
    // A refusal counts with any status, and also beside a token.
    if let Some(answer) = &answer
        && let Some(code) = errcode(answer)
        && code != 0
    {
        return Err(refusal(platform, code, answer));
    }
    if status != 200 {
        return Err(FetchError::Status(status));
    }
    let answer = answer.ok_or(FetchError::Malformed("no JSON"))?;
    let token = answer
        .get(field.name)
        .and_then(Value::as_str)
        .ok_or(FetchError::Malformed(field.missing))?;
    possible(token, field.impossible)?;
    let seconds = answer
        .get("expires_in")
        .and_then(seconds)
        .ok_or(FetchError::Malformed("an impossible expires_in"))?;
    Ok(Fetched {
        token: Secret::new(token),
        expires_in: Duration::from_secs(seconds),
    })
}

fn refusal(platform: Platform, code: i64, answer: &Value) -> FetchError {
    // WeCom names the caller's address with every error. It is worth telling only if the address is
    // the cause.
    let ip = match codes::token_code(platform, code).class {
        RefusalClass::Address | RefusalClass::Approval => answer
            .get("errmsg")
            .and_then(Value::as_str)
            .and_then(address::named_in),
        _ => None,
    };
    FetchError::Refused { platform, code, ip }
}

/// Reads `errmsg`: at most 256 characters, none of them a control character. A word so long that it
/// may be a credential (a request id has 26 characters) is masked.
pub(super) fn words(body: &[u8]) -> Option<Arc<str>> {
    const LONGEST: usize = 256;
    const LONGEST_WORD: usize = 27;
    let answer = serde_json::from_slice::<Value>(body).ok()?;
    let text = answer.get("errmsg")?.as_str()?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut words = String::new();
    for part in text.split_inclusive(|c| !is_word(c)) {
        let word = part.trim_end_matches(|c| !is_word(c));
        if word.len() > LONGEST_WORD {
            words.push_str(&part.replacen(word, "***", 1));
        } else {
            words.push_str(part);
        }
    }
    let words: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST)
        .collect();
    (!words.is_empty()).then(|| words.into())
}

/// Checks that `token` can be an access token: 1 to 2048 bytes without control characters, and no
/// placeholder.
///
/// # Errors
/// [`FetchError::Phantom`] for a placeholder, [`FetchError::Malformed`] with the text `otherwise`
/// for all other faults.
pub(super) fn possible(token: &str, otherwise: &'static str) -> Result<(), FetchError> {
    if token.starts_with(PHANTOM_PREFIX) {
        return Err(FetchError::Phantom);
    }
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES || token.chars().any(char::is_control) {
        return Err(FetchError::Malformed(otherwise));
    }
    Ok(())
}

/// Reads the answer to a probe.
pub(super) fn probe(platform: Platform, status: u16, body: &[u8]) -> Probe {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return Probe::Unknown;
    };
    match errcode(&answer) {
        Some(code) if codes::is_stale(platform, code) => Probe::Stale,
        Some(0) => Probe::Fine,
        None if status == 200 && answer.get("ip_list").is_some() => Probe::Fine,
        _ => Probe::Unknown,
    }
}

/// Reads the answer to a harmless call with a token.
pub(super) fn trial(platform: Platform, status: u16, body: &[u8]) -> Trial {
    if (300..400).contains(&status) {
        return Trial::Failed(FetchError::Redirect);
    }
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return Trial::Failed(match status {
            200 => FetchError::Malformed("no JSON"),
            other => FetchError::Status(other),
        });
    };
    match errcode(&answer) {
        Some(code) if codes::is_stale(platform, code) => Trial::Stale { code },
        Some(code) if code != 0 => match refusal(platform, code, &answer) {
            FetchError::Refused { ip, .. } => Trial::Refused { code, ip },
            other => Trial::Failed(other),
        },
        _ if status == 200 && answer.get("ip_list").is_some() => Trial::Accepted,
        _ => Trial::Failed(FetchError::Malformed("no ip_list")),
    }
}

/// Reads `errcode`: a number, or a string that holds a number, as some endpoints send it.
fn errcode(answer: &Value) -> Option<i64> {
    match answer.get("errcode")? {
        Value::String(text) => text.trim().parse().ok(),
        number => whole(number),
    }
}

/// Reads `expires_in`: a number without a fraction, at least 1, cut to [`MAX_EXPIRES_IN`].
fn seconds(value: &Value) -> Option<u64> {
    let seconds = match value.as_u64() {
        Some(seconds) => seconds,
        None => value
            .as_f64()
            .filter(|number| number.fract() == 0.0 && *number > 0.0)
            .map(clamped)?,
    };
    (seconds >= 1).then(|| seconds.min(MAX_EXPIRES_IN))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and the value is capped"
)]
fn clamped(number: f64) -> u64 {
    number as u64
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "codes are small; the cast saturates"
)]
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        value
            .as_f64()
            .filter(|f| f.fract() == 0.0)
            .map(|f| f as i64)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<(String, u64), FetchError> {
        token(Platform::Wechat, 200, body.as_bytes())
            .map(|f| (f.token.expose().to_owned(), f.expires_in.as_secs()))
    }

    fn expires_in(text: &str) -> Option<u64> {
        read(&format!(r#"{{"access_token":"t","expires_in":{text}}}"#))
            .ok()
            .map(|(_, seconds)| seconds)
    }

    #[test]
    fn words_are_passed_without_what_may_be_a_credential() {
        let token = "7".repeat(64);
        let said = |text: &str| {
            words(&serde_json::to_vec(&serde_json::json!({"errcode": 1, "errmsg": text})).unwrap())
        };
        assert_eq!(
            said("api unauthorized rid: 5fab84d2-09424a07-00bd7fe3").as_deref(),
            Some("api unauthorized rid: 5fab84d2-09424a07-00bd7fe3")
        );
        assert_eq!(
            said(&format!("no \u{7}such token={token}, {token}")).as_deref(),
            Some("no such token=***, ***")
        );
        assert_eq!(said(&"a ".repeat(1000)).map(|text| text.len()), Some(256));
        assert_eq!((said(""), words(b"[]"), words(b"{")), (None, None, None));
    }

    #[test]
    fn lifetimes_are_believed_from_1_to_7200_seconds_and_nothing_else_is() {
        for (text, believed) in [
            ("7200", 7200),
            ("1", 1),
            ("345", 345),
            ("7201", 7200),
            ("1000000000000", 7200),
            ("99999999999999999999999", 7200),
            ("7200.0", 7200),
            ("7.2e3", 7200),
        ] {
            assert_eq!(expires_in(text), Some(believed), "{text}");
        }
        for text in [
            "0", "-1", "0.0", "-0.0", "7200.5", "0.5", "1e400", "null", "true", "\"7200\"",
            "[7200]", "{}", "", "NaN",
        ] {
            assert_eq!(expires_in(text), None, "{text} was believed");
        }
        assert!(read(r#"{"access_token":"t"}"#).is_err());
    }

    #[test]
    fn impossible_tokens_are_refused_and_odd_ones_are_not() {
        for good in ["a b&c%d", "\u{e9}", &"x".repeat(600), &"x".repeat(2048)] {
            let body = serde_json::json!({"access_token": good, "expires_in": 7200}).to_string();
            assert_eq!(read(&body).unwrap().0, good);
        }
        for bad in [
            "",
            "a\nb",
            "a\r",
            "\u{0}",
            "a\u{85}b",
            "\u{7f}",
            &"x".repeat(2049),
        ] {
            let body = serde_json::json!({"access_token": bad, "expires_in": 7200}).to_string();
            assert_eq!(
                read(&body).unwrap_err(),
                FetchError::Malformed("an impossible access_token"),
                "{bad:?}"
            );
        }
        assert!(read(r#"{"access_token":17,"expires_in":7200}"#).is_err());
    }

    #[test]
    fn an_empty_ticket_is_no_ticket() {
        let read = |body: &str| {
            ticket(Platform::Wechat, 200, body.as_bytes()).map(|f| f.token.expose().to_owned())
        };
        assert_eq!(
            read(r#"{"errcode":0,"errmsg":"ok","ticket":"kg","expires_in":7200}"#).unwrap(),
            "kg"
        );
        let empty = FetchError::Malformed("an empty or impossible ticket");
        assert_eq!(
            read(r#"{"errcode":0,"ticket":"","expires_in":7200}"#).unwrap_err(),
            empty
        );
        assert_eq!(
            read(r#"{"errcode":0,"expires_in":7200}"#).unwrap_err(),
            FetchError::Malformed("no ticket")
        );
        assert_eq!(
            read(r#"{"errcode":42001}"#).unwrap_err(),
            FetchError::Refused {
                platform: Platform::Wechat,
                code: 42001,
                ip: None
            }
        );
    }

    #[test]
    fn a_placeholder_of_another_wxgate_is_no_token() {
        let error = read(r#"{"access_token":"wxg1_abc","expires_in":7200}"#).unwrap_err();
        assert_eq!(
            (error.clone(), error.is_transient(), error.label()),
            (FetchError::Phantom, false, "phantom")
        );
        assert!(error.to_string().contains("upstream.resolve"), "{error}");
        assert!(read(r#"{"access_token":"wxg2_abc","expires_in":7200}"#).is_ok());
    }

    #[test]
    fn wecom_names_the_address_with_every_error_and_only_one_is_about_it() {
        let refused = |code: i64, words: &str| {
            let text = format!(
                "{words}, hint: [1576065934_28_x], from ip: 9.30.0.138, more info at https://open.work.weixin.qq.com/devtool/query?e={code}"
            );
            let body = serde_json::json!({"errcode": code, "errmsg": text}).to_string();
            token(Platform::Wecom, 200, body.as_bytes()).unwrap_err()
        };
        let untrusted = refused(60020, "not allow to access from your ip");
        let ip = Some("9.30.0.138".parse().unwrap());
        assert_eq!(
            untrusted,
            FetchError::Refused {
                platform: Platform::Wecom,
                code: 60020,
                ip
            }
        );
        let bad_secret = refused(40001, "invalid credential");
        assert_eq!(
            bad_secret,
            FetchError::Refused {
                platform: Platform::Wecom,
                code: 40001,
                ip: None
            }
        );
        assert_eq!(bad_secret.class(), Some(RefusalClass::Credential));
        assert!(bad_secret.to_string().contains("agent"), "{bad_secret}");
    }

    #[test]
    fn refusals_are_recognised_in_every_form() {
        for body in [
            r#"{"errcode":40013,"errmsg":"invalid appid rid: 6aac005a-01bfdbee-79769285"}"#,
            r#"{"errmsg":"x","errcode":"40013"}"#,
            r#"{"errcode":40013.0}"#,
            r#"{"errcode":40013,"access_token":"t","expires_in":7200}"#,
        ] {
            let refused = FetchError::Refused {
                platform: Platform::Wechat,
                code: 40013,
                ip: None,
            };
            assert_eq!(read(body).unwrap_err(), refused, "{body}");
            assert_eq!(
                token(Platform::Wechat, 500, body.as_bytes()).unwrap_err(),
                refused,
                "{body}"
            );
        }
        assert!(
            read(r#"{"errcode":0,"errmsg":"ok","access_token":"t","expires_in":7200}"#).is_ok(),
            "WeCom's form"
        );
    }

    #[test]
    fn a_probe_says_stale_only_when_wechat_does() {
        let wechat = |status, body: &str| probe(Platform::Wechat, status, body.as_bytes());
        assert_eq!(wechat(200, r#"{"ip_list":["1.2.3.4"]}"#), Probe::Fine);
        assert_eq!(wechat(200, r#"{"errcode":0,"ip_list":[]}"#), Probe::Fine);
        for code in ["40001", "\"40001\"", "40014", "42001"] {
            assert_eq!(
                wechat(200, &format!(r#"{{"ip_list":[],"errcode":{code}}}"#)),
                Probe::Stale
            );
        }
        assert_eq!(
            probe(Platform::Wecom, 200, br#"{"errcode":40001}"#),
            Probe::Unknown
        );
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"errcode":-1}"#,
            r#"{"errcode":45009}"#,
            "[]",
        ] {
            assert_eq!(wechat(200, body), Probe::Unknown, "{body}");
        }
        assert_eq!(wechat(502, r#"{"ip_list":[]}"#), Probe::Unknown);
    }

    proptest! {
        #[test]
        fn no_body_panics(status in 100_u16..600, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = token(Platform::Wechat, status, &body);
            let _ = ticket(Platform::Wecom, status, &body);
            let _ = probe(Platform::Wechat, status, &body);
            let _ = address::named_in(&String::from_utf8_lossy(&body));
        }
    }
}
