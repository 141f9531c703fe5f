//! JSON Schema of the file, for editors and for `wxgate schema`.

use schemars::{Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

use super::raw::File;

/// Returns the schema as pretty-printed JSON with a newline at the end, in draft 7, which editors
/// for TOML understand.
pub fn schema() -> String {
    let generator = SchemaSettings::draft07()
        .with_transform(RecursiveTransform(drop_null))
        .into_generator();
    let mut schema = generator.into_root_schema_for::<File>();
    schema.insert("title".to_owned(), "wxgate.toml".into());
    format!("{:#}\n", schema.to_value())
}

/// Removes `null`, which schemars allows for every optional key and TOML does not have.
fn drop_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            if only.contains_key("$ref") && schema.as_object().is_some_and(|rest| !rest.is_empty())
            {
                // Draft 7 ignores all members beside a $ref.
                schema.insert("allOf".to_owned(), Value::Array(vec![Value::Object(only)]));
            } else {
                // The description of a key takes precedence over that of its type.
                for (key, value) in only {
                    if schema.get(&key).is_none() {
                        schema.insert(key, value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config::{parse, raw};

    fn parsed() -> Value {
        serde_json::from_str(&schema()).unwrap()
    }

    fn properties(table: &str) -> serde_json::Map<String, Value> {
        let schema = parsed();
        let table = if table == "File" {
            &schema
        } else {
            &schema["definitions"][table]
        };
        assert_eq!(
            table["additionalProperties"], false,
            "unknown keys must be errors"
        );
        table["properties"].as_object().unwrap().clone()
    }

    #[test]
    fn the_schema_knows_the_keys_that_the_reader_takes() {
        for (table, keys) in raw::KEYS {
            let known: Vec<String> = properties(table).into_iter().map(|(key, _)| key).collect();
            assert_eq!(&known, keys, "{table}");
        }
        assert_eq!(
            parsed()["definitions"].as_object().unwrap().len(),
            raw::KEYS.len() - 1,
            "a table is missing"
        );
    }

    #[test]
    fn every_key_is_explained() {
        for (table, _) in raw::KEYS {
            for (key, schema) in properties(table) {
                assert!(schema["description"].is_string(), "{table}.{key}");
            }
        }
    }

    fn collect_unbuilt(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(members) => {
                let description = schema["description"].as_str().unwrap_or_default();
                if description.to_lowercase().contains("not yet built") {
                    found.extend(schema["const"].as_str().map(str::to_owned));
                }
                members
                    .values()
                    .for_each(|inner| collect_unbuilt(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| collect_unbuilt(inner, found)),
            _ => {}
        }
    }

    /// Editors show these texts beside each value, so a value that works must not be called
    /// unbuilt.
    #[test]
    fn values_that_the_schema_calls_unbuilt_are_those_that_are_refused() {
        let mut unbuilt = Vec::new();
        collect_unbuilt(&parsed(), &mut unbuilt);
        assert_eq!(unbuilt, ["component"]);
        let refused = |text: &str| {
            let problems = parse(text, Path::new("/etc"), "f", &BTreeMap::new()).unwrap_err();
            problems.to_string().contains("not built yet")
        };
        for kind in ["memory", "file", "redis", "sql"] {
            assert!(!refused(&format!("[store]\nkind = \"{kind}\"\n")), "{kind}");
        }
        assert!(refused(
            "[[account]]\nname = \"a\"\nplatform = \"component\"\n"
        ));
    }

    #[test]
    fn the_defaults_of_the_schema_are_those_of_the_settings() {
        let account = "[[account]]\nname = \"a\"\nappid = \"wx1\"\nsecret = { value = \"s\" }\n";
        let client = "[[client]]\nname = \"c\"\nkey = { value = \"k\" }\n";
        let mut spelt_out = String::new();
        for (table, header) in [
            ("Server", "[server]"),
            ("Admin", "[admin]"),
            ("Upstream", "[upstream]"),
            ("Token", "[token]"),
            ("Replay", "[replay]"),
            ("Store", "[store]"),
            ("Account", account),
            ("Client", client),
        ] {
            spelt_out += header;
            spelt_out.push('\n');
            let defaults = properties(table)
                .into_iter()
                .filter_map(|(key, schema)| Some((key, schema.get("default")?.clone())));
            // Numbers, text and lists of text look the same in JSON and TOML.
            spelt_out.extend(defaults.map(|(key, value)| format!("{key} = {value}\n")));
        }
        let shown = |text: &str| {
            let mut config = parse(text, Path::new("/etc"), "f", &BTreeMap::new())
                .unwrap_or_else(|p| panic!("{p}\n{text}"));
            config.warnings.clear();
            // Set with its default or not set: the same, except beside clients.
            config.proxy.allow_is_set = true;
            format!("{config:#?}")
        };
        assert!(spelt_out.lines().count() > 25, "{spelt_out}");
        assert_eq!(shown(&spelt_out), shown(&format!("{account}{client}")));
    }
}
