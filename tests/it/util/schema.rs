//! The schemas of docs/schema, as a test wants them: what is printed satisfies them, and they leave nothing out of what is printed.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A schema, or a part of one.
pub(crate) struct Schema {
    open: jsonschema::Validator,
    closed: jsonschema::Validator,
}

impl Schema {
    /// docs/schema/NAME.json.
    pub(crate) fn new(name: &str) -> Self {
        Self::of(read(name))
    }

    /// What the schema has under `$defs` with this name.
    pub(crate) fn part(name: &str, part: &str) -> Self {
        let mut schema = read(name);
        for key in ["type", "required", "properties"] {
            schema.as_object_mut().unwrap().remove(key).unwrap();
        }
        assert!(schema["$defs"].get(part).is_some(), "{name} has no {part}");
        schema["$ref"] = format!("#/$defs/{part}").into();
        Self::of(schema)
    }

    fn of(mut schema: Value) -> Self {
        jsonschema::meta::validate(&schema).unwrap();
        let open = jsonschema::validator_for(&schema).unwrap();
        close(&mut schema);
        Self { open, closed: jsonschema::validator_for(&schema).unwrap() }
    }

    /// `value` satisfies the schema, has every key of it, and no key that it does not describe. With another value in any place, it
    /// would not satisfy it: a schema that takes everything proves nothing.
    pub(crate) fn check(&self, value: &Value) {
        for validator in [&self.open, &self.closed] {
            if let Err(error) = validator.validate(value) {
                panic!("at {}: {error}\n{value:#}", error.instance_path());
            }
        }
        for place in places(value, String::new()) {
            let mut other = value.clone();
            // Nothing that is printed is a fraction below zero.
            *other.pointer_mut(&place).unwrap() = (-0.5).into();
            assert!(!self.open.is_valid(&other), "the schema takes anything at '{place}'");
        }
    }
}

fn read(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema").join(name).with_extension("json");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Makes each object have all the keys that are described, and no other one.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(parts) => {
            if let Some(Value::Object(properties)) = parts.get("properties") {
                let keys: Vec<Value> = properties.keys().map(|key| key.as_str().into()).collect();
                parts.insert("required".to_owned(), keys.into());
                parts.insert("additionalProperties".to_owned(), false.into());
            }
            parts.values_mut().for_each(close);
        }
        Value::Array(parts) => parts.iter_mut().for_each(close),
        _ => {}
    }
}

/// Every place in `value`, as a JSON pointer.
fn places(value: &Value, at: String) -> Vec<String> {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(entries) => {
            entries.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    let mut all = vec![at.clone()];
    all.extend(below.into_iter().flat_map(|(key, value)| places(value, format!("{at}/{key}"))));
    all
}
