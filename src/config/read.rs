//! Conversion of the tree into the types of `raw`. A mistake is reported and reading goes on.
//!
//! `tables!` makes a struct, its JSON Schema and its reader from one list of keys, so that the
//! three cannot differ. `words!` does the same for an enum of words. The types in `leaf` define the
//! allowed values.

use std::{borrow::Cow, collections::BTreeMap, fmt::Display, path::Path};

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{
    problem::{KeyPlace, Report},
    tree::{Node, TableEntry, Value},
};

/// Type of a value in the file.
pub(super) trait FromNode: Sized + JsonSchema {
    /// True for a table: a list of tables is written `[[name]]`.
    const IS_TABLE: bool = false;

    /// Reads a value; `None` after a problem was reported.
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self>;
}

/// Value and its place.
#[derive(Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: KeyPlace,
}

/// Context of reading: the report, and the folder of the file.
pub(super) struct TreeReader<'r> {
    pub(super) report: &'r mut Report,
    /// Folder at which relative paths begin.
    pub(super) base_dir: &'r Path,
}

/// Keys of a table that is being read.
pub(super) struct Keys<'n> {
    entries: &'n [TableEntry],
    place: &'n KeyPlace,
}

impl TreeReader<'_> {
    /// Reports a value of another kind than expected, such as text instead of a table.
    pub(super) fn mismatch(&mut self, node: &Node, place: &KeyPlace, expected: &str) {
        self.report
            .problem(place, format!("expected {expected}, found {}", node.kind()));
    }

    /// Reads text by `parse`, whose error tells the right form.
    pub(super) fn text<T, E: Display>(
        &mut self,
        node: &Node,
        place: &KeyPlace,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (Value::String(text) | Value::Text(text)) = &node.value else {
            self.mismatch(node, place, "text in quotes");
            return None;
        };
        parse(text)
            .map_err(|error| self.report.problem(place, error.to_string()))
            .ok()
    }

    /// Reads a table: reports the keys that are not `known`, and lets `fill` take the others.
    pub(super) fn table<T>(
        &mut self,
        (node, place): (&Node, &KeyPlace),
        form: &str,
        known: &[&str],
        fill: impl FnOnce(&Keys<'_>, &mut Self) -> T,
    ) -> Option<T> {
        // A table in a variable is text in TOML syntax.
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
    /// Reads the value of a key; `None` if the key is absent or the value wrong.
    pub(super) fn take<T: FromNode>(
        &self,
        key: &str,
        reader: &mut TreeReader<'_>,
    ) -> Option<At<T>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        At::from_node(
            &entry.node,
            &self.place.child(key).from(&entry.origin),
            reader,
        )
    }
}

/// Returns a message about a word that is not known, with the closest known word.
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
        // Jaro-Winkler: 0.85 holds for a typing mistake, but not for two different keys.
        Some((likeness, candidate)) if likeness > 0.85 => {
            format!("unknown {what}; did you mean \"{candidate}\"?")
        }
        _ => format!("unknown {what}; known here: {}", known.join(", ")),
    }
}

impl<T: FromNode> At<T> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        T::from_node(node, place, reader).map(|value| Self {
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

impl<T: FromNode> FromNode for Vec<At<T>> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let split;
        let items = match &node.value {
            Value::Array(items) => items,
            Value::Text(text) => {
                split = list(text, node);
                &split
            }
            // Tables within a table stand in a list in one line: its path has an index already.
            Value::Table(_) if T::IS_TABLE && !place.path.contains('[') => {
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
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let place = place.element(index).from(&item.origin);
            values.extend(At::from_node(item, &place, reader));
        }
        // A list with a mistake counts as absent: a part of it could be empty, or lack an element
        // that a later check looks for.
        (values.len() == items.len()).then_some(values)
    }
}

/// Reads a list in a variable: TOML syntax, or words with commas between them.
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

impl<T: FromNode> FromNode for BTreeMap<String, At<T>> {
    fn from_node(node: &Node, place: &KeyPlace, reader: &mut TreeReader<'_>) -> Option<Self> {
        let names: Vec<String> = match &node.value {
            Value::Table(entries) => entries.iter().map(|entry| entry.key.clone()).collect(),
            Value::Text(text) => match Node::from_variable(text, &node.origin) {
                Some(parsed) if matches!(parsed.value, Value::Table(_)) => {
                    return Self::from_node(&parsed, place, reader);
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        reader.table((node, place), "a table", &known, |keys, reader| {
            names
                .iter()
                .filter_map(|name| Some((name.clone(), keys.take(name, reader)?)))
                .collect()
        })
    }
}

/// Defines tables of the file. Every key is optional here: `resolve` reports missing keys together
/// with all other problems.
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

            impl crate::config::read::FromNode for $name {
                const IS_TABLE: bool = true;

                fn from_node(
                    node: &crate::config::tree::Node,
                    place: &crate::config::problem::KeyPlace,
                    reader: &mut crate::config::read::TreeReader<'_>,
                ) -> Option<Self> {
                    reader.table((node, place), $form, &[$(stringify!($key)),*], |keys, reader| Self {
                        $($key: keys.take(stringify!($key), reader),)*
                    })
                }
            }
        )*

        /// Keys that the readers take, by table.
        pub(super) const KEYS: &[(&str, &[&str])] = &[$((stringify!($name), &[$(stringify!($key)),*]),)*];
    };
}

/// Defines enums of words.
macro_rules! words {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$word_attribute:meta])* $variant:ident = $word:literal,)* })*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
        #[schemars(inline)]
        $(#[$attribute])*
        pub(super) enum $name {
            $($(#[$word_attribute])* #[schemars(rename = $word)] $variant,)*
        }

        impl crate::config::read::FromNode for $name {
            fn from_node(
                node: &crate::config::tree::Node,
                place: &crate::config::problem::KeyPlace,
                reader: &mut crate::config::read::TreeReader<'_>,
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
