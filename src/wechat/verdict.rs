//! Scanner for the error code in an answer of WeChat.
//!
//! Errors arrive as HTTP 200 with any content type, so only the bytes count. The scanner looks at
//! the top level of a JSON object and at `base_resp` inside it, no deeper: business data may well
//! contain the text `errcode`. It accepts every form that WeChat's own clients have met (raw
//! control characters, string codes, any key order) and never recurses, allocates for ordinary
//! input, or fails. [`super::codes`] knows the meanings of the codes.

use std::{borrow::Cow, sync::LazyLock};

use memchr::memmem;

use super::address;

/// Error code of an answer, under the name of its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// `errcode`, which also reports refused tokens.
    Errcode(i64),
    /// `ret`, used by advertising and data interfaces for their own codes. Even there a refused
    /// token is reported as `errcode`.
    Ret(i64),
}

/// Code of an answer, with the text that explains it where the code alone does not say enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) code: Code,
    /// Read only for codes that can refuse the calling address.
    pub(crate) message: Option<String>,
}

/// Codes of an object and of the `base_resp` in it.
#[derive(Default)]
struct FoundCodes {
    errcode: Option<i64>,
    ret: Option<i64>,
    nested_errcode: Option<i64>,
    nested_ret: Option<i64>,
}

impl Code {
    /// Returns the number, whatever the name of its field.
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::Errcode(number) | Self::Ret(number) => number,
        }
    }
}

struct CodeScanner<'b> {
    rest: &'b [u8],
}

/// Level of the object that the scanner reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Top,
    /// Inside `base_resp`, where another `base_resp` is ordinary data.
    BaseResp,
}

/// Largest decoded body that is scanned, in bytes. WeChat's error bodies are a few hundred bytes
/// long.
pub(crate) const WINDOW: usize = 4096;
// Prepared once, because every answer is searched.
static ERRCODE: LazyLock<memmem::Finder> = LazyLock::new(|| memmem::Finder::new("errcode"));
static RET: LazyLock<memmem::Finder> = LazyLock::new(|| memmem::Finder::new("\"ret\""));

/// Returns true if a body with these first bytes can be a JSON object; `None` if they are all
/// blanks.
pub(crate) fn may_be_object(head: &[u8]) -> Option<bool> {
    let rest = skip_bom(head);
    rest.iter()
        .find(|byte| !byte.is_ascii_whitespace())
        .map(|byte| *byte == b'{')
}

/// Finds the code at the top level or in `base_resp`, as a number or a string; the last of several,
/// as JSON parsers do; `errcode` before `ret`. `None` if the bytes are no object or have no code.
pub(crate) fn code(body: &[u8]) -> Option<Code> {
    // An escaped key ("\u0065rrcode") is legal JSON, so a backslash rules out the shortcut.
    let may_name_one = ERRCODE.find(body).is_some()
        || RET.find(body).is_some()
        || memchr::memchr(b'\\', body).is_some();
    if !may_name_one {
        return None;
    }
    let mut scanner = CodeScanner {
        rest: skip_bom(body),
    };
    let found = scanner.object(Level::Top)?;
    found
        .errcode
        .or(found.nested_errcode)
        .map(Code::Errcode)
        .or_else(|| found.ret.or(found.nested_ret).map(Code::Ret))
}

/// Finds the code like [`code`], and the message that belongs to it.
pub(crate) fn find(body: &[u8]) -> Option<Finding> {
    let code = code(body)?;
    let message = match code {
        // The message is read for these few codes alone: every answer pays for a second reading.
        Code::Errcode(number) if address::is_refusal_anywhere(number) => message(body),
        _ => None,
    };
    Some(Finding { code, message })
}

/// Finds the code like [`code`], but only under `errcode`.
pub fn errcode(body: &[u8]) -> Option<i64> {
    match code(body)? {
        Code::Errcode(code) => Some(code),
        Code::Ret(_) => None,
    }
}

/// Extracts the text that explains the code: `errmsg`, or `err_msg` beside a `ret`, at the top
/// level or in `base_resp`. Reads the body a second time, so only for answers with a code.
fn message(body: &[u8]) -> Option<String> {
    let mut scanner = CodeScanner {
        rest: skip_bom(body),
    };
    scanner.message(Level::Top)
}

fn skip_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

impl<'b> CodeScanner<'b> {
    /// Reads an object; returns the codes of this level and those of `base_resp`. `None` if the
    /// text does not begin an object; codes before a truncation still count.
    fn object(&mut self, level: Level) -> Option<FoundCodes> {
        if !self.eat(b'{') {
            return None;
        }
        let mut found = FoundCodes::default();
        while let Some(key) = self.key() {
            match &*key {
                b"errcode" => match self.code() {
                    Some(code) => found.errcode = Some(code),
                    None => self.skip_value(),
                },
                b"ret" => match self.code() {
                    Some(code) => found.ret = Some(code),
                    None => self.skip_value(),
                },
                b"base_resp" if level == Level::Top && self.peek() == Some(b'{') => {
                    if let Some(nested) = self.object(Level::BaseResp) {
                        found.nested_errcode = nested.errcode.or(found.nested_errcode);
                        found.nested_ret = nested.ret.or(found.nested_ret);
                    }
                }
                _ => self.skip_value(),
            }
            if !self.eat(b',') {
                break;
            }
        }
        self.eat(b'}');
        Some(found)
    }

    /// Reads an object like [`Self::object`] and returns its message.
    fn message(&mut self, level: Level) -> Option<String> {
        if !self.eat(b'{') {
            return None;
        }
        let mut found = None;
        while let Some(key) = self.key() {
            let is_text = self.peek() == Some(b'"');
            match &*key {
                b"errmsg" | b"err_msg" if is_text => {
                    let text = unescape(self.string()?);
                    found = Some(String::from_utf8_lossy(&text).into_owned());
                }
                b"base_resp" if level == Level::Top && self.peek() == Some(b'{') => {
                    found = found.or(self.message(Level::BaseResp));
                }
                _ => self.skip_value(),
            }
            if !self.eat(b',') {
                break;
            }
        }
        self.eat(b'}');
        found
    }

    fn key(&mut self) -> Option<Cow<'b, [u8]>> {
        let raw = self.string()?;
        self.eat(b':').then(|| unescape(raw))
    }

    /// Reads a number, or a string that holds a number. Consumes nothing else.
    fn code(&mut self) -> Option<i64> {
        if self.peek() == Some(b'"') {
            let raw = self.string()?;
            return number(unescape(raw).trim_ascii());
        }
        let end = self
            .rest
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let code = number(digits)?;
        self.rest = rest;
        Some(code)
    }

    /// Reads a string and returns its raw inside, with the escapes.
    fn string(&mut self) -> Option<&'b [u8]> {
        if !self.eat(b'"') {
            return None;
        }
        let mut at = 0;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.rest.get(at..)?)?;
            if self.rest[at] == b'"' {
                let inside = &self.rest[..at];
                self.rest = &self.rest[at + 1..];
                return Some(inside);
            }
            at += 2;
        }
    }

    /// Skips a value of any kind and depth by counting brackets outside strings.
    fn skip_value(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => return,
                Some(b'"') => {
                    if self.string().is_none() {
                        self.rest = &[];
                        return;
                    }
                    if depth == 0 {
                        return;
                    }
                    continue;
                }
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']' | b',') if depth == 0 => return,
                Some(b'}' | b']') => {
                    depth -= 1;
                    if depth == 0 {
                        self.rest = &self.rest[1..];
                        return;
                    }
                }
                Some(_) => {}
            }
            self.rest = &self.rest[1..];
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.rest = &self.rest[1..];
        }
        is_next
    }
}

/// Parses an integer, also in the form `40001.0`; `None` on overflow.
fn number(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b == b'0') {
        return None;
    }
    whole.parse().ok()
}

/// Resolves `\uXXXX` of the ASCII range and the short escapes, as far as keys and codes need.
fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&kind, after)) = rest.split_first() else {
            break;
        };
        rest = after;
        let code = (kind == b'u')
            .then(|| rest.get(..4))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(ascii) => {
                out.push(ascii);
                rest = &rest[4..];
            }
            None => out.push(kind),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_shape_that_was_met_is_read() {
        let cases: [(&str, Option<i64>); 27] = [
            (
                r#"{"errcode":40001,"errmsg":"invalid credential, rid: 6aac0063-7ed08fb9-1250f724"}"#,
                Some(40001),
            ),
            (
                r#"{"ip_list":[],"errcode":40014,"errmsg":"invalid access_token"}"#,
                Some(40014),
            ),
            (r#"{"errcode":"42001"}"#, Some(42001)),
            (r#"{ "errmsg" : "a\"b,}" , "errcode" : -1 }"#, Some(-1)),
            (
                r#"{"base_resp":{"errcode":40001,"errmsg":"x"}}"#,
                Some(40001),
            ),
            (r#"{"base_resp":{"errcode":40001},"errcode":0}"#, Some(0)),
            (r#"{"a":{"b":[{"errcode":40001}]},"errcode":0}"#, Some(0)),
            (r#"{"errcode":1,"errcode":2}"#, Some(2)),
            (r#"{"\u0065rrcode":40001}"#, Some(40001)),
            (r#"{"errcode":40001.0}"#, Some(40001)),
            ("\u{feff} \n{\"errcode\":40001}", Some(40001)),
            ("{\"nick\":\"a\u{1}b\n\",\"errcode\":40001}", Some(40001)),
            (r#"{"errcode":40001"#, Some(40001)),
            (r#"{"errcode":40001,"#, Some(40001)),
            (r#"{"errcode":" 40001 "}"#, Some(40001)),
            (r#"{"resp_data":"{\"errcode\":40001}"}"#, None),
            (r#"{"a":{"errcode":40001}}"#, None),
            (r#"{"base_resp":{"base_resp":{"errcode":40001}}}"#, None),
            (r#"{"base_resp":[{"errcode":40001}]}"#, None),
            (r#"[{"errcode":40001}]"#, None),
            (r#"{"errcode":40001.5}"#, None),
            (r#"{"errcode":null,"x":1}"#, None),
            (r#"{"errcode":{"errcode":40001}}"#, None),
            (r#"{"errcode":99999999999999999999999}"#, None),
            (r#"{"Errcode":40001}"#, None),
            ("", None),
            ("\u{89}PNG errcode 40001", None),
        ];
        for (body, expected) in cases {
            assert_eq!(errcode(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_ret_is_read_where_no_errcode_stands() {
        for (body, expected) in [
            (
                r#"{"base_resp":{"err_msg":"quota","ret":45009}}"#,
                Some(Code::Ret(45009)),
            ),
            (r#"{"ret":2009,"err_msg":"no"}"#, Some(Code::Ret(2009))),
            (r#"{"ret":0,"list":[{"ret":7}]}"#, Some(Code::Ret(0))),
            (r#"{"ret":"1807"}"#, Some(Code::Ret(1807))),
            (
                r#"{"\u0072et":2009,"base_resp":{"ret":1}}"#,
                Some(Code::Ret(2009)),
            ),
            (
                r#"{"ret":2009,"base_resp":{"errcode":40001}}"#,
                Some(Code::Errcode(40001)),
            ),
            (
                r#"{"errcode":0,"ret":2009,"base_resp":{"ret":7}}"#,
                Some(Code::Errcode(0)),
            ),
            (r#"{"ret":{"errcode":1}}"#, None),
            (r#"{"ret":"OK"}"#, None),
            (r#"{"data":{"ret":2009}}"#, None),
            (r#"{"retry":2009,"secret":1}"#, None),
        ] {
            assert_eq!(code(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn the_message_is_read_from_both_levels() {
        for (body, expected) in [
            (
                r#"{"errcode":40164,"errmsg":"invalid ip 1.2.3.4, not in whitelist"}"#,
                Some("invalid ip 1.2.3.4, not in whitelist"),
            ),
            (r#"{"base_resp":{"ret":1,"err_msg":"a\"b"}}"#, Some("a\"b")),
            (r#"{"data":{"errmsg":"x"},"errcode":1}"#, None),
            (r#"{"errmsg":5}"#, None),
            (r#"{"errmsg":"cut"#, None),
            ("", None),
        ] {
            assert_eq!(message(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn the_message_comes_with_refusals_of_the_address_only() {
        let found = |body: &str| find(body.as_bytes()).unwrap();
        let refused = found(r#"{"errcode":40164,"errmsg":"invalid ip 1.2.3.4"}"#);
        assert_eq!(refused.code.number(), 40164);
        assert_eq!(refused.message.as_deref(), Some("invalid ip 1.2.3.4"));
        assert_eq!(found(r#"{"errcode":40001,"errmsg":"x"}"#).message, None);
        assert_eq!(found(r#"{"ret":40164,"err_msg":"x"}"#).message, None);
        assert_eq!(find(b"{}"), None);
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let body = format!("{}{}", "{\"a\":".repeat(100_000), "\"errcode\"");
        assert_eq!(errcode(body.as_bytes()), None);
        let body = format!(
            "{{\"a\":{}{},\"errcode\":40001}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(errcode(body.as_bytes()), Some(40001));
    }

    #[test]
    fn only_the_first_byte_says_whether_it_can_be_an_object() {
        assert_eq!(may_be_object(b" \r\n"), None);
        assert_eq!(may_be_object(b"\xef\xbb\xbf {"), Some(true));
        assert_eq!(may_be_object(b"\xff\xd8\xff"), Some(false));
        assert_eq!(may_be_object(b"[]"), Some(false));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(serde_json::Value::from),
            any::<bool>().prop_map(serde_json::Value::from),
            "[a-z\"\\\\{}\\[\\],:é]{0,12}".prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        let key = prop_oneof![
            Just("errcode".to_owned()),
            Just("base_resp".to_owned()),
            "[a-z\"\\\\]{0,6}"
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::vec((key.clone(), inner), 0..5)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    /// The same answer from a real JSON parser.
    fn by_parser(value: &serde_json::Value) -> Option<i64> {
        let code = |v: &serde_json::Value| match v.get("errcode")? {
            serde_json::Value::Number(n) => n.as_i64(),
            serde_json::Value::String(s) => s.trim_ascii().parse().ok(),
            _ => None,
        };
        let object = value.as_object()?;
        code(value).or_else(|| {
            object
                .get("base_resp")
                .filter(|b| b.is_object())
                .and_then(code)
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_real_parser_on_any_json(value in json()) {
            let compact = serde_json::to_string(&value).unwrap();
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(errcode(compact.as_bytes()), by_parser(&value), "{}", compact);
            prop_assert_eq!(errcode(pretty.as_bytes()), by_parser(&value));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}')], 0..200)) {
            let mut body = b"{\"errcode\"".to_vec();
            body.extend(bytes);
            let _ = errcode(&body);
            let _ = message(&body);
        }
    }
}
