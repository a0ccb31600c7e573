//! `docs/openapi.yaml` and the routes say the same.

use longshore_drivers::http::server::{ROUTES, Verb};
use serde_json::Value;
use std::collections::BTreeSet;

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

pub(crate) fn description() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.yaml");
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn operations(description: &Value) -> Vec<(String, String, &Value)> {
    let paths = description["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap().iter();
        item.filter(|(method, _)| METHODS.contains(&method.as_str()))
            .map(|(method, operation)| (method.clone(), path.clone(), operation))
    });
    operations.collect()
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let method = |verb| match verb {
        Verb::Get => "get",
        Verb::Put => "put",
        Verb::Post => "post",
        Verb::Delete => "delete",
    };
    let mut routes: BTreeSet<_> =
        ROUTES.iter().map(|route| (method(route.verb).to_owned(), route.path.to_owned())).collect();
    assert_eq!(routes.len(), ROUTES.len(), "a route stands twice");
    for health in ["/healthz", "/readyz"] {
        routes.insert(("get".to_owned(), health.to_owned()));
    }
    let description = description();
    // What a sidecar serves beside these routes is compared with its own.
    let shared = |operation: &Value| operation["tags"] != serde_json::json!(["sidecar"]);
    let described: BTreeSet<_> = operations(&description)
        .into_iter()
        .filter(|(_, _, operation)| shared(operation))
        .map(|(method, path, _)| (method, path))
        .collect();
    assert_eq!(described, routes);
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, root: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(root.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(fields) => fields.values().for_each(|value| walk(value, root)),
            Value::Array(items) => items.iter().for_each(|value| walk(value, root)),
            _ => {}
        }
    }
    let description = description();
    walk(&description, &description);
    let mut names = BTreeSet::new();
    for (method, path, operation) in operations(&description) {
        let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
        assert!(names.insert(name.to_owned()), "{name} stands twice");
    }
}
