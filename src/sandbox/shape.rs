//! Forms of an error: every form in which WeChat's errors were observed, and some that may yet
//! come.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    answer::{BodySource, JSON_CHARSET, JSON_ENCODING, SandboxAnswer, message},
    settings::SandboxPlatform,
    state::overwritten_code,
};

/// Error and its form.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorShape {
    /// Error code. Default: that of an overwritten token, 40001 or at WeCom 40014.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// Error text. Default: WeChat's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Address that WeChat claims to have seen (40164, 61004, 60020). Default: 203.0.113.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// JSON around the code.
    #[serde(default)]
    pub shape: JsonShape,
    /// Content type. Default: that of the token endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Text before the JSON: spaces, line ends, a byte order mark.
    #[serde(default)]
    pub prefix: String,
    /// Length of the JSON in bytes, reached with a field `padding`.
    #[serde(default)]
    pub pad_to: usize,
    /// True to put the padding before the errcode, not behind it.
    #[serde(default)]
    pub pad_first: bool,
    /// True to compress with gzip, with `Content-Encoding`.
    #[serde(default)]
    pub gzip: bool,
    /// Size of chunks in bytes, instead of a length; 1 is byte by byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunked: Option<u64>,
}

/// JSON around an errcode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JsonShape {
    /// `{"errcode":40001,"errmsg":"…"}`
    #[default]
    Plain,
    /// `{"errmsg":"…","errcode":40001}`
    CodeLast,
    /// `{"errcode":"40001","errmsg":"…"}`
    StringCode,
    /// `{"errcode":40001.0,"errmsg":"…"}`
    FloatCode,
    /// `{"base_resp":{"errcode":40001,"errmsg":"…"}}`
    BaseResp,
    /// `{"ip_list":[],"errcode":40014,"errmsg":"…"}`
    AfterData,
    /// `{"\u0065rrcode":40001,…}`
    EscapedKey,
    /// Line ends and spaces wherever JSON allows them.
    Spaced,
    /// Raw control characters in the message, which JSON forbids.
    ControlCharacters,
    /// Success with the error nested deeper; must not be read as an error.
    Nested,
    /// Success with the error as text in a string; must not be read as an error.
    Quoted,
    /// The same key twice: first success, then the error.
    Twice,
}

/// Default of `ip`, from a range reserved for documentation.
pub(super) const SEEN_IP: &str = "203.0.113.9";

impl ErrorShape {
    /// Creates an error with this code in the usual form.
    pub fn new(code: i64) -> Self {
        Self {
            code: Some(code),
            ..Self::default()
        }
    }

    pub(super) fn code(&self, platform: SandboxPlatform) -> i64 {
        self.code.unwrap_or_else(|| overwritten_code(platform))
    }

    pub(super) fn answer(&self, platform: SandboxPlatform, rid: &str) -> SandboxAnswer {
        let code = self.code(platform);
        let ip = self.ip.as_deref().unwrap_or(SEEN_IP);
        let text = self
            .message
            .clone()
            .unwrap_or_else(|| message(platform, code, ip, rid));
        let mut json = self.shape.write(code, &text);
        self.pad(&mut json);
        let usual = if platform == SandboxPlatform::Wecom {
            JSON_CHARSET
        } else {
            JSON_ENCODING
        };
        let content_type = self
            .content_type
            .clone()
            .unwrap_or_else(|| usual.to_owned());
        let body = format!("{}{json}", self.prefix).into_bytes();
        let answer = SandboxAnswer {
            errcode: Some(code),
            ..SandboxAnswer::new(200, content_type, Bytes::new())
        };
        if self.gzip {
            return compressed(answer, &body, body.len());
        }
        SandboxAnswer {
            body: BodySource::Bytes(body.into()),
            ..answer
        }
    }

    fn pad(&self, json: &mut String) {
        const FRAME: usize = r#""padding":"","#.len();
        let missing = self.pad_to.saturating_sub(json.len() + FRAME);
        if missing > 0 {
            let padding = format!("\"padding\":\"{}\"", "x".repeat(missing));
            if self.pad_first {
                json.insert_str(1, &format!("{padding},"));
            } else {
                json.insert_str(json.len() - 1, &format!(",{padding}"));
            }
        }
    }
}

impl JsonShape {
    fn write(self, code: i64, text: &str) -> String {
        let quoted = Value::from(text).to_string();
        match self {
            Self::Plain => format!(r#"{{"errcode":{code},"errmsg":{quoted}}}"#),
            Self::CodeLast => format!(r#"{{"errmsg":{quoted},"errcode":{code}}}"#),
            Self::StringCode => format!(r#"{{"errcode":"{code}","errmsg":{quoted}}}"#),
            Self::FloatCode => format!(r#"{{"errcode":{code}.0,"errmsg":{quoted}}}"#),
            Self::BaseResp => format!(r#"{{"base_resp":{{"errcode":{code},"errmsg":{quoted}}}}}"#),
            Self::AfterData => format!(r#"{{"ip_list":[],"errcode":{code},"errmsg":{quoted}}}"#),
            Self::EscapedKey => format!(r#"{{"\u0065rrcode":{code},"errmsg":{quoted}}}"#),
            Self::Spaced => {
                format!("{{\r\n\t\"errcode\" : {code} ,\n  \"errmsg\" :\t{quoted}\n }}")
            }
            Self::ControlCharacters => {
                format!("{{\"errmsg\":\"a\u{1}\tb\n{text}\",\"errcode\":{code}}}")
            }
            Self::Nested => {
                format!(
                    r#"{{"errcode":0,"errmsg":"ok","data":{{"errcode":{code},"errmsg":{quoted}}}}}"#
                )
            }
            Self::Quoted => {
                let inner = Value::from(Self::Plain.write(code, text));
                format!(r#"{{"errcode":0,"errmsg":"ok","resp_data":{inner}}}"#)
            }
            Self::Twice => format!(r#"{{"errcode":0,"errcode":{code},"errmsg":{quoted}}}"#),
        }
    }
}

/// Compresses `text`, padded with spaces to `size` bytes, without holding the spaces in memory.
pub(super) fn compressed(answer: SandboxAnswer, text: &[u8], size: usize) -> SandboxAnswer {
    const SPACES: [u8; 4096] = [b' '; 4096];
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(text);
    let mut missing = size.saturating_sub(text.len());
    while missing > 0 {
        let step = missing.min(SPACES.len());
        let _ = encoder.write_all(&SPACES[..step]);
        missing -= step;
    }
    let body = BodySource::Bytes(encoder.finish().unwrap_or_default().into());
    SandboxAnswer { body, ..answer }.with_header("Content-Encoding", "gzip")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn body(shape: &ErrorShape) -> Vec<u8> {
        shape
            .answer(SandboxPlatform::Wechat, "RID")
            .body
            .piece(0, u64::MAX)
            .to_vec()
    }

    #[test]
    fn shapes_are_json_with_the_code_where_they_say() {
        let shaped = |shape| {
            let text = body(&ErrorShape {
                shape,
                ..ErrorShape::new(42001)
            });
            serde_json::from_slice::<Value>(&text).unwrap()
        };
        assert_eq!(shaped(JsonShape::Plain)["errcode"], 42001);
        assert_eq!(shaped(JsonShape::StringCode)["errcode"], "42001");
        assert_eq!(shaped(JsonShape::BaseResp)["base_resp"]["errcode"], 42001);
        assert_eq!(shaped(JsonShape::EscapedKey)["errcode"], 42001);
        assert_eq!(shaped(JsonShape::Twice)["errcode"], 42001);
        assert_eq!(shaped(JsonShape::Nested)["errcode"], 0);
        assert_eq!(shaped(JsonShape::Quoted)["errcode"], 0);
        assert!(
            body(&ErrorShape {
                shape: JsonShape::CodeLast,
                ..ErrorShape::new(1)
            })
            .ends_with(b"\"errcode\":1}")
        );
    }

    #[test]
    fn padding_reaches_the_size_before_or_behind_the_code() {
        for pad_first in [false, true] {
            let text = body(&ErrorShape {
                pad_to: 5000,
                pad_first,
                ..ErrorShape::new(40001)
            });
            assert_eq!(text.len(), 5000);
            assert_eq!(text.starts_with(b"{\"padding\""), pad_first);
            assert_eq!(
                serde_json::from_slice::<Value>(&text).unwrap()["errcode"],
                40001
            );
        }
    }

    #[test]
    fn a_compressed_error_unpacks_to_itself() {
        let packed = body(&ErrorShape {
            gzip: true,
            ..ErrorShape::new(40014)
        });
        let mut text = String::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, r#"{"errcode":40014,"errmsg":"invalid access_token"}"#);
    }
}
