//! What must hold for the definitions as a whole, whatever stands in them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use longshore_crds::{
    BrokerSpec, Duration, GROUP, QueueSpec, VERSION, WorkerSpec, WorkflowSpec, definitions, yaml,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::{fs, path::Path, sync::LazyLock};

/// Above this, `kubectl apply` can't note the definition in an annotation (256 KiB).
const MAX_BYTES: usize = 200 * 1024;

/// The schema of each kind, with its name.
static SCHEMAS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let schema = |definition: CustomResourceDefinition| {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema);
        let schema = schema.expect("a schema can be written as JSON")["openAPIV3Schema"].take();
        (definition.spec.names.kind, schema)
    };
    definitions().into_iter().map(schema).collect()
});

fn schema_of(kind: &str) -> &'static Value {
    let found = SCHEMAS.iter().find(|(name, _)| name == kind);
    &found.expect("the kind exists").1["properties"]["spec"]
}

/// Every schema inside of `schema` and itself, with the path that leads there.
fn walk<'a>(schema: &'a Value, path: &str, visit: &mut impl FnMut(&str, &'a Map<String, Value>)) {
    let Some(object) = schema.as_object() else { return };
    visit(path, object);
    for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    for (inner, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(value) = object.get(inner) {
            walk(value, &format!("{path}{mark}"), visit);
        }
    }
}

/// The paths, in all kinds, at which `wrong` holds.
fn everywhere(mut wrong: impl FnMut(&str, &Map<String, Value>) -> bool) -> Vec<String> {
    let mut paths = Vec::new();
    for (kind, schema) in SCHEMAS.iter() {
        walk(schema, kind, &mut |path, object| {
            if wrong(path, object) {
                paths.push(path.to_owned());
            }
        });
    }
    paths
}

const NOWHERE: [&str; 0] = [];

#[test]
fn the_files_in_the_chart_are_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/longshore/definitions");
    let mut wanted = Vec::new();
    for definition in definitions() {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let text = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(text == yaml(&definition), "{name} is not what crds/src says: run `make crds`");
        wanted.push(name);
    }
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    wanted.sort();
    assert_eq!(files, wanted, "a file without a type would be installed too");
}

#[test]
fn group_and_version_are_those_of_the_constants() {
    for definition in definitions() {
        assert_eq!(definition.spec.group, GROUP);
        assert_eq!(definition.spec.versions.len(), 1);
        assert_eq!(definition.spec.versions[0].name, VERSION);
        assert_eq!(definition.spec.scope, "Namespaced");
        assert_eq!(definition.spec.names.categories.as_deref(), Some(&["longshore".to_owned()][..]));
        let status =
            definition.spec.versions[0].subresources.as_ref().and_then(|these| these.status.as_ref());
        assert!(status.is_some(), "{} has no status subresource", definition.spec.names.kind);
    }
}

#[test]
fn definitions_are_small_enough_for_client_side_apply() {
    for definition in definitions() {
        let bytes = serde_json::to_vec(&definition).unwrap().len();
        assert!(bytes < MAX_BYTES, "{} has {bytes} bytes", definition.spec.names.kind);
    }
}

#[test]
fn every_list_says_how_it_merges() {
    let mut lists = 0;
    let paths = everywhere(|_, object| {
        let is_list = object.get("type") == Some(&json!("array"));
        lists += usize::from(is_list);
        is_list && !object.contains_key("x-kubernetes-list-type")
    });
    assert_eq!(paths, NOWHERE);
    assert!(lists > 100, "only {lists} lists were found");
}

#[test]
fn keys_of_merging_lists_are_required_or_have_a_default() {
    let paths = everywhere(|_, object| {
        let keys = object.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str).any(|key| {
            let item = &object["items"];
            let required = item["required"].as_array().is_some_and(|all| all.contains(&json!(key)));
            let default = item["properties"][key].get("default").is_some();
            !required && !default
        })
    });
    assert_eq!(paths, NOWHERE);
}

#[test]
fn templates_merge_like_those_of_deployments() {
    let (mut lists, pod) = (Vec::new(), &schema_of("Worker")["properties"]["template"]);
    walk(pod, "", &mut |path, object| {
        if let Some(keys) = object.get("x-kubernetes-list-map-keys") {
            lists.push(format!("{path} {keys}"));
        }
    });
    for wanted in [
        r#".spec.containers ["name"]"#,
        r#".spec.containers[].env ["name"]"#,
        r#".spec.containers[].ports ["containerPort","protocol"]"#,
        r#".spec.containers[].volumeMounts ["mountPath"]"#,
        r#".spec.initContainers ["name"]"#,
        r#".spec.volumes ["name"]"#,
        r#".spec.imagePullSecrets ["name"]"#,
        r#".spec.topologySpreadConstraints ["topologyKey","whenUnsatisfiable"]"#,
    ] {
        assert!(lists.iter().any(|list| list == wanted), "{wanted} is not among {lists:#?}");
    }
}

#[test]
fn templates_carry_no_descriptions_and_everything_else_does() {
    let in_template = |path: &str| path.starts_with("Worker.spec.template.");
    assert_eq!(everywhere(|path, object| in_template(path) && object.contains_key("description")), NOWHERE);
    let paths = everywhere(|path, object| {
        let own = path.contains(".spec") || path.contains(".status");
        // Elements of lists are described where their type is; texts and numbers in lists have nothing to say.
        own && !in_template(path) && !path.ends_with("[]") && !object.contains_key("description")
    });
    assert_eq!(paths, NOWHERE);
}

#[test]
fn quantities_are_checked() {
    let paths = everywhere(|path, object| {
        let quantity = [".limits{}", ".requests{}", ".sizeLimit", ".divisor", ".overhead{}"];
        quantity.iter().any(|field| path.ends_with(field))
            && !(object.contains_key("pattern") && object.contains_key("x-kubernetes-int-or-string"))
    });
    assert_eq!(paths, NOWHERE);
}

#[test]
fn nothing_keeps_a_null() {
    assert_eq!(everywhere(|_, object| object.contains_key("nullable")), NOWHERE);
}

#[test]
fn there_are_no_floats() {
    assert_eq!(everywhere(|_, object| object.get("type") == Some(&json!("number"))), NOWHERE);
}

#[test]
fn enum_values_are_written_in_camel_case() {
    let paths = everywhere(|path, object| {
        let values = object.get("enum").and_then(Value::as_array);
        let camel = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_uppercase()) && !text.contains(['-', '_'])
        };
        let wrong = values.into_iter().flatten().any(|value| !value.as_str().is_some_and(camel));
        wrong && !path.contains(".template.")
    });
    assert_eq!(paths, NOWHERE);
}

#[test]
fn durations_share_one_pattern() {
    let mut durations = 0;
    let paths = everywhere(|_, object| {
        let pattern = object.get("pattern").and_then(Value::as_str).unwrap_or_default();
        let rules = object.get("x-kubernetes-validations").and_then(Value::as_array);
        let counts_time = rules
            .into_iter()
            .flatten()
            .any(|rule| rule["rule"].as_str().is_some_and(|rule| rule.contains("duration(self)")));
        let is_duration = counts_time || pattern.contains("ms|");
        durations += usize::from(is_duration);
        is_duration && (pattern != Duration::PATTERN || object.get("maxLength") != Some(&json!(24)))
    });
    assert_eq!(paths, NOWHERE);
    assert!(durations > 10, "only {durations} durations were found");
}

#[test]
fn every_rule_explains_itself() {
    let paths = everywhere(|_, object| {
        let rules = object.get("x-kubernetes-validations").and_then(Value::as_array);
        rules.into_iter().flatten().any(|rule| rule["message"].as_str().is_none_or(str::is_empty))
    });
    assert_eq!(paths, NOWHERE);
}

/// What the API server makes of `value`: defaults put in from the outside to the inside.
fn with_defaults(schema: &Value, value: &mut Value) {
    if let (Some(properties), Some(fields)) = (schema["properties"].as_object(), value.as_object_mut()) {
        for (name, property) in properties {
            if let (false, Some(default)) = (fields.contains_key(name), property.get("default")) {
                fields.insert(name.clone(), default.clone());
            }
            if let Some(field) = fields.get_mut(name) {
                with_defaults(property, field);
            }
        }
    }
    if let (Some(items), Some(elements)) = (schema.get("items"), value.as_array_mut()) {
        elements.iter_mut().for_each(|element| with_defaults(items, element));
    }
}

/// The schema and serde must fill in the same: the operator reads objects that were stored before a default existed, and
/// tests make specs without an API server.
fn defaults_agree<T: Serialize + DeserializeOwned>(kind: &str, least: &Value) {
    let read = |value: &Value| -> Value {
        let spec: T = serde_json::from_value(value.clone()).expect("the spec can be read");
        serde_json::to_value(spec).expect("the spec can be written")
    };
    let mut filled = least.clone();
    with_defaults(schema_of(kind), &mut filled);
    assert_eq!(read(least), read(&filled), "{kind}: serde and the schema fill in different defaults");
    assert_eq!(read(least), filled, "{kind}: serde fills in what the schema doesn't, or the reverse");
}

#[test]
fn defaults_are_what_the_types_say() {
    let pods = json!({ "spec": { "containers": [{ "name": "app" }] } });
    defaults_agree::<BrokerSpec>("Broker", &json!({ "embedded": {} }));
    defaults_agree::<BrokerSpec>("Broker", &json!({ "embedded": { "storage": {} } }));
    for server in ["redis", "postgres"] {
        let least = json!({ server: { "urlFrom": { "name": "a", "key": "url" } } });
        defaults_agree::<BrokerSpec>("Broker", &least);
    }
    defaults_agree::<QueueSpec>("Queue", &json!({ "brokerRef": { "name": "a" } }));
    for inner in [
        json!({ "retry": {} }),
        json!({ "retry": { "backoff": {} } }),
        json!({ "retry": { "backoff": { "initial": "2s" } } }),
        json!({ "retention": {} }),
    ] {
        let mut spec = json!({ "brokerRef": { "name": "a" } });
        spec.as_object_mut().unwrap().extend(inner.as_object().unwrap().clone());
        defaults_agree::<QueueSpec>("Queue", &spec);
    }
    for scaling in [json!({}), json!({ "scaling": {} }), json!({ "scaling": { "maxReplicas": 2 } })] {
        let mut spec =
            json!({ "queues": [{ "name": "a" }], "handler": { "http": { "port": 1 } }, "template": pods });
        spec.as_object_mut().unwrap().extend(scaling.as_object().unwrap().clone());
        defaults_agree::<WorkerSpec>("Worker", &spec);
    }
    let steps = json!([{ "name": "a", "job": { "type": "a" } }, { "name": "b", "batch": { "jobs": [{ "type": "a" }] } }]);
    defaults_agree::<WorkflowSpec>("Workflow", &json!({ "queueRef": { "name": "a" }, "steps": steps }));
}

#[test]
fn defaults_satisfy_their_own_schema() {
    let paths = everywhere(|_, object| {
        let Some(default) = object.get("default") else {
            return false;
        };
        let allowed =
            object.get("enum").and_then(Value::as_array).is_none_or(|values| values.contains(default));
        let number = default.as_f64();
        let bound = |name: &str| object.get(name).and_then(Value::as_f64);
        let fits = number.is_none_or(|number| {
            bound("minimum").is_none_or(|least| number >= least)
                && bound("maximum").is_none_or(|most| number <= most)
        });
        let right_type = match object.get("type").and_then(Value::as_str) {
            Some("string") => default.is_string(),
            Some("integer") => default.is_i64() || default.is_u64(),
            Some("boolean") => default.is_boolean(),
            Some("object") => default.is_object(),
            Some("array") => default.is_array(),
            _ => false,
        };
        !(allowed && fits && right_type)
    });
    assert_eq!(paths, NOWHERE);
}

#[test]
fn references_and_selectors_have_one_owner_like_in_deployments() {
    let (mut atomic, pod) = (Vec::new(), &schema_of("Worker")["properties"]["template"]);
    walk(pod, "", &mut |path, object| {
        if object.get("x-kubernetes-map-type") == Some(&json!("atomic")) {
            atomic.push(path.to_owned());
        }
    });
    let env = ".spec.containers[].env[].valueFrom";
    let affinity = ".spec.affinity.nodeAffinity";
    for wanted in [
        ".spec.nodeSelector".to_owned(),
        ".spec.imagePullSecrets[]".to_owned(),
        ".spec.topologySpreadConstraints[].labelSelector".to_owned(),
        ".spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[].namespaceSelector"
            .to_owned(),
        format!("{affinity}.requiredDuringSchedulingIgnoredDuringExecution"),
        format!("{affinity}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[]"),
        format!("{affinity}.preferredDuringSchedulingIgnoredDuringExecution[].preference"),
        format!("{env}.configMapKeyRef"),
        format!("{env}.secretKeyRef"),
        format!("{env}.fieldRef"),
        format!("{env}.resourceFieldRef"),
        ".spec.volumes[].csi.nodePublishSecretRef".to_owned(),
        ".spec.volumes[].downwardAPI.items[].fieldRef".to_owned(),
        ".spec.volumes[].ephemeral.volumeClaimTemplate.spec.dataSource".to_owned(),
        ".spec.volumes[].ephemeral.volumeClaimTemplate.spec.selector".to_owned(),
        ".spec.volumes[].projected.sources[].clusterTrustBundle.labelSelector".to_owned(),
    ] {
        assert!(atomic.contains(&wanted), "{wanted} is not among {atomic:#?}");
    }
    for granular in [".spec.containers[].resources.limits", ".spec.securityContext", ".metadata.labels"] {
        assert!(!atomic.iter().any(|path| path == granular), "{granular} has to merge");
    }
}

/// What the API server notes of the owners of fields is as deep as the fields are, and it is parsed with every list.
#[test]
fn what_may_be_of_any_depth_has_one_owner() {
    fn open(schema: &Value, path: &str, owned: bool, found: &mut Vec<(String, bool)>) {
        let is = |name: &str, value: Value| schema.get(name) == Some(&value);
        let owned = owned
            || is("x-kubernetes-map-type", json!("atomic"))
            || is("x-kubernetes-list-type", json!("atomic"));
        if is("x-kubernetes-preserve-unknown-fields", json!(true)) {
            found.push((path.to_owned(), owned));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            open(property, &format!("{path}.{name}"), owned, found);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(value) = schema.get(inner) {
                open(value, &format!("{path}[]"), owned, found);
            }
        }
    }
    let mut found = Vec::new();
    for (kind, schema) in SCHEMAS.iter() {
        open(schema, kind, false, &mut found);
    }
    let shared: Vec<_> = found.iter().filter(|(_, owned)| !owned).collect();
    assert!(shared.is_empty(), "{shared:?}");
    assert!(found.iter().any(|(path, _)| path == "Workflow.spec.then.job.payload"), "{found:?}");
    assert!(
        !found.iter().any(|(path, _)| path.starts_with("Worker.")),
        "a template's depth is bounded: {found:?}"
    );
}
