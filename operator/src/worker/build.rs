//! The objects of a Worker. Pure, deterministic.

use super::{
    access::BrokerSecrets,
    inject::{Injection, grace_seconds, handler, memory_mib},
};
use crate::{
    apply::{child_name, owner},
    cli::Settings,
    error::{Error, Result},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::ResourceExt;
use longshore_crds::{SidecarUpgradePolicy, Worker, WorkerSpec, annotation, label};
use longshore_drivers::policy::WorkerPolicy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// On the Deployment: what was put into the pod template beside what the user wrote.
const INJECTION: &str = "longshore.dev/injection";

/// The file with the policy.
const POLICY: &str = "policy.json";

/// The name of the ConfigMap with the policy.
pub(super) fn policy_name(worker: &str) -> String {
    child_name(worker, "-policy", 63)
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
    let text = serde_json::to_string(policy).map_err(|source| encode("the policy", source))?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(worker, &policy_name(&worker.name_any()))?,
        "data": { POLICY: text },
    }))
}

/// The policy in a ConfigMap that was made here.
pub(super) fn policy_in(there: &ConfigMap) -> Option<WorkerPolicy> {
    serde_json::from_str(there.data.as_ref()?.get(POLICY)?).ok()
}

fn encode(what: &str, source: serde_json::Error) -> Error {
    Error::Encode { what: what.to_owned(), source }
}

/// The hash of everything the user wrote that ends up in pods: another one is a rollout.
///
/// What stands in the policy (queues, weights, concurrency) is not in it, and neither is what the operator adds:
/// a newer operator has to come to the same hash, or all Workers would be rolled at once.
pub(super) fn template_hash(spec: &WorkerSpec, brokers: &[BrokerSecrets]) -> String {
    let written = json!({
        "template": spec.template.0,
        "grace": grace_seconds(spec),
        "handler": handler(spec),
        "memory": memory_mib(spec),
        "brokers": brokers,
    });
    let mut text = String::new();
    canonical(&written, &mut text);
    digest(&text)
}

/// The hash of one revision of the pods: what the user wrote, and the sidecar beside it.
pub(super) fn revision(hash: &str, image: &str) -> String {
    digest(&format!("{hash} {image}"))
}

fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// JSON with sorted keys. Whether maps are sorted anyway depends on what other crates ask of `serde_json`.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.keys().collect();
            names.sort_unstable();
            text.push('{');
            for name in names {
                // Writing into a String can't fail.
                let _ = write!(text, "{name:?}:");
                canonical(&fields[name], text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(text, "{value}");
        }
    }
}

/// The pods that are asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pods {
    template: Value,
    /// What the user wrote, as a hash.
    pub(super) hash: String,
    /// The sidecar's image.
    pub(super) image: String,
    /// What was added, as text.
    injection: String,
}

impl Pods {
    /// The pods of `worker`.
    ///
    /// Pods that run keep all that was added to them until their own template changes, whatever a newer operator would
    /// add. What the user wrote is always put in anew, so that a change of the Deployment by hand doesn't last.
    pub(super) fn of(
        worker: &Worker,
        settings: &Settings,
        brokers: &[BrokerSecrets],
        live: Option<&Deployment>,
    ) -> Result<Self> {
        let spec = &worker.spec;
        let hash = template_hash(spec, brokers);
        let keep = spec.sidecar_upgrade_policy == SidecarUpgradePolicy::OnTemplateChange;
        let annotations = live.filter(|_| keep).map(ResourceExt::annotations);
        let injection = annotations
            .filter(|found| found.get(annotation::TEMPLATE_HASH) == Some(&hash))
            .and_then(|found| Injection::kept(found.get(INJECTION)?))
            .unwrap_or_else(|| {
                let name = worker.name_any();
                Injection::new(&name, spec, settings, &policy_name(&name), brokers)
            });
        let text = serde_json::to_string(&injection).map_err(|source| encode("the injection", source))?;
        Ok(Self {
            hash,
            image: injection.image().to_owned(),
            injection: text,
            template: injection.into_template(&spec.template.0),
        })
    }

    /// The pods as they are: for a Worker whose new template is refused.
    pub(super) fn as_they_are(live: &Deployment) -> Result<Self> {
        let note = |name: &str| live.annotations().get(name).cloned().unwrap_or_default();
        let template = live.spec.as_ref().map(|spec| &spec.template);
        Ok(Self {
            template: serde_json::to_value(template).map_err(|source| encode("the pod template", source))?,
            hash: note(annotation::TEMPLATE_HASH),
            image: note(annotation::SIDECAR_IMAGE),
            injection: note(INJECTION),
        })
    }

    /// The revision that these pods are of.
    pub(super) fn revision(&self) -> String {
        revision(&self.hash, &self.image)
    }
}

/// The Brokers whose Secrets the pods of `live` have.
pub(super) fn brokers_of(live: &Deployment) -> Vec<BrokerSecrets> {
    let injection = live.annotations().get(INJECTION).and_then(|text| Injection::kept(text));
    injection.map(|injection| injection.brokers()).unwrap_or_default()
}

/// The revision that `live` asks for.
pub(super) fn revision_of(live: &Deployment) -> String {
    let note = |name: &str| live.annotations().get(name).map_or("", String::as_str);
    revision(note(annotation::TEMPLATE_HASH), note(annotation::SIDECAR_IMAGE))
}

/// The Deployment.
pub(super) fn deployment(worker: &Worker, pods: &Pods, replicas: u32) -> Result<Value> {
    let name = worker.name_any();
    let mut metadata = metadata(worker, &name)?;
    metadata["annotations"] = json!({
        annotation::TEMPLATE_HASH: pods.hash,
        annotation::SIDECAR_IMAGE: pods.image,
        INJECTION: pods.injection,
    });
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": { label::WORKER: name } },
            // A rollout takes away no pod before another one is ready.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxUnavailable": 0, "maxSurge": "25%" },
            },
            "template": pods.template,
        },
    }))
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
