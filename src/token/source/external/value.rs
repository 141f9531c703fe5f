//! Finds a token and its expiry in the text that another server stores. Pure.
//!
//! Reads plain text, JSON, PHP's `serialize()`, and each of them inside another.
//! docs/coexistence.md lists the layouts of the SDKs; `tests` reads one example of each.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{ExternalError, php};
use crate::{
    base::Secret,
    token::{
        clock::millis,
        source::{FetchError, answer},
    },
};

/// Token, and the expiry that is stored beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundToken {
    pub(super) token: Secret,
    /// `expires_in`: the rest of the token's life at the time of writing.
    pub(super) written_life: Option<Duration>,
    /// Expiry in milliseconds since 1970.
    pub(super) ends_ms: Option<u64>,
}

/// Expiry as stored; of nested objects the innermost counts.
#[derive(Debug, Clone, Copy, Default)]
struct TokenEnd {
    written_life: Option<Duration>,
    ends_ms: Option<u64>,
}

/// Usual names of the member that holds the token, tried if `token.field` is not set.
const TOKEN: [&str; 3] = ["access_token", "accessToken", "AccessToken"];
const LIFE: [&str; 3] = ["expires_in", "expiresIn", "ExpiresIn"];
const ENDS: [&str; 13] = [
    "expires_at",
    "expiresAt",
    "expire_at",
    "expireAt",
    "expires_time",
    "expiresTime",
    "expire_time",
    "expireTime",
    "ExpireTime",
    "AccessTokenExpireTime",
    "expires",
    "expire",
    "ExpiresAt",
];

/// Limit for texts inside texts, and objects inside objects.
const MAX_DEPTH: u32 = 6;
const NO_MEMBER: ExternalError =
    ExternalError::Shape("no member of a usual name holds a token; set token.field");
const NO_FIELD: ExternalError = ExternalError::Shape("no member is where token.field says");

/// Finds the token in a text. `field` is the dotted path of the member that holds the token.
pub(super) fn find(text: &str, field: Option<&str>) -> Result<FoundToken, FetchError> {
    find_in(Value::String(text.to_owned()), field)
}

/// Finds the token in a value, such as the fields of a hash.
pub(super) fn find_in(value: Value, field: Option<&str>) -> Result<FoundToken, FetchError> {
    let missing = if field.is_some() { NO_FIELD } else { NO_MEMBER };
    let (token, end) = locate(value, field, TokenEnd::default(), MAX_DEPTH).ok_or(missing)?;
    match answer::possible(&token, "an impossible access_token") {
        Err(FetchError::Malformed(_)) => {
            return Err(ExternalError::Shape("an impossible access_token").into());
        }
        other => other?,
    }
    // The characters of RFC 6750, of which WeChat uses some. Refuses the page of a login form.
    if !token
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
    {
        return Err(ExternalError::Shape("text that cannot be an access_token").into());
    }
    Ok(FoundToken {
        token: Secret::new(token),
        written_life: end.written_life,
        ends_ms: end.ends_ms,
    })
}

/// Finds token and expiry; `end` is the expiry that the objects around `value` give.
fn locate(
    value: Value,
    field: Option<&str>,
    end: TokenEnd,
    depth: u32,
) -> Option<(String, TokenEnd)> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::String(text) => match unfolded(&text) {
            Some(inner) => locate(inner, field, end, depth),
            None => field.is_none().then(|| (text.trim().to_owned(), end)),
        },
        Value::Object(members) => {
            let end = end_of(&members, end);
            match field {
                Some(path) => follow(members, path, end, depth),
                None => search(members, end, depth),
            }
        }
        _ => None,
    }
}

/// Follows a dotted path. The name of a member may hold dots, so the whole path is tried first.
fn follow(
    mut members: Map<String, Value>,
    path: &str,
    end: TokenEnd,
    depth: u32,
) -> Option<(String, TokenEnd)> {
    if let Some(value) = members.remove(path) {
        return locate(value, None, end, depth);
    }
    let (first, rest) = path.split_once('.')?;
    locate(members.remove(first)?, Some(rest), end, depth)
}

/// Finds a member of a usual name, in this object or in one of the objects inside it.
fn search(
    mut members: Map<String, Value>,
    end: TokenEnd,
    depth: u32,
) -> Option<(String, TokenEnd)> {
    let token = TOKEN.iter().find_map(|name| members.remove(*name));
    if let Some(token @ Value::String(_)) = token {
        return locate(token, None, end, depth);
    }
    members
        .into_iter()
        .filter(|(_, member)| member.is_object())
        .find_map(|(_, member)| locate(member, None, end, depth))
}

/// Parses a text that is JSON or PHP; `None` for a plain word, which includes a JSON number.
fn unfolded(text: &str) -> Option<Value> {
    let text = text.trim();
    match text.as_bytes().first()? {
        b'{' | b'"' => serde_json::from_str(text).ok(),
        b's' | b'a' => php::unserialize(text),
        _ => None,
    }
}

fn end_of(members: &Map<String, Value>, outer: TokenEnd) -> TokenEnd {
    let first = |names: &[&str]| names.iter().find_map(|name| members.get(*name)).cloned();
    TokenEnd {
        written_life: first(&LIFE)
            .and_then(|value| seconds(&value))
            .or(outer.written_life),
        ends_ms: first(&ENDS)
            .and_then(|value| unix_ms(&value))
            .or(outer.ends_ms),
    }
}

/// Reads a duration in seconds; zero for a negative number.
fn seconds(value: &Value) -> Option<Duration> {
    let whole = number(value)?;
    Some(Duration::from_secs(u64::try_from(whole).unwrap_or(0)))
}

/// Reads a time: Unix time in seconds or milliseconds, or RFC 3339. Smaller numbers are no times.
fn unix_ms(value: &Value) -> Option<u64> {
    match number(value).and_then(|number| u64::try_from(number).ok()) {
        Some(ms @ 1_000_000_000_000..) => Some(ms),
        Some(seconds @ 1_000_000_000..) => Some(seconds * 1000),
        Some(_) => None,
        None => rfc3339(value.as_str()?),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the cast saturates")]
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other
            .as_i64()
            .or_else(|| other.as_f64().map(|number| number as i64)),
    }
}

/// Reads `2026-08-06T02:03:42.1234567+08:00`, as .NET writes it. `humantime` knows no offsets, so
/// the zone is read here.
fn rfc3339(text: &str) -> Option<u64> {
    let (local, zone) = text.split_at_checked(19)?;
    let zone = zone.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let local = humantime::parse_rfc3339_weak(local)
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    let (sign, offset) = zone.split_at_checked(1)?;
    let offset = if sign == "Z" {
        Duration::ZERO
    } else {
        let (hours, minutes) = offset.split_once(':')?;
        let part = |text: &str| text.parse::<u16>().ok().map(u64::from);
        Duration::from_secs(part(hours)? * 3600 + part(minutes)? * 60)
    };
    let utc = match sign {
        "Z" | "+" => local.checked_sub(offset)?,
        "-" => local.checked_add(offset)?,
        _ => return None,
    };
    Some(millis(utc))
}
