//! Manifests that scenarios share, as a user would write them.

use serde_json::{Value, json};

const HANDLER: &str = include_str!("../handlers/handler.py");
const LEDGER: &str = include_str!("../handlers/ledger.py");
/// Any Python; on the local cluster an image made of Debian packages stands behind this name.
const PYTHON: &str = "docker.io/library/python:3-slim";

/// Several objects as one manifest.
pub fn list(items: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// The scripts, and the ledger with its Service.
pub fn ledger() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "handlers" },
            "data": { "handler.py": HANDLER, "ledger.py": LEDGER },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "ledger" },
            "spec": { "selector": { "app": "ledger" }, "ports": [{ "port": 8080 }] },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "ledger", "labels": { "app": "ledger" } },
            "spec": {
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "ledger",
                    "image": PYTHON,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-u", "/handlers/ledger.py"],
                    "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                    "securityContext": restricted(),
                    "volumeMounts": [{ "name": "handlers", "mountPath": "/handlers" }],
                }],
                "volumes": [{ "name": "handlers", "configMap": { "name": "handlers" } }],
            },
        }),
    ]
}

/// A Broker on a volume.
pub fn broker(name: &str) -> Value {
    json!({ "apiVersion": "longshore.dev/v1alpha1", "kind": "Broker", "metadata": { "name": name }, "spec": { "embedded": {} } })
}

/// A Queue on the Broker `default`, with `policy` over short defaults.
pub fn queue(name: &str, policy: &Value) -> Value {
    let mut spec = json!({
        "brokerRef": { "name": "default" },
        "lease": "10s",
        "retry": { "maxAttempts": 3, "backoff": { "initial": "1s", "multiplier": 2, "jitterPercent": 0 } },
    });
    merge(&mut spec, policy);
    json!({ "apiVersion": "longshore.dev/v1alpha1", "kind": "Queue", "metadata": { "name": name }, "spec": spec })
}

/// A Worker on the Queue of its name, with `overrides` over small defaults.
pub fn worker(name: &str, overrides: &Value) -> Value {
    let mut spec = json!({
        "queues": [{ "name": name }],
        "concurrency": 10,
        "handler": { "http": { "port": 8080, "path": "/jobs" } },
        "scaling": { "minReplicas": 0, "maxReplicas": 3, "targetDrainTime": "5s", "idleTimeout": "10s" },
        "drainTimeout": "30s",
        "template": {
            "metadata": { "labels": { "app": "handler" } },
            "spec": {
                "enableServiceLinks": false,
                "containers": [{
                    "name": "app",
                    "image": PYTHON,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-u", "/handlers/handler.py"],
                    "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                    "securityContext": restricted(),
                    "volumeMounts": [{ "name": "handlers", "mountPath": "/handlers" }],
                }],
                "volumes": [{ "name": "handlers", "configMap": { "name": "handlers" } }],
            },
        },
    });
    merge(&mut spec, overrides);
    json!({ "apiVersion": "longshore.dev/v1alpha1", "kind": "Worker", "metadata": { "name": name }, "spec": spec })
}

/// A Workflow on the Queue `queue`.
pub fn workflow(name: &str, queue: &str, spec: &Value) -> Value {
    let mut full = json!({ "queueRef": { "name": queue } });
    merge(&mut full, spec);
    json!({ "apiVersion": "longshore.dev/v1alpha1", "kind": "Workflow", "metadata": { "name": name }, "spec": full })
}

/// Puts `over` over `base`, objects field by field.
pub fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}
