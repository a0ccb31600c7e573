//! The objects of a Worker. Pure, deterministic.

use super::inject::Injection;
use crate::{apply::owner, error::Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use longshore_crds::{SidecarUpgradePolicy, Worker, WorkerSpec, annotation, label};
use longshore_drivers::policy::WorkerPolicy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The name of the ConfigMap with the policy.
pub(super) fn policy_name(worker: &str) -> String {
    crate::apply::child_name(worker, "-policy", 63)
}

fn metadata(worker: &Worker, name: &str) -> Result<Value> {
    Ok(json!({
        "name": name,
        "namespace": worker.namespace(),
        "labels": { label::MANAGED_BY: label::MANAGED_BY_VALUE, label::WORKER: worker.name_any() },
        "ownerReferences": [owner(worker)?],
    }))
}

/// The ConfigMap with the policy.
pub(super) fn config_map(worker: &Worker, policy: &WorkerPolicy) -> Result<Value> {
    let text = serde_json::to_string(policy)
        .map_err(|source| crate::error::Error::Encode { what: "policy".to_owned(), source })?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(worker, &policy_name(&worker.name_any()))?,
        "data": { "policy.json": text },
    }))
}

/// The hash of everything the user wrote that ends up in pods.
pub(super) fn template_hash(spec: &WorkerSpec, brokers: &[String]) -> String {
    let written = json!({
        "template": spec.template.0,
        "drain": spec.drain_timeout.get().as_millis().to_string(),
        "concurrency": spec.concurrency,
        "brokers": brokers,
    });
    Sha256::digest(written.to_string().as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The pod template to ask for, and the sidecar image in it.
///
/// Pods that run stay as they are until their own template changes, whatever a newer operator would put into them.
pub(super) fn pod_template(
    injection: &Injection<'_>,
    hash: &str,
    live: Option<&Deployment>,
) -> (Value, String) {
    let keep = injection.spec.sidecar_upgrade_policy == SidecarUpgradePolicy::OnTemplateChange;
    let live = live.filter(|live| {
        keep && live.annotations().get(annotation::TEMPLATE_HASH).is_some_and(|old| old == hash)
    });
    let kept = live.and_then(|live| {
        let image = live.annotations().get(annotation::SIDECAR_IMAGE)?.clone();
        let template = serde_json::to_value(&live.spec.as_ref()?.template).ok()?;
        Some((template, image))
    });
    kept.unwrap_or_else(|| (injection.template(), injection.image.to_owned()))
}

/// The Deployment.
pub(super) fn deployment(
    worker: &Worker,
    template: &Value,
    hash: &str,
    image: &str,
    replicas: u32,
) -> Result<Value> {
    let name = worker.name_any();
    let mut metadata = metadata(worker, &name)?;
    metadata["annotations"] = json!({ annotation::TEMPLATE_HASH: hash, annotation::SIDECAR_IMAGE: image });
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": { label::WORKER: name } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": "25%" } },
            "template": template,
        },
    }))
}
