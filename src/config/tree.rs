//! The configuration as one tree of values with their sources: lines of the file, environment
//! variables.
//!
//! Knows TOML, but no key and no meaning.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Origin, Report};

/// A value and its origin. No `Debug`: a secret may be inside.
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// Kinds of values in TOML, and `Text`: a value from the environment, whose type depends on the key.
pub(super) enum Value {
    String(String),
    Text(String),
    /// `None` when it does not fit 64 bits.
    Integer(Option<i64>),
    Boolean,
    Float,
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

/// One key of a table. Its origin is where the key stands; that of the node, where the value
/// begins.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) node: Node,
}

impl Node {
    /// Reads a whole file. Every syntax error is reported; then there is no tree.
    pub(super) fn from_file(text: &str, name: &Arc<str>, report: &mut Report) -> Option<Self> {
        let lines = LineIndex::of(text);
        let origin = |span: Range<usize>| Origin::File {
            name: Arc::clone(name),
            line: Some(lines.line(span.start)),
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let mut place = report.whole();
            if let Some(span) = error.span() {
                place.origin = origin(span);
            }
            // Of all kinds of strings the parser names just one here.
            let message = error
                .message()
                .trim_end_matches(", expected literal string");
            report.problem(&place, format!("this is not TOML: {message}"));
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
    pub(super) fn from_variable(text: &str, origin: &Origin) -> Option<Self> {
        let value = DeValue::parse(text).ok()?;
        Some(node(value, &|_| origin.clone()))
    }

    /// Operator's word for this kind of value.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::String(_) | Value::Text(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Boolean => "true or false",
            Value::Float => "a fraction",
            Value::Datetime => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

fn node(value: Spanned<DeValue<'_>>, origin: &dyn Fn(Range<usize>) -> Origin) -> Node {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(_) => Value::Boolean,
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

fn table(entries: DeTable<'_>, origin: &dyn Fn(Range<usize>) -> Origin) -> Value {
    let entries = entries.into_iter().map(|(key, value)| Entry {
        origin: origin(key.span()),
        key: key.into_inner().into_owned(),
        node: node(value, origin),
    });
    Value::Table(entries.collect())
}

/// Offsets of the line breaks of a text, in order. Every value has a line, so counting from the top
/// for each of them would cost the square of the file's length.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn of(text: &str) -> Self {
        Self(memchr::memchr_iter(b'\n', text.as_bytes()).collect())
    }

    /// Line of the byte at `offset`, counted from one.
    fn line(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|line_break| *line_break < offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_line_of_b(text: &str) -> Option<usize> {
        let name = Arc::from("f");
        let mut report = Report::new(Origin::File {
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
            Origin::File { line, .. } => *line,
            Origin::Variable(_) => None,
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
