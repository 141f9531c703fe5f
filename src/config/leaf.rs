//! Types of the values of keys: their form in the file, in the schema and in Rust.
//!
//! Grammars and ranges are checked here; rules over more than one key are in `resolve`.

use std::{borrow::Cow, net::IpAddr, path::PathBuf, time::Duration};

use hyper::header::HeaderName;
use percent_encoding::percent_decode_str;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    problem::KeyPlace,
    read::{FromNode, TreeReader},
    tree::{Node, Value},
};
use crate::{
    base::{AccountName, Secret, units},
    net::{
        address::{BaseUrl, ListenAddr, NetworkSet, split_port},
        egress::EgressProxy,
    },
    proxy::{headers, settings::PathPattern},
};

/// Duration between two bounds in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct BoundedDuration<const MIN: u64, const MAX: u64>(pub(super) Duration);

/// Number of bytes, at least `MIN` and at most [`MAX_SIZE`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteSize<const MIN: u64>(pub(super) u64);

/// Whole number between two bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct BoundedInteger<const MIN: u64, const MAX: u64>(pub(super) usize);

/// Part of the number that another key sets: a percentage of that number, or a number of its own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Portion {
    Percent(usize),
    Number(usize),
}

/// CIDR, address, `loopback` or `private`; checked, and kept as written.
#[derive(Debug)]
pub(super) struct Network(pub(super) String);

/// Host name in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostName(pub(super) String);

/// Name of a header of callers that may go on to WeChat.
#[derive(Debug)]
pub(super) struct PassedHeader(pub(super) HeaderName);

/// Appid or corpid.
#[derive(Debug)]
pub(super) struct AppId(pub(super) String);

/// DNS or URI name of a client certificate, in lower case.
#[derive(Debug)]
pub(super) struct CertName(pub(super) String);

/// Text that may be a secret, with an opaque `Debug`.
pub(super) struct Plain(pub(super) String);

/// Upper bound of what is counted in descriptors and buffers; a semaphore panics far beyond it.
pub(super) const MILLION: u64 = 1_000_000;
/// Upper bound of sizes in bytes, 1024 GiB, so that sums of them cannot overflow.
const MAX_SIZE: u64 = 1 << 40;

/// Reason why a text is no host name.
#[derive(Debug, thiserror::Error)]
#[error("expected a host name such as \"shop.wx.internal\", without scheme, port or path")]
pub(super) struct HostNameError;

/// Reason why a text is no name of a client certificate.
#[derive(Debug, thiserror::Error)]
enum CertNameError {
    #[error("there are no wildcards here: write the name as it stands in the caller's certificate")]
    Wildcard,
    #[error("callers are known by DNS or URI names of their certificates; for an address use from")]
    Address,
    #[error(
        "expected a name of the caller's certificate, such as \"crm.internal\" or \"spiffe://internal/crm\""
    )]
    Form,
}

/// Reason why a text is no address of an egress proxy.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected \"http://host:port\" or \"http://user:password@host:port\" (plain HTTP to the proxy)"
)]
struct EgressProxyError;

/// One second in milliseconds.
pub(super) const SECOND: u64 = 1_000;
/// One minute in milliseconds.
pub(super) const MINUTE: u64 = 60 * SECOND;
/// One hour in milliseconds.
pub(super) const HOUR: u64 = 60 * MINUTE;

impl HostName {
    /// Reads a host name: labels of at most 63 letters, digits, `-` and `_`, at most 253 bytes in
    /// all (RFC 1035, with `_` as many internal names have it). Accepts IPv4 addresses too.
    pub(super) fn parse(text: &str) -> Result<Self, HostNameError> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(is_label) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(HostNameError)
    }
}

impl CertName {
    fn parse(text: &str) -> Result<Self, CertNameError> {
        if text.contains('*') {
            return Err(CertNameError::Wildcard);
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(CertNameError::Address);
        }
        if let Some((scheme, rest)) = text.split_once(':') {
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
            let fits = is_scheme && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic());
            return if fits {
                Ok(Self(text.to_ascii_lowercase()))
            } else {
                Err(CertNameError::Form)
            };
        }
        HostName::parse(text)
            .map(|name| Self(name.0))
            .map_err(|HostNameError| CertNameError::Form)
    }
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plain(…)")
    }
}

/// Implements [`FromNode`] and [`JsonSchema`] for types that are text in the file.
macro_rules! texts {
    ($($type:ty: $parse:expr, $schema:tt;)*) => {$(
        impl FromNode for $type {
            fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
                reader.text(node, place, $parse)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

texts! {
    AccountName: |text| Self::new(text).ok_or("expected 1 to 64 of the characters A-Z, a-z, 0-9, _ and -"),
        { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" };
    AppId: |text| AccountName::new(text).map(|id| Self(id.to_string())).ok_or(
            "expected 1 to 64 of the characters A-Z, a-z, 0-9, _ and -, such as \"wx0123456789abcdef\""),
        { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" };
    HostName: Self::parse,
        { "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,253}$" };
    PassedHeader: passed_header,
        { "type": "string", "pattern": "^[!#$%&'+.^_`|~0-9A-Za-z-]+$", "examples": ["X-Tenant"] };
    CertName: Self::parse,
        { "type": "string", "pattern": "^[!-)+-~]+$", "examples": ["crm.internal", "spiffe://internal/crm"] };
    PathPattern: Self::parse,
        { "type": "string", "pattern": "^(/([A-Za-z0-9_.~-]+|\\*))*/([A-Za-z0-9_.~-]+|\\*\\*?)$" };
    Network: |text| NetworkSet::default().add(text).map(|()| Self(text.to_owned())),
        { "type": "string", "examples": ["loopback", "private", "10.0.0.0/8"] };
    BaseUrl: str::parse::<Self>,
        { "type": "string", "pattern": "^https?://[^/?#@]+/?$" };
    EgressProxy: egress_proxy,
        { "type": "string", "pattern": "^http://[^/?#]+/?$" };
    Plain: |text| Ok::<_, &str>(Self(text.to_owned())),
        { "type": "string" };
}

impl FromNode for String {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        reader.text(node, place, |text| Ok::<_, &str>(text.to_owned()))
    }
}

impl FromNode for IpAddr {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        reader.text(node, place, |text| {
            text.parse()
                .map_err(|_| "expected an IP address such as \"10.0.0.5\"")
        })
    }
}

impl FromNode for PathBuf {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let base = reader.base_dir;
        reader.text(node, place, |text| match text {
            "" => Err("expected a path; it is empty"),
            _ if text.contains('\0') => Err("expected a path; it holds a null byte"),
            _ => Ok(base.join(text)),
        })
    }
}

impl FromNode for ListenAddr {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let base = reader.base_dir;
        reader.text(node, place, |text| {
            if !text.starts_with("unix:") && text.contains(|c: char| c.is_whitespace() || c == '/')
            {
                let message = "expected \"host:port\" or \"unix:/path\", without scheme or path";
                return Err(message.to_owned());
            }
            match text.parse::<Self>() {
                Ok(Self::Unix(path)) => Ok(Self::Unix(base.join(path))),
                Ok(Self::Tcp(address)) => Ok(Self::Tcp(address)),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

impl JsonSchema for ListenAddr {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ListenAddr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(unix:.+|.+:[0-9]{1,5})$" })
    }
}

impl<const MIN: u64, const MAX: u64> FromNode for BoundedDuration<MIN, MAX> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        // A message of its own instead of "expected text in quotes": the unit is the mistake.
        if matches!(node.value, Value::Integer(_)) {
            reader.report.problem(
                place,
                "the unit is missing: write text with a unit, such as \"15s\"",
            );
            return None;
        }
        let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
        reader.text(node, place, |text| match units::parse_duration(text) {
            Ok(time) if time < min || time > max => {
                let min = if MIN == 0 {
                    "0s".to_owned()
                } else {
                    units::format_duration(min)
                };
                Err(format!(
                    "must be between {min} and {}",
                    units::format_duration(max)
                ))
            }
            Ok(time) => Ok(Self(time)),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for BoundedDuration<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "BoundedDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" })
    }
}

impl<const MIN: u64> FromNode for ByteSize<MIN> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let parse = |text: &str| match units::parse_size(text) {
            Ok(size) if size < MIN => Err(format!("must be at least {MIN}B")),
            Ok(size) if size > MAX_SIZE => Err("must be at most 1024GiB".to_owned()),
            Ok(size) => Ok(Self(size)),
            Err(error) => Err(error.to_string()),
        };
        match &node.value {
            // Zero needs no unit.
            Value::Integer(Some(0)) => parse("0")
                .map_err(|message| reader.report.problem(place, message))
                .ok(),
            Value::Integer(_) => {
                reader.report.problem(
                    place,
                    "the unit is missing: write text with a unit, such as \"1MiB\"",
                );
                None
            }
            _ => reader.text(node, place, parse),
        }
    }
}

impl<const MIN: u64> JsonSchema for ByteSize<MIN> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text =
            json_schema!({ "type": "string", "pattern": "^(0|[0-9]+ *(B|KiB|MiB|GiB|KB|MB|GB))$" });
        if MIN > 0 {
            text
        } else {
            json_schema!({ "anyOf": [text, { "const": 0 }] })
        }
    }
}

impl FromNode for bool {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        match &node.value {
            Value::Boolean(value) => Some(*value),
            Value::Text(_) => reader.text(node, place, |text| {
                let parsed = text.trim().parse();
                parsed.map_err(|_| "expected true or false")
            }),
            _ => {
                reader.mismatch(node, place, "true or false");
                None
            }
        }
    }
}

impl<const MIN: u64, const MAX: u64> FromNode for BoundedInteger<MIN, MAX> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let number = match &node.value {
            Value::Integer(number) => *number,
            Value::Text(text) if is_integer(text.trim()) => text.trim().parse().ok(),
            Value::Text(_) => {
                reader.report.problem(place, "expected a whole number");
                return None;
            }
            _ => {
                reader.mismatch(node, place, "a whole number");
                return None;
            }
        };
        let Some(number) = number else {
            reader.report.problem(place, "the number is too large");
            return None;
        };
        let inside = u64::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number));
        // A number within the bounds may still exceed a usize of 32 bits.
        let inside = inside.and_then(|number| usize::try_from(number).ok());
        if inside.is_none() {
            reader
                .report
                .problem(place, format!("must be between {MIN} and {MAX}"));
        }
        inside.map(Self)
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for BoundedInteger<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "BoundedInteger".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl Portion {
    /// This part of the whole, rounded up, so that it is never nothing.
    pub(super) fn of(self, whole: usize) -> usize {
        match self {
            // Both factors are bounded where they are read.
            Self::Percent(percent) => (whole * percent).div_ceil(100),
            Self::Number(number) => number,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "expected a percentage from \"1%\" to \"100%\", or a whole number";
        let (digits, max, make) = match text.trim().strip_suffix('%') {
            Some(digits) => (digits.trim_end(), 100, Self::Percent as fn(usize) -> Self),
            None => (text.trim(), MILLION, Self::Number as fn(usize) -> Self),
        };
        let number = digits.parse().map_err(|_| FORM.to_owned())?;
        if (1..=max).contains(&number) {
            usize::try_from(number)
                .map(make)
                .map_err(|_| FORM.to_owned())
        } else if max == 100 {
            Err(FORM.to_owned())
        } else {
            Err(format!("must be between 1 and {max}, or a percentage"))
        }
    }
}

impl FromNode for Portion {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        match &node.value {
            Value::Integer(number) => {
                let text = number.map_or_else(|| u64::MAX.to_string(), |number| number.to_string());
                Self::parse(&text)
                    .map_err(|message| reader.report.problem(place, message))
                    .ok()
            }
            _ => reader.text(node, place, Self::parse),
        }
    }
}

impl JsonSchema for Portion {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Portion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "pattern": "^([1-9][0-9]?|100) *%$" },
            { "type": "integer", "minimum": 1, "maximum": MILLION },
        ] })
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Reads the address of an egress proxy, with or without credentials.
fn passed_header(text: &str) -> Result<PassedHeader, &'static str> {
    // An asterisk is a letter like any other in names of headers, but is meant as a pattern here.
    if text.contains('*') {
        return Err("there are no patterns here: write each name out");
    }
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(
        |_| "expected the name of a header, such as \"X-Tenant\", without colon and value",
    )?;
    match headers::never_passes(name.as_str()) {
        Some(reason) => Err(reason),
        None => Ok(PassedHeader(name)),
    }
}

fn egress_proxy(text: &str) -> Result<EgressProxy, EgressProxyError> {
    let rest = text.strip_prefix("http://").ok_or(EgressProxyError)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (credentials, authority) = rest
        .rsplit_once('@')
        .map_or((None, rest), |(credentials, authority)| {
            (Some(credentials), authority)
        });
    let (host, port) = split_port(authority).ok_or(EgressProxyError)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(ip) => ip
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| EgressProxyError)?
            .to_string(),
        None => HostName::parse(host).map_err(|_| EgressProxyError)?.0,
    };
    let port = port
        .and_then(|port| port.parse().ok())
        .filter(|port| *port != 0)
        .ok_or(EgressProxyError)?;
    Ok(EgressProxy {
        host,
        port,
        credentials: credentials.map(proxy_credentials).transpose()?,
    })
}

/// Reads `user:password`, percent-encoded as in any URL.
fn proxy_credentials(text: &str) -> Result<Secret, EgressProxyError> {
    let (user, password) = text.split_once(':').ok_or(EgressProxyError)?;
    let decoded = |text| {
        percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| EgressProxyError)
    };
    let (user, password) = (decoded(user)?, decoded(password)?);
    // Basic authentication (RFC 7617) ends the user at the first colon, so an encoded colon in the
    // user would move the border.
    if user.contains(':') || user.contains(char::is_control) || password.contains(char::is_control)
    {
        return Err(EgressProxyError);
    }
    Ok(Secret::new(format!("{user}:{password}")))
}
