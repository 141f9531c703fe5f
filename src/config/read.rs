//! Reading the tree: every value is read by its type, every mistake is noted and reading goes on.
//!
//! `tables!` makes a struct, its JSON Schema and its reader from one list of keys, so that they
//! cannot drift apart. `words!` does the same for a choice between words. The types in `leaf` say
//! which values are allowed.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{
    problem::{Place, Report},
    tree::{Entry, Node, Value},
};

/// A value that can stand in the file.
pub(super) trait Read: Sized + JsonSchema {
    /// True for a table, a list of which is written `[[name]]`.
    const TABLE: bool = false;

    /// Reads a value; `None` after a problem was reported.
    fn read(node: &Node, place: &Place, reader: &mut Reader<'_>) -> Option<Self>;
}

/// Value and its place.
#[derive(Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Context of reading: the report, and the folder of the file.
pub(super) struct Reader<'r> {
    pub(super) report: &'r mut Report,
    /// Folder at which relative paths begin.
    pub(super) base_dir: &'r Path,
}

/// An open table.
pub(super) struct Keys<'n> {
    entries: &'n [Entry],
    place: &'n Place,
}

impl Reader<'_> {
    /// Reports a value of another kind than expected.
    pub(super) fn mismatch(&mut self, node: &Node, place: &Place, expected: &str) {
        self.report
            .problem(place, format!("expected {expected}, found {}", node.kind()));
    }

    /// Reads text that `parse` accepts; the error of `parse` gives the right form.
    pub(super) fn text<T, E: Into<String>>(
        &mut self,
        node: &Node,
        place: &Place,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (Value::String(text) | Value::Text(text)) = &node.value else {
            self.mismatch(node, place, "text in quotes");
            return None;
        };
        parse(text)
            .map_err(|message| self.report.problem(place, message))
            .ok()
    }

    /// A table, of which `fill` takes the keys; all others are reported.
    pub(super) fn table<T>(
        &mut self,
        node: &Node,
        place: &Place,
        form: &str,
        known: &[&str],
        fill: impl FnOnce(&Keys<'_>, &mut Self) -> T,
    ) -> Option<T> {
        let parsed;
        let mut value = &node.value;
        if let Value::Text(text) = value {
            parsed = Node::from_variable(text, &node.origin);
            value = parsed.as_ref().map_or(value, |node| &node.value);
        }
        let Value::Table(entries) = value else {
            self.mismatch(node, place, form);
            return None;
        };
        for entry in entries
            .iter()
            .filter(|entry| !known.contains(&entry.key.as_str()))
        {
            self.report.problem(
                &place.child(&entry.key).from(&entry.origin),
                unknown("key", &entry.key, known),
            );
        }
        Some(fill(&Keys { entries, place }, self))
    }
}

impl Keys<'_> {
    /// `None` when the key is absent or its value wrong.
    pub(super) fn take<T: Read>(&self, key: &str, reader: &mut Reader<'_>) -> Option<At<T>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        At::read(
            &entry.node,
            &self.place.child(key).from(&entry.origin),
            reader,
        )
    }
}

/// Message about a word that is not in the list.
pub(super) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    let close = known
        .iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&word.to_ascii_lowercase(), candidate),
                candidate,
            )
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match close {
        Some((likeness, candidate)) if likeness > 0.85 => {
            format!("unknown {what}; did you mean \"{candidate}\"?")
        }
        _ => format!("unknown {what}; known here: {}", known.join(", ")),
    }
}

impl<T: Read> At<T> {
    fn read(node: &Node, place: &Place, reader: &mut Reader<'_>) -> Option<Self> {
        T::read(node, place, reader).map(|value| Self {
            value,
            place: place.clone(),
        })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: Read> Read for Vec<At<T>> {
    fn read(node: &Node, place: &Place, reader: &mut Reader<'_>) -> Option<Self> {
        let split;
        let items = match &node.value {
            Value::Array(items) => items,
            Value::Text(text) => {
                split = list(text, node);
                &split
            }
            Value::Table(_) if T::TABLE => {
                let message = format!(
                    "there may be several of these: write [[{}]] in double brackets",
                    place.path
                );
                reader.report.problem(place, message);
                return None;
            }
            _ => {
                reader.mismatch(node, place, "a list in brackets");
                return None;
            }
        };
        let read = |(index, item): (usize, &Node)| {
            At::read(item, &place.element(index).from(&item.origin), reader)
        };
        // Nothing of a list with a mistake in it: "the list is empty" would then be false.
        items
            .iter()
            .enumerate()
            .map(read)
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }
}

// A list in a variable: TOML syntax, or plain words with commas between them.
fn list(text: &str, node: &Node) -> Vec<Node> {
    if text.trim_start().starts_with('[')
        && let Some(Node {
            value: Value::Array(items),
            ..
        }) = Node::from_variable(text, &node.origin)
    {
        return items;
    }
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| Node {
            value: Value::Text(word.to_owned()),
            origin: node.origin.clone(),
        })
        .collect()
}

impl<T: Read> Read for BTreeMap<String, At<T>> {
    fn read(node: &Node, place: &Place, reader: &mut Reader<'_>) -> Option<Self> {
        let names: Vec<String> = match &node.value {
            Value::Table(entries) => entries.iter().map(|entry| entry.key.clone()).collect(),
            Value::Text(text) => match Node::from_variable(text, &node.origin) {
                Some(parsed) if matches!(parsed.value, Value::Table(_)) => {
                    return Self::read(&parsed, place, reader);
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        reader.table(node, place, "a table", &known, |keys, reader| {
            names
                .iter()
                .filter_map(|name| Some((name.clone(), keys.take(name, reader)?)))
                .collect()
        })
    }
}

/// Tables of the file: every key is optional here, since a missing one is found later, with the
/// others.
macro_rules! tables {
    ($($(#[$attribute:meta])* $name:ident ($form:literal) {
        $($(#[$key_attribute:meta])* $key:ident: $type:ty,)*
    })*) => {
        $(
            #[derive(Debug, Default, schemars::JsonSchema)]
            #[schemars(deny_unknown_fields)]
            $(#[$attribute])*
            pub(super) struct $name {
                $($(#[$key_attribute])* pub(super) $key: Option<crate::config::read::At<$type>>,)*
            }

            impl crate::config::read::Read for $name {
                const TABLE: bool = true;

                fn read(
                    node: &crate::config::tree::Node,
                    place: &crate::config::problem::Place,
                    reader: &mut crate::config::read::Reader<'_>,
                ) -> Option<Self> {
                    reader.table(node, place, $form, &[$(stringify!($key)),*], |keys, reader| Self {
                        $($key: keys.take(stringify!($key), reader),)*
                    })
                }
            }
        )*

        /// The keys that the readers take, by table: what the schema must say too.
        #[cfg(test)]
        pub(super) const KEYS: &[(&str, &[&str])] = &[$((stringify!($name), &[$(stringify!($key)),*]),)*];
    };
}

/// Choices between words.
macro_rules! words {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$word_attribute:meta])* $variant:ident = $word:literal,)* })*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
        #[schemars(inline)]
        $(#[$attribute])*
        pub(super) enum $name {
            $($(#[$word_attribute])* #[schemars(rename = $word)] $variant,)*
        }

        impl crate::config::read::Read for $name {
            fn read(
                node: &crate::config::tree::Node,
                place: &crate::config::problem::Place,
                reader: &mut crate::config::read::Reader<'_>,
            ) -> Option<Self> {
                reader.text(node, place, |text| match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(crate::config::read::unknown("value", text, &[$($word),*])),
                })
            }
        }
    )*};
}

pub(super) use {tables, words};
