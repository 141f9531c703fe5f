//! Finds the token, and what is said of its life, in what another server keeps. Pure.
//!
//! Understands plain text, JSON, PHP's `serialize()`, and these inside each other. Which SDK writes
//! what is in docs/coexistence.md; that they are read is held by `tests`.

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

/// A token, and when it ends as far as that is said beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundToken {
    pub(super) token: Secret,
    /// `expires_in`: what remained when the text was written.
    pub(super) written_life: Option<Duration>,
    /// Milliseconds since 1970.
    pub(super) ends_ms: Option<u64>,
}

/// What is said of the end; of nested places the innermost counts.
#[derive(Debug, Clone, Copy, Default)]
struct TokenEnd {
    written_life: Option<Duration>,
    ends_ms: Option<u64>,
}

/// The usual names of the member that holds the token, looked for when none is given.
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

/// Texts inside texts, and members inside members.
const MAX_DEPTH: u32 = 6;
const NO_MEMBER: ExternalError =
    ExternalError::Shape("no member of a usual name holds a token; set token.field");
const NO_FIELD: ExternalError = ExternalError::Shape("no member is where token.field says");

/// Looks into a text. `field` is the dotted path of the member that holds the token.
pub(super) fn find(text: &str, field: Option<&str>) -> Result<FoundToken, FetchError> {
    find_in(Value::String(text.to_owned()), field)
}

/// The same in the fields of a hash.
pub(super) fn find_in(value: Value, field: Option<&str>) -> Result<FoundToken, FetchError> {
    let missing = if field.is_some() { NO_FIELD } else { NO_MEMBER };
    let (
        token,
        TokenEnd {
            written_life,
            ends_ms,
        },
    ) = locate(value, field, TokenEnd::default(), MAX_DEPTH).ok_or(missing)?;
    match answer::possible(&token, "an impossible access_token") {
        Err(FetchError::Malformed(_)) => {
            return Err(ExternalError::Shape("an impossible access_token").into());
        }
        other => other?,
    }
    // Those of RFC 6750, of which WeChat uses some: the page of a login form is no token either.
    if !token
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
    {
        return Err(ExternalError::Shape("text that cannot be an access_token").into());
    }
    Ok(FoundToken {
        token: Secret::new(token),
        written_life,
        ends_ms,
    })
}

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

/// A name may hold dots itself, so the whole path is tried first.
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

/// A member of a usual name, here or in one of the members.
fn search(
    mut members: Map<String, Value>,
    end: TokenEnd,
    depth: u32,
) -> Option<(String, TokenEnd)> {
    if let Some(token) = TOKEN
        .iter()
        .find_map(|name| members.remove(*name))
        .filter(Value::is_string)
    {
        return locate(token, None, end, depth);
    }
    members.into_iter().find_map(|(_, member)| {
        if member.is_object() {
            locate(member, None, end, depth)
        } else {
            None
        }
    })
}

/// JSON or PHP that is more than a plain word; a JSON number is a word here.
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
            .and_then(|value| point(&value))
            .or(outer.ends_ms),
    }
}

/// Zero for what is over already.
fn seconds(value: &Value) -> Option<Duration> {
    let whole = number(value)?;
    Some(Duration::from_secs(u64::try_from(whole).unwrap_or(0)))
}

/// Unix time in seconds or milliseconds, or RFC 3339. Small numbers are something else.
fn point(value: &Value) -> Option<u64> {
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

/// `2026-08-06T02:03:42.1234567+08:00`, as .NET writes it.
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
