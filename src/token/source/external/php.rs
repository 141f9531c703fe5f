//! Parser for the output of PHP's `serialize()`, as far as caches of access tokens use it. Pure.
//!
//! Reads strings, numbers, booleans, null and arrays; refuses objects and references. Source of the
//! format: the PHP manual, "serialize".

use serde_json::{Map, Number, Value};

/// Rest of the text that is still to be read.
struct PhpReader<'t>(&'t str);

/// Limit for arrays inside arrays; a cached token has one level.
const MAX_DEPTH: u32 = 8;

/// Parses a text that is exactly one serialised value. Arrays become objects.
pub(super) fn unserialize(text: &str) -> Option<Value> {
    let mut reader = PhpReader(text);
    let value = reader.value(MAX_DEPTH)?;
    reader.0.is_empty().then_some(value)
}

impl<'t> PhpReader<'t> {
    fn value(&mut self, depth: u32) -> Option<Value> {
        let (tag, rest) = self.0.split_at_checked(2)?;
        self.0 = rest;
        match tag {
            "N;" => Some(Value::Null),
            "b:" => self.until(';').map(|text| Value::Bool(text == "1")),
            "i:" => self.until(';')?.parse::<i64>().ok().map(Value::from),
            "d:" => self
                .until(';')?
                .parse()
                .ok()
                .and_then(Number::from_f64)
                .map(Value::Number),
            "s:" => {
                let text = self.string()?;
                self.skip(";")?;
                Some(Value::String(text.to_owned()))
            }
            "a:" => self.array(depth.checked_sub(1)?),
            _ => None,
        }
    }

    /// Reads `length:"text"`. The length counts bytes.
    fn string(&mut self) -> Option<&'t str> {
        let length: usize = self.until(':')?.parse().ok()?;
        self.skip("\"")?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        self.skip("\"")?;
        Some(text)
    }

    fn array(&mut self, depth: u32) -> Option<Value> {
        let count: usize = self.until(':')?.parse().ok()?;
        self.skip("{")?;
        // Not allocated by `count`, which the text may exaggerate.
        let mut entries = Map::new();
        for _ in 0..count {
            // Depth 0: a key cannot be an array.
            let key = match self.value(0)? {
                Value::String(key) => key,
                Value::Number(index) => index.to_string(),
                _ => return None,
            };
            entries.insert(key, self.value(depth)?);
        }
        self.skip("}")?;
        Some(Value::Object(entries))
    }

    fn until(&mut self, end: char) -> Option<&'t str> {
        let (text, rest) = self.0.split_once(end)?;
        self.0 = rest;
        Some(text)
    }

    fn skip(&mut self, expected: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_php_writes_is_read() {
        for (text, value) in [
            (r#"s:5:"81_ab";"#, json!("81_ab")),
            (r#"s:6:"店 "x";"#, json!("店 \"x")),
            ("i:-7200;", json!(-7200)),
            ("d:0.5;", json!(0.5)),
            ("b:1;", json!(true)),
            ("N;", json!(null)),
            (
                r#"a:2:{s:12:"access_token";s:5:"81_ab";s:10:"expires_in";i:7200;}"#,
                json!({"access_token": "81_ab", "expires_in": 7200}),
            ),
            (r#"a:1:{i:0;a:1:{s:1:"k";N;}}"#, json!({"0": {"k": null}})),
        ] {
            assert_eq!(unserialize(text), Some(value), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        for text in [
            "",
            "81_ab",
            r#"s:5:"81_ab""#,
            r#"s:5:"81_ab";x"#,
            r#"s:6:"81_ab";"#,
            r#"s:2:"店";"#,
            r#"s:99999999999999999999:"a";"#,
            r#"O:8:"stdClass":0:{}"#,
            "a:99999999:{",
            "a:1:{N;N;}",
            "a:1:{a:0:{}i:1;}",
            &"a:1:{i:0;".repeat(100),
        ] {
            assert_eq!(unserialize(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[sabidN:;{}\"0-9é]{0,40}") {
            let _ = unserialize(&text);
        }
    }
}
