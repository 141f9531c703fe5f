use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use crate::telemetry::{format::Format, logging, output::Output};

// Also used by the tests of the whole program; shares no line with the formatter.
#[allow(unreachable_pub, reason = "public where the other tests have it")]
#[path = "../../../tests/it/support/logfmt.rs"]
mod parser;

/// One event with hostile text in each kind of field.
fn lines(format: Format, value: &str) -> String {
    let output = Output::memory();
    let guard = logging::init_here(format, None, output.clone()).unwrap();
    let error = std::io::Error::other(value.to_owned());
    tracing::warn!(
        text = value,
        shown = %value,
        %error,
        number = -7_i64,
        share = 0.5_f64,
        flag = true,
        r#type = "jsapi",
        "{value}"
    );
    drop(guard);
    output.contents()
}

/// Checks that each value is read as it was given, by a parser of logfmt and by one of JSON.
fn check(value: &str) -> Result<(), TestCaseError> {
    let text = lines(Format::Text, value);
    prop_assert_eq!(text.lines().count(), 1, "{:?}", text);
    let pairs = parser::parse(text.trim_end_matches('\n'))
        .map_err(|error| TestCaseError::fail(format!("{error}: {text:?}")))?;
    let json: BTreeMap<String, Value> = serde_json::from_str(&lines(Format::Json, value)).unwrap();
    prop_assert_eq!(json["message"].as_str(), Some(value));
    for name in ["text", "shown", "error"] {
        prop_assert_eq!(pairs.get(name).map(String::as_str), Some(value), "{}", name);
        prop_assert_eq!(json[name].as_str(), Some(value), "{}", name);
    }
    for (name, expected) in [
        ("number", "-7"),
        ("share", "0.5"),
        ("flag", "true"),
        ("type", "jsapi"),
    ] {
        prop_assert_eq!(&pairs[name], expected);
    }
    if let Some(message) = pairs.get("msg") {
        prop_assert_eq!(message, value);
    }
    Ok(())
}

#[test]
fn values_that_meant_trouble_are_read_as_they_were_given() {
    for value in [
        "access token",
        "cannot reach 203.0.113.9:443: refused",
        "\"/cgi-bin/clear_quota\"",
        "may = [\"token\"]",
        "a\r\n2026-11-22T20:37:20Z ERROR forged: line=1",
        "C:\\new\\table",
        "\u{1b}[31mred\u{2028}\u{202e}\u{feff}\u{85}\u{0}",
        "",
        " ",
        "=",
        "\\",
        "中文，“引号” 🎫",
    ] {
        check(value).unwrap_or_else(|error| panic!("{value:?}: {error}"));
    }
}

#[test]
fn plain_values_and_messages_have_no_quotes() {
    let text = lines(Format::Text, "plain");
    assert!(
        text.contains(": plain text=plain shown=plain error=plain "),
        "{text}"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_as_it_was_given(value in "\\PC{0,40}|.{0,40}|[ =\"\\\\\\n\\r\\ta\\[]{0,12}") {
        check(&value)?;
    }
}
