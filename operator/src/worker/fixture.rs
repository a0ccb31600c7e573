//! Objects for tests.

use super::{access::BrokerSecrets, observe::BoundQueue};
use crate::{broker::SecretKeys, cli::Settings};
use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use longshore_crds::{Queue, Worker};
use longshore_drivers::{QueueName, policy::Via};
use serde_json::{Value, json};
use std::sync::Arc;

/// The uid of the Worker of these tests.
pub(crate) const UID: &str = "8f6b2a0e-0000-4000-8000-000000000001";

/// The Worker `mailer` on the Queue `emails`, with fields of its spec in place of the usual ones.
pub(crate) fn worker(spec: &Value) -> Worker {
    let mut full = json!({
        "queues": [{ "name": "emails" }],
        "handler": { "http": { "port": 8080 } },
        "template": { "spec": { "containers": [{ "name": "app", "image": "shop/mailer:7" }] } },
    });
    for (name, value) in spec.as_object().into_iter().flatten() {
        full[name] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "longshore.dev/v1alpha1",
        "kind": "Worker",
        "metadata": { "name": "mailer", "namespace": "shop", "uid": UID, "generation": 4 },
        "spec": full,
    }))
    .unwrap()
}

/// A Queue on the Broker `default`, bound to a Worker.
pub(super) fn bound(name: &str, weight: u32, policy: &Value) -> BoundQueue {
    let mut spec = json!({ "brokerRef": { "name": "default" } });
    for (field, value) in policy.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    let queue: Queue = serde_json::from_value(json!({
        "apiVersion": "longshore.dev/v1alpha1",
        "kind": "Queue",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": spec,
        "status": { "backendId": "data" },
    }))
    .unwrap();
    BoundQueue {
        name: name.to_owned(),
        weight,
        queue: Arc::new(queue),
        broker: "default".to_owned(),
        secrets: secrets("default"),
        via: Via::Http {
            url: "http://default-broker.shop.svc:7400".to_owned(),
            token_files: ["current", "previous"]
                .map(|key| format!("/etc/longshore/brokers/default/{key}"))
                .to_vec(),
        },
        physical: QueueName::physical("prod", "shop", name).unwrap(),
    }
}

/// The Secrets of an embedded Broker.
pub(super) fn secrets(broker: &str) -> BrokerSecrets {
    let keys = ["current", "previous"].map(str::to_owned).to_vec();
    BrokerSecrets {
        broker: broker.to_owned(),
        credentials: SecretKeys { name: format!("{broker}-broker-token"), keys },
        authority: None,
    }
}

/// The settings of an operator that brings this sidecar.
pub(crate) fn settings(sidecar: &str) -> Settings {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }
    let line = [
        "operator",
        "--installation=prod",
        "--broker-image=longshore/broker:1.2.3",
        "--pod-name=operator-0",
        "--pod-namespace=longshore",
    ];
    let sidecar = format!("--sidecar-image={sidecar}");
    Line::parse_from(line.into_iter().chain([sidecar.as_str()])).settings
}

/// A Deployment as the API server would give back what was applied, with `status`.
pub(super) fn deployment(applied: &Value, status: &Value) -> Deployment {
    let mut object = applied.clone();
    object["metadata"]["uid"] = json!("8f6b2a0e-0000-4000-8000-000000000002");
    object["metadata"]["generation"] = json!(3);
    object["status"] = status.clone();
    serde_json::from_value(object).unwrap()
}
