//! The JSON Schema of the file, for editors and for `wxgate schema`.

use schemars::{Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

use super::raw::File;

/// The schema as pretty-printed JSON with a newline at its end, in draft 7, which editors for TOML understand.
pub fn schema() -> String {
    let generator = SchemaSettings::draft07().with_transform(RecursiveTransform(drop_null)).into_generator();
    let mut schema = generator.into_root_schema_for::<File>();
    schema.insert("title".to_owned(), "wxgate.toml".into());
    format!("{:#}\n", schema.to_value())
}

// A key may be absent, but TOML knows no null.
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
            if only.contains_key("$ref") && schema.as_object().is_some_and(|rest| !rest.is_empty()) {
                // Draft 7 ignores everything beside a $ref.
                schema.insert("allOf".to_owned(), Value::Array(vec![Value::Object(only)]));
            } else {
                for (key, value) in only {
                    schema.insert(key, value);
                }
            }
        }
    }
}
