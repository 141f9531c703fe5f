//! JSON objects as text: members move in and out of an envelope byte for byte, so that numbers keep
//! their digits.

use std::{borrow::Cow, collections::HashSet, fmt::Write as _};

use serde::Deserialize;
use serde_json::Value;

use super::SignError;

/// Members of the content that belong to the envelope.
pub(super) const RESERVED: [&str; 3] = ["_n", "_appid", "_timestamp"];

/// Builds the content of an envelope: the members of `head`, the parameters as texts, the caller's
/// members byte for byte.
pub(super) fn content(
    head: String,
    parameters: &[(Cow<'_, str>, Cow<'_, str>)],
    body: &[u8],
) -> Result<String, SignError> {
    let body = match body.trim_ascii() {
        b"" => b"{}",
        body => body,
    };
    let members = members(body).ok_or(SignError::NotAnObject)?;
    let named: HashSet<&str> = members.iter().map(|member| &*member.name).collect();
    let is_reserved = |name: &str| RESERVED.contains(&name);
    if named.iter().any(|name| is_reserved(name))
        || parameters.iter().any(|(name, _)| is_reserved(name))
    {
        return Err(SignError::Reserved);
    }
    let mut content = head;
    content.pop();
    for (name, value) in parameters {
        // The body takes precedence, as at WeChat without signing.
        if !named.contains(&**name) {
            let (name, value) = (Value::from(&**name), Value::from(&**value));
            // Writing into a String does not fail.
            let _ = write!(content, ",{name}:{value}");
        }
    }
    for member in &members {
        content.push(',');
        content.push_str(std::str::from_utf8(member.text).map_err(|_| SignError::NotAnObject)?);
    }
    content.push('}');
    Ok(content)
}

/// Member of a JSON object, with its name decoded and the rest as written.
pub(super) struct Member<'j> {
    pub(super) name: String,
    pub(super) value: &'j [u8],
    /// Name and value.
    pub(super) text: &'j [u8],
}

/// Splits a JSON object into its members; `None` if the text is no object. Numbers keep their
/// digits, which a detour through floating point would change.
pub(super) fn members(json: &[u8]) -> Option<Vec<Member<'_>>> {
    let json = json.trim_ascii();
    let mut rest = json.strip_prefix(b"{")?.trim_ascii_start();
    let mut members = Vec::new();
    if rest == b"}" {
        return Some(members);
    }
    loop {
        let (name, name_length) = next::<String>(rest)?;
        let behind_name = rest.get(name_length..)?.trim_ascii_start();
        let value = behind_name.strip_prefix(b":")?.trim_ascii_start();
        let (_, value_length) = next::<serde::de::IgnoredAny>(value)?;
        let behind = value.get(value_length..)?;
        members.push(Member {
            name,
            value: value.get(..value_length)?,
            text: rest.get(..rest.len() - behind.len())?,
        });
        let behind = behind.trim_ascii_start();
        match behind.split_first()? {
            (b',', next) => rest = next.trim_ascii_start(),
            (b'}', b"") => return Some(members),
            _ => return None,
        }
    }
}

/// Parses the JSON value at the beginning of the text; returns the value and its length.
fn next<'j, T: Deserialize<'j>>(text: &'j [u8]) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}
