//! Tree of the values of a configuration with their origins: lines of the file, environment
//! variables.
//!
//! Reads TOML. The keys and their meaning are not known here.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Report, ValueOrigin};

/// Value and its origin. Without `Debug`, since the value may be a secret.
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: ValueOrigin,
}

/// Value of TOML, or text from the environment.
pub(super) enum Value {
    String(String),
    /// Value from the environment. Its type depends on the key.
    Text(String),
    /// `None` for a number that does not fit 64 bits.
    Integer(Option<i64>),
    Boolean(bool),
    Float,
    Datetime,
    Array(Vec<Node>),
    Table(Vec<TableEntry>),
}

/// Key of a table with its value. `origin` is that of the key; the node has the origin of the
/// value.
pub(super) struct TableEntry {
    pub(super) key: String,
    pub(super) origin: ValueOrigin,
    pub(super) node: Node,
}

impl Node {
    /// Reads a whole file. `None` after a syntax error; the first one is reported, since a missing
    /// quote or bracket makes the parser find fault with all that follows.
    pub(super) fn from_file(text: &str, name: &Arc<str>, report: &mut Report) -> Option<Self> {
        let lines = LineIndex::of(text);
        let origin = |span: Range<usize>| ValueOrigin::File {
            name: Arc::clone(name),
            line: Some(lines.line(span.start)),
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        let first = errors
            .iter()
            .min_by_key(|error| error.span().map_or(usize::MAX, |span| span.start));
        if let Some(error) = first {
            let mut place = report.whole();
            let start = error.span().map_or(0, |span| span.start);
            place.origin = origin(start..start);
            report.problem(
                &place,
                format!("this is not TOML: {}", syntax_fault(text, start, error)),
            );
        }
        errors.is_empty().then(|| {
            let whole = report.whole().origin;
            Self {
                value: table(root.into_inner(), &origin),
                origin: whole,
            }
        })
    }

    /// Reads a value in TOML syntax out of an environment variable.
    pub(super) fn from_variable(text: &str, origin: &ValueOrigin) -> Option<Self> {
        let value = DeValue::parse(text).ok()?;
        Some(node(value, &|_| origin.clone()))
    }

    /// Name of this kind of value in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::String(_) | Value::Text(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Boolean(_) => "true or false",
            Value::Float => "a fraction",
            Value::Datetime => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Describes a syntax error at `offset` in one line, with its column and without the text there,
/// which may be a secret.
fn syntax_fault(text: &str, offset: usize, error: &toml::de::Error) -> String {
    let before = text.get(..offset).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let rest = text.get(offset..).unwrap_or_default();
    // A key or value may begin well before the character that makes it none.
    let word = rest.split(['\n', '"', '\'']).next().unwrap_or_default();
    let foreign = word
        .char_indices()
        .find_map(|(at, found)| Some((at, found, ascii_for(found)?)));
    if let Some((at, found, wanted)) = foreign {
        let column = line.chars().count() + word[..at].chars().count() + 1;
        return format!(
            "column {column} has the character {found} (U+{:04X}) of a Chinese keyboard: write {wanted} instead",
            u32::from(found)
        );
    }
    // The parser names one kind of strings where all kinds are possible.
    let message = error
        .message()
        .trim_end_matches(", expected literal string");
    format!("{message} (column {})", line.chars().count() + 1)
}

/// Character of TOML's syntax in whose place an input method writes `found`.
fn ascii_for(found: char) -> Option<&'static str> {
    Some(match found {
        '\u{201c}' | '\u{201d}' | '\u{ff02}' | '\u{300c}' | '\u{300d}' => "a straight quote (\")",
        '\u{2018}' | '\u{2019}' | '\u{ff07}' => "a straight quote (')",
        '\u{ff1d}' | '\u{ff1a}' => "=",
        '\u{ff0c}' | '\u{3001}' => "a comma (,)",
        '\u{ff3b}' | '\u{3010}' => "[",
        '\u{ff3d}' | '\u{3011}' => "]",
        '\u{ff5b}' => "{",
        '\u{ff5d}' => "}",
        '\u{ff03}' => "#",
        '\u{3000}' | '\u{a0}' => "a blank",
        _ => return None,
    })
}

fn node(value: Spanned<DeValue<'_>>, origin: &dyn Fn(Range<usize>) -> ValueOrigin) -> Node {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => {
            Value::Array(items.into_iter().map(|item| node(item, origin)).collect())
        }
        DeValue::Table(entries) => table(entries, origin),
    };
    Node {
        value,
        origin: origin(span),
    }
}

fn table(entries: DeTable<'_>, origin: &dyn Fn(Range<usize>) -> ValueOrigin) -> Value {
    let entries = entries.into_iter().map(|(key, value)| TableEntry {
        origin: origin(key.span()),
        key: key.into_inner().into_owned(),
        node: node(value, origin),
    });
    Value::Table(entries.collect())
}

/// Offsets of the line breaks of a text, in order.
///
/// Every value has a line: counting line breaks for each of them would take time quadratic in the
/// size of the file.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn of(text: &str) -> Self {
        Self(memchr::memchr_iter(b'\n', text.as_bytes()).collect())
    }

    /// Returns the line of the byte at `offset`, counted from one.
    fn line(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|line_break| *line_break < offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_line_of_b(text: &str) -> Option<usize> {
        let name = Arc::from("f");
        let mut report = Report::new(ValueOrigin::File {
            name: Arc::clone(&name),
            line: None,
        });
        let Value::Table(entries) = Node::from_file(text, &name, &mut report).unwrap().value else {
            panic!("no table")
        };
        match &entries
            .iter()
            .find(|entry| entry.key == "b")
            .unwrap()
            .origin
        {
            ValueOrigin::File { line, .. } => *line,
            ValueOrigin::Variable(_) => None,
        }
    }

    #[test]
    fn the_index_agrees_with_counting_at_every_offset() {
        for text in ["", "\n", "a\n\nb\r\n店\n", "a = 1", "\n\n\n"] {
            let lines = LineIndex::of(text);
            for offset in 0..=text.len() + 1 {
                let counted = text.bytes().take(offset).filter(|b| *b == b'\n').count();
                assert_eq!(lines.line(offset), 1 + counted, "{text:?} at {offset}");
            }
        }
    }

    #[test]
    fn lines_count_from_one_whatever_ends_them() {
        assert_eq!(first_line_of_b("b = 1"), Some(1));
        assert_eq!(first_line_of_b("a = 1\n\nb = 1\n"), Some(3));
        assert_eq!(first_line_of_b("a = 1\r\n\r\nb = 1\r\n"), Some(3));
        assert_eq!(
            first_line_of_b("\u{feff}a = \"\"\"\n店\n\"\"\"\n[b]\n"),
            Some(4)
        );
    }
}
