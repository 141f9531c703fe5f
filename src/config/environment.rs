//! Environment variables as overrides of the file.
//!
//! `WXGATE_SERVER__LISTEN` sets `server.listen`: two underscores stand for the dot. Every key can
//! be set like this, except those of accounts and clients. Variables without two underscores are
//! ignored, except `WXGATE_DEFAULT_ACCOUNT`. The values are interpreted in `read`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    problem::{Report, ValueOrigin},
    raw,
    tree::{Node, TableEntry, Value},
};

/// Source of variables; tests pass a map.
pub trait Environment {
    /// Returns the value of a variable, if it is set and UTF-8.
    fn get(&self, name: &str) -> Option<String>;

    /// Returns the names of all variables.
    fn names(&self) -> Vec<String>;
}

/// Environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

const PREFIX: &str = "WXGATE_";
/// Tables whose keys variables can set.
const TABLES: [&str; 6] = ["Server", "Admin", "Upstream", "Token", "Replay", "Store"];
/// Variables that the program itself reads.
const OWN: [&str; 5] = [
    "WXGATE_ADMIN_KEY",
    "WXGATE_APPID",
    "WXGATE_LOG",
    "WXGATE_LOG_FORMAT",
    "WXGATE_SECRET",
];

/// Puts the overrides into the tree, where their keys are checked like those of the file.
pub(super) fn overlay(root: &mut Node, environment: &dyn Environment, report: &mut Report) {
    let mut names = environment.names();
    // Sorted, so that problems come in the same order at every start.
    names.sort();
    for name in names {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if !rest.contains("__") && rest != "DEFAULT_ACCOUNT" {
            continue;
        }
        let Some(text) = environment.get(&name) else {
            continue;
        };
        let origin = ValueOrigin::Variable(Arc::from(name.as_str()));
        let path = rest.to_ascii_lowercase();
        let mut place = report.whole().from(&origin);
        place.path = path.replace("__", ".");
        if path.starts_with("account__") || path.starts_with("client__") {
            report.problem(
                &place,
                "accounts and clients cannot be set from the environment: write them into the file",
            );
        } else if !insert(root, path.split("__"), text, &origin) {
            report.problem(
                &place,
                "set either the table as a whole or its keys, not both",
            );
        }
    }
}

/// Warns of variables that would set a key if they had one underscore more, unless a secret of the
/// configuration has that name.
pub(super) fn warn_of_single_underscores(
    root: &Node,
    environment: &dyn Environment,
    report: &mut Report,
) {
    let mut secrets = HashSet::new();
    collect_secrets(root, &mut secrets);
    let mut names = environment.names();
    names.sort();
    for name in names {
        if OWN.contains(&name.as_str()) || secrets.contains(name.as_str()) {
            continue;
        }
        if let Some(meant) = name.strip_prefix(PREFIX).and_then(with_underscores) {
            let origin = ValueOrigin::Variable(Arc::from(name.as_str()));
            let message =
                format!("sets nothing; did you mean {PREFIX}{meant}, with two underscores?");
            report.warning(&report.whole().from(&origin), message);
        }
    }
}

/// Adds the names of the variables from which the configuration takes its secrets.
fn collect_secrets<'n>(node: &'n Node, names: &mut HashSet<&'n str>) {
    match &node.value {
        Value::Table(entries) => {
            for entry in entries {
                match &entry.node.value {
                    Value::String(name) | Value::Text(name) if entry.key == "env" => {
                        names.insert(name);
                    }
                    _ => collect_secrets(&entry.node, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_secrets(item, names)),
        _ => {}
    }
}

/// Returns the variable that sets the key which `rest` spells with single underscores.
fn with_underscores(rest: &str) -> Option<String> {
    let tables = raw::KEYS.iter().filter(|(table, _)| TABLES.contains(table));
    for (table, keys) in tables {
        for key in *keys {
            let (table, key) = (table.to_uppercase(), key.to_uppercase());
            if rest == format!("{table}_{key}") {
                let form = match (table.as_str(), key.as_str()) {
                    ("STORE", "URL" | "ENCRYPTION_KEY") => "__VALUE",
                    _ => "",
                };
                return Some(format!("{table}__{key}{form}"));
            }
        }
    }
    let tls = rest.strip_prefix("SERVER_TLS_")?;
    ["CERT", "KEY", "CLIENT_CA"]
        .contains(&tls)
        .then(|| format!("SERVER__TLS__{tls}"))
}

/// Inserts a value at a path. Returns false if another variable has set a table on the path as a
/// whole.
fn insert<'p>(
    node: &mut Node,
    mut path: impl Iterator<Item = &'p str>,
    text: String,
    origin: &ValueOrigin,
) -> bool {
    let Some(key) = path.next() else {
        *node = Node {
            value: Value::Text(text),
            origin: origin.clone(),
        };
        return true;
    };
    if matches!(node.value, Value::Text(_)) {
        return false;
    }
    if !matches!(node.value, Value::Table(_)) {
        node.value = Value::Table(Vec::new());
    }
    let Value::Table(entries) = &mut node.value else {
        return false;
    };
    let index = entries
        .iter()
        .position(|entry| entry.key == key)
        .unwrap_or(entries.len());
    if index == entries.len() {
        let empty = Node {
            value: Value::Table(Vec::new()),
            origin: origin.clone(),
        };
        entries.push(TableEntry {
            key: key.to_owned(),
            origin: origin.clone(),
            node: empty,
        });
    }
    let entry = &mut entries[index];
    let done = insert(&mut entry.node, path, text, origin);
    // A table keeps the origin of its first key: its keys have origins of their own.
    if !matches!(entry.node.value, Value::Table(_)) {
        entry.origin = origin.clone();
    }
    done
}

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .collect()
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        Self::get(self, name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

impl<S: std::hash::BuildHasher> Environment for HashMap<String, String, S> {
    fn get(&self, name: &str) -> Option<String> {
        Self::get(self, name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}
