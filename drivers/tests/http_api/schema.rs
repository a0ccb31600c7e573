//! As much of JSON Schema as `docs/openapi.yaml` uses. A word that this doesn't know is an error, so that none is there
//! for show.

use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Words that only people read.
const FOR_PEOPLE: [&str; 4] = ["description", "default", "format", "contentEncoding"];

/// The schemas of a description.
pub(crate) struct Schemas<'a> {
    root: &'a Value,
    /// Fields must be described, too: what an answer holds has to be in the description.
    closed: bool,
}

impl<'a> Schemas<'a> {
    pub(crate) fn of(root: &'a Value) -> Self {
        Self { root, closed: false }
    }

    pub(crate) fn closed(root: &'a Value) -> Self {
        Self { root, closed: true }
    }

    /// What a reference leads to.
    pub(crate) fn resolve(&self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value };
        let target = self.root.pointer(reference.trim_start_matches('#'));
        self.resolve(target.unwrap_or_else(|| panic!("{reference} leads nowhere")))
    }

    /// Why `value` is not as `schema` says.
    pub(crate) fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = schema.as_object().expect("a schema is an object");
        for (word, says) in schema {
            self.word(schema, word, says, value)?;
        }
        self.fields(schema, value)
    }

    fn word(
        &self,
        schema: &Map<String, Value>,
        word: &str,
        says: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let holds = match word {
            "$ref" => {
                let target = self.root.pointer(says.as_str().unwrap().trim_start_matches('#')).unwrap();
                return self.check(target, value);
            }
            "oneOf" => return self.one_of(says.as_array().unwrap(), value),
            "type" => match says {
                Value::Array(kinds) => kinds.iter().any(|kind| is(kind, value)),
                kind => is(kind, value),
            },
            "enum" => says.as_array().unwrap().contains(value),
            "const" => says == value,
            "minimum" => value.as_f64().is_none_or(|value| value >= says.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|value| value <= says.as_f64().unwrap()),
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 >= number(says)),
            "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as u64 <= number(says)),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= number(says)),
            "pattern" => value.as_str().is_none_or(|text| matches(says.as_str().unwrap(), text)),
            "required" => {
                let names = says.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                value.as_object().is_none_or(|fields| names.into_iter().all(|name| fields.contains_key(name)))
            }
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                return items.try_for_each(|item| self.check(says, item));
            }
            "properties" | "additionalProperties" | "unevaluatedProperties" => true,
            word if FOR_PEOPLE.contains(&word) => true,
            _ => panic!("this validator doesn't know {word:?} in {schema:?}"),
        };
        if holds { Ok(()) } else { Err(format!("{value} is against {word}: {says}")) }
    }

    /// Each field by its schema, and the ones without.
    fn fields(&self, schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
        let Some(fields) = value.as_object() else { return Ok(()) };
        let known = self.known(schema);
        let is_strict = [schema.get("additionalProperties"), schema.get("unevaluatedProperties")]
            .contains(&Some(&Value::Bool(false)));
        for (name, field) in fields {
            if let Some(says) = schema.get("properties").and_then(|properties| properties.get(name)) {
                self.check(says, field).map_err(|error| format!("{name}: {error}"))?;
            } else if let Some(says @ Value::Object(_)) = schema.get("additionalProperties") {
                self.check(says, field).map_err(|error| format!("{name}: {error}"))?;
            } else if !known.contains(name) && (is_strict || (self.closed && !known.is_empty())) {
                return Err(format!("{name} is not described"));
            }
        }
        Ok(())
    }

    /// The fields that a schema speaks of, itself or by reference.
    fn known(&self, schema: &Map<String, Value>) -> BTreeSet<String> {
        let own = schema.get("properties").and_then(Value::as_object);
        let mut known: BTreeSet<String> = own.into_iter().flat_map(Map::keys).cloned().collect();
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let target = self.root.pointer(reference.trim_start_matches('#')).unwrap();
            known.extend(self.known(target.as_object().unwrap()));
        }
        known
    }

    fn one_of(&self, choices: &[Value], value: &Value) -> Result<(), String> {
        let errors: Vec<_> = choices.iter().filter_map(|choice| self.check(choice, value).err()).collect();
        match choices.len() - errors.len() {
            1 => Ok(()),
            0 => Err(format!("none of these: {}", errors.join("; "))),
            several => Err(format!("{several} of {} choices fit {value}", choices.len())),
        }
    }
}

fn number(says: &Value) -> u64 {
    says.as_u64().expect("a whole number")
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("this validator doesn't know the type {other:?}"),
    }
}

/// Whether each character is in the class: patterns here read `^[…]+$`.
fn matches(pattern: &str, text: &str) -> bool {
    let class = pattern.strip_prefix("^[").and_then(|rest| rest.strip_suffix("]+$"));
    let class = class.unwrap_or_else(|| panic!("this validator can't match {pattern}"));
    let mut members: Vec<(char, bool)> = Vec::new();
    let mut escaped = false;
    for member in class.chars() {
        if member == '\\' && !escaped {
            escaped = true;
        } else {
            members.push((member, escaped));
            escaped = false;
        }
    }
    let within = |letter: char| {
        let range =
            |three: &[(char, bool)]| three[1] == ('-', false) && (three[0].0..=three[2].0).contains(&letter);
        members.iter().any(|(member, _)| *member == letter) || members.windows(3).any(range)
    };
    !text.is_empty() && text.chars().all(within)
}

#[test]
fn the_validator_tells_right_from_wrong() {
    let root = serde_json::json!({ "open": { "type": "object", "properties": { "a": { "minimum": 1 } } } });
    let schemas = Schemas::of(&root);
    let check = |schema: &Value, value: Value| schemas.check(schema, &value).is_ok();
    let strict = serde_json::json!({ "$ref": "#/open", "unevaluatedProperties": false });
    assert!(check(&strict, serde_json::json!({ "a": 1 })));
    assert!(!check(&strict, serde_json::json!({ "a": 0 })) && !check(&strict, serde_json::json!({ "b": 1 })));
    let open = serde_json::json!({ "$ref": "#/open" });
    assert!(check(&open, serde_json::json!({ "b": 1 })) && !check(&open, Value::Null));
    let one = serde_json::json!({ "oneOf": [{ "type": "null" }, { "enum": ["x", null] }] });
    assert!(check(&one, "x".into()) && !check(&one, Value::Null) && !check(&one, "y".into()));
    let class = r"^[!#-\[\]-~]+$";
    assert!(
        matches(class, "a.B/[]") && !["", "a b", "\"", "\\", "ü"].iter().any(|text| matches(class, text))
    );
    assert!(matches("^[a-z0-9.-]+$", "a-0.z") && !matches("^[a-z0-9.-]+$", "A"));
}
