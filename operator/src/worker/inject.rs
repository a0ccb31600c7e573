//! Puts the sidecar into a pod template. Pure: JSON in, JSON out.

use crate::{broker::token_secret_name, cli::Settings};
use longshore_crds::{WorkerSpec, label};
use serde_json::{Map, Value, json};

/// The sidecar's container.
pub(super) const SIDECAR: &str = "longshore-sidecar";
/// The sidecar's port for the cluster.
pub(super) const ADMIN_PORT: u16 = 7421;
const API_URL: &str = "http://127.0.0.1:7420";
const TOKEN_DIR: &str = "/var/run/longshore/token";
const STOP_HOOK: &str = "/hooks/app-stop";
/// Seconds that a pod has beyond its drain timeout: for settles, the app's own end and the sidecar's.
pub(super) const GRACE_BEYOND_DRAIN: i64 = 45;

/// What goes into a template beside what the user wrote.
pub(super) struct Injection<'a> {
    pub(super) worker: &'a str,
    pub(super) spec: &'a WorkerSpec,
    pub(super) settings: &'a Settings,
    pub(super) image: &'a str,
    pub(super) policy: &'a str,
    /// The names of the Brokers of its queues, each once, in order.
    pub(super) brokers: &'a [String],
}

impl Injection<'_> {
    /// The pod template of the Deployment.
    pub(super) fn template(&self) -> Value {
        let mut template = self.spec.template.0.clone();
        let labels = object(&mut template, &["metadata", "labels"]);
        labels.insert(label::WORKER.to_owned(), json!(self.worker));
        labels.insert(label::MANAGED_BY.to_owned(), json!(label::MANAGED_BY_VALUE));
        let pod = object(&mut template, &["spec"]);
        let grace = i64::try_from(self.spec.drain_timeout.get().as_secs()).unwrap_or(0) + GRACE_BEYOND_DRAIN;
        let asked = pod.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        pod.insert("terminationGracePeriodSeconds".to_owned(), json!(asked.max(grace)));
        for container in list(pod, "containers") {
            self.app(container);
        }
        // The last init container that stays starts right before the app and stops right after it.
        list(pod, "initContainers").push(self.sidecar());
        list(pod, "volumes").extend(self.volumes());
        template
    }

    fn app(&self, container: &mut Value) {
        let Some(container) = container.as_object_mut() else {
            return;
        };
        let names: Vec<_> = list(container, "env")
            .iter()
            .filter_map(|item| item["name"].as_str().map(str::to_owned))
            .collect();
        let ours = [
            ("LONGSHORE_URL", API_URL.to_owned()),
            ("LONGSHORE_TOKEN_FILE", format!("{TOKEN_DIR}/token")),
            ("LONGSHORE_WORKER", self.worker.to_owned()),
        ];
        let missing = ours.into_iter().filter(|(name, _)| !names.iter().any(|taken| taken == name));
        list(container, "env").extend(missing.map(|(name, value)| json!({ "name": name, "value": value })));
        list(container, "volumeMounts")
            .push(json!({ "name": "longshore-token", "mountPath": TOKEN_DIR, "readOnly": true }));
        let mut holder = Value::Object(std::mem::take(container));
        let lifecycle = object(&mut holder, &["lifecycle"]);
        if !lifecycle.contains_key("preStop") {
            lifecycle.insert(
                "preStop".to_owned(),
                json!({ "httpGet": { "path": STOP_HOOK, "port": ADMIN_PORT, "scheme": "HTTP" } }),
            );
        }
        if let Value::Object(changed) = holder {
            *container = changed;
        }
    }

    fn sidecar(&self) -> Value {
        let probe = |path: &str, period: u32, failures: u32| json!({ "httpGet": { "path": path, "port": ADMIN_PORT, "scheme": "HTTP" }, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures });
        let mut mounts = vec![
            json!({ "name": "longshore-policy", "mountPath": "/etc/longshore/policy", "readOnly": true }),
            json!({ "name": "longshore-token", "mountPath": TOKEN_DIR }),
        ];
        mounts.extend(self.brokers.iter().map(
            |broker| json!({ "name": volume_of(broker), "mountPath": token_dir(broker), "readOnly": true }),
        ));
        json!({
            "name": SIDECAR,
            "image": self.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "restartPolicy": "Always",
            "env": [{ "name": "MIMALLOC_ALLOW_THP", "value": "0" }, { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } }],
            "ports": [{ "name": "lsh-admin", "containerPort": ADMIN_PORT, "protocol": "TCP" }],
            "startupProbe": probe("/livez", 1, 60),
            "readinessProbe": probe("/readyz", 2, 3),
            "livenessProbe": probe("/livez", 10, 6),
            "lifecycle": { "preStop": { "exec": { "command": ["/longshore-worker-sidecar", "drain"] } } },
            "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": self.memory() } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "capabilities": { "drop": ["ALL"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "volumeMounts": mounts,
        })
    }

    /// Room for payloads and results in flight, which the sidecar bounds at 64 MiB, and a little for each job.
    fn memory(&self) -> String {
        format!("{}Mi", 160 + self.spec.concurrency / 8)
    }

    fn volumes(&self) -> Vec<Value> {
        let mut volumes = vec![
            json!({ "name": "longshore-policy", "configMap": { "name": self.policy } }),
            json!({ "name": "longshore-token", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
        ];
        volumes.extend(self.brokers.iter().map(|broker| {
            let items = json!([{ "key": "current", "path": "current" }]);
            json!({ "name": volume_of(broker), "secret": { "secretName": token_secret_name(broker), "items": items, "defaultMode": 0o444 } })
        }));
        volumes
    }
}

/// The folder with a broker's token, in the sidecar.
pub(super) fn token_dir(broker: &str) -> String {
    format!("/etc/longshore/brokers/{broker}")
}

fn volume_of(broker: &str) -> String {
    crate::apply::child_name(broker, "-lsh-broker", 63)
}

/// Names that the injection uses; the template may not.
pub(super) fn is_reserved_volume(name: &str) -> bool {
    matches!(name, "longshore-policy" | "longshore-token") || name.ends_with("-lsh-broker")
}

/// App containers that bring a preStop hook of their own.
pub(super) fn own_hooks(template: &Value) -> Vec<&str> {
    let containers = template.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let hooked = containers
        .filter(|container| container.pointer("/lifecycle/preStop").is_some_and(|hook| !hook.is_null()));
    hooked.filter_map(|container| container["name"].as_str()).collect()
}

/// The object at `path`, made where it is missing.
fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*name];
    }
    if !at.is_object() {
        *at = json!({});
    }
    at.as_object_mut().expect("it was made an object right above")
}

/// The list in the field `name`, made where it is missing.
fn list<'a>(object: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    let value = object.entry(name).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it was made a list right above")
}
