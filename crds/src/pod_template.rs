//! The pod template of a Worker, and schemas that are made rather than derived.
//!
//! The template is kept as the JSON that the user wrote and goes into the Deployment as it is: a quantity written as a
//! number stays one, and nothing is lost on the way. Its schema is that of upstream's `PodTemplateSpec`, with upstream's
//! list types, keys and defaults (which server-side apply needs to merge two managers), without descriptions.

use crate::Json;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// A `PodTemplateSpec` as the user wrote it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct PodTemplate(pub Value);

impl<'de> Deserialize<'de> for PodTemplate {
    /// The schema bounds the depth of what the API server has stored; nothing else may fail a whole list either.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json::deserialize(deserializer).map(|json| Self(json.into()))
    }
}

impl JsonSchema for PodTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // With definitions, types have their names.
        let generator = SchemaSettings::draft2020_12().into_generator();
        let mut schema = generator.into_root_schema_for::<PodTemplateSpec>().to_value();
        let definitions = schema["$defs"].take();
        if let Some(object) = schema.as_object_mut() {
            object.retain(|name, _| !["$schema", "$defs", "title"].contains(&name.as_str()));
        }
        inline(&mut schema, &definitions);
        refine(&mut schema, "template");
        require_containers(&mut schema);
        Schema::try_from(schema).expect("an object stays an object")
    }
}

/// Any JSON value. Whatever holds it must be atomic, see [`any_object`].
pub(crate) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// Any JSON object. It has one owner as a whole: the API server's notes of who owns what would be as deep as it is.
pub(crate) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// Upstream's lists that merge by key: the field, and its keys.
const MAP_LISTS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("volumes", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("schedulingGates", &["name"]),
    ("resourceClaims", &["name"]),
    ("env", &["name"]),
    ("ports", &["containerPort", "protocol"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ownerReferences", &["uid"]),
];

/// Upstream's types that have one owner as a whole: half of a reference or a selector is none.
const ATOMIC_TYPES: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Upstream's only map in a template that has one owner as a whole.
const ATOMIC_MAP: &str = "nodeSelector";

/// Puts definitions in the place of the references to them; those of atomic types say so.
fn inline(schema: &mut Value, definitions: &Value) {
    match schema {
        Value::Object(object) => {
            let reference = object.remove("$ref");
            if let Some(name) =
                reference.as_ref().and_then(Value::as_str).and_then(|it| it.strip_prefix("#/$defs/"))
            {
                object.extend(
                    definitions[name].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())),
                );
                if ATOMIC_TYPES.contains(&name) {
                    object.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
                }
            }
            object.values_mut().for_each(|value| inline(value, definitions));
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| inline(part, definitions)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Walks `schema`, which stands at the field `field`, and puts in what the derived schema lacks.
fn refine(schema: &mut Value, field: &str) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("description");
    if is_quantity(object, field) {
        *schema = quantity();
        return;
    }
    if object.get("type").is_some_and(|kind| kind == "array" || kind == &json!(["array", "null"])) {
        refine_list(object, field);
    }
    if field == ATOMIC_MAP && object.contains_key("additionalProperties") {
        object.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for (name, property) in properties.iter_mut() {
            refine(property, name);
        }
        add_defaults(object, field);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = object.get_mut(inner) {
            refine(value, field);
        }
    }
    for several in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(parts)) = object.get_mut(several) {
            parts.iter_mut().for_each(|part| refine(part, field));
        }
    }
}

fn refine_list(object: &mut Map<String, Value>, field: &str) {
    let item = object.get("items").and_then(|items| items.get("properties")).and_then(Value::as_object);
    let keys = MAP_LISTS.iter().find(|(name, _)| *name == field).map(|(_, keys)| *keys);
    match (keys, item) {
        // The same field name elsewhere may hold other things: the keys must be there.
        (Some(keys), Some(item)) if keys.iter().all(|key| item.contains_key(*key)) => {
            object.insert("x-kubernetes-list-type".to_owned(), json!("map"));
            object.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
        }
        _ if field == "finalizers" => {
            object.insert("x-kubernetes-list-type".to_owned(), json!("set"));
        }
        _ => {
            object.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
        }
    }
}

/// A key of a merging list must be required or have a default, as upstream has it.
fn add_defaults(object: &mut Map<String, Value>, field: &str) {
    let key_with_default = match field {
        "ports" => Some(("protocol", json!("TCP"))),
        "imagePullSecrets" => Some(("name", json!(""))),
        _ => None,
    };
    let Some((key, default)) = key_with_default else {
        return;
    };
    let property = object.get_mut("properties").and_then(|properties| properties.get_mut(key));
    if let Some(Value::Object(property)) = property {
        property.insert("default".to_owned(), default);
        property.remove("nullable");
    }
}

/// A quantity and a port are written alike; only the field tells them apart.
fn is_quantity(object: &Map<String, Value>, field: &str) -> bool {
    let either = object.get("x-kubernetes-int-or-string") == Some(&json!(true));
    either && ["limits", "requests", "overhead", "sizeLimit", "divisor", "capacity"].contains(&field)
}

fn quantity() -> Value {
    json!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
    })
}

fn require_containers(schema: &mut Value) {
    schema["required"] = json!(["spec"]);
    schema["properties"]["spec"]["properties"]["containers"]["minItems"] = json!(1);
    // The API server keeps only these of a template's metadata.
    let keep = ["annotations", "labels"];
    if let Some(Value::Object(properties)) = schema.pointer_mut("/properties/metadata/properties") {
        properties.retain(|name, _| keep.contains(&name.as_str()));
    }
}
