//! Fields of text log lines, in the form that parsers of logfmt read: `message key=value
//! key="quoted value"`.
//!
//! The one place that decides about quotes in text lines of `tracing`. Values are whatever a caller,
//! WeChat or the system said, so none of them may end its pair or its line.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// Formatter of the fields of a text line.
pub(super) struct LogfmtFields;

/// Visitor that writes the pairs of one event.
struct PairWriter<'w> {
    writer: Writer<'w>,
    separator: &'static str,
    result: fmt::Result,
}

/// Name that `tracing` gives to the text of an event.
const MESSAGE: &str = "message";

impl<'w> FormatFields<'w> for LogfmtFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut pairs = PairWriter {
            writer,
            separator: "",
            result: Ok(()),
        };
        fields.record(&mut pairs);
        pairs.result
    }
}

impl PairWriter<'_> {
    fn push(&mut self, name: &str, value: &str) -> fmt::Result {
        let separator = std::mem::replace(&mut self.separator, " ");
        self.writer.write_str(separator)?;
        if name != MESSAGE {
            self.writer.write_str(name.trim_start_matches("r#"))?;
            self.writer.write_char('=')?;
            return write_value(&mut self.writer, value);
        }
        if is_words(value) {
            return self.writer.write_str(value);
        }
        // As bare words it would be read as pairs, or as no logfmt at all.
        self.writer.write_str("msg=")?;
        write_value(&mut self.writer, value)
    }
}

impl Visit for PairWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.push(field.name(), value);
        }
    }

    // Numbers come this way too, as do values that are formatted by `Display`.
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// True for a message that stays as it is: words without a sign that has a meaning in logfmt.
fn is_words(text: &str) -> bool {
    text.chars().all(|c| c == ' ' || is_bare(c))
}

fn write_value(writer: &mut Writer<'_>, value: &str) -> fmt::Result {
    if !value.is_empty() && value.chars().all(is_bare) {
        return writer.write_str(value);
    }
    writer.write_char('"')?;
    for c in value.chars() {
        match c {
            '"' => writer.write_str("\\\"")?,
            '\\' => writer.write_str("\\\\")?,
            '\n' => writer.write_str("\\n")?,
            '\r' => writer.write_str("\\r")?,
            '\t' => writer.write_str("\\t")?,
            c if is_unprintable(c) => write!(writer, "\\u{:04x}", u32::from(c))?,
            c => writer.write_char(c)?,
        }
    }
    writer.write_char('"')
}

fn is_bare(c: char) -> bool {
    !matches!(c, '"' | '\\' | '=') && !c.is_whitespace() && !is_unprintable(c)
}

/// True for characters that end a line, move the cursor or hide text where a log is looked at. All of
/// them fit into the four hex digits of an escape.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
