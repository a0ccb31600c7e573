//! The objects of an embedded broker: pure, deterministic.

use crate::{
    apply::{child_name, owner},
    cli::Settings,
    error::Result,
};
use kube::ResourceExt;
use longshore_crds::{Broker, EmbeddedBroker, SecretKey, label};
use serde::Serialize;
use serde_json::{Value, json};

const PORT: u16 = 7400;
/// The key of the token to use, in the Secret that is made here.
pub(super) const CURRENT: &str = "current";
/// The key of the token before it.
pub(super) const PREVIOUS: &str = "previous";
/// The key of the token that is to come: the broker takes it already, nobody else looks there.
pub(super) const NEXT: &str = "next";

/// The name of the StatefulSet and the Service. Its pods carry a label made of it and eleven more characters.
pub(super) fn name(broker: &Broker) -> String {
    child_name(&broker.name_any(), "-broker", 52)
}

/// The Secret with the tokens `current` and `previous` of an embedded broker.
pub(super) fn token_secret_name(broker: &str) -> String {
    child_name(broker, "-broker-token", 63)
}

/// Keys of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SecretKeys {
    /// The Secret.
    pub(crate) name: String,
    /// The keys in it, the one to try first at the front.
    pub(crate) keys: Vec<String>,
}

impl SecretKeys {
    fn one(from: &SecretKey) -> Self {
        Self { name: from.name.clone(), keys: vec![from.key.clone()] }
    }
}

/// Where tokens or a URL with a password are that let one in, whatever the backend.
pub(crate) fn credentials_of(broker: &Broker) -> SecretKeys {
    let spec = &broker.spec;
    let http = spec.http.as_ref().map(|http| &http.token_from);
    let redis = spec.redis.as_ref().map(|redis| &redis.url_from);
    let postgres = spec.postgres.as_ref().map(|postgres| &postgres.url_from);
    http.or(redis).or(postgres).map_or_else(
        || SecretKeys {
            name: token_secret_name(&broker.name_any()),
            keys: [CURRENT, PREVIOUS].map(str::to_owned).to_vec(),
        },
        SecretKeys::one,
    )
}

/// Where the certificates are that may have signed the server's, if the Broker names any.
pub(crate) fn authority_of(broker: &Broker) -> Option<SecretKeys> {
    let redis = broker.spec.redis.as_ref().and_then(|redis| redis.tls.as_ref());
    let postgres = broker.spec.postgres.as_ref().and_then(|postgres| postgres.tls.as_ref());
    redis.or(postgres).map(|tls| SecretKeys::one(&tls.ca_from))
}

/// The base URL of the broker's HTTP API, if it has one.
pub(super) fn url(broker: &Broker) -> Option<String> {
    let namespace = || broker.namespace().unwrap_or_default();
    match (&broker.spec.http, &broker.spec.embedded) {
        (Some(http), _) => Some(http.url.clone()),
        (None, Some(_)) => Some(format!("http://{}.{}.svc:{PORT}", name(broker), namespace())),
        (None, None) => None,
    }
}

fn labels(broker: &Broker) -> Value {
    json!({
        label::MANAGED_BY: label::MANAGED_BY_VALUE,
        "app.kubernetes.io/name": "longshore-broker",
        label::BROKER: broker.name_any(),
    })
}

fn selector(broker: &Broker) -> Value {
    json!({ "app.kubernetes.io/name": "longshore-broker", label::BROKER: broker.name_any() })
}

/// The Service of the broker's API.
pub(super) fn service(broker: &Broker) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name(broker),
            "namespace": broker.namespace(),
            "labels": labels(broker),
            "ownerReferences": [owner(broker)?],
        },
        "spec": {
            "selector": selector(broker),
            "ports": [{ "name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP" }],
        },
    }))
}

/// The StatefulSet with the one pod that owns the file.
pub(super) fn stateful_set(broker: &Broker, embedded: &EmbeddedBroker, settings: &Settings) -> Result<Value> {
    let mut spec = json!({
        "serviceName": name(broker),
        "replicas": 1,
        // The jobs outlive the Broker: deleting its claim is somebody's own decision.
        "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
        "selector": { "matchLabels": selector(broker) },
        "template": {
            "metadata": { "labels": labels(broker) },
            "spec": pod(broker, embedded, settings),
        },
    });
    if !embedded.ephemeral {
        spec["volumeClaimTemplates"] = json!([claim(embedded)]);
    }
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": name(broker),
            "namespace": broker.namespace(),
            "labels": labels(broker),
            "ownerReferences": [owner(broker)?],
        },
        "spec": spec,
    }))
}

fn claim(embedded: &EmbeddedBroker) -> Value {
    let storage = embedded.storage.clone().unwrap_or_default();
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": storage.size } },
    });
    if let Some(class) = storage.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    json!({ "metadata": { "name": "data" }, "spec": spec })
}

fn pod(broker: &Broker, embedded: &EmbeddedBroker, settings: &Settings) -> Value {
    let mut volumes = vec![json!({
        "name": "token",
        "secret": { "secretName": token_secret_name(&broker.name_any()), "defaultMode": 0o440 },
    })];
    if embedded.ephemeral {
        volumes.push(json!({ "name": "data", "emptyDir": {} }));
    }
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(settings)],
        "volumes": volumes,
    })
}

fn container(settings: &Settings) -> Value {
    let tokens = "/var/run/longshore/token";
    json!({
        "name": "broker",
        "image": settings.broker_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": [
            "--data-dir=/data",
            format!("--listen=0.0.0.0:{PORT}"),
            // All that are there.
            format!("--token-file={tokens}"),
        ],
        // Huge pages double what an idle process holds.
        "env": [{ "name": "MIMALLOC_ALLOW_THP", "value": "0" }],
        "ports": [{ "name": "http", "containerPort": PORT, "protocol": "TCP" }],
        "readinessProbe": {
            "httpGet": { "path": "/readyz", "port": "http" },
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": { "path": "/healthz", "port": "http" },
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "data", "mountPath": "/data" },
            { "name": "token", "mountPath": tokens, "readOnly": true },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_outlive_their_broker() {
        let mut broker = Broker::new("default", longshore_crds::BrokerSpec::embedded());
        broker.metadata.uid = Some("1".to_owned());
        let embedded = broker.spec.embedded.clone().unwrap();
        let settings = crate::worker::fixture::settings("sidecar");
        let set = stateful_set(&broker, &embedded, &settings).unwrap();
        let kept = json!({ "whenDeleted": "Retain", "whenScaled": "Retain" });
        assert_eq!(set["spec"]["persistentVolumeClaimRetentionPolicy"], kept);
    }
}
