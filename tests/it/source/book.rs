//! The book that `docs` is: its table of contents, what its pages have to name, and its Chinese pages.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Map, Value};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Pages of the book that operators read, which exist in Chinese too.
const TRANSLATED: [&str; 15] = [
    "cluster",
    "coexistence",
    "concepts",
    "configuration",
    "credentials",
    "operations",
    "quick-start",
    "recipes",
    "runbook",
    "sandbox",
    "sdk",
    "security",
    "service-api",
    "signing",
    "takeover",
];

/// Tables of the reference: heading, what stands before a key, definition in the schema.
const TABLES: [(&str, &str, &str); 15] = [
    ("`[server]`", "server.", "Server"),
    ("`server.tls`", "", "Tls"),
    ("`[admin]`", "admin.", "Admin"),
    ("`[upstream]`", "upstream.", "Upstream"),
    ("`[token]`", "token.", "Token"),
    ("`[replay]`", "replay.", "Replay"),
    ("`[store]`", "store.", "Store"),
    ("`[[account]]`", "", "Account"),
    ("`token` of an account", "", "ExternalToken"),
    ("`signing` of an account", "", "Signing"),
    ("`platform_certs` of `signing`", "", "PlatformCert"),
    ("`[[client]]`", "", "Client"),
    ("`rate` of a client", "", "Rate"),
    ("Forms of a client's key", "", "KeyForm"),
    ("Forms of a secret", "", "SecretForm"),
];

const REFERENCE_HEAD: &str = "\
# Every key of the configuration

Written by a test from [config/wxgate.schema.json](../config/wxgate.schema.json), so do not change it by hand. How files, variables and units are
read, and what keys mean together: [configuration.md](configuration.md). A file with every key and its default:
[config/wxgate.toml](../config/wxgate.toml). 中文：[全部配置项](zh/configuration.md#全部配置项).

`default_account`, at the top of the file, names the account for requests that select none; the sole account needs no mention.
";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn schema() -> Value {
    serde_json::from_str(&read("config/wxgate.schema.json")).expect("the schema is JSON")
}

fn members<'s>(value: &'s Value, place: &str) -> &'s Map<String, Value> {
    value
        .as_object()
        .unwrap_or_else(|| panic!("{place} is no object"))
}

/// All pages below a folder, as paths relative to the root of the repository.
fn pages(folder: &str) -> BTreeSet<PathBuf> {
    let mut pages = BTreeSet::new();
    let mut folders = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                pages.insert(path.strip_prefix(ROOT).expect("below the root").to_owned());
            }
        }
    }
    pages
}

/// Slugs of the errors of the data path: the texts in the table that `ProxyError::row` is.
fn slugs() -> BTreeSet<String> {
    let source = read("src/proxy/error.rs");
    let table = source
        .split_once("fn row(")
        .and_then(|(_, rest)| rest.split_once("fn slug("))
        .map(|(table, _)| table)
        .expect("the table of errors");
    let is_slug = |text: &&str| {
        text.contains('_') && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    table
        .split('"')
        .filter(is_slug)
        .map(str::to_owned)
        .collect()
}

/// Headings of a page.
fn headings(page: &str) -> BTreeSet<String> {
    read(page)
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_owned())
        .collect()
}

/// Texts of a page that stand between back quotes, outside of its blocks of code.
fn quoted(page: &str) -> BTreeSet<String> {
    let (text, mut is_code) = (read(page), false);
    let mut quoted = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            quoted.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    quoted
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let summary = read("docs/SUMMARY.md");
    let is_listed = |page: &PathBuf| {
        let name = page.strip_prefix("docs").expect("below docs").display();
        summary.contains(&format!("]({name})"))
    };
    let missing = pages("docs")
        .into_iter()
        .filter(|page| !page.ends_with("SUMMARY.md") && !is_listed(page))
        .collect::<Vec<_>>();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

#[test]
fn the_pages_of_the_book_can_be_put_together() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let ended = Command::new(Path::new(ROOT).join("scripts/docs"))
        .args(["--pages", "--out"])
        .arg(out.path())
        .output()
        .expect("the script runs");
    assert!(ended.status.success(), "{ended:?}");
    let source = out.path().join("src");
    let contents = fs::read_to_string(source.join("SUMMARY.md")).expect("contents");
    for page in ["docs/quick-start.md", "docs/zh/runbook.md", "SECURITY.md"] {
        assert!(contents.contains(&format!("]({page})")), "{contents}");
        assert!(source.join(page).is_file(), "{page}");
    }
}

#[test]
fn every_page_for_operators_is_there_in_chinese_and_names_the_english_one() {
    let chinese = pages("docs/zh");
    for name in TRANSLATED {
        let page = format!("docs/zh/{name}.md");
        assert!(chinese.contains(Path::new(&page)), "{page} is missing");
    }
    for page in chinese {
        let text = read(&page.display().to_string());
        let links = text.lines().take(4).any(|line| line.contains("[English]("));
        assert!(links, "{} does not link its English page", page.display());
    }
}

#[test]
fn the_runbooks_have_an_entry_for_every_error() {
    let slugs = slugs();
    assert!(slugs.len() > 15, "only {slugs:?} were found");
    for page in ["docs/runbook.md", "docs/zh/runbook.md"] {
        let headings = headings(page);
        let missing = slugs.difference(&headings).collect::<Vec<_>>();
        assert!(missing.is_empty(), "{page} has no entry for {missing:?}");
    }
}

/// Slugs and codes of both runbooks: what one names, the other names too.
#[test]
fn the_runbooks_name_the_same_errors() {
    let english = quoted("docs/runbook.md");
    let chinese = quoted("docs/zh/runbook.md");
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> Vec<String> {
        let is_name = |text: &&String| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        these.difference(those).filter(is_name).cloned().collect()
    };
    assert_eq!(only(&english, &chinese), Vec::<String>::new());
    let codes = |page: &str| -> BTreeSet<String> {
        let text = read(page);
        let numbers = text.split(|c: char| !c.is_ascii_digit());
        numbers
            .filter(|number| matches!(number.len(), 5 | 6))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(codes("docs/runbook.md"), codes("docs/zh/runbook.md"));
}

#[test]
fn the_chinese_configuration_page_has_every_key() {
    let page = quoted("docs/zh/configuration.md");
    let has = |key: &str| page.contains(key);
    assert!(has("default_account"), "default_account");
    let schema = schema();
    for (_, prefix, definition) in TABLES {
        let properties = &schema["definitions"][definition]["properties"];
        for key in members(properties, definition).keys() {
            // Members of small tables are told where the table is, in one text.
            let is_told = has(&format!("{prefix}{key}"))
                || page
                    .iter()
                    .any(|text| text.contains('{') && text.contains(key));
            assert!(is_told, "{prefix}{key} is not in docs/zh/configuration.md");
        }
    }
    let english = quoted("docs/configuration.md");
    let is_key = |text: &&String| {
        TABLES
            .iter()
            .any(|(_, prefix, _)| !prefix.is_empty() && text.starts_with(prefix))
    };
    let missing = english
        .iter()
        .filter(is_key)
        .filter(|key| !has(key))
        .collect::<Vec<_>>();
    assert!(
        missing.is_empty(),
        "docs/zh/configuration.md does not have {missing:?}"
    );
}

/// Values that a key takes, with what each of them means.
fn choices(key: &Value) -> Vec<String> {
    let mut choices = Vec::new();
    for several in ["oneOf", "anyOf"] {
        for choice in key[several].as_array().into_iter().flatten() {
            match (choice["const"].as_str(), choice["description"].as_str()) {
                (Some(value), Some(meaning)) => choices.push(format!("`\"{value}\"`: {meaning}")),
                _ => choices.extend(self::choices(choice)),
            }
        }
    }
    choices
}

/// Line of the reference for one key.
fn row(name: &str, key: &Value, is_required: bool) -> String {
    let default = match (is_required, &key["default"]) {
        (true, _) => "required".to_owned(),
        (false, Value::Null) => "none".to_owned(),
        (false, default) => format!("`{default}`"),
    };
    let mut meaning = key["description"].as_str().unwrap_or_default().to_owned();
    if let (Some(least), Some(most)) = (key["minimum"].as_u64(), key["maximum"].as_u64()) {
        let _ = write!(meaning, " From {least} to {most}.");
    }
    for choice in choices(key) {
        meaning.push(' ');
        meaning.push_str(&choice);
    }
    let meaning = meaning.replace('\n', " ").replace('|', "\\|");
    format!("| `{name}` | {default} | {meaning} |\n")
}

/// Reference of all keys, in Markdown.
fn reference() -> String {
    let schema = schema();
    let mut text = REFERENCE_HEAD.to_owned();
    for (heading, prefix, definition) in TABLES {
        let table = &schema["definitions"][definition];
        let about = table["description"].as_str().unwrap_or_default();
        let _ = write!(text, "\n## {heading}\n\n{}\n\n", about.replace('\n', " "));
        text.push_str("| key | default | meaning |\n|---|---|---|\n");
        let required = table["required"].as_array().cloned().unwrap_or_default();
        // Sorted, whatever order the schema has them in.
        let keys = members(&table["properties"], definition);
        for name in keys.keys().collect::<BTreeSet<_>>() {
            let is_required = required.iter().any(|one| one == name);
            text.push_str(&row(&format!("{prefix}{name}"), &keys[name], is_required));
        }
    }
    text
}

#[test]
fn the_reference_is_that_of_the_schema() {
    let page = Path::new(ROOT).join("docs/reference.md");
    if std::env::var_os("WXGATE_UPDATE_EXPECTED").is_some() {
        fs::write(&page, reference()).expect("written");
    }
    assert_eq!(
        fs::read_to_string(&page).unwrap_or_default(),
        reference(),
        "run with WXGATE_UPDATE_EXPECTED=1"
    );
}
