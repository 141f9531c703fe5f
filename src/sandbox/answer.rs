//! Answer of an endpoint before any fault: status, content type, body.
//!
//! Errors are HTTP 200 with a JSON body. Wording, request ids and content types were observed at
//! the real API; the content type varies with the path, because clients must not depend on it.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use super::{clock::mix, settings::SandboxPlatform};

/// Answer of an endpoint. [`super::deliver`] writes it.
#[derive(Debug, Clone)]
pub(super) struct SandboxAnswer {
    pub(super) status: u16,
    pub(super) content_type: Cow<'static, str>,
    pub(super) headers: Vec<(Cow<'static, str>, String)>,
    pub(super) body: BodySource,
    /// Error code in the body, for the recorder.
    pub(super) errcode: Option<i64>,
    /// True if the call took effect.
    pub(super) executed: bool,
}

/// Body in memory, or generated while it is sent.
#[derive(Debug, Clone)]
pub(super) enum BodySource {
    Bytes(Bytes),
    /// Number of bytes from [`blob_piece`].
    Blob(u64),
}

/// Content type of the token endpoints.
pub(super) const JSON_ENCODING: &str = "application/json; encoding=utf-8";
/// Content type of `sns/*` and some errors.
pub(super) const TEXT: &str = "text/plain";
/// Content type of WeCom.
pub(super) const JSON_CHARSET: &str = "application/json; charset=UTF-8";
const JSON: &str = "application/json";

const BLOB_BLOCK: u64 = 64 << 10;

impl SandboxAnswer {
    pub(super) fn new(
        status: u16,
        content_type: impl Into<Cow<'static, str>>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            status,
            content_type: content_type.into(),
            headers: Vec::new(),
            body: BodySource::Bytes(body.into()),
            errcode: None,
            executed: false,
        }
    }

    /// Creates the answer of an executed call.
    pub(super) fn done(path: &str, body: impl Into<Bytes>) -> Self {
        Self {
            executed: true,
            errcode: Some(0),
            ..Self::new(200, content_type(path), body)
        }
    }

    /// Creates the answer of an executed call from a JSON value.
    pub(super) fn done_with(path: &str, value: &Value) -> Self {
        Self::done(path, value.to_string())
    }

    /// Creates the answer of a download.
    pub(super) fn binary(content_type: impl Into<Cow<'static, str>>, body: BodySource) -> Self {
        Self {
            body,
            executed: true,
            ..Self::new(200, content_type, Bytes::new())
        }
    }

    /// Creates an error in WeChat's usual JSON form.
    pub(super) fn error(
        code: i64,
        message: &str,
        content_type: impl Into<Cow<'static, str>>,
    ) -> Self {
        let message = Value::from(message);
        let body = format!("{{\"errcode\":{code},\"errmsg\":{message}}}");
        Self {
            errcode: Some(code),
            ..Self::new(200, content_type, body)
        }
    }

    /// Creates an answer without body, as from the HTTP server in front of WeChat's API.
    pub(super) fn empty(status: u16) -> Self {
        Self::new(status, "", Bytes::new())
    }

    pub(super) fn with_content_type(mut self, content_type: impl Into<Cow<'static, str>>) -> Self {
        self.content_type = content_type.into();
        self
    }

    pub(super) fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl BodySource {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob(length) => *length,
        }
    }

    /// Returns some bytes from `offset` on, at most `max`; none at the end.
    pub(super) fn piece(&self, offset: u64, max: u64) -> Bytes {
        let left = self.len().saturating_sub(offset).min(max);
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let end = start + usize::try_from(left).unwrap_or(0);
                bytes.slice(start..end)
            }
            Self::Blob(_) if left == 0 => Bytes::new(),
            Self::Blob(_) => blob_piece(offset, left),
        }
    }
}

/// Generates bytes of the endless pseudo-random sequence that `blob-N` media consist of, up to the
/// end of a 64 KiB block.
pub(super) fn blob_piece(offset: u64, max: u64) -> Bytes {
    let block = offset / BLOB_BLOCK;
    let end = ((block + 1) * BLOB_BLOCK).min(offset + max);
    let mut piece = Vec::with_capacity(usize::try_from(end - offset + 16).unwrap_or(0));
    // The sequence consists of words of eight bytes, each computed from its index alone.
    let first = offset / 8;
    for word in first..end.div_ceil(8) {
        piece.extend_from_slice(&mix(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    }
    let skip = usize::try_from(offset - first * 8).unwrap_or(0);
    let length = usize::try_from(end - offset).unwrap_or(0);
    Bytes::from(piece).slice(skip..skip + length)
}

/// Returns the content type of a path: one of those observed, always the same for the same path.
pub(super) fn content_type(path: &str) -> &'static str {
    if path.starts_with("/sns/") {
        return TEXT;
    }
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV-1a mix worst, so bits from 7 on choose.
    [JSON_ENCODING, JSON, TEXT][usize::try_from((hash >> 7) % 3).unwrap_or(0)]
}

/// Returns the text of an error without its request id. `ip` is the address that WeChat claims to
/// have seen.
pub(super) fn wording(code: i64, ip: &str) -> Cow<'static, str> {
    Cow::Borrowed(match code {
        -1 => "system error",
        40001 => {
            "invalid credential, access_token is invalid or not latest, could get access_token by \
             getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r"
        }
        40002 => "invalid grant_type",
        40003 => "invalid openid",
        40004 => "invalid media type",
        40007 => "invalid media_id",
        40013 => "invalid appid",
        40014 => "invalid access_token",
        40029 => "invalid code",
        40030 => "invalid refresh_token",
        40080 => "invalid suite_secret",
        40082 => "invalid suite_token",
        40083 => "invalid suite_id",
        40085 => "invalid suite_ticket",
        40066 => "invalid url",
        40125 => "invalid appsecret",
        40163 => "code been used",
        40164 => return format!("invalid ip {ip} ipv6 ::ffff:{ip}, not in whitelist").into(),
        40169 => "invalid length for scene, or the data is not json string",
        40231 => "missing Wechatmp-TimeStamp",
        40232 => "missing Wechatmp-Signature",
        40233 => "missing Wechatmp-Appid",
        40234 => "invalid signature",
        40235 => "invalid encrypt",
        40237 => "appid not match",
        40240 => "expired Wechatmp-TimeStamp",
        40243 => "AppSecret is frozen",
        41001 => "access_token missing",
        41002 => "appid missing",
        41003 => "refresh_token missing",
        41004 => "appsecret missing",
        41005 => "media data missing",
        41008 => "missing code",
        41022 => "missing suite_token",
        41030 => "invalid page",
        42001 => "access_token expired",
        43002 => "require POST method",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit, must slower, retry next minute",
        45035 => "access clientip is not registered, not in ip-white-list",
        47001 => "data format error",
        48001 => "api unauthorized",
        48006 => "forbid to clear quota because of reaching the limit",
        60020 => "not allow to access from your ip",
        61004 => return format!("access clientip is not registered requestIP: {ip}").into(),
        61006 => "component ticket is invalid",
        61011 => "invalid component",
        61014 => "must use component token for component api",
        61015 => "must use api token for api",
        76001 => "rid not found",
        76002 => "rid is error",
        76003 => "could not query this rid with this token",
        93000 => "invalid webhook url",
        _ => "error",
    })
}

/// Returns the complete text of an error: WeChat adds a request id (where one was observed), WeCom
/// a hint.
pub(super) fn message(platform: SandboxPlatform, code: i64, ip: &str, rid: &str) -> String {
    let text = wording(code, ip);
    match (platform, code) {
        (SandboxPlatform::Wecom, _) => format!(
            "{text}, hint: [{rid}], from ip: {ip}, more info at https://open.work.weixin.qq.com/devtool/query?e={code}"
        ),
        (SandboxPlatform::Wechat, -1 | 40007 | 40014) => text.into_owned(),
        (SandboxPlatform::Wechat, _) => format!("{text} rid: {rid}"),
    }
}

/// Returns the text of an error of `sns/*`: a comma before the request id, and no mention of stable
/// tokens.
pub(super) fn sns_message(code: i64, rid: &str) -> String {
    match code {
        40001 => format!("invalid credential, access_token is invalid or not latest, rid: {rid}"),
        _ => format!("{}, rid: {rid}", wording(code, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_the_same_however_it_is_cut() {
        let whole = BodySource::Blob(200_000);
        let mut joined = Vec::new();
        while joined.len() < 200_000 {
            joined.extend_from_slice(&whole.piece(joined.len() as u64, 7_777));
        }
        assert_eq!(joined.len(), 200_000);
        let piece = whole.piece(65_530, 100);
        assert_eq!(piece.len(), 6, "a piece does not cross a block");
        assert_eq!(piece[..], joined[65_530..65_536]);
        assert!(whole.piece(200_000, 5).is_empty());
    }

    #[test]
    fn content_types_vary_over_paths_but_not_over_time() {
        let paths = [
            "/cgi-bin/user/info",
            "/cgi-bin/menu/get",
            "/wxa/a",
            "/wxa/b",
            "/wxa/c",
            "/wxa/d",
        ];
        let kinds: std::collections::HashSet<_> = paths.map(content_type).into_iter().collect();
        assert!(kinds.len() > 1);
        assert_eq!(content_type("/wxa/a"), content_type("/wxa/a"));
    }
}
