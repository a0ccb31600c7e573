//! Puts the sidecar into a pod template. Pure: JSON in, JSON out.
//!
//! What is put in is a value of its own, an [`Injection`], which is kept with the Deployment: a newer operator goes on
//! with the one that runs until the Worker's own template changes. So [`Injection::into_template`] has to go on doing with an
//! old one what it did when that was made.

use super::access::BrokerSecrets;
use crate::cli::Settings;
use longshore_crds::{WorkerSpec, label};
use longshore_drivers::policy::Handler;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The sidecar's container.
pub(super) const SIDECAR: &str = "longshore-sidecar";
/// The sidecar's port for the cluster.
pub(super) const ADMIN_PORT: u16 = 7421;
/// The sidecar's port for its pod.
pub(super) const API_PORT: u16 = 7420;
/// Where containers of the pod find the token for the sidecar's API.
pub(super) const TOKEN_DIR: &str = "/var/run/longshore/token";
/// The names of volumes that begin so are ours.
pub(super) const VOLUME_PREFIX: &str = "longshore-";
const STOP_HOOK: &str = "/hooks/app-stop";
const POLICY_VOLUME: &str = "longshore-policy";
const TOKEN_VOLUME: &str = "longshore-token";
/// Seconds that a pod has beyond its drain timeout: for settles, the app's own end and the sidecar's.
const GRACE_BEYOND_DRAIN: i64 = 45;

/// What goes into a template beside what the user wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Injection {
    labels: BTreeMap<String, String>,
    grace_seconds: i64,
    app: AppPart,
    sidecar: Value,
    volumes: Vec<Value>,
}

/// What goes into each container of the app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AppPart {
    env: Vec<Value>,
    volume_mounts: Vec<Value>,
    pre_stop: Value,
}

impl Injection {
    /// What this operator puts into the pods of a Worker. `brokers` are those of its queues, each once.
    pub(super) fn new(
        worker: &str,
        spec: &WorkerSpec,
        settings: &Settings,
        policy: &str,
        brokers: &[BrokerSecrets],
    ) -> Self {
        Self {
            labels: BTreeMap::from([(label::WORKER.to_owned(), worker.to_owned())]),
            grace_seconds: grace_seconds(spec),
            app: AppPart {
                env: vec![
                    json!({ "name": "LONGSHORE_URL", "value": format!("http://127.0.0.1:{API_PORT}") }),
                    json!({ "name": "LONGSHORE_TOKEN_FILE", "value": format!("{TOKEN_DIR}/token") }),
                    json!({ "name": "LONGSHORE_WORKER", "value": worker }),
                ],
                volume_mounts: vec![
                    json!({ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true }),
                ],
                pre_stop: json!({ "httpGet": { "path": STOP_HOOK, "port": ADMIN_PORT, "scheme": "HTTP" } }),
            },
            sidecar: sidecar(spec, settings, brokers),
            volumes: volumes(policy, brokers),
        }
    }

    /// The one that was kept with a Deployment.
    pub(super) fn kept(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The sidecar's image.
    pub(super) fn image(&self) -> &str {
        self.sidecar["image"].as_str().unwrap_or_default()
    }

    /// The Brokers whose Secrets it mounts.
    pub(super) fn brokers(&self) -> Vec<BrokerSecrets> {
        BrokerSecrets::mounted(&self.sidecar, &self.volumes)
    }

    /// The user's template with all of it in.
    pub(super) fn into_template(self, written: &Value) -> Value {
        let mut template = written.clone();
        let labels = object(&mut template, &["metadata", "labels"]);
        labels.extend(self.labels.into_iter().map(|(name, value)| (name, Value::String(value))));
        let pod = object(&mut template, &["spec"]);
        let asked = pod.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
        let grace = asked.unwrap_or(0).max(self.grace_seconds);
        pod.insert("terminationGracePeriodSeconds".to_owned(), json!(grace));
        for container in list(pod, "containers") {
            self.app.put_into(container);
        }
        // The last init container that stays starts right before the app and stops right after it.
        list(pod, "initContainers").push(self.sidecar);
        list(pod, "volumes").extend(self.volumes);
        template
    }
}

impl AppPart {
    fn put_into(&self, container: &mut Value) {
        let lifecycle = object(container, &["lifecycle"]);
        if lifecycle.get("preStop").is_none_or(Value::is_null) {
            lifecycle.insert("preStop".to_owned(), self.pre_stop.clone());
        }
        let container = object(container, &[]);
        let env = list(container, "env");
        for variable in &self.env {
            if !env.iter().any(|taken| taken["name"] == variable["name"]) {
                env.push(variable.clone());
            }
        }
        list(container, "volumeMounts").extend(self.volume_mounts.iter().cloned());
    }
}

/// How long a pod may take to end.
pub(super) fn grace_seconds(spec: &WorkerSpec) -> i64 {
    let drain = spec.drain_timeout.get().as_millis().div_ceil(1000);
    i64::try_from(drain).unwrap_or(i64::MAX / 2) + GRACE_BEYOND_DRAIN
}

/// The sidecar's memory limit: payloads and results in flight, which it bounds at 64 MiB, twice over, and a little for
/// each job. In coarse steps, because another limit is a rollout.
pub(super) fn memory_mib(spec: &WorkerSpec) -> u32 {
    160 + 32 * spec.concurrency.div_ceil(128)
}

/// The sidecar's memory request: what it takes with little to do, and more for many jobs at once. In the steps of the limit.
fn memory_request_mib(spec: &WorkerSpec) -> u32 {
    16 * spec.concurrency.div_ceil(128).max(1)
}

/// How jobs reach the app, as the sidecar is told.
pub(super) fn handler(spec: &WorkerSpec) -> Handler {
    match &spec.handler.http {
        Some(http) => Handler::Http { port: http.port, path: http.path.clone() },
        None => Handler::Pull {},
    }
}

/// What belongs to these pods alone: others of the Worker may be older and have another app, or less time to end.
fn environment(spec: &WorkerSpec) -> Value {
    let drain_timeout = spec.drain_timeout.get().as_millis().to_string();
    // Text made from a struct has its fields in order, whatever is asked of maps.
    let handler = serde_json::to_string(&handler(spec)).unwrap_or_default();
    json!([
        {
            "name": "POD_NAME",
            "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } },
        },
        { "name": "LONGSHORE_HANDLER", "value": handler },
        { "name": "LONGSHORE_DRAIN_TIMEOUT_MS", "value": drain_timeout },
        // Huge pages double what an idle process holds.
        { "name": "MIMALLOC_ALLOW_THP", "value": "0" },
    ])
}

fn sidecar(spec: &WorkerSpec, settings: &Settings, brokers: &[BrokerSecrets]) -> Value {
    let mut mounts = vec![
        json!({ "name": POLICY_VOLUME, "mountPath": "/etc/longshore/policy", "readOnly": true }),
        json!({ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR }),
    ];
    mounts.extend(brokers.iter().flat_map(BrokerSecrets::mounts));
    json!({
        "name": SIDECAR,
        "image": settings.sidecar_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "env": environment(spec),
        "ports": [{ "name": "lsh-admin", "containerPort": ADMIN_PORT, "protocol": "TCP" }],
        "startupProbe": probe("/livez", 1, 60),
        "readinessProbe": probe("/readyz", 2, 3),
        "livenessProbe": probe("/livez", 10, 6),
        "lifecycle": { "preStop": { "exec": { "command": ["/longshore-worker-sidecar", "drain"] } } },
        "resources": {
            "requests": { "cpu": "10m", "memory": format!("{}Mi", memory_request_mib(spec)) },
            "limits": { "memory": format!("{}Mi", memory_mib(spec)) },
        },
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

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": ADMIN_PORT, "scheme": "HTTP" },
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

fn volumes(policy: &str, brokers: &[BrokerSecrets]) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": POLICY_VOLUME, "configMap": { "name": policy } }),
        json!({ "name": TOKEN_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
    ];
    volumes.extend(brokers.iter().flat_map(BrokerSecrets::volumes));
    volumes
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
    let at = path.iter().fold(value, |at, name| {
        if !at.is_object() {
            *at = json!({});
        }
        &mut at[*name]
    });
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
